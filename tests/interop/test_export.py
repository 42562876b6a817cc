"""Export of networks from checkpoints that contain every option."""

import pytest

from ddpm import models
from ddpm.config.registry import with_defaults
from ddpm.config.schema import check
from ddpm.diffusion import GaussianDiffusion, PredV, cosine
from ddpm.errors import ConfigError
from ddpm.interop.export import export_model
from ddpm.interop.foreign_format import NetworkSpec

MODELS = {
    "denoising-diffusion-pytorch": ("UNet", {"dim": 8, "dim_mults": [1, 2]}),
    "video-diffusion-pytorch": ("UNet3D", {"dim": 8, "dim_mults": [1], "focus_init": False}),
    "improved-diffusion": (
        "IDDPMUNet",
        {
            "model_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": [1],
            "attention_resolutions": [],
        },
    ),
    "simple-unet": ("SimpleUNet", {}),
}


def spec(format: str, size: int, pad: bool) -> NetworkSpec:
    """Return the network of a checkpoint whose model node has every option."""
    name, options = MODELS[format]
    node = {"_target_": f"ddpm.models.{name}", **options, "pad": pad}
    complete = {k: v for k, v in with_defaults(node, "model").items() if k != "_target_"}
    target = getattr(models, name)
    sizes = (size,) * (3 if name == "UNet3D" else 2)
    return NetworkSpec(target, 1, 1, sizes, None, False, check(complete, target))


@pytest.mark.parametrize("format", MODELS)
def test_pad_is_not_exported(format):
    process = GaussianDiffusion(cosine(num_steps=10), PredV(weighting="noise"))
    network = spec(format, 8, False)
    weights = network.build().state_dict()
    states = {"raw": weights, "ema": weights}
    taken = export_model(format, network, states, "raw", diffusion=process, step=0, version=None)
    assert "pad" not in taken.kwargs and len(taken.kwargs) >= 4
    with pytest.raises(ConfigError, match=r"^model\.pad=true: the network pads its data"):
        export_model(
            format, spec(format, 9, True), {}, "raw",
            diffusion=process, step=0, version=None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("process", "line"),
    [
        (GaussianDiffusion(cosine(num_steps=10), PredV(), rescale_timesteps=True),
         "diffusion.rescale_timesteps=true: is not supported by the original, whose network "
         "receives t unscaled"),
        (GaussianDiffusion(cosine(num_steps=10, zero_terminal_snr=True), PredV()),
         "schedule.zero_terminal_snr=true: is not supported by the original, which divides by the "
         "signal of every step"),
    ],
)  # fmt: skip
def test_processes_without_an_equivalent_are_not_exported(process, line):
    network = spec("denoising-diffusion-pytorch", 8, False)
    weights = network.build().state_dict()
    states = {"raw": weights, "ema": weights}
    with pytest.raises(ConfigError) as caught:
        export_model(
            "denoising-diffusion-pytorch", network, states, "raw",
            diffusion=process, step=0, version=None,
        )  # fmt: skip
    assert str(caught.value) == line
