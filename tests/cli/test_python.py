"""Equality of the results of the Python interface and the commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ddpm
from ddpm.data import Folder
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DDPM


def written(folder):
    files = sorted(Path(folder, "images").iterdir())
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_samples_are_those_of_the_command(command, trained):
    for name in ("ddim", "ddpm"):
        options = ("num_samples=5", "steps=3", "seed=7", "batch_size=2", f"out={name}")
        ended = command("sample", f"ckpt={trained}", f"sampler={name}", *options)
        assert ended.status == 0, ended.err
    model = ddpm.load(trained)
    assert model.checkpoint.step == 2 and not model.network.training
    for name, instance in (("ddim", DDIM(steps=3)), ("ddpm", DDPM(steps=3))):
        data, labels = model.sample(5, sampler=name, steps=3, seed=7)
        assert data.dtype == torch.uint8 and data.shape == (5, 1, 8, 8) and labels is None
        assert np.array_equal(data[:, 0].numpy(), written(name))
        assert torch.equal(model.sample(5, sampler=instance, seed=7).data, data)
    batches = list(model.samples(5, steps=3, seed=7, batch_size=2))
    assert [len(batch.data) for batch in batches] == [2, 2, 1]
    raw = ddpm.load(f"{trained}/checkpoints/step-00000002", weights="raw", device="cpu")
    assert not torch.equal(raw.sample(5, steps=3, seed=7).data, model.sample(5, steps=3, seed=7)[0])


def test_frames_are_those_of_the_command(command, trained):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("a.png")
    options = ("a=a.png", "b=3", "num_frames=4", "steps=5", "seed=1", "out=i")
    ended = command("interpolate", f"ckpt={trained}", *options)
    assert ended.status == 0, ended.err
    model = ddpm.load(trained)
    frames = model.interpolate("a.png", 3, num_frames=4, steps=5, seed=1)
    assert np.array_equal(frames[:, 0].numpy(), written("i"))
    data = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    assert torch.equal(model.interpolate(data, 3, num_frames=4, steps=5, seed=1), frames)


def test_classes_are_numbers_or_names_and_guidance_changes_the_samples(command, tiny):
    options = ("name=c", "data.class_cond=true", "diffusion.label_dropout=0.1", *tiny)
    assert command("train", "trainer.max_steps=1", *options).status == 0
    model = ddpm.load("outputs/c")
    data, labels = model.sample(4, steps=2, classes=[3, "7"])
    assert labels is not None and labels.tolist() == [3, 7, 3, 7]
    guided, again = model.sample(4, steps=2, classes=[3, 7], guidance=4.0)
    assert not torch.equal(guided, data) and torch.equal(labels, again)
    _, every = model.sample(12, steps=1)
    assert every is not None and every.tolist() == [*range(10), 0, 1]
    with pytest.raises(ConfigError, match="use classes="):
        model.interpolate(1, 2)


def test_the_denoiser_is_exact_where_the_process_is(trained):
    model = ddpm.load(trained)
    assert model.schedule.num_steps == 1000 and model.codec.shape == (1, 8, 8)
    x_t, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 600
    with torch.no_grad():
        x0, eps, _ = model.denoiser(x_t, t)
    signal, noise = model.schedule.signal_noise(t)
    assert x0.abs().max() <= 1
    torch.testing.assert_close(signal * x0 + noise * eps, x_t)  # x_t = signal x0 + noise eps


@pytest.mark.parametrize("t", [-1, -0.5, 999.5, 1000, float("nan"), None, torch.zeros(3, 3)])
def test_the_denoiser_refuses_times_outside_of_the_process(trained, t):
    model = ddpm.load(trained)
    with pytest.raises(ConfigError, match=r"^t=.*: must be a number from 0 to 999, ") as error:
        model.denoiser(torch.zeros(1, 1, 8, 8), t)
    assert "\n" not in str(error.value)


def test_the_denoiser_takes_real_times(trained):
    model = ddpm.load(trained)
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        low, middle, high = (model.denoiser(x_t, t).eps for t in (600, np.float64(600.5), 601))
    assert 0 < (middle - low).norm() < 2 * (high - low).norm()


def test_conditioning_by_class(command, tiny):
    options = ("name=c", "data.class_cond=true", "diffusion.label_dropout=0.1", *tiny)
    assert command("train", "trainer.max_steps=1", *options).status == 0
    model = ddpm.load("outputs/c")
    _, labels = model.sample(2, steps=1, classes=[3, 7])
    for classes in ([3, "7"], labels, np.array([3, 7])):
        conditioning = model.conditioning(classes)
        assert conditioning["y"].tolist() == [3, 7]
        assert conditioning["y"].device == model.device
    assert conditioning.unconditional()["y"].tolist() == [10, 10]
    assert model.conditioning([3, 7], count=3)["y"].tolist() == [3, 7, 3]
    assert model.conditioning(4, count=2)["y"].tolist() == [4, 4]
    assert model.conditioning()["y"].tolist() == [*range(10)]
    x_t = torch.zeros(2, 1, 8, 8)
    with torch.no_grad():
        by_class = model.denoiser(x_t, 500, conditioning=model.conditioning([3, 7]))
        assert torch.equal(by_class.x0, model.denoiser(x_t, 500, conditioning=conditioning).x0)
    for classes, count, line in (
        ([3, 10], None, "classes=[3,10]: the model has the classes 0 to 9"),
        (["cat"], None, "classes=[cat]: the model has the classes 0 to 9"),
        ([3], 0, "count=0: must be at least 1"),
    ):
        with pytest.raises(ConfigError) as error:
            model.conditioning(classes, count)
        assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_conditioning_by_classes_named_by_other_numbers(command, tiny):
    for name in (1, 2, 3):
        Path(f"named/{name}").mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8), 20 * name + i, np.uint8)
            Image.fromarray(pixels).save(f"named/{name}/{i}.png")
    others = [option for option in tiny if not option.startswith("data")]
    options = (
        "data=folder",
        "data.path=named",
        "data.image_size=8",
        "data.class_cond=true",
        *others,
    )
    ended = command("train", "name=n", "trainer.max_steps=1", *options)
    assert ended.status == 0, ended.err
    model = ddpm.load("outputs/n")
    _, labels = model.sample(3, steps=1)
    assert labels is not None and labels.tolist() == [1, 2, 3]
    assert model.conditioning(labels)["y"].tolist() == [0, 1, 2]
    assert model.conditioning([3, 1])["y"].tolist() == [2, 0]
    with pytest.raises(ConfigError, match="classes="):
        model.conditioning(0)


def test_conditioning_of_an_unconditional_model(trained):
    model = ddpm.load(trained)
    assert len(model.conditioning()) == 0
    _, labels = model.sample(1, steps=1)
    assert len(model.conditioning(labels)) == 0
    with pytest.raises(ConfigError, match="classes=3: the model is not class-conditional"):
        model.conditioning(3)


def test_saved_images_are_a_folder_like_those_of_ddpm_sample(command, trained, monkeypatch):
    model = ddpm.load(trained)
    data, _ = model.sample(3, steps=1)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert model.save_images(data, "~/new/s") == Path("new/s/grid.png").absolute()
    assert np.array_equal(written("new/s"), data[:, 0].numpy())
    assert len(Folder(path="new/s")) == 3  # without the grid
    model.save_images(data[:2].numpy(), "new/s")
    assert len(written("new/s")) == 2
    ended = command("sample", f"ckpt={trained}", "out=new/s", "num_samples=1", "steps=1")
    assert ended.status == 0 and len(written("new/s")) == 1
    Path("mine").mkdir()
    Path("mine/grid.png").write_text("mine")
    Path("file").write_text("mine")
    for wrong, folder, message in (
        (data, "mine", "folder=mine: mine/grid.png was not written by ddpm-sample"),
        (data, "file", "folder=file: "),
        (data[0], "a", "data=shape (1, 8, 8): the model's data are of shape (N, 1, 8, 8)"),
        (data.float(), "a", "data=torch.float32: the model's data are torch.uint8"),
        (data[:0], "a", "data=shape (0, 1, 8, 8): "),
        ([1], "a", "data=[1]: must be Tensor"),
    ):
        with pytest.raises(ConfigError) as error:
            model.save_images(wrong, folder)
        assert str(error.value).startswith(message)
    assert Path("mine/grid.png").read_text() == Path("file").read_text() == "mine"
    assert not Path("a").exists()


def test_numbers_and_classes_of_numpy_and_torch(command, tiny):
    options = ("name=c", "data.class_cond=true", "trainer.max_steps=1", *tiny)
    assert command("train", *options).status == 0
    model = ddpm.load("outputs/c")
    expected = model.sample(2, steps=1, classes=[3, 7])
    for classes in (np.array([3, 7]), torch.tensor([3, 7]), (3, "7")):
        samples = model.sample(np.int64(2), steps=1, classes=classes)
        assert all(map(torch.equal, samples, expected))
    assert isinstance(hash(model), int)


def test_half_precision_is_close(trained):
    full = ddpm.load(trained).sample(2, steps=2).data.float()
    half = ddpm.load(trained, precision="bf16").sample(2, steps=2).data.float()
    assert 0 < (full - half).abs().max() < 8


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n": 0}, "n=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"sampler": "dimm"}, "sampler=dimm: unknown sampler; did you mean 'ddim'?"),
        ({"steps": 2000}, "steps=2000: the process has 1000 steps; use 1 to 1000"),
        ({"sampler": DDIM(), "steps": 5}, "steps=5: DDIM has steps of its own; set them there"),
        ({"classes": [3]}, "classes=[3]: the model is not class-conditional; "),
        ({"guidance": 2.0}, "guidance=2.0: the model was not trained for guidance; "),
        ({"condition": torch.zeros(1, 1, 8, 8)}, "condition=tensor"),
        ({"n": 2.5}, "n=2.5: must be a whole number"),
        ({"batch_size": "many"}, "batch_size=many: must be a whole number"),
        ({"seed": None}, "seed=null: must be a whole number"),
        ({"sampler": DDIM}, "sampler="),
        ({"guidance_rescale": "much"}, "guidance_rescale=much: must be a number"),
    ],
)
def test_invalid_arguments_raise_config_errors(trained, options, line):
    few = {} if "sampler" in options else {"steps": 1}
    with pytest.raises(ConfigError) as error:
        ddpm.load(trained).sample(**{"n": 1, **few, **options})
    assert str(error.value).startswith(line)


def test_data_of_another_shape_and_missing_runs_are_rejected(trained, tmp_path):
    model = ddpm.load(trained)
    with pytest.raises(
        ConfigError, match=r"a=shape \(8, 8\): the model's data are of shape \(1, 8, 8\)"
    ):
        model.interpolate(torch.zeros(8, 8), 1)
    with pytest.raises(ConfigError, match="t=1000: the process has 1000 steps; use 0 to 999"):
        model.interpolate(0, 1, t=1000)
    with pytest.raises(ConfigError, match="none"):
        ddpm.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="~nobody-of-this-name/run"):
        ddpm.load("~nobody-of-this-name/run")
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for wrong, message in (
        ({"a": image.float()}, "a=torch.float32: the model's data are torch.uint8"),
        ({"mode": "SLERP"}, "mode=SLERP: unknown choice"),
        ({"t": 1.5}, "t=1.5: must be a whole number or null"),
        ({"num_frames": 1}, "num_frames=1: must be at least 2, the two ends"),
        ({"a": "~/none.png"}, "a=~/none.png: no such file"),
    ):
        with pytest.raises(ConfigError) as error:
            model.interpolate(**{"a": image, "b": 1, **wrong})
        assert str(error.value).startswith(message)
    for name, value in (("device", "gpu"), ("precision", "float16"), ("weights", "emma")):
        with pytest.raises(ConfigError, match=f"^{name}={value}: unknown choice"):
            ddpm.load(trained, **{name: value})
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="this machine has no GPU"):
            ddpm.load(trained, device="cuda")


def test_importing_the_package_does_not_import_torch(trained):
    code = "import sys, ddpm; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(ddpm.load(trained), ddpm.TrainedModel)


def test_metrics_are_those_of_the_command(command, trained):
    options = ("num_samples=6", "num_images=3", "bound_steps=2", "batch_size=4")
    options += ("extractor=pixels", "steps=2", "metrics=[fid,bpd,loss]", "seed=3", "out=e")
    ended = command("evaluate", f"ckpt={trained}", *options)
    assert ended.status == 0, ended.err
    rows = json.loads(Path("e/evaluation.json").read_text())["metrics"]
    result = ddpm.load(trained).evaluate(
        ["fid", "bpd", "loss"], num_samples=6, num_images=3, bound_steps=2, batch_size=4,
        extractor="pixels", steps=2, seed=3,
    )  # fmt: skip
    assert result.numbers == {row["name"]: row["value"] for row in rows}
    for row in rows:
        computed = row.keys() - {"name", "value", "error", "higher_is_better"}
        provenance = json.loads(json.dumps(result.provenance[row["name"]]))
        assert provenance == {name: row[name] for name in computed}


def test_errors_of_an_evaluation_name_the_option(trained):
    model = ddpm.load(trained)
    for options, line in (
        ({"metrics": "fidd"}, "metrics=fidd: unknown metric; did you mean 'fid'?"),
        ({"extractor": "pixel"}, "extractor=pixel: unknown extractor; did you mean 'pixels'?"),
        ({"num_samples": 1}, "num_samples=1: fid needs at least 2 samples"),
        ({"bound_steps": 0, "metrics": "bpd"},
         "bound_steps=0: the process has 1000 steps; use 1 to 1000, or null for all"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            model.evaluate(**{"extractor": "pixels", **options})
        assert str(caught.value) == line


def test_training_from_python_equals_the_command(command, tiny):
    ended = command("train", "name=a", "trainer.max_steps=2", *tiny)
    assert ended.status == 0, ended.err
    trainer = {"max_steps": 2, "batch_size": 8, "preview_every": 0, "log_every": 1, "lr_warmup": 0}
    model = ddpm.train({"name": "b", "data": "digits", "model": {"dim": 8}, "trainer": trainer})
    assert model.checkpoint is not None and model.checkpoint.step == 2
    runs = [Path("outputs", name, "checkpoints", "step-00000002") for name in "ab"]
    for file in ("model.safetensors", "ema.safetensors"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    config = yaml.safe_load(Path("outputs/a/config.yaml").read_text())
    again = ddpm.train({**config, "name": "b"})  # a complete config resumes a finished run
    assert again.checkpoint.step == 2
    assert torch.equal(again.sample(2, steps=2).data, model.sample(2, steps=2).data)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (["model=nope"], "model=nope: unknown choice"),
        (["trainer.lrr=1"], "trainer.lrr=1: unknown option; did you mean 'trainer.lr'?"),
        ({"trainer": {"lr": "x"}}, "trainer.lr=x: must be a number or null"),
        ({"trainer": {"lr": object()}}, "trainer.lr=object: must be text, a number"),
        (["launch.processes=2"], "launch.processes=2: cannot start processes from Python"),
        (["foo"], "foo: options are written key=value"),
    ],
)
def test_invalid_options_of_training_from_python(tmp_path, monkeypatch, config, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        ddpm.train(config)
    assert str(raised.value).startswith(line)
    assert not any(tmp_path.iterdir())
