"""Commands and their files: train, sample, interpolate."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ddpm.data import Digits
from ddpm.training.checkpoint import load


def array(path):
    return np.asarray(Image.open(path))


def test_contents_of_a_run_folder(command, tiny):
    options = (*tiny, "trainer.preview_every=2", "sampler.steps=2", "trainer.preview_samples=5")
    ended = command("train", "trainer.max_steps=3", *options)
    assert ended.status == 0
    (run,) = (path for path in Path("outputs").iterdir() if path.name != "latest")
    assert run.name.endswith("-unet-digits") and Path("outputs/latest").resolve() == run.resolve()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 3 and config["model"]["dim"] == 8
    assert config["schedule"]["_target_"] == "ddpm.diffusion.cosine"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert [record["samples"] for record in records] == [8, 16, 24]
    for record in records:
        assert record["loss"] > 0 and record["samples_per_second"] > 0 and record["grad_norm"] > 0
        counted = [record[f"loss_q{i}"] for i in range(4) if record[f"loss_q{i}"] is not None]
        assert min(counted) <= record["loss"] <= max(counted)
    grids = sorted(path.name for path in (run / "samples").iterdir())
    assert grids == ["step-00000002.png", "step-00000003.png"]
    assert Image.open(run / "loss.png").size == (840, 480)
    checkpoint = load(run / "checkpoints/step-00000003")
    assert (
        checkpoint.metadata.data["shape"] == [1, 8, 8]
        and checkpoint.metadata.data["codec"]["kind"] == "images"
    )
    assert checkpoint.config == config
    names = {"config.json", "manifest.json", "model.safetensors", "ema.safetensors", "state.pt"}
    assert {path.name for path in checkpoint.folder.iterdir()} == names
    assert "ddpm-sample ckpt=outputs/" in ended.out


def test_checkpoints_contain_raw_and_averaged_weights(command, trained):
    folder = Path(trained, "checkpoints/step-00000002")
    raw, ema = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert raw.keys() == ema.keys()
    assert any(not torch.equal(raw[name], ema[name]) for name in raw)


@pytest.mark.parametrize(
    "ckpt", ["outputs/tiny", "outputs/latest", "outputs/tiny/checkpoints/step-00000002"]
)
def test_sampling_needs_no_other_flag(command, trained, ckpt):
    ended = command("sample", f"ckpt={ckpt}", "num_samples=3", "steps=2")
    assert ended.status == 0, ended.err
    folder = Path("outputs/tiny/generated/step-00000002-unipc-2-seed-0")
    written = [".ddpm-files.json", "grid.png", "images"]
    assert sorted(path.name for path in folder.iterdir()) == written
    assert sorted(p.name for p in (folder / "images").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    assert array(folder / "images/00000.png").shape == (8, 8)
    again = command("sample", f"ckpt={ckpt}", "num_samples=3", "steps=2")
    assert again.status == 0 and folder.with_name(f"{folder.name}-2").is_dir()


def test_an_image_depends_on_the_seed_and_its_index_only(command, trained):
    def images(out, *options):
        ended = command("sample", f"ckpt={trained}", f"out={out}", "steps=5", *options)
        assert ended.status == 0, ended.err
        return [array(path).astype(int) for path in sorted(Path(out, "images").iterdir())]

    for sampler in ("ddim", "ddpm"):
        base = images(f"{sampler}a", f"sampler={sampler}", "num_samples=6", "batch_size=6")
        more = images(f"{sampler}b", f"sampler={sampler}", "num_samples=9", "batch_size=4")
        other = images(f"{sampler}c", f"sampler={sampler}", "num_samples=6", "seed=1")
        assert all(np.abs(x - y).max() <= 1 for x, y in zip(base, more[:6], strict=True))
        assert all(np.abs(x - y).max() > 10 for x, y in zip(base, other, strict=True))
        assert np.abs(base[0] - base[1]).max() > 10


def test_raw_and_averaged_weights_differ(command, trained):
    for weights in ("ema", "raw"):
        assert (
            command(
                "sample",
                f"ckpt={trained}",
                f"weights={weights}",
                f"out={weights}",
                "steps=2",
                "num_samples=1",
            ).status
            == 0
        )
    assert (array("ema/images/00000.png") != array("raw/images/00000.png")).any()


def test_npz_in_the_layout_of_evaluators(command, tiny):
    options = ("name=c", "data.class_cond=true", "trainer.max_steps=2", *tiny)
    assert command("train", *options).status == 0
    ended = command(
        "sample",
        "ckpt=outputs/c",
        "format=npz",
        "out=s",
        "num_samples=5",
        "classes=[3,7]",
        "steps=2",
        "batch_size=2",
        "trajectory=true",
    )
    assert ended.status == 0, ended.err
    grid, trajectory = Image.open("s/grid.png"), Image.open("s/trajectory.gif")
    assert grid.height == trajectory.height == 2 * 66 + 2  # a row per class
    assert grid.width - trajectory.width == 2 * 66  # 3 samples of a class, and 1 of a batch
    with np.load("s/samples.npz") as file:
        assert file["arr_0"].dtype == np.uint8 and file["arr_0"].shape == (5, 8, 8, 1)
        assert file["arr_1"].tolist() == [3, 7, 3, 7, 3]
    ended = command("sample", "ckpt=outputs/c", "format=npy", "out=s", "num_samples=12", "steps=2")
    assert ended.status == 0 and np.load("s/samples.npy").shape == (12, 8, 8, 1)
    ended = command("sample", "ckpt=outputs/c", "classes=[10]")
    problem = "the model has the classes 0 to 9; use some of those"
    assert ended.line == f"ddpm-sample: classes=[10]: {problem}"


def test_a_smaller_call_leaves_no_images_of_a_larger_one(command, trained):
    for count in (5, 2):
        options = (f"num_samples={count}", "steps=2", "out=s")
        assert command("sample", f"ckpt={trained}", *options).status == 0
        assert len(list(Path("s/images").iterdir())) == count


def test_classes_have_the_names_of_their_folders(command, tiny):
    for name in ("1", "2", "10"):
        Path("imgs", name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(f"imgs/{name}/a.png")
    options = ("data=folder", "data.path=imgs", "data.class_cond=true", "model.dim_mults=[1,2]")
    assert command("train", "name=n", "trainer.max_steps=1", *options, *tiny).status == 0
    for classes, labels in (("[10,1]", [10, 1]), ("['1','10']", [1, 10]), ("2", [2, 2])):
        options = (f"classes={classes}", "format=npz", "num_samples=2", "steps=1", "out=s")
        ended = command("sample", "ckpt=outputs/n", *options)
        assert ended.status == 0, ended.err
        with np.load("s/samples.npz") as file:
            assert file["arr_1"].tolist() == labels
    ended = command("sample", "ckpt=outputs/n", "classes=[0,1]")
    problem = "the model has the classes 1, 10, 2; use some of those"
    assert ended.line == f"ddpm-sample: classes=[0,1]: {problem}"


def test_paths_of_any_characters(command, trained):
    for out in ("grün (1)", "a=b", "~x"):
        options = (f"out={out}", "num_samples=1", "steps=1")
        ended = command("sample", f"ckpt={trained}", *options)
        assert ended.status == 0, ended.err
        assert Path(out, "grid.png").exists()


def test_a_sweep_of_samples_makes_no_stray_folder(command, trained):
    ended = command("sample", "-m", f"ckpt={trained}", "seed=0,1", "steps=1", "num_samples=1")
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in Path().iterdir()) == ["outputs"]


def test_trajectory(command, trained):
    ended = command(
        "sample",
        f"ckpt={trained}",
        "trajectory=true",
        "out=s",
        "num_samples=2",
        "steps=4",
        "batch_size=1",
    )
    assert ended.status == 0, ended.err
    assert Image.open("s/trajectory.gif").n_frames == 4


def test_interpolation_between_seeds_ends_at_their_samples(command, trained):
    for seed in (1, 2):
        options = (f"seed={seed}", f"out=s{seed}", "num_samples=1", "sampler=ddim", "steps=20")
        assert command("sample", f"ckpt={trained}", *options).status == 0
    ended = command(
        "interpolate", f"ckpt={trained}", "a=1", "b=2", "out=i", "num_frames=5", "steps=20"
    )
    assert ended.status == 0, ended.err
    frames = [array(f"i/images/0000{i}.png").astype(int) for i in range(5)]
    assert np.abs(frames[0] - array("s1/images/00000.png")).max() <= 1
    assert np.abs(frames[4] - array("s2/images/00000.png")).max() <= 1
    strip = Image.open("i/strip.png")
    assert strip.width > 4.5 * strip.height


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_interpolation_at_a_small_t_restores_the_ends(command, trained, mode):
    digits, _ = Digits().fetch([0, 5], [0, 0])
    for name, digit in zip("ab", digits, strict=True):
        Image.fromarray(digit[0].numpy()).save(f"{name}.png")
    options = ("a=a.png", "b=b.png", f"mode={mode}", "out=i", "num_frames=3")
    for t, bound in ((0, 10), (10, 50)):  # the network is untrained: its error grows with t
        ended = command("interpolate", f"ckpt={trained}", f"t={t}", *options)
        assert ended.status == 0, ended.err
        for frame, digit in ((0, digits[0]), (2, digits[1])):
            drawn = array(f"i/images/0000{frame}.png").astype(int)
            assert np.abs(drawn - digit[0].numpy()).max() <= bound


def test_interpolation_of_images_of_any_size(command, trained):
    Image.new("RGB", (30, 20), (255, 0, 0)).save("a.png")
    Image.new("L", (5, 70), 0).save("b.webp")
    ended = command(
        "interpolate", f"ckpt={trained}", "a=a.png", "b=b.webp", "t=1", "out=i", "num_frames=2"
    )
    assert ended.status == 0, ended.err
    red, black = array("i/images/00000.png"), array("i/images/00001.png")
    assert red.shape == (8, 8) and abs(red.mean() - 76) < 12 and black.mean() < 12


def test_interpolation_with_a_conditional_model_requires_classes(command, tiny):
    options = ("name=c", "data.class_cond=true", "trainer.max_steps=2", *tiny)
    assert command("train", *options).status == 0
    ended = command("interpolate", "ckpt=outputs/c", "a=1", "b=2")
    assert "use classes=[3], or [3,7] for the two ends" in ended.line
    ended = command(
        "interpolate", "ckpt=outputs/c", "a=1", "b=2", "classes=[3,7]", "steps=2", "out=i"
    )
    assert ended.status == 0 and len(list(Path("i/images").iterdir())) == 9


def test_guidance_changes_samples_of_a_model_trained_with_label_dropout(command, tiny):
    options = (
        "name=g",
        "data.class_cond=true",
        "diffusion.label_dropout=0.5",
        "trainer.max_steps=20",
    )
    assert command("train", *options, *tiny).status == 0
    for scale in (1, 4):
        sampling = (f"guidance={scale}", f"out=g{scale}", "num_samples=2", "steps=5")
        assert command("sample", "ckpt=outputs/g", *sampling).status == 0
    assert (array("g1/images/00000-0.png") != array("g4/images/00000-0.png")).any()


def test_plugins_add_classes(command, tiny, monkeypatch):
    """Plugins are imported from the current folder, which console scripts do not search."""
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(
        "from ddpm.data import Digits\nfrom ddpm.samplers import DDIM\n__all__ = ['Odd', 'Own']\n"
        "class Odd(Digits):\n    def __len__(self):\n        return 7\n"
        "class Own(DDIM):\n    def __init__(self, *, steps: int | None = None, sure: bool):\n"
        "        super().__init__(steps=steps)\n        assert sure\n"
    )
    options = ("name=p", "data._target_=mine.Odd", "trainer.max_steps=1", *tiny)
    assert (
        "is not exported by ddpm or by a plugin; add plugins=[mine]"
        in command("train", *options).line
    )
    ended = command("train", "plugins=[mine]", *options)
    assert ended.status == 0 and "7 samples of 1x8x8" in ended.out
    assert command("sample", "ckpt=outputs/p", "steps=2", "num_samples=1").status == 0
    own = ("plugins=[mine]", "sampler._target_=mine.Own", "sampler.sure=true", "out=own")
    assert command("sample", "ckpt=outputs/p", "steps=2", "num_samples=1", *own).status == 0


def test_a_folder_of_images_with_iddpm_unet(command):
    rng = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.JPG", "dog/deep/c.webp"):
        Path("imgs", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(f"imgs/{name}")
    Path("imgs/cat/note.txt").write_text("not a picture")
    ended = command(
        "train", "data=folder", "data.path=imgs", "data.image_size=16", "data.class_cond=true",
        "model=iddpm_unet", "model.model_channels=32", "model.channel_mult=[1,2]",
        "model.num_res_blocks=1", "model.attention_resolutions=[2]", "trainer.max_steps=2",
        "trainer.batch_size=4", "trainer.preview_every=0", "name=f",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "3 samples of 3x16x16, 2 classes (fewer than a batch" in ended.out
    assert "\nclasses: cat, dog\n" in ended.out and "\nresults go to outputs/f\n" in ended.out
    assert ended.err.startswith("warning: imgs: skipped 1 .txt; images are read from .jpg .jpeg ")
    ended = command(
        "sample", "ckpt=outputs/f", "classes=[dog]", "num_samples=1", "steps=2", "out=s"
    )
    assert ended.status == 0 and array("s/images/00000-dog.png").shape == (16, 16, 3)
    ended = command(
        "interpolate", "ckpt=outputs/f", "a=imgs/cat/a.png", "b=imgs/dog/deep/c.webp", "t=5",
        "classes=[cat,dog]", "out=i", "num_frames=2",
    )  # fmt: skip
    assert ended.status == 0 and array("i/images/00001.png").shape == (16, 16, 3)


def test_interpolation_by_inversion_keeps_its_ends(command, tiny):
    """Sampling from the inverted latent restores the input, even for an untrained network."""
    options = ("trainer.max_steps=2", "schedule.num_steps=100")
    assert command("train", "name=d", *options, *tiny).status == 0
    assert command("sample", "ckpt=outputs/d", "num_samples=2", "steps=5", "out=s").status == 0
    ends = ("a=s/images/00000.png", "b=s/images/00001.png")
    ended = command(
        "interpolate", "ckpt=outputs/d", *ends, "mode=ddim", "steps=20", "num_frames=3", "out=i"
    )
    assert ended.status == 0, ended.err
    errors = re.findall(r"^(\w): reconstruction error ([0-9.]+)% of", ended.out, re.MULTILINE)
    assert [name for name, _ in errors] == ["a", "b"]
    for (_, percent), first, second in zip(
        errors,
        ("s/images/00000", "s/images/00001"),
        ("i/images/00000", "i/images/00002"),
        strict=True,
    ):
        end, back = (np.asarray(Image.open(f"{p}.png"), float) for p in (first, second))
        far = np.sqrt(np.mean((end - back) ** 2)) / 255
        assert far == pytest.approx(float(percent) / 100, abs=1e-3)
        assert far < 0.02
    ended = command("interpolate", "ckpt=outputs/d", *ends, "mode=ddim", "sampler=ddpm")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-interpolate: mode=ddim: requires deterministic sampling; use sampler=ddim "
        "sampler.eta=0",
    )
