"""Training on data of sizes that the original networks reject."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ddpm import instantiate, models
from ddpm.config.registry import with_defaults
from ddpm.runs.stored_config import with_numbers
from ddpm.training import checkpoint

FOLDER = ("data=folder", "data.path=imgs")
UNET = "ddpm.models.UNet"


def pictures(height, width):
    Path("imgs").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (4, height, width), np.uint8)
    for number, value in enumerate(values):
        Image.fromarray(value).save(f"imgs/{number}.png")


def stored(run):
    return yaml.safe_load(Path(run, "config.yaml").read_text())["model"]


def test_pictures_of_28x28_train_without_an_option_and_the_run_resumes(command, tiny):
    pictures(28, 28)
    options = ("name=a", *FOLDER, *tiny)
    ended = command("train", "trainer.max_steps=1", *options)
    assert ended.status == 0, ended.err
    line = "model.dim_mults=[1,2,4] for images of 28x28; sizes divisible by 8 have [1,2,4,8]"
    assert line in ended.out.splitlines()
    model = stored("outputs/a")
    assert (model["dim_mults"], model["pad"]) == ([1, 2, 4], False)
    ended = command("train", "trainer.max_steps=2", *options, "model.dim_mults=null")
    assert ended.status == 0 and "from step 1" in ended.out, ended.err
    newest = checkpoint.newest(Path("outputs/a"), pytest.fail)
    assert newest is not None and newest.step == 2 and newest.config["model"] == model
    ended = command("train", "trainer.max_steps=3", *options, "model.dim_mults=[1,2]")
    assert ended.status == 1 and "model.dim_mults ([1,2,4] there, [1,2] here)" in ended.line


def test_padded_networks_sample_and_are_not_exported_to_systems_that_do_not_pad(command, tiny):
    pictures(12, 9)
    options = ("model=simple_unet", "model.width=8", *FOLDER, *tiny[1:])
    ended = command("train", "name=a", "trainer.max_steps=1", *options)
    assert ended.status == 0, ended.err
    line = "model.pad=true for images of 12x9, padded to 16x16 inside the network"
    assert line in ended.out.splitlines() and stored("outputs/a")["pad"] is True
    ended = command("sample", "ckpt=outputs/a", "num_samples=2", "steps=2", "out=gen")
    assert ended.status == 0, ended.err
    assert Image.open("gen/images/00000.png").size == (9, 12)
    ended = command("export", "ckpt=outputs/a", "format=simple-unet")
    assert ended.line == (
        "ddpm-export: model.pad=true: the network pads its data, whose size is not divisible by "
        "2 at each level, which other systems do not support; use format=safetensors, "
        "torch-export or onnx"
    )


@pytest.mark.parametrize(
    ("node", "earlier"),
    [
        ({"_target_": UNET, "dim_mults": [1, 2]}, {"dim_mults": [1, 2], "pad": False}),
        ({"_target_": UNET}, {"dim_mults": [1, 2, 4, 8], "pad": False}),
        ({"_target_": f"{UNET}3D"}, {"dim_mults": [1, 2, 4, 8], "pad": False}),
        (
            {"_target_": "ddpm.models.IDDPMUNet"},
            {"channel_mult": [1, 2, 2, 2], "attention_resolutions": [2, 4], "pad": False},
        ),
        ({"_target_": "ddpm.models.SimpleUNet"}, {"pad": False}),
    ],
)
def test_configs_of_earlier_versions_keep_their_networks(node, earlier):
    complete = with_defaults(node, "model")
    assert {name: complete[name] for name in earlier} == earlier
    # Options that are null in a new command are compared once the size of the data is known.
    requested = {**complete, **dict.fromkeys(earlier)}
    assert instantiate.adapted_as(requested, complete) == complete


def test_typed_options_of_the_size_are_compared_unchanged():
    there = {"_target_": "ddpm.models.IDDPMUNet", "channel_mult": [1, 2], "pad": False}
    there["attention_resolutions"] = [2]
    requested = {**there, "channel_mult": [1, 1], "pad": None, "attention_resolutions": [2, 4]}
    assert instantiate.adapted_as(requested, there) == {**requested, "pad": False}
    assert instantiate.adapted_as({**requested, "channel_mult": None}, there) == there
    other = {"_target_": UNET, "dim_mults": None, "pad": None}
    assert instantiate.adapted_as(other, there) == other


SMALL = {"dim": 16, "attn_heads": 2, "attn_dim_head": 16}
LARGE = {"dim": 64, "attn_heads": 4, "attn_dim_head": 32}


@pytest.mark.parametrize(
    ("target", "on_cpu", "elsewhere"),
    [
        ("UNet", SMALL, LARGE),
        ("UNet3D", SMALL, {**LARGE, "attn_heads": 8}),
        ("IDDPMUNet", {"model_channels": 32}, {"model_channels": 128}),
        ("SimpleUNet", {"width": 16}, {"width": 64}),
    ],
)
def test_networks_are_smaller_where_training_begins_on_a_cpu(target, on_cpu, elsewhere):
    node = {"_target_": f"ddpm.models.{target}", **dict.fromkeys(on_cpu)}
    assert instantiate.sized(node, "cpu") == {**node, **on_cpu}
    assert instantiate.sized(node, "cuda") == {**node, **elsewhere}
    width = next(iter(on_cpu))
    wide = instantiate.sized({**node, width: 96}, "cpu")  # heads are those of a wide network
    assert wide == {**node, **elsewhere, width: 96}
    assert instantiate.sized(node, "cuda", stored=wide) == wide
    assert instantiate.sized(node, "cpu", stored={**wide, "_target_": "own"}) == {**node, **on_cpu}


def test_the_defaults_of_a_cpu_are_printed_stored_and_reused(command, monkeypatch):
    np.save("a.npy", np.linspace(-1, 1, 320, dtype=np.float32).reshape(40, 1, 8))
    options = ("name=a", "data=sequence", "data.path=a.npy", "model=unet1d", "model.dim_mults=[1]")
    options = (*options, "sampler.steps=1", "trainer.preview_samples=1", "device=cpu")
    ended = command("train", "trainer.max_steps=1", *options)
    assert ended.status == 0, ended.err
    values = "model.dim=16, model.attn_heads=2, model.attn_dim_head=16, trainer.batch_size=16"
    assert f"by default on cpu: {values}, trainer.lr=0.001" in ended.out.splitlines()
    config = yaml.safe_load(Path("outputs/a/config.yaml").read_text())
    assert {key: config["model"][key] for key in SMALL} == SMALL
    assert (config["trainer"]["batch_size"], config["trainer"]["lr"]) == (16, 1e-3)
    arithmetic = [config["trainer"][k] for k in ("precision", "compile", "channels_last")]
    assert arithmetic == ["no", False, False]
    # Another default, as on another device: a run keeps the one that it began with.
    monkeypatch.setattr(models.UNet, "cpu_defaults", dict.fromkeys(SMALL, 8))
    monkeypatch.setattr("ddpm.training.trainer.default_learning_rate", lambda network: 0.5)
    ended = command("train", "trainer.max_steps=2", *options)
    assert ended.status == 0 and "by default" not in ended.out, ended.err
    resumed = yaml.safe_load(Path("outputs/a/config.yaml").read_text())
    assert resumed["model"] == config["model"] and resumed["trainer"]["lr"] == 1e-3
    ended = command("train", "trainer.max_steps=3", *options, "trainer.lr=1e-4")
    assert ended.status == 1 and "trainer.lr (0.001 there, 0.0001 here)" in ended.line


@pytest.mark.slow
def test_null_uses_the_stored_value(command, tiny):
    pictures(8, 8)
    options = ("name=a", *FOLDER, "trainer.preview_every=0", "device=cpu")
    null = ("trainer.lr=null", "trainer.batch_size=null", "model.dim=null")
    assert command("train", "trainer.max_steps=1", *options, "trainer.lr=5e-4").status == 0
    ended = command("train", "trainer.max_steps=2", *options, *null)
    assert ended.status == 0, ended.err
    ended = command("train", "resume=outputs/a", "override=true", "trainer.max_steps=3", *null)
    assert ended.status == 0, ended.err
    assert "trainer.max_steps: 2 until step 2, from now on 3" in ended.out
    assert "from now on None" not in ended.out and "by default" not in ended.out
    config = yaml.safe_load(Path("outputs/a/config.yaml").read_text())
    assert (config["trainer"]["lr"], config["trainer"]["batch_size"]) == (5e-4, 16)


PLUGIN = """
from ddpm.models import UNet
__all__ = ["Narrow", "Other"]

class Narrow(UNet):
    def __init__(self, *data, dim: int = 8, attn_heads: int = 1):
        super().__init__(*data, dim=dim, attn_heads=attn_heads)

class Other(UNet):
    def __init__(self, *data, base: int = 8):
        super().__init__(*data, dim=base)
"""


@pytest.mark.parametrize(
    ("name", "width"),
    [("Narrow", {"dim": 8}), pytest.param("Other", {"base": 8}, marks=pytest.mark.slow)],
)
def test_networks_of_plugins_have_defaults_of_their_own(command, monkeypatch, name, width):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    pictures(8, 8)
    Path("mine.py").write_text(PLUGIN)
    options = ("name=a", *FOLDER, "plugins=[mine]", f"model._target_=mine.{name}", "device=cpu")
    for steps in (1, 2):
        few = (f"trainer.max_steps={steps}", "trainer.preview_every=0")
        ended = command("train", *options, *few)
        assert ended.status == 0, ended.err
    assert width.items() <= {"base": 8, **stored("outputs/a")}.items()
    ended = command("sample", "ckpt=outputs/a", "plugins=[mine]", "num_samples=1", "steps=1")
    assert ended.status == 0, ended.err


def test_stored_options_override_new_defaults_of_a_custom_class():
    requested = {"trainer": {}, "model": {"_target_": "mine.Own"}}
    stored_run = {"model": {"_target_": "mine.Own", "dim": 64}, "trainer": {"lr": 1e-4}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(instantiate, "exported", lambda target, key: models.SimpleUNet)
        assert with_numbers(requested, stored_run) == {
            "trainer": {"lr": 1e-4}, "model": {**stored_run["model"], "width": 64}
        }  # fmt: skip
