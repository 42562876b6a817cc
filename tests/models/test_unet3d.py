"""The video U-Net, against itself and formulas (see also interop/test_video)."""

import math

import pytest
import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.models.unet3d import UNet3D
from ddpm.models.unet3d_attention import (
    FrameAxis,
    LayerNorm,
    RelativePositionBias,
    Rotary,
    SpatialAttention,
    SpatialLinearAttention,
    TemporalAttention,
)
from ddpm.models.unet3d_blocks import RMSNorm
from tests.reference_cases import filled, relative_error

T = torch.tensor([7, 600])
SIZE = (3, 4, 2)
BOTH, NONE, FIRST = (
    torch.tensor([True, True]),
    torch.tensor([False] * 2),
    torch.tensor([True, False]),
)


def make(size: tuple[int, ...] = SIZE, **options) -> UNet3D:
    """Return a small network in eval mode, with weights that are functions of their names."""
    shared = {key: options.pop(key) for key in ("num_classes", "self_condition") if key in options}
    small = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
    net = UNet3D(3, 5, size, **shared, **{**small, **options})
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, *(size or SIZE), generator=torch.Generator().manual_seed(seed))


def axis(frames: int, heads: int, focus: Tensor | None = None) -> FrameAxis:
    """Return frames without positions: zero angles and zero bias."""
    return FrameAxis(torch.zeros(frames, 2), torch.zeros(heads, frames, frames), focus)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "same", "other"),
    [
        ({}, {"conv": "factorised"}, {"conv": "full"}),
        ({}, {"block_norm": "rms", "resnet_groups": 3}, {"block_norm": "group"}),
        ({"block_norm": "group"}, {"block_norm": "group", "resnet_groups": 8}, {}),
        ({"block_norm": "group", "resnet_groups": 4}, {}, {"block_norm": "group"}),
        ({"init_kernel_size": 7}, {}, {"init_kernel_size": 3}),
        ({"init_dim": 8}, {"init_dim": None}, {"init_dim": 16}),
        ({"attn_heads": 2}, {}, {"attn_heads": 1}),
        ({"attn_dim_head": 8}, {}, {"attn_dim_head": 16}),
        ({"use_sparse_linear_attn": True}, {}, {"use_sparse_linear_attn": False}),
        ({"cond_dim": 4}, {"cond_dim": 4, "null_cond_prob": 1.0}, {"cond_dim": 3}),
        ({"prob_focus_present": 1.0}, {"focus_init": False}, {"dim_mults": (2, 1)}),
    ],
)
def test_each_option_changes_the_network_and_matches_its_equivalents(options, same, other):
    x = noise()
    expected = make(**options)(x, T)
    torch.testing.assert_close(make(**{**options, **same})(x, T), expected, atol=0, rtol=0)
    assert relative_error(make(**other)(x, T), expected) > 1e-3


def test_only_full_convolutions_span_frames():
    kernels = {conv: make(conv=conv, init_kernel_size=5) for conv in ("full", "factorised")}
    assert kernels["full"].init_conv.weight.shape[2:] == (5, 5, 5)
    assert kernels["factorised"].init_conv.weight.shape[2:] == (1, 5, 5)
    assert kernels["full"].mid_block1.block2.proj.weight.shape[2:] == (3, 3, 3)
    assert kernels["factorised"].mid_block1.block2.proj.weight.shape[2:] == (1, 3, 3)


@torch.no_grad()
def test_the_network_accepts_any_number_of_frames_and_sizes_that_it_halves():
    net = make()
    for size in [(1, 4, 2), (40, 4, 2), (3, 6, 10)]:
        x = noise(*size)
        assert net(x, T).shape == (2, 5, *size)
        assert torch.equal(make(size=size)(x, T), net(x, T))


@torch.no_grad()
@pytest.mark.parametrize("frames", [3, 36])
def test_relative_position_buckets(frames):
    """Earlier keys: 0..15, later keys: 16..31; exact below 8, logarithmic up to 32."""
    bias = RelativePositionBias(1)
    bias.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None])
    table = bias(frames)[0]
    for query in range(frames):
        for key in range(frames):
            far = abs(query - key)
            octaves = math.log(max(far, 8) / 8) / math.log(4)
            bucket = far if far < 8 else min(8 + math.floor(8 * octaves + 1e-9), 15)
            assert table[query, key] == bucket + (16 if key > query else 0)


@torch.no_grad()
def test_the_bias_depends_only_on_signed_distance():
    table = make().time_rel_pos_bias(40)
    assert torch.equal(table[:, 1:, 1:], table[:, :-1, :-1])
    assert torch.equal(table[:, :20, :20], make().time_rel_pos_bias(20))
    assert not torch.equal(table, table.mT)
    assert torch.equal(table[:, 0, 32:], table[:, 0, 39:].expand(-1, 8))


@torch.no_grad()
def test_rotary_embedding_equals_complex_rotation():
    layer, rotary = TemporalAttention(6, 1, 6), Rotary(4)
    angles = rotary(5)
    reference = [[at * 10000 ** (-i / 2) for i in range(2)] for at in range(5)]
    torch.testing.assert_close(angles, torch.tensor(reference))
    x = torch.randn(1, 6, 5, 1, 1)
    q, k, v = layer.project(layer.norm(x).permute(0, 3, 4, 2, 1).flatten(0, 2))
    rotation = torch.polar(torch.ones_like(angles), angles)

    def rotated(z: Tensor) -> Tensor:
        pairs = torch.view_as_complex(z[..., :4].unflatten(-1, (2, 2)).contiguous())
        return torch.cat((torch.view_as_real(pairs * rotation).flatten(-2), z[..., 4:]), -1)

    bias = torch.randn(1, 5, 5)
    scores = rotated(q) @ rotated(k).mT / math.sqrt(6) + bias
    expected = x + layer.merge(scores.softmax(-1) @ v).mT[..., None, None]
    torch.testing.assert_close(layer(x, FrameAxis(angles, bias, None)), expected)


@torch.no_grad()
def test_temporal_attention_is_invariant_to_shifts_in_time():
    """Rotary scores and the bias depend on the distance of two frames, not on their positions."""
    layer, rotary, bias = TemporalAttention(6, 2, 8), Rotary(8), RelativePositionBias(2)
    x = torch.randn(2, 6, 4, 1, 1)
    whole = FrameAxis(rotary(9), bias(9), None)
    late = FrameAxis(whole.angles[5:], whole.bias[:, 5:, 5:], None)
    early = FrameAxis(rotary(4), bias(4), None)
    torch.testing.assert_close(layer(x, late), layer(x, early), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_spatial_attention_treats_each_frame_separately():
    for layer in (SpatialAttention(6, 2, 32), SpatialLinearAttention(6, 2)):
        x = torch.randn(2, 6, 3, 4, 2)
        alone = torch.cat([layer(x[:, :, [n]]) for n in range(3)], dim=2)
        torch.testing.assert_close(layer(x), alone, atol=1e-6, rtol=1e-5)
    layer = SpatialAttention(6, 2, 32)
    rows = layer.norm(x[:, :, 0, :, :, None])[..., 0].flatten(2).mT
    q, k, v = layer.to_qkv(rows).reshape(2, 8, 3, 2, 32).permute(2, 0, 3, 1, 4)
    out = ((q @ k.mT / math.sqrt(32)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = x[:, :, 0] + layer.to_out(out).mT.unflatten(-1, (4, 2))
    torch.testing.assert_close(layer(x)[:, :, 0], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_norms_match_their_formulas():
    x = torch.randn(2, 6, 3, 2, 2) + 1
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(LayerNorm(6)(x), (x - mean) / (var + 1e-5).sqrt())
    rms = x.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(RMSNorm(6)(x), x / rms)


@torch.no_grad()
def test_focus_on_the_present_separates_the_frames():
    net, x, changed = make(), noise(), noise()
    changed[:, :, 1] += 1
    before, after = (net(each, T, focus_present_mask=BOTH) for each in (x, changed))
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert torch.equal(before[:, :, 2], after[:, :, 2])
    assert relative_error(after[:, :, 1], before[:, :, 1]) > 1e-3
    alone = torch.cat([net(x[:, :, [n]], T, focus_present_mask=BOTH) for n in range(3)], dim=2)
    torch.testing.assert_close(before, alone, atol=1e-5, rtol=1e-5)
    for free in (make(), make(focus_init=False)):
        mask = NONE if free.focus_init else BOTH
        before, after = (free(each, T, focus_present_mask=mask) for each in (x, changed))
        assert relative_error(after[:, :, 0], before[:, :, 0]) > 1e-5


@torch.no_grad()
def test_the_focus_mask_is_per_sample():
    net, x = make(), noise()
    mixed = net(x, T, focus_present_mask=FIRST)
    expected = net(x, T, focus_present_mask=BOTH)[:1], net(x, T)[1:]
    torch.testing.assert_close(mixed, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(net(x, T, focus_present_mask=NONE), net(x, T))
    layer, rows = TemporalAttention(6, 2, 4), torch.randn(2, 6, 3, 1, 1)
    _, _, v = layer.project(layer.norm(rows).permute(0, 3, 4, 2, 1).flatten(0, 2))
    expected = rows + layer.merge(v).mT[..., None, None]
    torch.testing.assert_close(layer(rows, axis(3, 2, BOTH)), expected)


@torch.no_grad()
def test_focus_is_random_in_training_and_off_in_evaluation():
    net, x = make(prob_focus_present=0.5), noise()
    plain = net(x, T)
    net.train()
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        drawn = torch.rand(2) < 0.5
        torch.manual_seed(seed)
        assert torch.equal(net(x, T), net(x, T, focus_present_mask=drawn))
        seen.add(tuple(drawn.tolist()))
    assert len(seen) > 2
    assert torch.equal(net(x, T, focus_present_mask=NONE), plain)
    always = make(prob_focus_present=1.0).train()
    assert torch.equal(always(x, T), net(x, T, focus_present_mask=BOTH))


@torch.no_grad()
def test_conditions_and_the_null_condition():
    net, x, cond = make(cond_dim=4), noise(), torch.randn(2, 4)
    null = net.null_cond_emb.expand(2, -1)
    assert torch.equal(net(x, T), net(x, T, cond=null))
    assert torch.equal(net(x, T, cond=cond, null_cond=BOTH), net(x, T))
    assert torch.equal(net(x, T, cond=cond, null_cond=NONE), net(x, T, cond=cond))
    mixed = net(x, T, cond=cond, null_cond=FIRST)
    assert torch.equal(mixed, net(x, T, cond=torch.stack((null[0], cond[1]))))
    assert relative_error(net(x, T, cond=cond), net(x, T)) > 1e-3


@torch.no_grad()
def test_conditions_are_dropped_at_random_only_in_training():
    net, x, cond = make(cond_dim=4, null_cond_prob=0.5), noise(), torch.randn(2, 4)
    plain = net(x, T, cond=cond)
    net.train()
    torch.manual_seed(1)
    drawn = torch.rand(2) < 0.5
    assert drawn.tolist() == [False, True]
    torch.manual_seed(1)
    expected = net(x, T, cond=cond, null_cond=drawn)
    torch.manual_seed(1)
    assert torch.equal(net(x, T, cond=cond), expected)
    assert torch.equal(net(x, T, cond=cond, null_cond=NONE), plain)
    always = make(cond_dim=4, null_cond_prob=1.0).train()
    assert torch.equal(always(x, T, cond=cond), always(x, T))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("scale", "batch"), [(3.0, 4), (0.0, 4), (1.0, 2)])
def test_guidance_combines_both_predictions_of_one_call(training, scale, batch):
    net = make(
        cond_dim=4, num_classes=3, self_condition=True, null_cond_prob=0.5, prob_focus_present=0.5
    ).train(training)
    cond, inputs = torch.randn(2, 4), (noise(), T, torch.tensor([0, 2]), noise(seed=1))
    torch.manual_seed(1)
    focus = torch.rand(2) < 0.5 if training else NONE
    assert focus.tolist() == [False, training]
    conditional = net(*inputs, cond=cond, null_cond=NONE, focus_present_mask=focus)
    unconditional = net(*inputs, cond=cond, null_cond=BOTH, focus_present_mask=focus)
    batches = []
    net.init_conv.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
    torch.manual_seed(1)
    output = net.forward_with_cond_scale(*inputs, cond=cond, cond_scale=scale)
    assert batches == [batch]
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert relative_error(conditional, unconditional) > 1e-3


@torch.no_grad()
def test_guidance_without_a_condition_equals_the_plain_prediction():
    x = noise()
    for net in (make(), make(cond_dim=4)):
        assert torch.equal(net.forward_with_cond_scale(x, T, cond_scale=5.0), net(x, T))


@torch.no_grad()
def test_label_embeddings_are_added_to_the_time_embedding():
    net, plain, x = make(num_classes=3), make(), noise()
    weights = net.state_dict()
    plain.load_state_dict({k: w for k, w in weights.items() if k != "label_emb.weight"})
    plain.time_mlp[3].bias += weights["label_emb.weight"][2]
    torch.testing.assert_close(net(x, T, torch.tensor([2, 2])), plain(x, T), atol=1e-5, rtol=1e-5)
    assert not torch.equal(net(x, T, torch.tensor([0, 1])), net(x, T, torch.tensor([0, 2])))


@torch.no_grad()
def test_self_conditioning_concatenates_the_estimate_or_zeros():
    net, plain, x = make(self_condition=True), make(), noise()
    assert torch.equal(net(x, T), net(x, T, None, torch.zeros_like(x)))
    assert relative_error(net(x, T, None, noise(seed=1)), net(x, T)) > 1e-3
    weights = net.state_dict()
    weights["init_conv.weight"] = weights["init_conv.weight"][:, 3:]
    plain.load_state_dict(weights)
    torch.testing.assert_close(net(x, T), plain(x, T), atol=1e-5, rtol=1e-5)


def test_all_parameters_but_the_frequencies_receive_gradients():
    net = make(cond_dim=4, num_classes=3, init_dim=16)
    net(noise(), T, torch.tensor([0, 1]), cond=torch.randn(2, 4), null_cond=FIRST).sum().backward()
    without_gradient = {name for name, p in net.named_parameters() if p.grad is None}
    assert without_gradient == {"rotary_emb.freqs"}
    assert all(p.grad.any() for p in net.parameters() if p.grad is not None)


def test_the_null_condition_has_a_gradient_if_all_samples_have_conditions():
    net = make(cond_dim=4).train()
    net(noise(), T, cond=torch.randn(2, 4)).sum().backward()
    assert net.null_cond_emb.grad is not None  # DistributedDataParallel waits for it


def test_the_frequencies_are_not_stored_and_not_rounded_in_half_precision():
    net = make()
    assert not any(name.endswith("freqs") for name in net.state_dict())
    assert net.half().rotary_emb.freqs.dtype == torch.float32
    torch.testing.assert_close(
        net.double().rotary_emb.freqs, 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    )


@torch.no_grad()
@pytest.mark.parametrize("block_norm", ["group", "rms"])
@pytest.mark.parametrize("conv", ["full", "factorised"])
def test_autocast_is_close_to_float32(conv, block_norm):
    net, x, cond = make(conv=conv, block_norm=block_norm, cond_dim=4), noise(), torch.randn(2, 4)
    expected = net(x, T, cond=cond, focus_present_mask=FIRST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = net(x, T, cond=cond, focus_present_mask=FIRST)
    assert actual.isfinite().all()
    assert 0 < relative_error(actual, expected) < 0.05
    half = net.bfloat16()(x.bfloat16(), T, cond=cond, focus_present_mask=FIRST)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected) < 0.1


@torch.no_grad()
def test_the_network_compiles_as_one_graph():
    net = make(num_classes=2, self_condition=True, cond_dim=4)
    x = noise()
    inputs = (x, T, torch.tensor([0, 1]), x)
    options = {"cond": torch.randn(2, 4), "null_cond": FIRST, "focus_present_mask": FIRST}
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, **options), net(*inputs, **options))


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, {"y": T}, "the network has no classes; call it without labels y"),
        ({"num_classes": 3}, {}, r"the network has 3 classes and needs labels y of shape \(B,\)"),
        ({}, {"x_self_cond": noise()}, "x_self_cond requires a network with self_condition"),
        ({}, {"x": torch.zeros(2, 3, 3, 4, 5)}, r"size \(3, 4, 5\), not a multiple of \(1, 2, 2\)"),
        ({}, {"cond": torch.zeros(2, 4)}, "a condition requires a network with cond_dim"),
        ({}, {"null_cond": BOTH}, "a condition requires a network with cond_dim"),
        (
            {"cond_dim": 4},
            {"cond": torch.zeros(1, 4)},
            r"cond has shape \(1, 4\), not \(2, 4\)",
        ),
        (
            {"cond_dim": 4},
            {"cond": torch.zeros(2, 4), "null_cond": BOTH[:1]},
            r"null_cond has shape \(1,\), not \(2,\)",
        ),
        (
            {},
            {"focus_present_mask": BOTH[:, None]},
            r"focus_present_mask has shape \(2, 1\), not \(2,\)",
        ),
    ],
)
def test_invalid_inputs(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(**options)(**{"x": noise(), "t": T, **inputs})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"size": (32, 32)},
            "_target_=UNet3D: unet3d is a video network but the data are images of 32x32; "
            "use model=unet",
        ),
        (
            {"size": (64,)},
            "_target_=UNet3D: unet3d is a video network but the data are sequences of length 64; "
            "use model=unet1d",
        ),
        (
            {"dim_mults": (1, 2, 4), "size": (7, 6, 8)},
            "dim_mults=[1,2,4]: 3 levels halve the size 2 times, but 6x8 is not divisible by 4; "
            "resize the data to a multiple of 4, shorten dim_mults or set pad=true",
        ),
        ({"dim_mults": ()}, "dim_mults=[]: needs at least one entry"),
        ({"attn_heads": 0}, "attn_heads=0: must be greater than zero"),
        ({"attn_dim_head": 0}, "attn_dim_head=0: must be greater than zero"),
        ({"cond_dim": 0}, "cond_dim=0: must be greater than zero"),
        ({"init_kernel_size": 4}, "init_kernel_size=4: must be odd"),
        ({"init_kernel_size": -1}, "init_kernel_size=-1: must be odd"),
        ({"dim": 2}, "dim=2: is also the width of the time embedding; use 4 or more"),
        (
            {"prob_focus_present": 1.5},
            "prob_focus_present=1.5: must be a probability, from 0 to 1",
        ),
        (
            {"cond_dim": 4, "null_cond_prob": -0.1},
            "null_cond_prob=-0.1: must be a probability, from 0 to 1",
        ),
        (
            {"null_cond_prob": 0.1},
            "null_cond_prob=0.1: requires conditions; set cond_dim or use 0",
        ),
        (
            {"dim": 12, "block_norm": "group"},
            "dim=12: a level has 12 channels, not divisible into 8 groups; make dim a multiple "
            "of 8, lower resnet_groups or set block_norm=rms",
        ),
        (
            {"init_dim": 12, "block_norm": "group"},
            "init_dim=12: a level has 12 channels, not divisible into 8 groups; make init_dim a "
            "multiple of 8, lower resnet_groups or set block_norm=rms",
        ),
    ],
)
def test_error_messages(options, line):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value) == line
