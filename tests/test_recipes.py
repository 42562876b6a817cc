"""Recipes of ``experiment=``: provenance, networks as published, precedence of typed options."""

import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ddpm
from ddpm import instantiate
from ddpm.cli.composition import compose
from ddpm.config.comments import read
from ddpm.config.location import config_dir
from ddpm.config.registry import exported, options_of, with_typed_classes
from ddpm.config.text import from_yaml
from ddpm.data import ImageCodec, SequenceCodec, VideoCodec
from ddpm.data.spec import DataSpec
from scripts.moving_digits import moving_digits
from scripts.network_cost import num_parameters, operations
from tests.cli.conftest import command  # noqa: F401

RECIPES = sorted((config_dir() / "experiment").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]
VARIANTS = ("iddpm_cifar10_vlb", "iddpm_imagenet64_hybrid", "iddpm_imagenet64_vlb")
SOME = [pytest.param(n, marks=pytest.mark.slow) if n in VARIANTS else n for n in NAMES]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
SHAPES = {  # and numbers of classes
    "cifar": ((3, 32, 32), 10),
    "folder": ((3, 64, 64), 1000),
    "mnist": ((1, 28, 28), 10),
    "digits": ((1, 8, 8), 10),
    "sequence": ((32, 128), 10),
    "video": ((1, 8, 16, 16), 10),
}
# Published parameters, with the relative difference of ours, and GFLOP of a forward pass per item,
# which torch counts in the original network.
PUBLISHED = {
    "ddpm_cifar10": (35_746_307, 0, 12.4),  # google/ddpm-cifar10-32
    "iddpm_cifar10_hybrid": (52_546_438, 0, 16.77),
    "iddpm_cifar10_vlb": (52_546_438, 0, 16.77),
    "iddpm_imagenet64_hybrid": (121e6, 0.005, 79.5),
    "iddpm_imagenet64_vlb": (121e6, 0.005, 79.5),
    "iddpm_imagenet64_cond": (270e6, 0.012, None),
    "adm_imagenet64": (295.9e6, 0.001, 219),
    "edm_cifar10": (55.7e6, 0.03, None),  # another network
    "flowers64": (113_673_219, 0, 31.0),
}


@cache
def composed(name):
    """Return the composed config of a recipe, and its choices."""
    (path,) = [each for each in RECIPES if each.stem == name]
    missing = (
        [] if {"cifar", "mnist", "digits"} & {read(path).selected["data"]} else ["data.path=x"]
    )
    options, _, choices = compose("train", [f"experiment={name}", *missing])
    return options, choices


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_source_and_results(path):
    about = read(path).about
    assert [line.partition(": ")[0] for line in about[1:]] == ["Source", "Published", "Here"]
    assert all(line.endswith(".") for line in about)
    assert f"| `{path.stem}` |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SOME)
def test_a_recipe_composes(name):
    config, choices = composed(name)
    node = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())
    for each in node.pop("defaults"):
        if each != "_self_":
            ((group, choice),) = each.items()
            assert choices[group.removeprefix("override /")] == choice
    for group, options in node.items():
        target = exported(config[group]["_target_"], f"{group}._target_")
        assert options.keys() <= inspect.signature(options_of(target)).parameters.keys()
        assert all(
            config[group][key] == value for key, value in options.items() if key != "condition"
        )


def network_of(name):
    """Return the network of a recipe on the device "meta", and the shape of its data."""
    config, choices = composed(name)
    shape, classes = SHAPES[choices["data"]]
    codec = {
        "sequence": lambda: SequenceCodec(shape, -1.0, 1.0),
        "video": lambda: VideoCodec(shape, condition=config["data"]["condition"]),
    }.get(choices["data"], lambda: ImageCodec(shape))()
    spec = DataSpec(shape, classes if config["data"]["class_cond"] else None, None, codec)
    process = instantiate.diffusion(config, spec)
    with torch.device("meta"):
        return instantiate.network(config, spec, process), shape


@pytest.mark.parametrize("name", SOME)
def test_the_network_of_a_recipe_is_as_large_as_published(name):
    number = num_parameters(network_of(name)[0])
    parameters, tolerance, _ = PUBLISHED.get(name, (number, 0, None))
    assert number == pytest.approx(parameters, rel=tolerance, abs=0.5)
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    digits = 0 if number > 120e6 and name != "adm_imagenet64" else 1
    assert f" {number / 1e6:.{digits}f} M " in row


COUNTED = [name for name, (_, _, flops) in PUBLISHED.items() if flops is not None]


@pytest.mark.parametrize(
    "name", ["ddpm_cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in COUNTED[1:])]
)
def test_the_network_of_a_recipe_costs_as_much_as_the_original(name):
    ours = operations(*network_of(name), backward=False) / 1e9
    assert ours == pytest.approx(PUBLISHED[name][2], rel=0.005)


def test_options_that_a_typed_choice_lacks_are_left_out(capsys):
    typed = ["experiment=edm_cifar10", "objective=pred_v", "model=unet", "model.dim=8"]
    options = compose("train", typed)[0]
    nodes = with_typed_classes(options, {each.partition("=")[0] for each in typed})
    assert nodes.keys() == {"objective", "model"} and "sigma_data" not in nodes["objective"]
    assert (nodes["model"]["dim"], nodes["model"]["dropout"]) == (8, 0.13)
    assert nodes["model"].keys() == compose("train", ["model=unet"])[0]["model"].keys()
    (text,) = [line for line in capsys.readouterr().err.splitlines() if "model" in line]
    assert text.startswith("options of the recipe that the chosen model lacks, left out: ")
    assert {"model.channel_mult", "model.num_heads"} <= set(text.partition(": ")[2].split(", "))


def write_pictures(folder, shape, count=4):
    """Write random pictures in two classes; return the folder."""
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        path = Path(folder, str(index % 2), f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_typed_options_precede_a_recipe(command):  # noqa: F811
    options = (
        *("experiment=mnist", "name=a", "model.dim=8", "model.dim_mults=[1,2]", "sampler=ddim"),
        *("data=folder", f"data.path={write_pictures('pictures', (8, 8))}", "trainer.max_steps=1"),
        *("trainer.batch_size=4", "trainer.preview_every=0"),
    )
    ended = command("train", *options)
    assert ended.status == 0, ended.err
    config = from_yaml(Path("outputs/a/config.yaml").read_text(), "")
    trainer = {"max_steps": 1, "max_minutes": None, "batch_size": 4, "lr_decay": "cosine"}
    assert trainer.items() <= config["trainer"].items()
    assert config["data"]["class_cond"] and config["diffusion"]["label_dropout"] == 0.1
    assert "outputs/a is done: 1 steps" in command("train", *options).out
    ended = command("train", "resume=outputs/a", "experiment=mnist")
    problem = "experiment: the run has its own options; leave it out"
    assert (ended.status, ended.line) == (1, f"ddpm-train: {problem}")


def data_of(name):
    """Return options for small data of the kind that a recipe requires."""
    data = composed(name)[1]["data"]
    if data == "digits":
        return []
    if data == "sequence":
        np.save("waves.npy", np.random.default_rng(0).random((4, 32, 128), np.float32))
        return ["data.path=waves.npy"]
    if data == "video":
        videos, labels = moving_digits(4, 8, 16, 1, 0)
        np.savez("videos.npz", arr_0=videos, labels=labels[:, 0])
        return ["data.path=videos.npz"]
    shape = {"cifar": (32, 32, 3), "mnist": (28, 28), "folder": (64, 64, 3)}[data]
    return ["data=folder", f"data.path={write_pictures('pictures', shape)}"]


FEW = ("trainer.max_steps=2", "trainer.batch_size=2", "trainer.preview_every=0", "threads=1")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_samples(tmp_path, monkeypatch, name):
    """Two steps at full size with a batch of 2."""
    monkeypatch.chdir(tmp_path)
    model = ddpm.train([f"experiment={name}", *data_of(name), *FEW])
    assert model.checkpoint.run.name.endswith(f"-{name}") and model.checkpoint.step == 2
    classes = None if model.checkpoint.metadata.data["num_classes"] is None else [0, 1]
    if name != "moving_digits":  # whose samples begin with given frames
        samples, _ = model.sample(2, steps=2, classes=classes)
        assert len(samples) == 2 and torch.isfinite(samples.float()).all()


@pytest.mark.slow
def test_a_sweep_over_recipes(command):  # noqa: F811
    data = ("data=folder", f"data.path={write_pictures('pictures', (28, 28))}")
    ended = command("train", "-m", "experiment=mnist,digits", "name=s", *data, *FEW)
    assert ended.status == 0, ended.err
    runs = (Path(f"outputs/multirun/s/{job}/config.yaml").read_text() for job in range(2))
    decays = [from_yaml(text, "")["trainer"]["lr_decay"] for text in runs]
    assert decays == ["cosine", "constant"]
