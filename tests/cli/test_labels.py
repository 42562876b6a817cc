"""Labels with gaps: from the file to the model, its samples, and back."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

NET = ("model=unet1d", "model.dim_mults=[1,2]", "diffusion.label_dropout=0.2")
DATA = ("data=sequence", "data.path=a.npz", "data.class_cond=true", *NET)


@pytest.fixture
def gaps(command):
    values = np.random.default_rng(0).normal(size=(12, 2, 16)).astype(np.float32)
    np.savez("a.npz", arr_0=values, labels=np.array([0, 5, 100] * 4))


def test_classes_are_selected_and_written_by_their_labels(command, tiny, gaps):
    ended = command("train", "name=a", *DATA, "trainer.max_steps=2", *tiny)
    assert ended.status == 0 and "3 classes" in ended.out, ended.err
    few = ("ckpt=outputs/a", "steps=1", "format=npz")
    ended = command("sample", *few, "out=s", "num_samples=8", "classes=[100,5]", "guidance=2")
    assert ended.status == 0, ended.err
    ended = command("sample", *few, "out=all", "num_samples=4")
    assert ended.status == 0, ended.err
    with np.load("s/samples.npz") as some, np.load("all/samples.npz") as whole:
        assert some["arr_1"].tolist() == [100, 5] * 4 and some["arr_1"].dtype == np.int64
        assert whole["arr_1"].tolist() == [0, 5, 100, 0]
    ended = command("sample", *few, "classes=[1]")
    problem = "the model has the classes 0, 5, 100; use some of those"
    assert ended.line == f"ddpm-sample: classes=[1]: {problem}"
    again = (*DATA, "data.path=all/samples.npz", "trainer.max_steps=1", "name=b")
    ended = command("train", *again, *tiny)
    assert ended.status == 0 and "4 sequences of 2 channels, length 16, 3 classes" in ended.out, (
        ended.err
    )
    assert command("sample", "ckpt=outputs/b", "steps=1", "classes=5").status == 0


def as_in_earlier_versions(labels, path, count, what):
    return labels.astype(np.int64), [str(number) for number in range(int(labels.max()) + 1)]


def test_a_run_of_an_earlier_version_keeps_its_classes(command, tiny, gaps, monkeypatch):
    evaluate = ("evaluate", "metrics=[loss]", "num_images=12", "cache=null")
    with monkeypatch.context() as patch:
        patch.setattr("ddpm.data.sequences.array_classes", as_in_earlier_versions)
        for name, steps in (("whole", 4), ("a", 2)):
            ended = command("train", f"name={name}", *DATA, f"trainer.max_steps={steps}", *tiny)
            assert ended.status == 0 and "101 classes" in ended.out, ended.err
        command(*evaluate, "ckpt=outputs/whole", "out=e1")
    ended = command("train", "resume=outputs/a", "trainer.max_steps=4")
    assert ended.status == 0 and "from step 2 to step 4" in ended.out, ended.err
    runs = (Path("outputs", name, "checkpoints/step-00000004") for name in ("whole", "a"))
    first, second = (load_file(run / "ema.safetensors") for run in runs)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    ended = command("sample", "ckpt=outputs/a", "steps=1", "classes=[5]", "format=npz", "out=s")
    assert ended.status == 0 and set(np.load("s/samples.npz")["arr_1"]) == {5}
    ended = command("sample", "ckpt=outputs/a", "classes=[101]")
    assert ended.line.endswith("the model has the classes 0 to 100; use some of those")
    assert command(*evaluate, "ckpt=outputs/whole", "out=e2").status == 0
    reports = [Path(folder, "evaluation.json").read_text() for folder in ("e1", "e2")]
    values = [[line for line in text.splitlines() if '"value"' in line] for text in reports]
    assert values[0] == values[1] and values[0]
