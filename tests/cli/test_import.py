"""Import of checkpoints of other systems, sampling and training from them, and export."""

import json
import os
import platform
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.errors import Stopped
from ddpm.interop import import_network
from ddpm.models import IDDPMUNet
from ddpm.training.checkpoint import find
from tests.reference_cases import filled

KWARGS = {
    "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
    "attention_resolutions": (2,), "channel_mult": (1, 2), "num_heads": 2,
}  # fmt: skip


def weights(seed=""):
    """Return a state dict in improved-diffusion's layout, which needs two heads."""
    net = IDDPMUNet(1, 2, (8, 8), model_channels=32, num_res_blocks=1, attention_resolutions=(2,),
                    channel_mult=(1, 2), use_scale_shift_norm=False)  # fmt: skip
    state = filled((seed + name, value.shape) for name, value in net.state_dict().items())
    return {name.removeprefix(seed): value for name, value in state.items()}


@pytest.fixture
def files(command):
    torch.save(weights(), "model050000.pt")
    torch.save(weights("ema"), "ema_0.9999_050000.pt")


IMPORT = (
    "source=improved-diffusion",
    "file=model050000.pt",
    "ema=ema_0.9999_050000.pt",
    "network.num_heads=2",
    "size=8",
    "name=i",
)


def test_a_run_of_improved_diffusion(command, files):
    ended = command("import", *IMPORT)
    assert ended.status == 0, ended.err
    assert "IDDPMUNet, 757" not in ended.out and "for 1x8x8" in ended.out
    assert "num_heads=" not in ended.out and "dropout=0.0" in ended.out  # the assumed options
    checkpoint = find("outputs/i", print)
    assert checkpoint.step == 50000
    for which, seed in (("raw", ""), ("ema", "ema")):
        expected = weights(seed)
        actual = checkpoint.weights(which)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in actual)
    # The scripts' defaults, and the variance that the outputs show.
    diffusion = checkpoint.config["diffusion"]
    assert (diffusion["variance"], diffusion["loss"]) == ("learned_range", "hybrid")
    assert diffusion["rescale_timesteps"] is True and diffusion["vlb_weight"] == 0.001
    assert checkpoint.config["schedule"]["_target_"] == "ddpm.diffusion.linear"
    options = ("num_samples=2", "steps=3", "sampler=ddpm", "out=s")
    assert command("sample", "ckpt=outputs/i", *options).status == 0
    assert sorted(path.name for path in Path("s/images").iterdir()) == ["00000.png", "00001.png"]


def test_training_resumes_with_named_data(command, files, tiny):
    assert command("import", *IMPORT).status == 0
    ended = command("train", "resume=outputs/i")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-train: data: is missing: the run was imported without data to train on; add data=...",
    )
    options = ("data=digits", "trainer.max_steps=50002", "trainer.batch_size=4")
    ended = command("train", "resume=outputs/i", *options, "trainer.preview_every=0")
    assert ended.status == 0, ended.err
    checkpoint = find("outputs/i", print)
    assert checkpoint.step == 50002
    before, after = weights(), checkpoint.weights("raw")
    assert any(not torch.equal(before[name], after[name]) for name in after)
    # The average is past its warm-up: two steps take 2 x 0.001 of what lies between the two.
    for name, old in weights("ema").items():
        expected = old + (1 - 0.999**2) * (after[name] - old)
        torch.testing.assert_close(checkpoint.weights("ema")[name], expected, atol=1e-4, rtol=1e-3)
    ended = command("train", "resume=outputs/i")  # the config has the data now
    assert ended.status == 0 and "is done: 50002 steps" in ended.out


@pytest.mark.parametrize("format", ["improved-diffusion", "guided-diffusion"])
def test_export_restores_the_imported_weights(command, files, format):
    assert command("import", *IMPORT).status == 0
    for which, seed in (("raw", ""), ("ema", "ema")):
        options = (f"format={format}", f"weights={which}", "out=o/net.pt")
        ended = command("export", "ckpt=outputs/i", *options)
        assert ended.status == 0, ended.err
        written = torch.load("o/net.pt", weights_only=True)
        assert all(torch.equal(written[name], value) for name, value in weights(seed).items())
        arguments = json.loads(Path("o/net.json").read_text())
        assert {name: arguments["network"][name] for name in ("num_heads", "dims")} == {
            "num_heads": 2,
            "dims": 2,
        }
        theirs, ours = (
            import_network(source, kwargs, written).eval()
            for source, kwargs in ((format, arguments["network"]), ("improved-diffusion", KWARGS))
        )
        x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
        with torch.no_grad():
            assert torch.equal(theirs(x, t), ours(x, t))


def test_safetensors_have_the_config_beside_the_weights(command, files):
    from safetensors import safe_open

    assert command("import", *IMPORT).status == 0
    ended = command("export", "ckpt=outputs/i")
    assert ended.status == 0, ended.err
    path = Path("outputs/i/exported/step-00050000.safetensors")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["config"])["model"]["num_heads"] == 2
        assert torch.equal(file.get_tensor("out.2.weight"), weights("ema")["out.2.weight"])


def test_a_recipe_sets_options_that_weights_do_not_show(command):
    """The published CIFAR-10 network, in its layout."""
    with torch.device("meta"):
        net = IDDPMUNet(3, 6, (32, 32), model_channels=128, num_res_blocks=3,
                        attention_resolutions=(2, 4), channel_mult=(1, 2, 2, 2), dropout=0.3,
                        num_heads=4, use_scale_shift_norm=True)  # fmt: skip
    torch.save({n: torch.zeros(w.shape) for n, w in net.state_dict().items()}, "model500000.pt")
    options = ("file=model500000.pt", "recipe=cifar10_uncond_hybrid", "name=c")
    ended = command("import", "source=improved-diffusion", *options)
    assert ended.status == 0, ended.err
    assert "3x32x32" in ended.out
    config = find("outputs/c", print).config
    assert (config["model"]["dropout"], config["model"]["num_heads"]) == (0.3, 4)
    assert config["schedule"]["num_steps"] == 4000
    assert config["schedule"]["_target_"] == "ddpm.diffusion.cosine"


def altered(change):
    state = weights()
    change(state)
    torch.save(state, "model050000.pt")


ERRORS = {
    "file=none.pt": "file=none.pt: file not found",
    "source=improved-difusion": (
        "source=improved-difusion: is not a system whose networks can be imported; did you mean "
        "'improved-diffusion'?"
    ),
    "network.num_heds=2": (
        "network.num_heds=2: is not an argument of improved-diffusion's network; did you mean "
        "'num_heads'?"
    ),
    "network.num_res_blocks=3": "network.num_res_blocks=3: the weights have 1; leave it out",
    "network.num_heads=5": None,
    "recipe=cifar10_uncond_hybrid": (
        "recipe=cifar10_uncond_hybrid: has in_channels=3, but the weights have 1; use "
        "another recipe"
    ),
    "recipe=cifar10": None,
    "version=1.0": (
        "version=1.0: all versions of improved-diffusion have the same networks; leave it out"
    ),
    "size=9": None,
    "size=[8,8,8]": "size=[8,8,8]: must be 2 numbers above 0: height and width",
    "size=null": (
        "size: is missing: the weights do not show it; add size=... (height and width of the data)"
    ),
    "diffusion=ddpm": (
        "diffusion.variance=fixed_small: needs a network with 1 output channels and this one has "
        "2; a learned variance (diffusion=iddpm) needs two per channel, and channels that are "
        "given as a whole (given_channels=[...]) need none"
    ),
    "step=-1": "step=-1: must be 0 or above",
}  # fmt: skip


@pytest.mark.parametrize("option", ERRORS)
def test_errors_are_one_line_and_leave_no_files(command, files, option):
    key = option.partition("=")[0]
    base = [word for word in IMPORT if word.partition("=")[0] != key]
    ended = command("import", *base, option)
    assert ended.status == 1
    assert ended.line.startswith("ddpm-import: ")
    if ERRORS[option] is not None:
        assert ended.line == f"ddpm-import: {ERRORS[option]}"
    assert not Path("outputs").exists()


def test_shape_errors_name_the_parameter_and_both_shapes(command, files):
    altered(lambda state: state.update({"out.0.weight": torch.ones(7)}))
    ended = command("import", *IMPORT)
    assert (ended.status, ended.line) == (
        1,
        "ddpm-import: state_dict.out.0.weight=[7]: the network has the shape "
        "[32] there; set network.<argument>=... to those of its training, or save "
        "the state dict of the network alone",
    )
    altered(lambda state: state.pop("out.0.weight"))
    ended = command("import", *IMPORT)
    assert ended.status == 1 and "state_dict.out.0.weight: is missing" in ended.line


def test_unsafe_files_are_rejected(command, files):
    torch.save({"model": np.random.default_rng}, "model050000.pt")
    ended = command("import", *IMPORT)
    assert ended.status == 1
    assert "is unsafe to load" in ended.line
    Path("model050000.pt").write_bytes(b"")
    ended = command("import", *IMPORT)
    assert ended.status == 1
    assert "is empty" in ended.line


SAVE = (
    "which is unsafe to load; save the state dict alone if you trust the file: "
    "torch.save(model.state_dict(), 'weights.pt'), or of a Lightning file "
    "torch.save(torch.load(file, weights_only=False)['state_dict'], 'weights.pt')"
)
CUT = "is not a checkpoint, or is truncated; copy it again, or save a state dict with "
CUT += "torch.save(model.state_dict(), ...)"


def other_files():
    """Yield files without a state dict, and the error of each."""
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    yield (
        "module.pt",
        f"contains more than tensors and plain data (torch.nn.modules.linear.Linear), {SAVE}",
    )
    torch.save(torch.ones(3), "tensor.pt")
    yield "tensor.pt", "contains no state dict; save one with torch.save(model.state_dict())"
    Path("text.pt").write_text("weights\n")
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("a.txt", "weights")
    whole = Path("model050000.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("cut.safetensors").write_bytes((999).to_bytes(8, "little") + b'{"a":')
    for name in ("text.pt", "zip.pt", "cut.pt", "cut.safetensors"):
        yield name, CUT
    Path("empty.pt").touch()
    yield "empty.pt", "is empty; copy or save it again"
    os.mkfifo("pipe.pt")
    yield "pipe.pt", "is not a regular file; use a checkpoint"


def test_other_kinds_of_files_are_one_line_errors(command, files):
    for name, problem in list(other_files()):
        ended = command("import", *IMPORT[:1], f"file={name}", "size=8")
        assert (ended.status, ended.line) == (1, f"ddpm-import: file={name}: {problem}")
    assert not Path("outputs").exists()


def test_non_finite_weights_name_the_file(command, files):
    state = weights("ema")
    state["out.2.bias"][0] = float("nan")
    torch.save(state, "ema_0.9999_050000.pt")
    ended = command("import", *IMPORT)
    assert (ended.status, ended.line) == (
        1,
        "ddpm-import: ema=ema_0.9999_050000.pt: its raw weights contain NaN or "
        "infinite values: 1 of 2 in out.2.bias; use a checkpoint that was saved before the "
        "training diverged",
    )
    assert not Path("outputs").exists()


def test_wrapped_state_dicts_are_unwrapped(command, files):
    half = {f"model.module.{name}": value.half() for name, value in weights().items()}
    torch.save({"state_dict": half, "epoch": 3, "optimizer_states": []}, "last.ckpt")
    options = ("file=last.ckpt", "network.num_heads=2", "size=8", "name=i")
    ended = command("import", "source=improved-diffusion", *options)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-5:] == [
        "no averaged weights were found: the average starts at the weights themselves",
        "weights of float16 were converted to float32",
        "ignored, because these are not weights of the network: epoch, optimizer_states",
        "done: outputs/i",
        "sample it with: ddpm-sample ckpt=outputs/i",
    ]
    assert sorted(os.listdir("outputs")) == ["i", "latest"]
    torch.save({"ema": half}, "last.ckpt")
    ended = command("import", "source=improved-diffusion", *options[:3], "name=e")
    warning = "only averaged weights were found: training would resume from the average"
    assert ended.status == 0 and ended.out.splitlines()[-4] == warning
    assert os.readlink("outputs/latest") == "e"


FAILURES = {
    "the config": "ddpm.training.run.replacing",
    "the weights": "ddpm.training.checkpoint.safetensors.torch.save_file",
    "the name": "pathlib.Path.rename",
    "the link": "ddpm.training.run.point",
}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), Stopped("stopped by SIGINT")]
)
@pytest.mark.parametrize("what", FAILURES)
def test_a_failed_import_leaves_no_files(command, files, monkeypatch, what, error):
    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(FAILURES[what], fail)
        ended = command("import", *IMPORT, "out=a/b")
    assert ended.status == (1 if isinstance(error, OSError) else 75)
    if isinstance(error, OSError):
        assert ended.line.startswith("ddpm-import: out=a/b: cannot be written (")
    assert not Path("a").exists()
    Path("a/b/mine").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(FAILURES[what], fail)
        assert command("import", *IMPORT, "out=a/b").status != 0
    assert os.listdir("a/b") == ["mine"]


def test_files_of_a_killed_import_are_removed_by_the_next(command, files):
    left = Path(f"outputs/.unfinished-{platform.node()}-999999999")
    other = Path("outputs/.unfinished-elsewhere-999999999")
    (left / "checkpoints").mkdir(parents=True)
    other.mkdir()
    assert command("import", *IMPORT).status == 0
    assert sorted(os.listdir("outputs")) == [other.name, "i", "latest"]


def test_the_null_class_survives_export_and_import(command, tiny):
    """Export adds one class for guidance to the classes of the data; import removes it."""
    model = ("model=iddpm_unet", "model.model_channels=32", "model.channel_mult=[1,1]")
    classes = ("data.class_cond=true", "diffusion.label_dropout=0.2", "objective=pred_noise")
    small = [option for option in tiny if not option.startswith("model.")]
    ended = command("train", "name=g", "trainer.max_steps=1", *model, *classes, *small)
    assert ended.status == 0, ended.err
    ended = command("export", "ckpt=outputs/g", "format=improved-diffusion", "out=g.pt")
    assert ended.status == 0, ended.err
    network = json.loads(Path("g.json").read_text())["network"]
    assert network["num_classes"] == 11 and network["channel_mult"] == [1, 1]
    assert all(type(n) is int for n in network["channel_mult"])
    options = ("file=g.pt", "size=8", "name=b", "diffusion=ddpm", "diffusion.label_dropout=0.1")
    ended = command("import", "source=improved-diffusion", *options)
    assert ended.status == 0, ended.err
    options = ("classes=[1]", "guidance=2", "steps=2", "num_samples=1", "out=s")
    assert command("sample", "ckpt=outputs/b", *options).status == 0


def test_unsupported_options_cannot_be_exported(command, tiny):
    options = ("trainer.max_steps=1", "schedule.num_steps=20", *tiny)
    assert command("train", "name=u", *options).status == 0
    ended = command("export", "ckpt=outputs/u", "format=improved-diffusion")
    assert ended.line == (
        "ddpm-export: format=improved-diffusion: supports networks of model=iddpm_unet only"
    )
    ended = command(
        "export", "ckpt=outputs/u", "out=net.json", "format=denoising-diffusion-pytorch"
    )
    assert ended.status == 0, ended.err
    assert torch.load("net.json", weights_only=True)["step"] == 1
    assert json.loads(Path("net.json.json").read_text())["network"]["dim"] == 8


UNUSUAL = {
    "a list": {"model": [1, 2]},
    "a number": {"init_conv.weight": 3},
    "one dimension": {"init_conv.weight": torch.ones(4)},
    "a step in words": {"model": {"init_conv.weight": torch.ones(4, 3, 7, 7)}, "step": "abc"},
    "no tensors": {"epoch": 3},
}


@pytest.mark.parametrize("content", UNUSUAL)
@pytest.mark.parametrize(
    "source", ["denoising-diffusion-pytorch", "video-diffusion-pytorch", "simple-unet"]
)
def test_unusual_contents_are_one_line_errors(command, source, content):
    torch.save(UNUSUAL[content], "unusual.pt")
    ended = command("import", f"source={source}", "file=unusual.pt", "size=8")
    assert ended.status == 1
    assert ended.line.startswith("ddpm-import: ")
    assert not Path("outputs").exists()
    ended = command("import", f"source={source}", "file=.", "size=8")
    assert ended.line == "ddpm-import: file=.: is a folder; use a file in it"


EXPORT_ERRORS = {
    "format=diffphycon": (
        "format=diffphycon: supports networks of model=unet3d model.conv=full only"
    ),
    "format=safetensor": None,
    "version=1.0": "version=1.0: is for other systems; leave it out",
}


@pytest.mark.parametrize("option", EXPORT_ERRORS)
def test_errors_of_export(command, files, option):
    assert command("import", *IMPORT).status == 0
    ended = command("export", "ckpt=outputs/i", option)
    assert ended.status == 1
    assert ended.line.startswith(f"ddpm-export: {option}: ")
    if EXPORT_ERRORS[option] is not None:
        assert ended.line == f"ddpm-export: {EXPORT_ERRORS[option]}"
    assert not Path("outputs/i/exported").exists()


def test_existing_names_are_rejected(command, files):
    assert command("import", *IMPORT).status == 0
    ended = command("import", *IMPORT)
    assert (ended.status, ended.line) == (
        1,
        "ddpm-import: name=i: this folder exists; choose another name, or delete it",
    )
