"""Networks of ours whose checkpoints hold every option, written as other systems read them."""

import pytest

from ddpm import models
from ddpm.config.registry import with_defaults
from ddpm.config.schema import check
from ddpm.diffusion import GaussianDiffusion, PredV, cosine
from ddpm.errors import ConfigError
from ddpm.interop.original import Described
from ddpm.interop.take import take

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


def described(format: str, size: int, pad: bool) -> Described:
    """A network as a checkpoint describes it, whose model node has every option."""
    name, options = MODELS[format]
    node = {"_target_": f"ddpm.models.{name}", **options, "pad": pad}
    complete = {k: v for k, v in with_defaults(node, "model").items() if k != "_target_"}
    target = getattr(models, name)
    sizes = (size,) * (3 if name == "UNet3D" else 2)
    return Described(target, 1, 1, sizes, None, False, check(complete, target))


@pytest.mark.parametrize("format", MODELS)
def test_pad_is_no_argument_of_an_original(format):
    process = GaussianDiffusion(cosine(num_steps=10), PredV(weighting="noise"))
    network = described(format, 8, False)
    weights = network.build().state_dict()
    states = {"raw": weights, "ema": weights}
    taken = take(format, network, states, "raw", diffusion=process, step=0, version=None)
    assert "pad" not in taken.kwargs and len(taken.kwargs) >= 4
    with pytest.raises(ConfigError, match=r"^model\.pad=true: the network pads its data"):
        take(
            format, described(format, 9, True), {}, "raw",
            diffusion=process, step=0, version=None,
        )  # fmt: skip
