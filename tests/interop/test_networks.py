"""Imported networks reproduce the recorded outputs of their systems."""

import re

import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.models import IDDPMUNet, UNet
from tests.reference_cases import filled, load_case, relative_error

IDDPM, TWO, ONE = (
    "improved-diffusion",
    "denoising-diffusion-pytorch",
    "denoising-diffusion-pytorch-1d",
)
CASES = {
    "iddpm_unet_1d": IDDPM,
    "iddpm_unet_cond_scale_shift": IDDPM,
    "iddpm_unet_uncond": IDDPM,
    "unet1d": ONE,
    "unet_linear_attention": TWO,
    "unet_mem_kv": TWO,
    "unet_self_condition": TWO,
}


def import_case(name: str):
    """Return the network of a case in eval mode, its metadata and its arrays."""
    meta, arrays = load_case(name)
    net = import_network(CASES[name], meta["kwargs"], filled(meta["state_dict"]))
    return net.eval(), meta, arrays


def inputs_of(arrays):
    return arrays["x"], arrays["t"], arrays.get("y"), arrays.get("x_self_cond")


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_reference_case(name):
    net, meta, arrays = import_case(name)
    assert sum(p.numel() for p in net.parameters()) == meta["parameters"]
    assert relative_error(net(*inputs_of(arrays)), arrays["out"]) < 1e-4


@torch.no_grad()
def test_intermediate_features():
    net, meta, arrays = import_case("iddpm_unet_cond_scale_shift")
    features = net.features(*inputs_of(arrays))
    for key in ("down", "up"):
        assert [list(h.shape) for h in features[key]] == meta["features"][key]
        means = torch.stack([h.double().mean() for h in features[key]])
        torch.testing.assert_close(means, arrays[f"{key}_means"], atol=1e-5, rtol=1e-4)
    assert relative_error(features["middle"], arrays["middle"]) < 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name] != ONE])
def test_parameter_names_and_order_match_the_original(name):
    net, meta, _ = import_case(name)
    assert [(n, list(w.shape)) for n, w in net.state_dict().items()] == [
        (n, shape) for n, shape in meta["state_dict"]
    ]


@torch.no_grad()
@pytest.mark.parametrize("name", ["iddpm_unet_uncond", "unet1d", "unet_mem_kv"])
def test_imported_networks_accept_any_divisible_size(name):
    net, _, arrays = import_case(name)
    x = arrays["x"].repeat_interleave(2, -1)
    assert net(x, arrays["t"]).shape == x.shape
    with pytest.raises(ValueError, match="not a multiple"):
        net(x[..., :-1], arrays["t"])


@torch.no_grad()
def test_all_arguments_of_improved_diffusion_are_used():
    kwargs = {
        "in_channels": 1,
        "model_channels": 32,
        "out_channels": 2,
        "num_res_blocks": 1,
        "attention_resolutions": [2, 64],  # a rate that no level has means nothing there
        "dropout": 0.25,
        "channel_mult": [1, 2],
        "conv_resample": False,
        "dims": 3,
        "num_classes": 4,
        "use_checkpoint": True,
        "num_heads": 4,
        "num_heads_upsample": 2,
        "use_scale_shift_norm": True,
    }
    net = IDDPMUNet(
        1, 2, (2, 4, 4), 4, model_channels=32, num_res_blocks=1, attention_resolutions=(2,),
        dropout=0.25, channel_mult=(1, 2), conv_resample=False, use_checkpoint=True,
        num_heads=4, num_heads_upsample=2, use_scale_shift_norm=True,
    )  # fmt: skip
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    imported = import_network(IDDPM, kwargs, net.state_dict())
    assert str(imported) == str(net)
    assert imported.middle_block[1].use_checkpoint
    inputs = torch.randn(2, 1, 2, 4, 4), torch.tensor([0.5, 10]), torch.tensor([0, 3])
    assert torch.equal(imported.eval()(*inputs), net.eval()(*inputs))


def as_in_unet1d(name: str) -> str:
    """Return our name of a parameter in ``Residual(PreNorm(...))``."""
    name = re.sub(r"(\.2|mid_attn)\.(to_qkv|to_out)\.", r"\1.fn.fn.\2.", name)
    return re.sub(r"(\.2|mid_attn)\.norm\.", r"\1.fn.norm.", name)


@torch.no_grad()
@pytest.mark.parametrize("present", [True, False], ids=["2.3.4", "1.8.14"])
@pytest.mark.parametrize("dims", [1, 2])
def test_all_arguments_of_denoising_diffusion_pytorch_are_used(dims, present):
    shared = {
        "dim": 8,
        "dim_mults": (1, 3),
        "self_condition": True,
        "random_fourier_features": True,
        "learned_sinusoidal_dim": 6,
        "dropout": 0.25,
    }
    if present:
        shared["init_dim"] = 12
    else:
        shared["resnet_block_groups"] = 4
    kwargs = {**shared, "channels": 2, "learned_variance": True, "attn_heads": 2}
    ours = {**shared, "block_norm": "rms" if present else "group"}
    if dims == 1:
        kwargs["attn_dim_head"] = 8
        ours.update(mid_attn_heads=2, mid_attn_dim_head=8, full_attn=False)
    else:
        kwargs.update(attn_dim_head=[8, 4], full_attn=[True, False], flash_attn=True)
        ours.update(attn_heads=2, attn_dim_head=(8, 4), full_attn=(True, False))
        ours["num_mem_kv"] = 4 if present else 0
    self_condition = ours.pop("self_condition")
    net = UNet(2, 4, (8,) * dims, None, self_condition, dims=dims, **ours).eval()
    weights = net.state_dict()
    if dims == 1:
        weights = {as_in_unet1d(name): w for name, w in weights.items()}
    imported = import_network(ONE if dims == 1 else TWO, kwargs, weights).eval()
    assert str(imported) == str(net)
    x, t = torch.randn(2, 2, *(8,) * dims), torch.tensor([0.5, 10])
    assert torch.equal(imported(x, t), net(x, t))


@pytest.mark.parametrize(
    ("block_norm", "full_attn"), [("rms", None), ("group", False)], ids=["2.3.4", "1.8.14"]
)
def test_false_for_full_attention_is_the_default_in_the_present_version(block_norm, full_attn):
    net = UNet(3, 3, (8, 8), dim=8, dim_mults=(1, 2), block_norm=block_norm, full_attn=full_attn)
    kwargs = {"dim": 8, "dim_mults": (1, 2), "full_attn": False}
    assert str(import_network(TWO, kwargs, net.state_dict())) == str(net)


def test_defaults_are_those_of_the_original():
    net = UNet(3, 7, (8, 8), dim=8, sinusoidal_pos_emb_theta=77)
    kwargs = {"dim": 8, "out_dim": 7, "sinusoidal_pos_emb_theta": 77}
    imported = import_network(TWO, kwargs, net.state_dict())
    assert str(imported) == str(net)
    assert torch.equal(imported.time_mlp[0].frequencies, net.time_mlp[0].frequencies)


SMALL = {"dim": 8, "dim_mults": [1, 2]}


def small_weights(**changes):
    weights = UNet(3, 3, (8, 8), dim=8, dim_mults=(1, 2)).state_dict()
    weights.update(changes)
    return {name: w for name, w in weights.items() if w is not None}


@pytest.mark.parametrize(
    ("source", "kwargs", "weights", "line"),
    [
        (
            "improved-difusion",
            {},
            {},
            "source=improved-difusion: is not a system whose networks can be imported; "
            "did you mean 'improved-diffusion'?",
        ),
        (
            TWO,
            {**SMALL, "dim_mult": [1, 2]},
            {},
            "kwargs.dim_mult=[1,2]: is not an argument of denoising-diffusion-pytorch's network; "
            "did you mean 'dim_mults'?",
        ),
        (
            IDDPM,
            {"in_channels": 3, "model_channels": 32},
            {},
            "kwargs.out_channels: is missing; improved-diffusion's network has no default for it",
        ),
        (
            TWO,
            {**SMALL, "attn_heads": [1, 2, 3]},
            {},
            "kwargs.attn_heads=[1,2,3]: has 3 entries, but dim_mults makes 2 levels; "
            "set 2 entries or a single value for all",
        ),
        (
            TWO,
            SMALL,
            small_weights(**{"final_conv.weight": torch.zeros(1, 8, 1, 1)}),
            "state_dict.final_conv.weight=[1,8,1,1]: the network has the "
            "shape [3,8,1,1] there; use the arguments that the weights were trained with",
        ),
        (
            TWO,
            SMALL,
            small_weights(**{"final_conv.scale": torch.zeros(2)}),
            "state_dict.final_conv.scale=[2]: the network has no such parameter; "
            "use the arguments that the weights were trained with",
        ),
        (
            TWO,
            SMALL,
            small_weights(**{"final_conv.bias": None}),
            "state_dict.final_conv.bias: is missing; the network has the shape [3] there",
        ),
    ],
)
def test_error_lines(source, kwargs, weights, line):
    with pytest.raises(ConfigError) as error:
        import_network(source, kwargs, weights)
    assert str(error.value) == line


def test_shape_errors_use_the_original_parameter_name():
    meta, _ = load_case("unet1d")
    weights = filled(meta["state_dict"])
    weights["mid_attn.fn.norm.g"] = torch.zeros(1, 5, 1)
    with pytest.raises(
        ConfigError, match=r"^state_dict.mid_attn.fn.norm.g=\[1,5,1\]: .*\[1,64,1\]"
    ):
        import_network(ONE, meta["kwargs"], weights)
