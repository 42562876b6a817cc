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
    """A small network in eval mode, with weights that are functions of their names."""
    facts = {key: options.pop(key) for key in ("num_classes", "self_condition") if key in options}
    small = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
    net = UNet3D(3, 5, size, **facts, **{**small, **options})
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, *(size or SIZE), generator=torch.Generator().manual_seed(seed))


def axis(frames: int, heads: int, focus: Tensor | None = None) -> FrameAxis:
    """Frames without positions: no turning, no bias."""
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
def test_what_each_option_stands_for(options, same, other):
    x = noise()
    expected = make(**options)(x, T)
    torch.testing.assert_close(make(**{**options, **same})(x, T), expected, atol=0, rtol=0)
    assert relative_error(make(**other)(x, T), expected) > 1e-3


def test_full_convolutions_reach_across_frames_and_factorised_ones_do_not():
    kernels = {conv: make(conv=conv, init_kernel_size=5) for conv in ("full", "factorised")}
    assert kernels["full"].init_conv.weight.shape[2:] == (5, 5, 5)
    assert kernels["factorised"].init_conv.weight.shape[2:] == (1, 5, 5)
    assert kernels["full"].mid_block1.block2.proj.weight.shape[2:] == (3, 3, 3)
    assert kernels["factorised"].mid_block1.block2.proj.weight.shape[2:] == (1, 3, 3)


@torch.no_grad()
def test_any_number_of_frames_and_any_height_and_width_that_halve():
    net = make()
    for size in [(1, 4, 2), (40, 4, 2), (3, 6, 10)]:
        x = noise(*size)
        assert net(x, T).shape == (2, 5, *size)
        assert torch.equal(make(size=size)(x, T), net(x, T))


@torch.no_grad()
@pytest.mark.parametrize("frames", [3, 36])
def test_buckets_of_distances(frames):
    """Behind: 0..15, ahead: 16..31; below 8 exact, then by the logarithm up to 32."""
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
def test_the_bias_depends_on_the_distance_alone_and_tells_before_from_after():
    table = make().time_rel_pos_bias(40)
    assert torch.equal(table[:, 1:, 1:], table[:, :-1, :-1])
    assert torch.equal(table[:, :20, :20], make().time_rel_pos_bias(20))
    assert not torch.equal(table, table.mT)
    assert torch.equal(table[:, 0, 32:], table[:, 0, 39:].expand(-1, 8))


@torch.no_grad()
def test_rotation_is_that_of_complex_numbers():
    layer, rotary = TemporalAttention(6, 1, 6), Rotary(4)
    angles = rotary(5)
    by_hand = [[at * 10000 ** (-i / 2) for i in range(2)] for at in range(5)]
    torch.testing.assert_close(angles, torch.tensor(by_hand))
    x = torch.randn(1, 6, 5, 1, 1)
    q, k, v = layer.project(layer.norm(x).permute(0, 3, 4, 2, 1).flatten(0, 2))
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(z: Tensor) -> Tensor:
        pairs = torch.view_as_complex(z[..., :4].unflatten(-1, (2, 2)).contiguous())
        return torch.cat((torch.view_as_real(pairs * turn).flatten(-2), z[..., 4:]), -1)

    bias = torch.randn(1, 5, 5)
    scores = turned(q) @ turned(k).mT / math.sqrt(6) + bias
    expected = x + layer.merge(scores.softmax(-1) @ v).mT[..., None, None]
    torch.testing.assert_close(layer(x, FrameAxis(angles, bias, None)), expected)


@torch.no_grad()
def test_frames_that_move_together_attend_as_before():
    """Rotary scores and the bias know the distance of two frames, not their place."""
    layer, rotary, bias = TemporalAttention(6, 2, 8), Rotary(8), RelativePositionBias(2)
    x = torch.randn(2, 6, 4, 1, 1)
    whole = FrameAxis(rotary(9), bias(9), None)
    late = FrameAxis(whole.angles[5:], whole.bias[:, 5:, 5:], None)
    early = FrameAxis(rotary(4), bias(4), None)
    torch.testing.assert_close(layer(x, late), layer(x, early), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_attention_within_frames_is_that_of_each_frame_alone():
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
def test_norms_are_their_formulas():
    x = torch.randn(2, 6, 3, 2, 2) + 1
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(LayerNorm(6)(x), (x - mean) / (var + 1e-5).sqrt())
    rms = x.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(RMSNorm(6)(x), x / rms)


@torch.no_grad()
def test_focus_on_the_present_keeps_each_frame_to_itself():
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
def test_each_sample_focuses_for_itself():
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
def test_training_focuses_as_often_as_told_and_evaluation_never():
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
def test_conditions_and_the_null_embedding():
    net, x, cond = make(cond_dim=4), noise(), torch.randn(2, 4)
    null = net.null_cond_emb.expand(2, -1)
    assert torch.equal(net(x, T), net(x, T, cond=null))
    assert torch.equal(net(x, T, cond=cond, null_cond=BOTH), net(x, T))
    assert torch.equal(net(x, T, cond=cond, null_cond=NONE), net(x, T, cond=cond))
    mixed = net(x, T, cond=cond, null_cond=FIRST)
    assert torch.equal(mixed, net(x, T, cond=torch.stack((null[0], cond[1]))))
    assert relative_error(net(x, T, cond=cond), net(x, T)) > 1e-3


@torch.no_grad()
def test_training_forgets_conditions_as_often_as_told():
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
def test_guidance_combines_both_answers_of_one_call(training, scale, batch):
    net = make(
        cond_dim=4, num_classes=3, self_condition=True, null_cond_prob=0.5, prob_focus_present=0.5
    ).train(training)
    cond, inputs = torch.randn(2, 4), (noise(), T, torch.tensor([0, 2]), noise(seed=1))
    torch.manual_seed(1)
    focus = torch.rand(2) < 0.5 if training else NONE
    assert focus.tolist() == [False, training]
    told = net(*inputs, cond=cond, null_cond=NONE, focus_present_mask=focus)
    untold = net(*inputs, cond=cond, null_cond=BOTH, focus_present_mask=focus)
    batches = []
    net.init_conv.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
    torch.manual_seed(1)
    answer = net.forward_with_cond_scale(*inputs, cond=cond, cond_scale=scale)
    assert batches == [batch]
    expected = untold + scale * (told - untold)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    assert relative_error(told, untold) > 1e-3


@torch.no_grad()
def test_guidance_without_a_condition_is_the_answer_itself():
    x = noise()
    for net in (make(), make(cond_dim=4)):
        assert torch.equal(net.forward_with_cond_scale(x, T, cond_scale=5.0), net(x, T))


@torch.no_grad()
def test_labels_are_added_to_the_embedded_time():
    net, plain, x = make(num_classes=3), make(), noise()
    weights = net.state_dict()
    plain.load_state_dict({k: w for k, w in weights.items() if k != "label_emb.weight"})
    plain.time_mlp[3].bias += weights["label_emb.weight"][2]
    torch.testing.assert_close(net(x, T, torch.tensor([2, 2])), plain(x, T), atol=1e-5, rtol=1e-5)
    assert not torch.equal(net(x, T, torch.tensor([0, 1])), net(x, T, torch.tensor([0, 2])))


@torch.no_grad()
def test_the_estimate_of_x0_comes_in_front_and_none_is_zeros():
    net, plain, x = make(self_condition=True), make(), noise()
    assert torch.equal(net(x, T), net(x, T, None, torch.zeros_like(x)))
    assert relative_error(net(x, T, None, noise(seed=1)), net(x, T)) > 1e-3
    weights = net.state_dict()
    weights["init_conv.weight"] = weights["init_conv.weight"][:, 3:]
    plain.load_state_dict(weights)
    torch.testing.assert_close(net(x, T), plain(x, T), atol=1e-5, rtol=1e-5)


def test_all_that_is_trained_learns_and_the_frequencies_do_not():
    net = make(cond_dim=4, num_classes=3, init_dim=16)
    net(noise(), T, torch.tensor([0, 1]), cond=torch.randn(2, 4), null_cond=FIRST).sum().backward()
    still = {name for name, p in net.named_parameters() if p.grad is None}
    assert still == {"rotary_emb.freqs"}
    assert all(p.grad.any() for p in net.parameters() if p.grad is not None)


def test_a_condition_given_to_all_leaves_no_parameter_without_a_gradient():
    net = make(cond_dim=4).train()
    net(noise(), T, cond=torch.randn(2, 4)).sum().backward()
    assert net.null_cond_emb.grad is not None  # a distributed wrapper waits for it


def test_the_frequencies_are_computed_and_stay_in_float32():
    net = make()
    assert not any(name.endswith("freqs") for name in net.state_dict())
    net.half().to(torch.float64)
    assert net.rotary_emb.freqs.dtype == torch.float32
    torch.testing.assert_close(
        net.rotary_emb.freqs.double(), 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    )


@torch.no_grad()
@pytest.mark.parametrize("block_norm", ["group", "rms"])
@pytest.mark.parametrize("conv", ["full", "factorised"])
def test_autocast_stays_near_float32(conv, block_norm):
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
def test_the_network_compiles_in_one_piece():
    net = make(num_classes=2, self_condition=True, cond_dim=4)
    x = noise()
    inputs = (x, T, torch.tensor([0, 1]), x)
    told = {"cond": torch.randn(2, 4), "null_cond": FIRST, "focus_present_mask": FIRST}
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, **told), net(*inputs, **told))


@pytest.mark.parametrize(
    ("options", "inputs", "said"),
    [
        ({}, {"y": T}, "the network has no classes, but labels y were given"),
        ({"num_classes": 3}, {}, r"the network has 3 classes and needs labels y of shape \(B,\)"),
        ({}, {"x_self_cond": noise()}, "x_self_cond was given to a network without"),
        ({}, {"x": torch.zeros(2, 3, 3, 4, 5)}, r"size \(3, 4, 5\), not a multiple of \(1, 2, 2\)"),
        ({}, {"cond": torch.zeros(2, 4)}, "a condition was given to a network without cond_dim"),
        ({}, {"null_cond": BOTH}, "a condition was given to a network without cond_dim"),
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
def test_wrong_inputs(options, inputs, said):
    with pytest.raises(ValueError, match=said):
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
            "bring the data's size to a multiple of 4, shorten dim_mults or set pad=true",
        ),
        ({"dim_mults": ()}, "dim_mults=[]: needs at least one entry"),
        ({"attn_heads": 0}, "attn_heads=0: must be greater than zero"),
        ({"attn_dim_head": 0}, "attn_dim_head=0: must be greater than zero"),
        ({"cond_dim": 0}, "cond_dim=0: must be greater than zero"),
        ({"init_kernel_size": 4}, "init_kernel_size=4: needs a middle: choose an odd number"),
        ({"init_kernel_size": -1}, "init_kernel_size=-1: needs a middle: choose an odd number"),
        ({"dim": 2}, "dim=2: is the width of the timestep's embedding too; use 4 or more"),
        (
            {"prob_focus_present": 1.5},
            "prob_focus_present=1.5: is a probability: choose from 0 to 1",
        ),
        (
            {"cond_dim": 4, "null_cond_prob": -0.1},
            "null_cond_prob=-0.1: is a probability: choose from 0 to 1",
        ),
        (
            {"null_cond_prob": 0.1},
            "null_cond_prob=0.1: there are no conditions to forget; set cond_dim or leave it 0",
        ),
        (
            {"dim": 12, "block_norm": "group"},
            "dim=12: a level has 12 channels, which 8 groups do not divide; make dim a multiple "
            "of 8, lower resnet_groups or set block_norm=rms",
        ),
        (
            {"init_dim": 12, "block_norm": "group"},
            "init_dim=12: a level has 12 channels, which 8 groups do not divide; make init_dim a "
            "multiple of 8, lower resnet_groups or set block_norm=rms",
        ),
    ],
)
def test_error_lines(options, line):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value) == line
