"""Data of sizes that the original networks refuse, trained without an option for it."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ddpm import instantiate
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
    found = checkpoint.newest(Path("outputs/a"), pytest.fail)
    assert found is not None and found.step == 2 and found.config["model"] == model
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
        "ddpm-export: model.pad=true: the network pads its data, which are of a size that its "
        "levels do not halve, and no original does; take format=safetensors"
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
    complete = instantiate.complete(node, "model")
    assert {name: complete[name] for name in earlier} == earlier
    # What is null in a new command is compared once the size of the data is known.
    asked = {**complete, **dict.fromkeys(earlier)}
    assert instantiate.adapted_as(asked, complete) == complete


def test_options_of_the_size_that_are_typed_are_compared_as_they_are():
    there = {"_target_": "ddpm.models.IDDPMUNet", "channel_mult": [1, 2], "pad": False}
    there["attention_resolutions"] = [2]
    asked = {**there, "channel_mult": [1, 1], "pad": None, "attention_resolutions": [2, 4]}
    assert instantiate.adapted_as(asked, there) == {**asked, "pad": False}
    assert instantiate.adapted_as({**asked, "channel_mult": None}, there) == there
    other = {"_target_": UNET, "dim_mults": None, "pad": None}
    assert instantiate.adapted_as(other, there) == other
