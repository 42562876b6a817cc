"""Networks and processes of the checkpoints that OpenAI published.

Each is written with the flags that the READMEs of openai/improved-diffusion and of
openai/guided-diffusion state for it; what a README leaves out is that repository's default
(``model_and_diffusion_defaults``). The flags are resolved as its ``create_model`` and
``create_gaussian_diffusion`` do. Left out: the networks for super-resolution and the classifiers,
which are other classes, and ``use_fp16``, the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CLASSES = 1000

# The flags of both repositories and their defaults there.
_COMMON: Mapping[str, Any] = {
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": (16, 8),
    "dropout": 0.0,
    "learn_sigma": False,
    "sigma_small": False,
    "class_cond": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "use_kl": False,
    "predict_xstart": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
}
_IMPROVED: Mapping[str, Any] = {
    **_COMMON,
    "rescale_timesteps": True,
    "rescale_learned_sigmas": True,
}
_GUIDED: Mapping[str, Any] = {
    **_COMMON,
    "num_head_channels": -1,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
_MULTS: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "improved-diffusion": {
        32: (1, 2, 2, 2),
        64: (1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
    },
    "guided-diffusion": {
        64: (1, 2, 3, 4),
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    },
}


@dataclass(frozen=True)
class Recipe:
    """A published network and its process.

    Attributes:
        source: the system, see ``import_network``.
        image_size: height and width of its images, in pixels.
        network: arguments of the original's ``UNetModel``.
        process: ``num_timesteps``; ``schedule`` ("linear" or "cosine"); ``objective``
            ("pred_noise" or "pred_x0"); ``loss`` ("simple", "hybrid" or "vlb"); and, true or
            false, ``learn_sigma``, ``sigma_small``, ``class_cond``, ``rescale_timesteps`` (the
            network receives t * 1000 / T) and ``rescale_learned_sigmas`` (the variational term of
            the hybrid loss is multiplied by T / 1000, else by 1).
    """

    source: str
    image_size: int
    network: dict[str, Any]
    process: dict[str, Any]


def resolve(source: str, image_size: int, **flags: Any) -> Recipe:
    """Return the network and the process for flags of the original's scripts.

    Args:
        source: ``improved-diffusion`` or ``guided-diffusion``.
        image_size: height and width in pixels.
        flags: those that differ from the defaults; ``attention_resolutions`` are sizes in pixels,
            which become downsampling rates in ``UNetModel``.

    Raises:
        ValueError: a flag or an image size that the scripts do not support.
    """
    defaults = _IMPROVED if source == "improved-diffusion" else _GUIDED
    unknown = sorted(flags.keys() - defaults.keys())
    if unknown:
        raise ValueError(f"{source}'s scripts have no flags {', '.join(unknown)}")
    mults = _MULTS[source]
    if image_size not in mults:
        raise ValueError(f"{source}'s scripts support the image sizes {', '.join(map(str, mults))}")
    flags = {**defaults, **flags}
    network = _network(source, image_size, mults[image_size], flags)
    return Recipe(source, image_size, network, _process(flags))


def _network(
    source: str, image_size: int, channel_mult: tuple[float, ...], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of ``UNetModel``."""
    names = ["num_res_blocks", "dropout", "use_checkpoint", "num_heads", "num_heads_upsample"]
    own = {}
    if source == "guided-diffusion":
        names += ["num_head_channels", "resblock_updown", "use_new_attention_order"]
        own = {"image_size": image_size}
    return {
        **own,
        "in_channels": 3,
        "model_channels": flags["num_channels"],
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "attention_resolutions": tuple(image_size // n for n in flags["attention_resolutions"]),
        "channel_mult": channel_mult,
        "num_classes": _CLASSES if flags["class_cond"] else None,
        **{name: flags[name] for name in (*names, "use_scale_shift_norm")},
    }


def _process(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the process; learned variances require the variational term."""
    names = ("learn_sigma", "sigma_small", "class_cond", "rescale_timesteps")
    return {
        "num_timesteps": flags["diffusion_steps"],
        "schedule": flags["noise_schedule"],
        "objective": "pred_x0" if flags["predict_xstart"] else "pred_noise",
        "loss": "vlb" if flags["use_kl"] else "hybrid" if flags["learn_sigma"] else "simple",
        **{name: flags[name] for name in (*names, "rescale_learned_sigmas")},
    }


def _improved(image_size: int, **flags: Any) -> Recipe:
    return resolve("improved-diffusion", image_size, learn_sigma=True, **flags)


def _adm(image_size: int, **flags: Any) -> Recipe:
    """Return a recipe of guided-diffusion, with the flags that its README always uses."""
    common = {
        "attention_resolutions": (32, 16, 8),
        "learn_sigma": True,
        "diffusion_steps": 1000,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
    }
    return resolve("guided-diffusion", image_size, **{**common, **flags})


_CIFAR10 = {
    "num_channels": 128,
    "num_res_blocks": 3,
    "dropout": 0.3,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
}
_IMAGENET64 = {**_CIFAR10, "dropout": 0.0}
_LSUN = {
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 1,
    "use_scale_shift_norm": False,
    "attention_resolutions": (16,),
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_learned_sigmas": False,
    "rescale_timesteps": False,
}
_ADM256 = {"num_channels": 256, "num_head_channels": 64, "noise_schedule": "linear"}

RECIPES: dict[str, Recipe] = {
    # README of openai/improved-diffusion, "Models and Hyperparameters"; the files' names are
    # cifar10_uncond_50M_500K, cifar10_uncond_vlb_50M_500K, imagenet64_uncond_100M_1500K,
    # imagenet64_uncond_vlb_100M_1500K, imagenet64_cond_270M_250K, lsun_uncond_100M_1200K_bs128
    # and lsun_uncond_100M_2400K_bs64, of which the last two differ in their training alone.
    "cifar10_uncond_hybrid": _improved(32, **_CIFAR10),
    "cifar10_uncond_vlb": _improved(32, **_CIFAR10, use_kl=True),
    "imagenet64_uncond_hybrid": _improved(64, **_IMAGENET64),
    "imagenet64_uncond_vlb": _improved(64, **_IMAGENET64, use_kl=True),
    "imagenet64_cond": _improved(
        64,
        num_channels=192,
        num_res_blocks=3,
        class_cond=True,
        diffusion_steps=4000,
        noise_schedule="cosine",
        rescale_learned_sigmas=False,
        rescale_timesteps=False,
    ),
    "lsun_bedroom_1200k": _improved(256, **_LSUN),
    "lsun_bedroom_2400k": _improved(256, **_LSUN),
    # README of openai/guided-diffusion, "Classifier guidance" and "LSUN models"; the files' names
    # are 64x64_diffusion, 128x128_diffusion, 256x256_diffusion, 256x256_diffusion_uncond,
    # 512x512_diffusion, lsun_bedroom, lsun_cat, lsun_horse and lsun_horse_nodropout.
    "imagenet64_cond_adm": _adm(
        64,
        num_channels=192,
        num_head_channels=64,
        num_res_blocks=3,
        use_new_attention_order=True,
        dropout=0.1,
        class_cond=True,
        noise_schedule="cosine",
    ),
    "imagenet128_cond_adm": _adm(
        128, num_channels=256, num_heads=4, class_cond=True, noise_schedule="linear"
    ),
    "imagenet256_cond_adm": _adm(256, **_ADM256, class_cond=True),
    "imagenet256_uncond_adm": _adm(256, **_ADM256),
    "imagenet512_cond_adm": _adm(512, **_ADM256, class_cond=True),
    "lsun_bedroom_adm": _adm(256, **_ADM256, dropout=0.1),
    "lsun_cat_adm": _adm(256, **_ADM256, dropout=0.1),
    "lsun_horse_adm": _adm(256, **_ADM256, dropout=0.1),
    "lsun_horse_nodropout_adm": _adm(256, **_ADM256, dropout=0.0),
}
