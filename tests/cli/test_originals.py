"""Import, equal sampling, and export of checkpoints that the original packages write."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import instantiate
from ddpm.noise import SampleNoise
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM
from ddpm.training.checkpoint import find
from tests.reference_cases import relative_error

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "interop" / "originals"
CALLS, TRAINED = 10, 60
SMALL = {"dim": 8, "dim_mults": [1, 2], "channels": 3}
LUCIDRAINS = {
    "1.8.14 images": (
        {"dims": 2,
         "network": {**SMALL, "self_condition": True, "full_attn": [False, True],
                     "attn_dim_head": 8},
         "process": {"objective": "pred_noise", "beta_schedule": "linear"}},
        ["network.attn_dim_head=8"],  # 4 heads of 8, or 1 of 32: the weights are ambiguous
        {"schedule": "linear", "objective": "PredNoise", "target": "UNet"},
    ),
    "2.3.4 images": (
        {"dims": 2,
         "network": {**SMALL, "full_attn": [False, True], "attn_dim_head": 16, "attn_heads": 2},
         "process": {"objective": "pred_v", "min_snr_loss_weight": True}},
        [],
        {"schedule": "sigmoid", "objective": "PredV", "target": "UNet"},
    ),
    "1.8.14 sequences": (
        {"dims": 1, "network": {**SMALL, "self_condition": True},
         "process": {"objective": "pred_x0", "timesteps": 700}},
        [],
        {"schedule": "cosine", "objective": "PredX0", "target": "UNet"},
    ),
    "2.3.4 sequences": (
        {"dims": 1, "network": {**SMALL, "attn_heads": 2, "attn_dim_head": 8},
         "process": {"objective": "pred_v"}},
        ["network.attn_heads=2", "network.attn_dim_head=8"],
        {"schedule": "cosine", "objective": "PredV", "target": "UNet"},
    ),
}  # fmt: skip
VIDEO = {
    "network": {"dim": 8, "dim_mults": [1, 2], "channels": 1, "attn_heads": 2, "attn_dim_head": 8},
    "steps": 200,
    "calls": CALLS,
    "trained": TRAINED,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return a function: ``package("name==version", ...)`` downloads into a folder."""

    def unpacked(*requirements):
        folder = tmp_path_factory.mktemp("wheels")
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
        ended = subprocess.run(
            [*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, *requirements],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, f"pip could not download {requirements}: {ended.stderr}"
        wheels = list(folder.glob("*.whl"))
        assert len(wheels) == len(requirements)
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(folder / "packages")
        return folder / "packages"

    return unpacked


def run(script, stage, settings, packages):
    """Return the arrays that a script of an original writes in a process of its own."""
    environment = {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, SCRIPTS / script, stage, json.dumps(settings), "."],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    with np.load(f"{stage}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def check_import(command, theirs, *options):
    """Import ``model-1.pt``, compare the outputs of the networks, and return the config."""
    ended = command("import", "file=model-1.pt", "name=i", *options)
    assert ended.status == 0, ended.err
    checkpoint = find("outputs/i", print)
    assert checkpoint.step == theirs["step"] == TRAINED
    x, t = theirs["x"], theirs["t"]
    for which in ("raw", "ema"):
        net = instantiate.trained(checkpoint, which)[0].eval()
        with torch.no_grad():
            assert relative_error(net(x, t), theirs[which]) < 1e-4
            if "known" in theirs:
                output = net(x, t, x_self_cond=theirs["known"])
                assert relative_error(output, theirs[f"{which}_known"]) < 1e-4
    assert relative_error(theirs["raw"], theirs["ema"]) > 1e-2
    return checkpoint.config


def sampled(start):
    """Return deterministic DDIM samples of the imported run from x_T, in model space; its codec."""
    network, process, spec = instantiate.trained(find("outputs/i", print), "ema")
    sampler = DDIM(steps=CALLS, spacing="trailing")
    cpu = torch.device("cpu")
    pipeline = build_pipeline(network, process, sampler, spec.codec, device=cpu)
    return pipeline.sample(start, SampleNoise([])), spec.codec


def check_pictures(pictures, values):
    """Check that bytes are the rounded values in 0..1; ties may round either way."""
    assert pictures.dtype == torch.uint8
    theirs = 255 * values.double()
    assert float((pictures.double() - theirs).abs().max()) < 0.5 + 255e-4
    certain = (theirs - theirs.floor() - 0.5).abs() > 255e-4
    assert certain.double().mean() > 0.8
    assert torch.equal(pictures[certain].double(), theirs.round()[certain])


@pytest.mark.parametrize("case", LUCIDRAINS)
def test_denoising_diffusion_pytorch(command, package, case):
    settings, options, expected = LUCIDRAINS[case]
    version, kind = case.split()
    images = kind == "images"
    settings = {**settings, "calls": CALLS, "trained": TRAINED}
    packages = package(f"denoising-diffusion-pytorch=={version}")
    theirs = run("lucidrains.py", "make", settings, packages)
    system = "denoising-diffusion-pytorch" + ("" if images else "-1d")
    config = check_import(command, theirs, f"source={system}", "size=8", *options)
    for key, name in expected.items():
        node = config["model" if key == "target" else key]
        assert node["_target_"].rpartition(".")[2] == name

    ours, codec = sampled(theirs["x_T"])
    assert relative_error(ours, 2 * theirs["sample"] - 1) < 1e-4
    assert ours.std() > 0.01 and (ours.abs() < 1).double().mean() > 0.3  # not all is clipped
    if images:
        check_pictures(codec.decode(ours), theirs["sample"])
    else:
        assert relative_error(codec.decode(ours), theirs["sample"]) < 1e-4

    ended = command("export", "ckpt=outputs/i", f"format={system}", "out=model-2.pt")
    assert ended.status == 0, ended.err
    assert torch.load("model-2.pt", weights_only=True)["version"] == version
    back = run("lucidrains.py", "load", settings, packages)
    for name in ("step", "raw", "ema", "raw_known", "ema_known"):
        assert name not in theirs or torch.equal(back[name], theirs[name]), name
    assert relative_error(back["sample"], theirs["sample"]) < 1e-5  # our tables, in float32
    assert back["went_on"] == TRAINED + 1


def test_video_diffusion_pytorch(command, package):
    packages = package(
        "video-diffusion-pytorch==0.7.0", "einops-exts==0.0.4", "rotary-embedding-torch==0.9.1"
    )
    theirs = run("video.py", "make", VIDEO, packages)
    config = check_import(command, theirs, "source=video-diffusion-pytorch", "size=[3,8,8]")
    assert config["schedule"]["_target_"] == "ddpm.diffusion.cosine"
    assert (config["schedule"]["num_steps"], config["schedule"]["max_beta"]) == (200, 0.9999)

    ours, codec = sampled(theirs["x_T"])
    assert relative_error(ours, theirs["sample"]) < 1e-4
    assert ours.std() > 0.01 and (ours.abs() < 1).double().mean() > 0.3
    check_pictures(codec.decode(ours), (theirs["sample"] + 1) / 2)

    for which in ("raw", "ema"):
        options = ("format=video-diffusion-pytorch", f"weights={which}", f"out={which}.pt")
        ended = command("export", "ckpt=outputs/i", *options)
        assert ended.status == 0, ended.err
    back = run("video.py", "load", VIDEO, packages)
    for name in ("raw", "ema", "sample"):
        assert torch.equal(back[name], theirs[name]), name
