"""Blocks that guided-diffusion added, against closed forms (see also interop/test_openai)."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.config.registry import build
from ddpm.errors import ConfigError
from ddpm.models import IDDPMUNet
from ddpm.models.iddpm_blocks import AttentionBlock, ResBlock
from ddpm.models.layers import GroupNorm
from tests.reference_cases import filled, relative_error

SMALL = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (1, 2),
    "num_heads": 2,
}
SIZES = [(8,), (8, 8), (3, 8, 8)]
T = torch.tensor([7, 600])
norm = partial(GroupNorm, 32)


def fill(module):
    """Set the weights of a module to functions of their names; return it in eval mode."""
    module.load_state_dict(filled((name, w.shape) for name, w in module.state_dict().items()))
    return module.eval()


def make(size: tuple[int, ...] = (8, 8), **options) -> IDDPMUNet:
    return fill(IDDPMUNet(3, 4, size, **{**SMALL, **options}))


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def halved(x: Tensor) -> Tensor:
    """Return means over pairs along all axes but the channels and the first of three."""
    for axis in range(4 if x.ndim == 5 else 3, x.ndim + 1):
        x = x.unflatten(axis - 1, (-1, 2)).mean(axis)
    return x


def doubled(x: Tensor) -> Tensor:
    """Repeat values twice along all axes but the channels and the first of three."""
    for axis in range(3 if x.ndim == 5 else 2, x.ndim):
        x = x.repeat_interleave(2, axis)
    return x


def normalised(layer, x: Tensor) -> Tensor:
    """Return the group normalisation of x with 32 groups, by its formula."""
    groups = x.flatten(2).unflatten(1, (32, -1))
    mean = groups.mean((2, 3), keepdim=True)
    variance = groups.var((2, 3), unbiased=False, keepdim=True)
    unit = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return unit * layer.weight.reshape(shape) + layer.bias.reshape(shape)


@torch.no_grad()
@pytest.mark.parametrize("use_scale_shift_norm", [True, False])
@pytest.mark.parametrize("resample", [halved, doubled])
@pytest.mark.parametrize("size", SIZES)
def test_a_residual_block_that_resamples(size, resample, use_scale_shift_norm):
    net = make(size, resblock_updown=True, use_scale_shift_norm=use_scale_shift_norm)
    block = net.input_blocks[2][0] if resample is halved else net.output_blocks[1][2]
    assert isinstance(block, ResBlock)
    width = block.in_layers[0].num_channels
    x, embedding = torch.randn(2, width, *size), torch.randn(2, 128)
    h = block.in_layers[2](resample(F.silu(normalised(block.in_layers[0], x))))
    shifts = block.emb_layers[1](F.silu(embedding)).reshape(2, -1, *(1,) * len(size))
    if use_scale_shift_norm:
        h = normalised(block.out_layers[0], h) * (1 + shifts[:, :width]) + shifts[:, width:]
    else:
        h = normalised(block.out_layers[0], h + shifts)
    expected = resample(x) + block.out_layers[3](F.silu(h))
    torch.testing.assert_close(block(x, embedding), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_with_zero_residuals_these_blocks_only_resample(size):
    net, plain = make(size, resblock_updown=True), make(size, conv_resample=False)
    net.input_blocks[2][0].out_layers[3].weight.zero_()
    net.input_blocks[2][0].out_layers[3].bias.zero_()
    net.output_blocks[1][2].out_layers[3].weight.zero_()
    net.output_blocks[1][2].out_layers[3].bias.zero_()
    assert len(net.state_dict()) > len(plain.state_dict())
    x = noise(*size)
    assert torch.equal(net(x, T), plain(x, T))
    # With resblock_updown, conv_resample has no effect.
    other = make(size, resblock_updown=True, conv_resample=False)
    assert torch.equal(other(x, T), make(size, resblock_updown=True)(x, T))


@torch.no_grad()
@pytest.mark.parametrize("qkv_outside", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_both_channel_orders_of_qkv(heads, qkv_outside):
    block = fill(
        AttentionBlock(32, heads, qkv_outside=qkv_outside, use_checkpoint=False, norm=norm)
    )
    x, size = torch.randn(2, 32, 3, 2), 32 // heads
    every = block.qkv(block.norm(x.flatten(2)))
    expected = torch.empty(2, 32, 6)
    for head in range(heads):
        starts = [3 * head * size + n * size for n in range(3)]
        if qkv_outside:
            starts = [n * 32 + head * size for n in range(3)]
        q, k, v = (every[:, start : start + size] for start in starts)
        weights = (q.transpose(1, 2) @ k / math.sqrt(size)).softmax(-1)
        expected[:, head * size : (head + 1) * size] = v @ weights.transpose(1, 2)
    expected = x + block.proj_out(expected).reshape(x.shape)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qkv_outside", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_equals_convolutions_and_matrix_products(qkv_outside, layout):
    block = fill(AttentionBlock(32, 4, qkv_outside=qkv_outside, use_checkpoint=False, norm=norm))
    x = torch.randn(2, 32, 4, 6, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=layout).requires_grad_()

    def by_convolutions(x):
        flat = x.flatten(2)
        split = (3, 4, -1) if qkv_outside else (4, 3, -1)
        qkv = block.qkv(block.norm(flat)).unflatten(1, split)
        q, k, v = qkv.unbind(1 if qkv_outside else 2)
        h = v @ torch.softmax(q.mT @ k / math.sqrt(8), dim=-1).mT
        return (flat + block.proj_out(h.flatten(1, 2))).reshape(x.shape)

    leaves, outputs = [x, *block.parameters()], []
    for function in (block, by_convolutions):
        out = function(x)
        outputs.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for actual, expected in zip(*outputs, strict=True):
        assert relative_error(actual, expected) < 1e-5


@torch.no_grad()
def test_permuted_weights_convert_one_channel_order_to_the_other():
    inside, outside = make(), make(use_new_attention_order=True)
    x, weights = noise(8, 8), inside.state_dict()
    assert relative_error(outside(x, T), inside(x, T)) > 1e-3
    for name, value in weights.items():
        if ".qkv." in name:
            weights[name] = value.unflatten(0, (2, 3, -1)).transpose(0, 1).flatten(0, 2)
    outside.load_state_dict(weights)
    torch.testing.assert_close(outside(x, T), inside(x, T), atol=1e-5, rtol=1e-5)


def test_number_of_heads_from_channels_per_head():
    net = make(num_head_channels=16, num_heads=-1, num_heads_upsample=3)
    num_heads = {
        block.norm.num_channels: block.num_heads
        for block in net.modules()
        if isinstance(block, AttentionBlock)
    }
    assert num_heads == {32: 2, 64: 4}
    x = noise(8, 8)
    same = {"channel_mult": (1, 1)}
    assert torch.equal(make(num_head_channels=8, **same)(x, T), make(num_heads=4, **same)(x, T))
    assert torch.equal(make(num_head_channels=-1)(x, T), make()(x, T))


@torch.no_grad()
def test_scale_stem():
    x = noise(8, 8)
    assert torch.equal(make(scale_stem=True)(x, T), make()(x, T))
    for mult, stem in [((2, 1), 128), ((1.5, 1), 96), ((0.5, 1), 32)]:
        net = make(model_channels=64, channel_mult=mult, scale_stem=True)
        assert net.input_blocks[0][0].weight.shape == (stem, 3, 3, 3)
        assert isinstance(net.input_blocks[1][0].skip_connection, nn.Identity)
        assert net.out[2].weight.shape == (4, stem, 3, 3)
        assert net.time_embed[0].weight.shape == (256, 64)
        assert net(x, T).isfinite().all()
    plain = make(model_channels=64, channel_mult=(0.5, 1))
    assert plain.input_blocks[0][0].weight.shape == (64, 3, 3, 3)
    assert plain.out[2].weight.shape == (4, 32, 3, 3)
    # Only the channels of the levels must be divisible into groups.
    net = make(model_channels=16, channel_mult=(2, 4), scale_stem=True)
    assert [net.out[0].num_channels, net.middle_block[1].norm.num_channels] == [32, 64]
    assert net(x, T).isfinite().all()


def test_fractional_multipliers_in_a_config_and_in_its_errors():
    node = {
        "_target_": "ddpm.models.IDDPMUNet",
        "model_channels": 64,
        "num_res_blocks": 1,
        "channel_mult": [0.5, 1],
        "attention_resolutions": [],
    }
    net = build(node, "model", 3, 3, (8, 8))
    assert [net.out[0].num_channels, net.middle_block[1].norm.num_channels] == [32, 64]
    with pytest.raises(ConfigError, match=r"^model\.channel_mult=\[0\.5,1,1\]: 3 levels halve"):
        build({**node, "channel_mult": [0.5, 1, 1]}, "model", 3, 3, (6, 6))


ADM = {
    "resblock_updown": True,
    "num_head_channels": 16,
    "use_new_attention_order": True,
    "scale_stem": True,
}


@pytest.mark.parametrize("use_scale_shift_norm", [True, False])
def test_activation_checkpointing_preserves_the_gradient(use_scale_shift_norm):
    gradients = []
    for use_checkpoint in (False, True):
        options = {"dropout": 0.5, "use_scale_shift_norm": use_scale_shift_norm, **ADM}
        net = make(use_checkpoint=use_checkpoint, **options).train()
        torch.manual_seed(3)
        net(noise(8, 8), T).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(g is not None and g.any() for g in gradients[0])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_the_network_compiles_as_one_graph_and_is_accurate_under_autocast():
    net, x = make(**ADM), noise(8, 8)
    expected = net(x, T)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, T), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert 0 < relative_error(net(x, T), expected) < 0.03


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"num_head_channels": 24},
            "num_head_channels=24: does not divide the 32 channels of a level with attention; "
            "use a divisor",
        ),
        (
            {"num_head_channels": 64},
            "num_head_channels=64: does not divide the 32 channels of a level with attention; "
            "use a divisor",
        ),
        ({"num_head_channels": 0}, "num_head_channels=0: must be greater than zero"),
        ({"num_heads": -1}, "num_heads=-1: must be greater than zero"),
        ({"channel_mult": (1, -0.5)}, "channel_mult=[1,-0.5]: must be greater than zero"),
        (
            {"channel_mult": (1, 0.25), "scale_stem": True},
            "channel_mult=[1,0.25]: makes 8 channels, but GroupNorm has 32 groups; "
            "make them multiples of 32",
        ),
        (
            {"channel_mult": (1, 0.01)},
            "channel_mult=[1,0.01]: makes 0 channels, but GroupNorm has 32 groups; "
            "make them multiples of 32",
        ),
        (
            {"model_channels": 16, "channel_mult": (2, 4)},
            "model_channels=16: GroupNorm has 32 groups; make it a multiple of 32",
        ),
    ],
)
def test_error_messages(options, line):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value) == line
