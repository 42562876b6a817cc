"""Two processes on one machine, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.outputs import read_record
from ddpm.training import checkpoint

pytestmark = pytest.mark.slow  # each start of two processes takes ten seconds and more

OPTIONS = (
    "model.dim=8",
    "sampler.steps=2",
    "trainer.batch_size=8",
    "trainer.accumulate=2",
    "trainer.lr_warmup=0",
    "trainer.log_every=1",
    "trainer.preview_every=2",
    "trainer.preview_samples=1",  # fewer than the processes
    "diffusion.self_condition=true",
)


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Return a function: ``launched(2, "train", ...)`` runs two processes, returns the output."""
    monkeypatch.chdir(tmp_path)
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }

    def run(processes, name, *arguments):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        one = [sys.executable, *(launcher if processes > 1 else []), "-m", f"ddpm.cli.{name}"]
        ended = subprocess.run(
            [*one, *arguments], env=environment, capture_output=True, text=True, timeout=500
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def images(folder):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(Path(folder).iterdir())]


def test_two_processes_train_resume_and_sample(launched):
    output = launched(2, "train", "name=whole", "trainer.max_steps=4", *OPTIONS)
    assert output.count("training to step 4") == output.count("done: ") == 1
    assert sorted(os.listdir("outputs")) == ["latest", "whole"]
    grids = sorted(os.listdir("outputs/whole/samples"))
    assert grids == ["step-00000002.png", "step-00000004.png"]
    lines = Path("outputs/whole/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4

    launched(2, "train", "name=cut", "trainer.max_steps=2", *OPTIONS)
    output = launched(2, "train", "resume=outputs/cut", "trainer.max_steps=4")
    assert output.count("training from step 2 to step 4") == 1
    whole, cut = (checkpoint.newest(Path("outputs", n), pytest.fail) for n in ("whole", "cut"))
    assert whole is not None and cut is not None and whole.step == cut.step == 4
    for which in ("raw", "ema"):
        one, other = whole.weights(which), cut.weights(which)
        assert all(torch.equal(one[name], other[name]) for name in one)

    sampling = ("ckpt=outputs/whole", "steps=3", "num_samples=5", "batch_size=2")
    launched(2, "sample", "out=two", *sampling)
    launched(1, "sample", "out=one", *sampling)
    two, one = images("two/images"), images("one/images")
    assert len(two) == len(one) == 5
    written = read_record(Path("two"))["sample"]  # by both processes
    assert written.complete and len(written.files) == 6
    assert not list(Path("two").glob(".ddpm-part-*"))
    assert all(np.abs(x - y).max() <= 1 for x, y in zip(two, one, strict=True))
    # Fewer samples than processes: the main process draws them and writes the trajectory.
    launched(2, "sample", "out=few", "trajectory=true", *sampling[:2], "num_samples=1")
    assert (images("few/images")[0] == one[0]).all() and Path("few/trajectory.gif").is_file()


def test_a_run_without_a_name_is_one_folder(launched):
    launched(2, "train", "trainer.max_steps=1", *OPTIONS)
    (name,) = (name for name in os.listdir("outputs") if name != "latest")
    assert name.endswith("-unet-digits")
