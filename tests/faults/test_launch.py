"""Launchers: each starts the same run, or is rejected."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from PIL import Image

from ddpm.training import accumulation, checkpoint
from tests.cli.conftest import TINY
from tests.faults.processes import Shell, assert_as, reference, shell
from tests.training.test_accumulation import short_of_memory
from tests.training.test_trainer import METADATA, Fit, fit, folder, trainer

__all__ = ["reference", "shell"]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2")
STEPS = ("name=x", "trainer.max_steps=10", *TINY)
without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU makes these launches good"
)


def rejected(shell: Shell, *options, launcher=(), **environment):
    """Start a launch that must be rejected before it writes any file."""
    shell.environment = environment
    started = shell.start(*STEPS, *options, launcher=launcher)
    assert started.end() == 1, started.out
    assert not (shell.folder / "outputs").exists()
    return started


# environment variables of launchers


@without_gpu
@pytest.mark.slow
def test_a_process_of_two_without_a_gpu(shell):
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29511", "LOCAL_RANK": "0"}
    started = rejected(shell, WORLD_SIZE="2", RANK="0", **place)
    assert started.err == (
        "ddpm-train: device=auto: the launcher started 2 processes on a machine without a GPU; add "
        "device=cpu\n"
    )


@without_gpu
@pytest.mark.slow
def test_tasks_of_slurm_that_do_not_know_of_each_other(shell):
    assert rejected(shell, SLURM_STEP_NUM_TASKS="2").err == (
        "ddpm-train: launch: the launcher started 2 processes but they found 1; have it start one "
        "torchrun per node, which starts the processes\n"
    )


@pytest.mark.slow
def test_fsdp_is_rejected(shell):
    assert "FSDP is not supported" in rejected(shell, ACCELERATE_USE_FSDP="true").err


# the launchers


@pytest.mark.slow
def test_torchrun_equals_the_own_launcher(shell, reference):
    started = shell.start(*STEPS, "device=cpu", launcher=TORCHRUN)
    assert started.end() == 0, started.err
    assert started.out.count("to step 10 on 2 processes, each on cpu") == 1
    assert started.out.count("done: outputs/x ") == 1
    assert sorted(os.listdir(shell.folder / "outputs")) == ["latest", "x"]
    assert_as(reference(2), shell.run, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        pytest.param(
            (),
            "device=auto: the launcher started 2 processes on a machine without a GPU; add "
            "device=cpu",
            marks=without_gpu,
        ),
        (
            ("-m", "seed=0,1", "device=cpu"),
            "-m: a sweep inside a launcher would run every job in every process; start the sweep "
            "without the launcher and add launch.processes=N",
        ),
        (
            ("launch.processes=2", "device=cpu"),
            "launch.processes=2: the launcher has started the processes; leave it out",
        ),
    ],
    ids=["no GPU", "sweep", "twice"],
)
def test_rejected_uses_of_torchrun(shell, options, line):
    """Each process reports the same error, unless torchrun ends it first."""
    lines = rejected(shell, *options, launcher=TORCHRUN).err.splitlines()
    errors = {x.removeprefix("ddpm-train: ") for x in lines if x.startswith("ddpm-train: ")}
    assert errors - {"stopped by SIGTERM"} == {line}


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu_is_one_process(shell, reference):
    started = shell.start(*STEPS, launcher=ACCELERATE)
    assert started.end() == 0, started.err
    assert "training to step 10 on cpu: " in started.out
    assert_as(reference(1), shell.run, 10)


@pytest.mark.slow
def test_sweep_with_two_processes_per_job(shell):
    options = [option for option in STEPS if not option.startswith("name")]
    two = ("launch.processes=2", "trainer.max_steps=3", "seed=0,1", "name=s")
    started = shell.start("-m", *options, *two)
    assert started.end(200) == 0, started.err
    place = shell.folder / "outputs/multirun/s"
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["0", "1"]
    newest = [checkpoint.newest(place / job, pytest.fail) for job in "01"]
    assert [each and (each.step, each.config["seed"], each.metadata.processes) for each in newest] \
        == [(3, 0, 2), (3, 1, 2)]  # fmt: skip
    assert started.out.count("training to step 3 on 2 processes, each on cpu") == 2
    assert (place / "sweep.csv").is_file()


@pytest.mark.slow
def test_resuming_with_more_processes_uses_the_same_data_with_a_warning(shell, reference):
    shell.ended("trainer.max_steps=10")
    ended = shell.ended("trainer.max_steps=20", "launch.processes=2")
    assert "training from step 10 to step 20 on 2 processes" in ended.out
    assert ended.err == (
        "warning: outputs/x/checkpoints/step-00000010 was written by 1 processes, and 2 resume: "
        "the data have the same order, but the noise differs\n"
    )
    newest = checkpoint.newest(shell.run, pytest.fail)
    assert newest is not None and newest.step == 20 and newest.state()["samples"] == 20 * 8
    one = checkpoint.load(reference(1) / "checkpoints/step-00000020").weights("raw")
    other = newest.weights("raw")
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_sampling_in_two_processes_is_sampling_in_one(shell, reference):
    options = (f"ckpt={reference(1)}", "steps=3", "num_samples=5", "batch_size=2")
    for processes in (1, 2):
        out = (f"out=by{processes}", f"launch.processes={processes}")
        started = shell.start(*options, *out, command="sample")
        assert started.end() == 0, started.err
    one, two = (
        [np.asarray(Image.open(path)).astype(int) for path in sorted(place.iterdir())]
        for place in (shell.folder / f"by{processes}/images" for processes in (1, 2))
    )
    assert len(one) == len(two) == 5
    assert all(np.abs(x - y).max() <= 1 for x, y in zip(one, two, strict=True))


# the gradient of a batch does not depend on how it is split


def five_steps(place, accumulate):
    """Train five steps with a deterministic loss, and save the state of each process."""
    options = {"batch_size": 16, "max_steps": 5, "lr": 1e-2, "lr_warmup": 3}
    training = trainer(Fit(), accumulate=accumulate, log_every=1, **options)
    if accumulate == "auto":  # memory for 4 items on one process, and for 2 on the other
        sizes = short_of_memory(training, 4 >> training.accelerator.process_index)
        line = "(a micro-batch of 2 items fits into the GPU's memory, one of 4 does not)"
        assert accumulation.choose(training, tries=True) == f"accumulate: 4 {line}"
        assert sizes == [8, 4, 2]
    run = folder(Path(place))
    fit(training, run, METADATA)
    # Two processes warm up DDP with a discarded step before the first one.
    seen = [call["x0"] for call in training.loss.calls[-5 * training.accumulate :]]
    state = {"values": training.network.values(), "ema": training.ema.model.values(), "x0": seen}
    torch.save(state, Path(place, f"rank-{training.accelerator.process_index}.pt"))


@pytest.mark.parametrize("accumulate", [1, "auto"])
def test_the_batch_of_two_processes_is_that_of_one(tmp_path, accumulate):
    five_steps(tmp_path / "one", 1)
    debug_launcher(five_steps, (str(tmp_path / "two"), accumulate), num_processes=2)
    one = torch.load(tmp_path / "one/rank-0.pt")
    both = [torch.load(tmp_path / f"two/rank-{rank}.pt") for rank in (0, 1)]
    for key in ("values", "ema"):
        assert torch.equal(both[0][key], both[1][key])
        torch.testing.assert_close(both[0][key], one[key], rtol=0, atol=1e-6)
    # The order of the batch: by micro-batch, then by process.
    samples = [x for pair in zip(both[0]["x0"], both[1]["x0"], strict=True) for x in pair]
    assert torch.equal(torch.cat(samples), torch.cat(one["x0"]))
    rates = [
        [json.loads(line)["lr"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    ]
    assert rates[0] == rates[1] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
