"""Recipes of the published networks of improved-diffusion and guided-diffusion."""

import math

import pytest
import torch

from ddpm.interop.foreign_format import bind
from ddpm.interop.openai import FORMATS
from ddpm.interop.recipes import RECIPES, resolve

IDDPM, ADM = "improved-diffusion", "guided-diffusion"
HIDDEN = {
    "image_size",
    "dropout",
    "use_checkpoint",
    "num_heads",
    "num_heads_upsample",
    "num_head_channels",
    "use_new_attention_order",
}


# The parameters of the originals' own UNetModel, made by their create_model from these flags.
# Published are 270M for imagenet64_cond and 559M for imagenet512_cond_adm, and in the names of
# files, roundly, 50M for CIFAR-10 and 100M for the unconditional ones of improved-diffusion.
PARAMETERS = {
    "cifar10_uncond_hybrid": 52_546_438,
    "cifar10_uncond_vlb": 52_546_438,
    "imagenet64_uncond_hybrid": 121_063_942,
    "imagenet64_uncond_vlb": 121_063_942,
    "imagenet64_cond": 273_049_350,
    "lsun_bedroom_1200k": 113_676_678,
    "lsun_bedroom_2400k": 113_676_678,
    "imagenet64_cond_adm": 295_904_454,
    "imagenet128_cond_adm": 421_529_606,
    "imagenet256_cond_adm": 553_838_086,
    "imagenet256_uncond_adm": 552_814_086,
    "imagenet512_cond_adm": 558_997_638,
    "lsun_bedroom_adm": 552_814_086,
    "lsun_cat_adm": 552_814_086,
    "lsun_horse_adm": 552_814_086,
    "lsun_horse_nodropout_adm": 552_814_086,
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_with_the_originals_number_of_parameters(name):
    recipe = RECIPES[name]
    original = FORMATS[recipe.source]
    with torch.device("meta"):
        arguments = bind(recipe.source, original.defaults, recipe.network)
        weights = original.from_kwargs(arguments, {}).build().state_dict()
    assert sum(math.prod(w.shape) for w in weights.values()) == PARAMETERS[name]
    shown = original.infer(weights)
    for key in shown.keys() & recipe.network.keys():
        assert shown[key] == recipe.network[key]
    assert recipe.network.keys() - shown.keys() <= HIDDEN
    halvings = len(recipe.network["channel_mult"]) - 1
    assert recipe.image_size % 2**halvings == 0


def test_recipes_of_improved_diffusion():
    recipe = RECIPES["cifar10_uncond_hybrid"]
    assert (recipe.source, recipe.image_size) == (IDDPM, 32)
    assert recipe.network == {
        "in_channels": 3,
        "model_channels": 128,
        "out_channels": 6,
        "num_res_blocks": 3,
        "attention_resolutions": (2, 4),
        "dropout": 0.3,
        "channel_mult": (1, 2, 2, 2),
        "num_classes": None,
        "use_checkpoint": False,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "use_scale_shift_norm": True,
    }
    process = {
        "num_timesteps": 4000,
        "schedule": "cosine",
        "learn_sigma": True,
        "sigma_small": False,
        "objective": "pred_noise",
        "loss": "hybrid",
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "class_cond": False,
    }
    assert recipe.process == process
    assert RECIPES["cifar10_uncond_vlb"].network == recipe.network
    assert RECIPES["cifar10_uncond_vlb"].process == {**process, "loss": "vlb"}
    larger = RECIPES["imagenet64_uncond_hybrid"]
    assert larger.process == process
    assert larger.network == {
        **recipe.network,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (4, 8),
        "dropout": 0.0,
    }
    plain = {"rescale_timesteps": False, "rescale_learned_sigmas": False}
    classes = RECIPES["imagenet64_cond"]
    assert classes.process == {**process, **plain, "class_cond": True}
    assert classes.network == {**larger.network, "model_channels": 192, "num_classes": 1000}
    bedroom = RECIPES["lsun_bedroom_1200k"]
    assert bedroom.image_size == 256
    assert bedroom.process == {**process, **plain, "num_timesteps": 1000, "schedule": "linear"}
    assert bedroom.network == {
        **recipe.network,
        "num_res_blocks": 2,
        "channel_mult": (1, 1, 2, 2, 4, 4),
        "attention_resolutions": (16,),
        "dropout": 0.0,
        "num_heads": 1,
        "use_scale_shift_norm": False,
    }


def test_recipes_of_guided_diffusion():
    recipe = RECIPES["imagenet256_cond_adm"]
    assert (recipe.source, recipe.image_size) == (ADM, 256)
    assert recipe.network == {
        "image_size": 256,
        "in_channels": 3,
        "model_channels": 256,
        "out_channels": 6,
        "num_res_blocks": 2,
        "attention_resolutions": (8, 16, 32),
        "dropout": 0.0,
        "channel_mult": (1, 1, 2, 2, 4, 4),
        "num_classes": 1000,
        "use_checkpoint": False,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": 64,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_new_attention_order": False,
    }
    process = {
        "num_timesteps": 1000,
        "schedule": "linear",
        "learn_sigma": True,
        "sigma_small": False,
        "objective": "pred_noise",
        "loss": "hybrid",
        "rescale_timesteps": False,
        "rescale_learned_sigmas": False,
        "class_cond": True,
    }
    assert recipe.process == process

    def differences(name):
        other = RECIPES[name]
        pairs = [(recipe.network, other.network), (recipe.process, other.process)]
        return [{k: v for k, v in theirs.items() if v != ours[k]} for ours, theirs in pairs]

    unlabelled = [{"num_classes": None}, {"class_cond": False}]
    lsun = [{"num_classes": None, "dropout": 0.1}, {"class_cond": False}]
    assert differences("imagenet256_uncond_adm") == unlabelled
    assert differences("lsun_horse_nodropout_adm") == unlabelled
    for name in ("bedroom", "cat", "horse"):
        assert differences(f"lsun_{name}_adm") == lsun
    assert differences("imagenet64_cond_adm") == [
        {
            "image_size": 64,
            "model_channels": 192,
            "num_res_blocks": 3,
            "attention_resolutions": (2, 4, 8),
            "dropout": 0.1,
            "channel_mult": (1, 2, 3, 4),
            "use_new_attention_order": True,
        },
        {"schedule": "cosine"},
    ]
    assert differences("imagenet128_cond_adm") == [
        {
            "image_size": 128,
            "attention_resolutions": (4, 8, 16),
            "channel_mult": (1, 1, 2, 3, 4),
            "num_head_channels": -1,
        },
        {},
    ]
    assert differences("imagenet512_cond_adm") == [
        {
            "image_size": 512,
            "attention_resolutions": (16, 32, 64),
            "channel_mult": (0.5, 1, 1, 2, 2, 4, 4),
        },
        {},
    ]


def test_flags_of_the_scripts():
    plain = resolve(IDDPM, 32)
    assert plain.network["out_channels"] == 3
    assert plain.process["loss"] == "simple"
    assert resolve(IDDPM, 64, predict_xstart=True).process["objective"] == "pred_x0"
    with pytest.raises(ValueError, match="improved-diffusion's scripts have no flags num_head_c"):
        resolve(IDDPM, 32, num_head_channels=8)
    with pytest.raises(ValueError, match="support the image sizes 64, 128, 256, 512"):
        resolve(ADM, 32)
