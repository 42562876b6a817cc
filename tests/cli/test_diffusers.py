"""Folders of diffusers: import, sampling, training and export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ddpm import instantiate
from ddpm.errors import ConfigError
from ddpm.interop.checkpoint_import import read_checkpoint
from ddpm.interop.diffusers_import import read_folder
from ddpm.interop.diffusers_network import network_spec
from ddpm.interop.diffusers_weights import weights_to
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM, DDPM
from ddpm.training.checkpoint import find
from tests.reference_cases import filled, relative_error

UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", "sample_size": 8,
    "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_start": 0.01, "beta_end": 0.5,
}  # fmt: skip
INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
WEIGHTS = "diffusion_pytorch_model"


def weights(seed=""):
    """Return our weights, and those of the network of diffusers."""
    spec = network_spec(UNET)
    shapes = spec.build().state_dict().items()
    named = filled((seed + name, value.shape) for name, value in shapes)
    ours = {name.removeprefix(seed): value for name, value in named.items()}
    return ours, weights_to(spec, ours)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_network(folder, seed="", **more):
    write_json(Path(folder, "config.json"), {**UNET, **more})
    safetensors.torch.save_file(weights(seed)[1], Path(folder, f"{WEIGHTS}.safetensors"))


def write_pipeline(folder="p"):
    write_json(Path(folder, "model_index.json"), INDEX)
    write_json(Path(folder, "scheduler/scheduler_config.json"), SCHEDULER)
    write_network(Path(folder, "unet"))


def same(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in actual
    )


def test_a_pipeline_is_trained_and_exported(command, tiny):
    write_pipeline()
    ended = command("import", "source=diffusers", "file=p", "name=i")
    assert ended.status == 0, ended.err
    assert "diffusers: IDDPMUNet" in ended.out and "for 1x8x8" in ended.out
    assert "process: linear, PredNoise, 10 steps, variance fixed_small" in ended.out
    checkpoint = find("outputs/i", print)
    assert checkpoint.step == 0 and same(checkpoint.weights("ema"), weights()[0])
    options = ("data=digits", "trainer.max_steps=2", "trainer.batch_size=4", *tiny[2:4])
    ended = command("train", "resume=outputs/i", *options)
    assert ended.status == 0, ended.err

    ended = command("export", "ckpt=outputs/i", "format=diffusers", "out=e")
    assert ended.status == 0 and "DDPMPipeline.from_pretrained" in ended.out, ended.err
    files = sorted(str(path.relative_to("e")) for path in Path("e").rglob("*") if path.is_file())
    assert files == [
        ".ddpm-files.json", "model_index.json", "scheduler/scheduler_config.json",
        "unet/config.json", f"unet/{WEIGHTS}.safetensors",
    ]  # fmt: skip
    assert json.loads(Path("e/model_index.json").read_text()).items() >= INDEX.items()
    assert json.loads(Path("e/unet/config.json").read_text()).items() >= UNET.items()
    back = read_folder("e/model_index.json", {})
    assert same(back.raw, find("outputs/i", print).weights("ema"))

    # An export replaces its own files only.
    Path("e/unet/config.json").write_text("{}")
    ended = command("export", "ckpt=outputs/i", "format=diffusers", "out=e")
    assert ended.status == 1 and "changed since ddpm-export wrote it" in ended.line
    assert Path("e/unet/config.json").read_text() == "{}"


def test_the_older_layout_and_old_names(tmp_path):
    """Everything at the top, as in google/ddpm-cifar10-32, with a pickled file."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = weights()[1]
    for new, name in names.items():
        old = {key.replace(new, name): value.half() for key, value in old.items()}
    write_json(tmp_path / "model_index.json", INDEX)
    write_json(tmp_path / "config.json", {**UNET, "norm_eps": 1e-6, "downsample_padding": 0})
    scheduler = {**SCHEDULER, "variance_type": "fixed_large"}
    write_json(tmp_path / "scheduler_config.json", scheduler)
    torch.save(old, tmp_path / f"{WEIGHTS}.bin")
    imported = read_folder(str(tmp_path), {})
    assert imported.process.diffusion["variance"] == "fixed_large"
    assert (imported.averaged, imported.types, imported.size) == ("raw", ["float16"], (8, 8))
    options = imported.spec.options
    assert (options["norm_eps"], options["downsample_padding"]) == (1e-6, 0)


@pytest.mark.parametrize("average", [True, False])
def test_a_checkpoint_of_train_unconditional(tmp_path, average):
    folder = tmp_path / "checkpoint-500"
    write_network(folder / "unet")
    if average:
        write_network(folder / "unet_ema", "ema", optimization_step=400, decay=0.9999)
    with pytest.raises(ConfigError) as caught:
        read_folder(str(folder), {})
    assert str(caught.value) == (
        "schedule: cannot be determined: the folder has no scheduler_config.json; use the folder "
        "of the whole pipeline, or add schedule=..."
    )
    scheduler = {**SCHEDULER, "clip_sample": False}
    write_json(tmp_path / "scheduler/scheduler_config.json", scheduler)
    imported = read_folder(str(folder), {})
    assert ["sampler.clip=none" in note for note in imported.notes] == [True]
    assert same(imported.raw, weights()[0])
    assert same(imported.ema, weights("ema" if average else "")[0])
    assert imported.step == (400 if average else 500)
    assert imported.averaged == ("both" if average else "raw")
    if average:
        nodes = {"schedule": {"_target_": "s"}, "objective": {"_target_": "o"}}
        imported = read_folder(str(folder / "unet_ema"), nodes)
        assert imported.averaged == "ema" and imported.process.schedule == nodes["schedule"]


def test_a_name_on_the_hub_without_a_network(command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = command("import", "source=diffusers", "file=google/ddpm-cifar10-32", "name=i")
    assert ended.status == 1 and not Path("outputs").exists()
    start = (
        "ddpm-import: file=google/ddpm-cifar10-32: cannot be downloaded from the Hugging Face hub"
    )
    assert ended.line.startswith(start)
    assert ended.line.endswith("hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32")


def test_folders_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pipeline()

    def refused(file="p"):
        with pytest.raises(ConfigError) as caught:
            read_folder(file, {})
        return str(caught.value)

    assert refused("p/none") == "file=p/none: folder not found"
    assert refused("none") == "file=none: folder not found"
    Path("empty").mkdir()
    assert refused("empty").startswith(
        "file=empty: has no unet/config.json and no config.json; use"
    )
    for options, message in (
        ({"ema": "p"}, "ema=p: is for other systems"),
        ({"network": {"num_heads": 1}}, "network.num_heads=1: is for other systems"),
    ):
        arguments = {"ema": None, "recipe": None, "version": None, "network": {}, **options}
        with pytest.raises(ConfigError, match=message):
            read_checkpoint("diffusers", "p", **arguments)
    for value, message in (
        (
            {"unet": ["diffusers", "UNet1DModel"]},
            "unet=UNet1DModel: cannot be imported, only UNet2D",
        ),
        ({"vqvae": ["diffusers", "VQModel"]}, "vqvae: the pipeline has this component beside unet"),
    ):
        write_json(Path("p/model_index.json"), {**INDEX, **value})
        assert refused().startswith(message)
    write_json(Path("p/model_index.json"), INDEX)
    write_json(Path("p/unet/config.json"), {**UNET, "sample_size": [8]})
    assert refused() == "unet.sample_size=[8]: must be one number or two, above 0"
    Path(f"p/unet/{WEIGHTS}.safetensors").unlink()
    assert f"has no {WEIGHTS}.safetensors or .bin" in refused()
    Path("p/unet/config.json").write_text("[")
    assert "config.json cannot be read; save or copy the folder again" in refused()


# With the package itself.
SCRIPT = Path(__file__).parents[1] / "interop" / "originals" / "unet2d.py"
SMALL = {
    "sample_size": 16, "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
GOOGLE = {
    **SMALL, "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False,
    "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
ADM = {
    **SMALL, "downsample_type": "resnet", "upsample_type": "resnet", "attention_head_dim": 16,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "norm_num_groups": 32,
}  # fmt: skip
# Betas for which diffusers' tables and steps in float32 are accurate.
T = {"num_train_timesteps": 50, "timestep_spacing": "trailing", "beta_start": 0.01, "beta_end": 0.1}
LIVE = {
    "train_unconditional": (SMALL, T),
    "google": (GOOGLE, {**T, "variance_type": "fixed_large"}),
    "cosine v": (SMALL, {**T, "beta_schedule": "squaredcos_cap_v2",
                         "prediction_type": "v_prediction"}),
    "sigmoid x0": (GOOGLE, {**T, "beta_schedule": "sigmoid", "prediction_type": "sample"}),
    "zero SNR": (SMALL, {**T, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True,
                         "prediction_type": "v_prediction"}),
    "adm learned": ({**ADM, "out_channels": 6}, {**T, "variance_type": "learned_range"}),
    "adm classes": ({**ADM, "num_class_embeds": 7}, T),
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory):
    """Return a folder with diffusers and its dependencies."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    ended = subprocess.run(
        [*pip, "--target", folder, "diffusers==0.42.1"], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, f"pip could not install diffusers: {ended.stderr}"
    return folder


def run(stage, settings, packages):
    """Return the arrays that the script writes in a process of its own."""
    environment = {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, SCRIPT, stage, json.dumps(settings), "."],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    with np.load(f"{stage}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def settings_of(run_folder):
    """Return the settings to load the export of a run, with its table of alpha-bar."""
    _, process, _ = instantiate.trained(find(run_folder, print), "ema")
    return {"calls": 10, "alpha_bar": process.schedule.alpha_bar.tolist()}


def check_equal(theirs, run_folder):
    """Compare network, schedule and samples of a run with those of diffusers, in 0..1.

    DDPM of diffusers takes differences of alpha-bar in float32. With a table in float64, its
    images are as close as those of DDIM.
    """
    network, process, spec = instantiate.trained(find(run_folder, print), "ema")
    with torch.no_grad():
        output = network.eval()(theirs["x"], theirs["t"], theirs.get("y"))
    assert relative_error(output, theirs["out"]) < 2e-6
    alpha_bar = process.schedule.alpha_bar.float()
    torch.testing.assert_close(alpha_bar, theirs["alpha_bar"], rtol=2e-5, atol=1e-7)
    for name, sampler, limit in (
        ("ddpm", DDPM(), 5e-6),
        ("exact_ddpm", DDPM(), 2e-6),
        ("ddim", DDIM(steps=10, spacing="trailing"), 2e-6),
    ):
        if name in theirs:
            generator = torch.Generator().manual_seed(5)
            x = torch.randn(theirs["x"].shape, generator=generator)
            pipeline = build_pipeline(network, process, sampler, spec.codec, device=x.device)
            images = sampler.sample(
                pipeline.denoiser,
                x,
                randn_like=lambda x, g=generator: torch.randn(x.shape, generator=g),
            )
            ours = (images / 2 + 0.5).clamp(0, 1)
            assert float((ours - theirs[name]).abs().max()) < limit, name
            levels = ((255 * ours).round() - (255 * theirs[name]).round()).abs()
            assert levels.max() <= 1 and levels.sum() <= 2, name
            assert theirs[name].std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("case", LIVE)
def test_images_equal_those_of_diffusers_in_both_directions(command, diffusers, case):
    unet, scheduler = LIVE[case]
    settings = {"unet": unet, "scheduler": scheduler, "calls": 10}
    theirs = run("make", settings, diffusers)
    ended = command("import", "source=diffusers", "file=pipeline", "name=i")
    assert ended.status == 0, ended.err
    check_equal(theirs, "outputs/i")
    ended = command("export", "ckpt=outputs/i", "format=diffusers", "out=exported")
    assert ended.status == 0, ended.err
    back = run("load", settings_of("outputs/i"), diffusers)
    check_equal(back, "outputs/i")
    assert ("exact_ddpm" in back) == (case != "adm classes")
    for name in ("out", "ddpm", "ddim"):
        if name in theirs:
            close = 1e-5 if name == "ddpm" else 2e-6  # their tables are float32, ours float64
            torch.testing.assert_close(back[name], theirs[name], rtol=0, atol=close)


# Runs of our own, drawn by diffusers. Heads of one width, as it has, replace the default heads.
OWN = {
    "noise": ("objective=pred_noise", "schedule=linear", "model.channel_mult=[1,1]"),
    "iddpm": ("diffusion=iddpm", "diffusion.rescale_timesteps=false", "objective=pred_noise",
              "model.num_head_channels=16"),
    "sigmoid v": ("schedule=sigmoid", "model.num_head_channels=16", "model.flip_sin_to_cos=false"),
    "zero SNR": ("schedule.zero_terminal_snr=true", "model.resblock_updown=true",
                 "model.num_head_channels=8"),
    "classes": ("data.class_cond=true", "objective=pred_x0", "schedule=linear",
                "model.num_head_channels=32", "diffusion.label_dropout=0.1"),
}  # fmt: skip
OPTIONS = (
    "model=iddpm_unet", "model.model_channels=32", "model.num_res_blocks=1",
    "model.attention_resolutions=[2]", "schedule.num_steps=50", "trainer.max_steps=3",
    "trainer.batch_size=8", "trainer.preview_every=0",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", OWN)
def test_own_runs_are_drawn_by_diffusers(command, diffusers, case):
    levels = () if case == "noise" else ("model.channel_mult=[1,2]",)
    ended = command("train", "name=r", *OPTIONS, *OWN[case], *levels)
    assert ended.status == 0, ended.err
    ended = command("export", "ckpt=outputs/r", "format=diffusers", "out=exported")
    assert ended.status == 0, ended.err
    assert ("unet(x, t, class_labels)" in ended.out) == (case == "classes")
    assert ("DDPM and DPM-Solver" in ended.out) == (case == "iddpm")
    check_equal(run("load", settings_of("outputs/r"), diffusers), "outputs/r")


@pytest.mark.slow
def test_the_benchmark_compares_equal_networks_and_samples(diffusers):
    """Both raise an error if the network or its samples are not those of diffusers."""
    code = (
        f"import sys; sys.path.append({str(diffusers)!r}); import torch; torch.set_num_threads(1); "
        "from scripts.benchmarks import networks, sampling; "
        "print(networks.diffusers(32).facts, sampling.diffusers().facts, sep='\\n')"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    pair, samples = ended.stdout.splitlines()
    assert pair.startswith("1,708,163 parameters, 2.5") and "the same operations" in pair
    assert samples.startswith("equal weights and operations, samples of equal noise differ by")
