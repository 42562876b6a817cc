"""Runs that start from the weights of others: ``init=``."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import ddpm
from ddpm import instantiate
from ddpm.cli.composition import compose
from ddpm.data import ImageCodec
from ddpm.data.spec import DataSpec
from ddpm.errors import ConfigError
from ddpm.files import file_sha256
from ddpm.runs import initialization
from ddpm.runs.plan import plan
from ddpm.runs.request import Request
from ddpm.runs.stored_config import adopted
from ddpm.training import checkpoint


def pictures(folder, size=(10, 9)):
    """Write colour pictures in the classes 3 and x; return options for them."""
    for index, name in enumerate(("3", "x", "3", "x")):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(folder, name, f"{index}.png"))
    return ("data=folder", f"data.path={folder}", "data.class_cond=true")


FEW = ("trainer.batch_size=4", "trainer.preview_every=0", "threads=1")
STILL = ("trainer.lr=1e-12", "trainer.max_steps=1", *FEW)


def weights(run, name="model", step=1):
    return load_file(f"{run}/checkpoints/step-{step:08d}/{name}.safetensors")


def test_a_run_starts_from_the_averaged_weights_of_another(command, trained, capsys):
    """The data have other channels, another size and classes; then the other run is deleted."""
    assert "init" not in yaml.safe_load(Path(trained, "config.yaml").read_text())
    averaged = Path(trained, "checkpoints/step-00000002/ema.safetensors")
    source, sha256 = load_file(averaged), file_sha256(averaged)
    options = ["name=b", *pictures("pictures"), *STILL]
    ddpm.train(options, init=trained)
    lines = capsys.readouterr().out.splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith("init: ")]
    assert lines[start].endswith(f" weights are the averages of {averaged.parent}")
    assert lines[start + 1 : start + 3] == [
        "new: init_conv, label_emb, final_conv",
        "not used: final_conv, init_conv",
    ]
    for name in ("model", "ema"):
        for key, tensor in weights("outputs/b", name).items():
            if key in source and source[key].shape == tensor.shape:
                torch.testing.assert_close(tensor, source[key], atol=1e-10, rtol=0)
    config = yaml.safe_load(Path("outputs/b/config.yaml").read_text())
    assert config["init"] == {
        "ckpt": str(Path(trained).resolve()),
        "strict": False,
        "checkpoint": str(averaged.parent.resolve()),
        "sha256": sha256,
    }
    assert (config["model"]["dim"], config["model"]["pad"]) == (8, True)
    shutil.rmtree(trained)
    assert "outputs/b is done: 1 steps" in command("train", *options, f"init={trained}").out
    ended = command("train", "resume=outputs/b", "trainer.max_steps=2")
    assert ended.status == 0 and "init: " not in ended.out, ended.err
    assert yaml.safe_load(Path("outputs/b/config.yaml").read_text())["init"] == config["init"]
    for options, line in (
        (("resume=outputs/b", "init=outputs/a"), "init: starts a new run; use init=outputs/b"),
        (("name=b", "init=outputs/c"), "init=outputs/c: the run outputs/b started from /"),
        (
            ("name=c", "init=outputs/gone"),
            "init=outputs/gone: run or checkpoint not found; use init=outputs/b",
        ),
    ):
        ended = command("train", *options)
        assert ended.status == 1 and ended.line.startswith(f"ddpm-train: {line}"), ended.line
    assert not Path("outputs/c").exists()


def test_weights_that_do_not_fit_are_rejected(trained):
    source = checkpoint.find(trained, print)

    def built(channels, model=None):
        spec = DataSpec((channels, 8, 8), None, None, ImageCodec((channels, 8, 8)))
        config = {**source.config, "init": {"ckpt": trained, "strict": True}}
        config["model"] = config["model"] if model is None else model
        return initialization.network(config, spec, instantiate.diffusion(config, spec), source)

    network, text = built(1)
    assert text is not None and "\n" not in text
    averaged = source.weights("ema")
    assert all(torch.equal(value, averaged[name]) for name, value in network.state_dict().items())
    with pytest.raises(ConfigError) as caught:
        built(3)
    assert str(caught.value) == (
        "init.strict=true: not all weights fit: new: init_conv, final_conv; not used: "
        "final_conv, init_conv; leave it out to initialize the others"
    )
    with pytest.raises(ConfigError, match="no weights fit the network, SimpleUNet; leave out"):
        built(1, {"_target_": "ddpm.models.SimpleUNet", "width": 8, "num_heads": 2})
    with pytest.raises(ConfigError, match=r"^init.strict=true: requires init=, a run or a "):
        plan(Request(config={"trainer": {}, "init": {"ckpt": None, "strict": True}}))


def test_network_and_process_are_those_of_the_checkpoint_unless_typed():
    labelled = ("data.class_cond=true", "diffusion.label_dropout=0.1", "diffusion.variance=learned")
    choices = ("model=iddpm_unet", "schedule=linear", "objective=pred_noise")
    stored = compose("train", [*choices, *labelled])[0]
    typed = ("objective=pred_x0", "++model.dropout=0.2", "++schedule.num_steps=50")
    config = compose("train", [each.lstrip("+") for each in typed])[0]
    result = adopted(config, stored, Request(config=config, overrides=typed))
    assert result["model"] == {**stored["model"], "dropout": 0.2}
    assert result["schedule"] == {**stored["schedule"], "num_steps": 50}
    assert result["objective"] == config["objective"] and result["trainer"] == config["trainer"]
    assert result["diffusion"] == {**stored["diffusion"], "label_dropout": 0.0}
    recipe = Request(config=config, overrides=("experiment=digits", *typed))
    assert adopted(config, stored, recipe) == config
    unknown = Request(config=config, overrides=("++model.dim=3",))
    with pytest.raises(ConfigError, match=r"^model\.dim=3: unknown option"):
        adopted({**config, "model": {"dim": 3}}, stored, unknown)


@pytest.mark.slow
def test_an_imported_network_is_a_start(command, trained):
    system = "denoising-diffusion-pytorch"
    for name, *options in (
        ("export", f"ckpt={trained}", f"format={system}", "out=net.pt"),
        ("import", f"source={system}", "file=net.pt", "size=8", "name=back",
         "network.attn_heads=2", "network.attn_dim_head=16"),
        ("train", "name=b", "init=outputs/back", "init.strict=true", *STILL),
    ):  # fmt: skip
        ended = command(name, *options)
        assert ended.status == 0, ended.err
    source = weights(trained, "ema", 2)
    for key, tensor in weights("outputs/b").items():
        torch.testing.assert_close(tensor, source[key], atol=1e-10, rtol=0)
