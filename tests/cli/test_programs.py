"""Files of ddpm-export that sample without this package, by the code of docs/interop.md."""

import json
import os
import re
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm
from ddpm.interop.programs import INFO, export_program
from ddpm.interop.programs import _onnx_runner as onnx_runner
from ddpm.noise import SampleNoise
from tests.interop.test_programs import CASES, check, describe, module_of

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
CLASSES = ("data.class_cond=true", "diffusion.label_dropout=0.5", "diffusion.self_condition=true")
SMALL = ("model=iddpm_unet", "model.model_channels=32", "model.channel_mult=[1]",
         "model.num_res_blocks=1", "model.attention_resolutions=[]")  # fmt: skip
FILES = {"torch-export": "model.pt2", "onnx": "model.onnx"}


def runner(format):
    """Return the code of the page for a format, of at most 20 lines."""
    text = PAGE.read_text(encoding="utf-8")
    match = re.search(rf"<!-- needs: {FILES[format]} -->\n```python\n(.*?)```", text, re.S)
    code = match[1]
    assert len([line for line in code.splitlines() if line]) <= 20
    return code


def noise_of(format, shape):
    """Return the noise that the code of the page draws."""
    if format == "onnx":
        return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run_alone(format, packages=None):
    """Run the code of the page in a process without this package."""
    absent = ["ddpm", "torch"] if format == "onnx" else ["ddpm"]
    first = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    path = {} if packages is None else {"PYTHONPATH": str(packages)}
    ended = subprocess.run(
        [sys.executable, "-c", first + runner(format)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def images_of_page():
    """Return the images (16, H, W, C) that the code of the page has written."""
    grid = np.asarray(Image.open("samples.png"))
    grid = grid.reshape(*grid.shape[:2], -1)
    rows, columns = grid.shape[0] // 4, grid.shape[1] // 4
    return grid.reshape(4, rows, 4, columns, -1).swapaxes(1, 2).reshape(16, rows, columns, -1)


def check_images(format, command, monkeypatch):
    """Compare the images of the page with those of ddpm-sample from the same noise."""
    images = images_of_page()
    monkeypatch.setattr(SampleNoise, "draw", lambda self, shape: noise_of(format, (16, *shape)))
    options = ("sampler=ddim", "num_samples=16", "format=npz", "out=s", "precision=no")
    ended = command("sample", "ckpt=outputs/a", *options)
    assert ended.status == 0, ended.err
    expected = np.load("s/samples.npz")["arr_0"]
    distance = np.abs(images.astype(int) - expected.astype(int))
    assert images.shape == expected.shape and images.std() > 10
    assert distance.max() <= 1 and (distance > 0).mean() < 0.01


def info_of(path):
    """Return the description in a .pt2 file."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f"/extra/{INFO}"))
        return json.loads(archive.read(name))


def test_a_pt2_file_draws_the_images_of_ddpm_sample(command, tiny, monkeypatch):
    options = ("data.image_size=[6,8]", "schedule.num_steps=20", *CLASSES, *SMALL, *tiny[1:])
    assert command("train", "name=a", "trainer.max_steps=2", *options).status == 0
    ended = command("export", "ckpt=outputs/a", "format=torch-export", "out=model.pt2")
    assert ended.status == 0, ended.err
    assert ended.err == "" and ended.out.splitlines()[-1] == (
        "done: model.pt2 (inputs x_t, t, y, x_self_cond, outputs x0, x_t is (B, 1, 6, 8); "
        "see docs/interop.md)"
    )
    model, info = ddpm.load("outputs/a"), info_of("model.pt2")
    alphas = [*model.schedule.alpha_bar.sqrt().tolist(), 1.0]
    assert info.pop("alphas") == pytest.approx(alphas, abs=1e-15)
    assert [a**2 + s**2 for a, s in zip(alphas, info.pop("sigmas"), strict=True)] == (
        pytest.approx([1.0] * 21, abs=1e-12)
    )
    assert info.pop("timesteps") == list(range(19, -2, -1))
    assert info == {
        "inputs": ["x_t", "t", "y", "x_self_cond"], "outputs": ["x0"], "shape": [1, 6, 8],
        "num_steps": 20, "variance": "fixed_small", "clip": [-1.0, 1.0], "data": "images",
        "low": 0.0, "high": 255.0, "whole": True, "num_classes": 10,
        "class_names": [str(n) for n in range(10)], "null_class": 10, "step": 2, "weights": "ema",
        "ddpm": ddpm.__version__,
    }  # fmt: skip
    exec(compile(runner("torch-export"), str(PAGE), "exec"), {})
    check_images("torch-export", command, monkeypatch)

    # Names, and files of the user.
    Path("model.pt2").write_bytes(b"")
    Path("mine.pt2").write_bytes(b"mine")
    for name, line in (
        ("model.pt2", "model.pt2 was changed since ddpm-export wrote it; choose another place "
         "with out=, or move it away"),
        ("mine.pt2", "mine.pt2 was not written by ddpm-export; choose another place with out=, "
         "or move it away"),
        ("model.pth", "must end in .pt2, which torch.export.load requires"),
    ):  # fmt: skip
        ended = command("export", "ckpt=outputs/a", "format=torch-export", f"out={name}")
        assert ended.line == f"ddpm-export: out={name}: {line}"
    assert Path("mine.pt2").read_bytes() == b"mine"


def test_options_that_programs_lack(command, trained):
    for option, line in (
        ("version=1.0", "version=1.0: is for other systems; leave it out"),
        ("push=hf://a/b", "push=hf://a/b: uploads format=safetensors or diffusers only"),
    ):
        ended = command("export", f"ckpt={trained}", "format=torch-export", option)
        assert ended.line == f"ddpm-export: {line}"
    assert not Path(trained, "exported").exists()


@pytest.mark.slow
def test_a_pt2_file_needs_no_ddpm(command, tiny, monkeypatch):
    assert command("train", "name=a", "trainer.max_steps=2", *tiny).status == 0
    options = ("ckpt=outputs/a", "format=torch-export", "out=model.pt2")
    assert command("export", *options).status == 0
    times = info_of("model.pt2")["timesteps"]
    assert len(times) == 101 and times[:2] == [999, 989] and times[-2:] == [0, -1]
    run_alone("torch-export")
    check_images("torch-export", command, monkeypatch)


@pytest.mark.slow
def test_guidance_with_the_null_class(command, tiny):
    """As the page describes it."""
    options = ("schedule.num_steps=20", "objective=pred_x0", *CLASSES[:2], *tiny)
    assert command("train", "name=a", "trainer.max_steps=20", *options).status == 0
    ended = command("export", "ckpt=outputs/a", "format=torch-export", "weights=raw")
    path = "outputs/a/exported/step-00000020-raw.pt2"
    assert ended.status == 0 and f"done: {path} " in ended.out, ended.err
    network, info = torch.export.load(path).module(), info_of(path)
    alphas, sigmas, times = info["alphas"], info["sigmas"], info["timesteps"]
    x, y = noise_of("torch-export", (5, *info["shape"])), torch.arange(5)
    model = ddpm.load("outputs/a", weights="raw", precision="no")
    pipeline = model.pipeline("ddim", guidance=ddpm.Guidance(scale=3.0))
    expected = pipeline.sample(x, SampleNoise(range(5)), labels=y)
    for t, s in pairwise(times):
        at = torch.full((5,), t)
        null = network(x, at, y=torch.full((5,), info["null_class"]))["x0"]
        x0 = (null + 3 * (network(x, at, y=y)["x0"] - null)).clamp(*info["clip"])
        x = alphas[s] * x0 + sigmas[s] / sigmas[t] * (x - alphas[t] * x0)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    plain = model.pipeline("ddim").sample(noise_of("torch-export", x.shape), SampleNoise(range(5)),
                                          labels=y)  # fmt: skip
    assert (x - plain).abs().max() > 1e-3


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a folder with the packages of the extra ``onnx``."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    names = ["onnx", "onnxruntime", "onnxscript"]
    ended = subprocess.run(
        [*pip, "--target", folder, *names], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, f"pip could not install {names}: {ended.stderr}"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), CLASSES], ids=["plain", "classes"])
def test_an_onnx_file_draws_the_images_of_ddpm_sample(
    command, tiny, monkeypatch, packages, options
):
    assert command("train", "name=a", "trainer.max_steps=2", *options, *tiny).status == 0
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    ended = command("export", "ckpt=outputs/a", "format=onnx", "out=model.onnx")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1].startswith("done: model.onnx (inputs x_t, t")
    run_alone("onnx", packages)
    check_images("onnx", command, monkeypatch)
    assert str(PAGE.parents[1]).encode() not in Path("model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unet3d", "unet old", "unet1d", "iddpm", "simple"])
def test_an_onnx_file_has_the_predictions_of_the_denoiser(monkeypatch, packages, case):
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    module = module_of(*CASES[case])
    program = export_program("onnx", module, describe)
    check(module, onnx_runner(program.content))
