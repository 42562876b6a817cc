"""Programs of torch.export: any size of the batch, the numbers of the denoiser, and refusals."""

import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from ddpm import models
from ddpm.data.images import Digits
from ddpm.diffusion import (
    EDM,
    Denoiser,
    GaussianDiffusion,
    PredFlow,
    PredNoise,
    PredV,
    PredX0,
    class_conditioning,
    cosine,
    linear,
)
from ddpm.errors import ConfigError
from ddpm.interop import programs
from ddpm.interop.programs import INFO, SamplingProgram, export_program
from ddpm.models.unet3d_attention import SpatialLinearAttention
from ddpm.models.unet_blocks import SelfAttention
from tests.reference_cases import filled, relative_error

ROOT = Path(__file__).parents[2]
UNET = {"dim": 8, "dim_mults": (1, 2)}
OPENAI = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2),
          "attention_resolutions": (2,)}  # fmt: skip
# Network, shape, options, objective, options of the process, number of classes.
CASES = {
    "unet3d": ("UNet3D", (2, 3, 8, 8), {**UNET, "attn_heads": 2}, PredNoise(), {}, None),
    "unet3d full": ("UNet3D", (1, 3, 6, 6), {**UNET, "dim_mults": (1,), "pad": True, "conv": "full",
                    "block_norm": "group", "cond_dim": 4, "use_sparse_linear_attn": False},
                    PredV(), {"self_condition": True}, 3),
    "unet": ("UNet", (1, 8, 8), {**UNET, "num_mem_kv": 2, "block_norm": "rms"}, PredV(), {}, 3),
    "unet old": ("UNet", (3, 7, 6), {**UNET, "pad": True, "weight_standardized": True,
                 "attn_norm": "layer", "divide_values": True, "full_attn": False},
                 PredFlow(), {"label_dropout": 0.1}, 3),
    "unet1d": ("UNet", (2, 16), {**UNET, "dims": 1, "full_attn": False,
               "learned_sinusoidal_cond": True}, EDM(sigma_data=0.5), {}, None),
    "iddpm": ("IDDPMUNet", (1, 8, 8), {**OPENAI, "use_checkpoint": True}, PredNoise(),
              {"variance": "learned_range", "loss": "hybrid", "rescale_timesteps": True}, None),
    "iddpm 1-D": ("IDDPMUNet", (2, 8), {**OPENAI, "conv_resample": False}, PredX0(), {}, None),
    "iddpm 3-D": ("IDDPMUNet", (1, 2, 4, 4), {**OPENAI, "resblock_updown": True,
                  "use_new_attention_order": True}, PredV(),
                  {"variance": "learned", "loss": "vlb", "self_condition": True}, 3),
    "simple": ("SimpleUNet", (1, 9, 8), {"width": 8, "num_heads": 2}, PredV(), {}, 3),
}  # fmt: skip


def module_of(name, shape, options, objective, more, classes):
    """Return the module of a network with weights that are functions of their names."""
    schedule = linear(num_steps=100) if isinstance(objective, PredNoise) else cosine(num_steps=20)
    process = GaussianDiffusion(schedule, objective, **more)
    channels, dropped = process.output_channels(shape[0]), process.loss_options.drops_labels
    network = getattr(models, name)(
        shape[0], channels, shape[1:], classes and classes + dropped, process.self_condition,
        **options,
    )  # fmt: skip
    weights = filled((key, value.shape) for key, value in network.state_dict().items())
    network.load_state_dict(weights)
    return SamplingProgram(network, process, shape, classes)


def loaded(content):
    """Return the callable of a .pt2 file and its description."""
    files = {INFO: ""}
    return torch.export.load(io.BytesIO(content), extra_files=files).module(), json.loads(
        files[INFO]
    )


def describe(inputs, outputs):
    return json.dumps([inputs, outputs])


def inputs_of(module, size):
    """Return other inputs than those that the export compares: one timestep for the batch."""
    inputs = module.examples(size)
    return {**inputs, "x_t": inputs["x_t"].flip(-1) * 1.5, "t": torch.full((size,), 13)}


def predictions(module, inputs):
    """Return x0 and the variance's output of the denoiser that samplers call."""
    denoiser = Denoiser(module.network, module.process)
    with torch.no_grad():
        x0, _, variance = denoiser(
            inputs["x_t"], 13, inputs.get("x_self_cond"), class_conditioning(inputs.get("y"))
        )
    return {"x0": x0} if variance is None else {"x0": x0, "variance_output": variance}


def check(module, run):
    """Compare a program with the denoiser, in batches of one, two and five."""
    for size in (1, 2, 5):
        inputs = inputs_of(module, size)
        expected, actual = predictions(module, inputs), run(inputs)
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert value.std() > 0.01 and actual[name].dtype == torch.float32
            assert relative_error(actual[name], value) < 1e-5, (name, size)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_program_has_the_predictions_of_the_denoiser(case):
    module = module_of(*CASES[case])
    program = export_program("torch-export", module, describe)
    run, names = loaded(program.content)
    assert names == [program.inputs, program.outputs]
    assert program.inputs == list(module.examples(1))
    check(module, lambda inputs: programs._call(run, inputs))
    assert str(ROOT).encode() not in program.content
    assert not any(value.requires_grad for value in run.parameters())


LAYERS = {
    "memory": (SelfAttention(2, 8, full=False, heads=2, dim_head=4, num_mem_kv=3), (2, 8, 4, 4)),
    "frames": (SpatialLinearAttention(8, 1), (2, 8, 3, 4, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_attention_does_not_fix_the_size_of_the_batch(layer):
    """A quick part of the test above."""
    module, shape = LAYERS[layer]
    shapes = ({0: Dim("batch")},)
    run = torch.export.export(module, (torch.randn(shape),), dynamic_shapes=shapes).module()
    for size in (1, 2, 5):
        x = torch.randn(size, *shape[1:])
        assert relative_error(run(x).detach(), module(x).detach()) < 1e-5


class Fixed(nn.Module):
    """Network of a plugin that reads the size of the batch as a number."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, t):
        return x * len(x) * self.factor


class Random(nn.Module):
    """Network of a plugin whose output is random."""

    def forward(self, x, t):
        return torch.rand_like(x)


def test_networks_that_cannot_be_exported():
    process = GaussianDiffusion(cosine(num_steps=20), PredV())
    for network, problem in (
        (Fixed(), r"^format=torch-export: Fixed cannot be exported for batches of any size \(.*\); "
         "use format=safetensors, or change its forward$"),
        (Random(), r"^format=torch-export: the exported program differs from the network by "),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=problem) as caught:
            export_program(
                "torch-export", SamplingProgram(network, process, (1, 4), None), describe
            )
        assert "\n" not in str(caught.value)


def test_data_with_a_condition_are_not_exported():
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[:, 0] = True
    process = GaussianDiffusion(cosine(num_steps=20), PredV(), mask)
    with pytest.raises(ConfigError) as caught:
        export_program("onnx", SamplingProgram(Random(), process, (1, 4), None), describe)
    assert str(caught.value) == (
        "format=onnx: does not support data with a condition (data.condition), which must be "
        "restored after every step; use format=safetensors"
    )


def test_onnx_needs_its_packages_and_fewer_than_two_gigabytes(monkeypatch):
    process = GaussianDiffusion(cosine(num_steps=20), PredV())
    with torch.device("meta"):
        module = SamplingProgram(nn.Linear(2**15, 2**14), process, (1, 4), None)
    monkeypatch.setattr(programs, "_ONNX_PACKAGES", ("onnx_of_nobody",))
    for packages, line in (
        (("onnx_of_nobody",), "requires the package onnx_of_nobody, which is not installed; run: "
         "pip install 'ddpm[onnx]'"),
        ((), "the weights have 2.1 GB, but a file holds 2; use format=torch-export"),
    ):  # fmt: skip
        monkeypatch.setattr(programs, "_ONNX_PACKAGES", packages)
        with pytest.raises(ConfigError) as caught:
            export_program("onnx", module, describe)
        assert str(caught.value) == f"format=onnx: {line}"


def test_scaling_describes_raw_values():
    scaling = Digits().codec.scaling
    assert (scaling.low, scaling.high, scaling.whole) == (0, 255, True)
    x = torch.tensor([-1.0, 0.2, 1.0])
    raw = (x + 1) / 2 * (scaling.high - scaling.low) + scaling.low
    assert torch.equal(raw.round().byte(), scaling.decode(x))
