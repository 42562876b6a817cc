"""The improved-diffusion U-Net, against itself and closed forms (see also interop/test_openai)."""

import pytest
import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.models import IDDPMUNet
from ddpm.models.iddpm_blocks import Downsample, Upsample
from tests.reference_cases import filled, relative_error

SMALL = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "num_heads": 2}
T = torch.tensor([7, 600])


def make(size: tuple[int, ...] = (8, 8), **options) -> IDDPMUNet:
    """Return a small network in eval mode, with weights that are functions of their names."""
    shared = {key: options.pop(key) for key in ("num_classes", "self_condition") if key in options}
    net = IDDPMUNet(3, 4, size, **shared, **{"attention_resolutions": (2,), **SMALL, **options})
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_three_axes_with_one_frame_equal_two_axes():
    net, flat = make((1, 8, 8), dims=3), make(dims=2)
    weights = {
        name: w[:, :, w.shape[2] // 2] if w.ndim == 5 else w for name, w in net.state_dict().items()
    }
    flat.load_state_dict(weights)
    x = noise(1, 8, 8)
    torch.testing.assert_close(net(x, T)[:, :, 0], flat(x[:, :, 0], T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8,), (8, 4), (3, 8, 4)])
def test_resampling_halves_and_doubles_all_axes_but_time(size):
    dims = len(size)
    fixed = (slice(None),) * (3 if dims == 3 else 2)
    halved = (slice(None, None, 2),) * min(dims, 2)
    x = noise(*size)
    small = x[fixed + halved]
    doubled = Upsample(dims, 3, use_conv=False)(small)
    assert doubled.shape == x.shape
    for shift in (0, 1):
        shifted = (slice(shift, None, 2),) * min(dims, 2)
        assert torch.equal(doubled[fixed + shifted], small)
    assert torch.allclose(Downsample(dims, 3, use_conv=False)(doubled), small)
    assert Downsample(dims, 3, use_conv=True)(x).shape == small.shape


@torch.no_grad()
@pytest.mark.parametrize("size", [(8,), (8, 8), (3, 8, 8)])
def test_resampling_without_convolutions_equals_convolutions_with_constant_kernels(size):
    options = {"channel_mult": (1, 1, 1), "attention_resolutions": ()}
    plain = make(size, conv_resample=False, **options)
    conv = make(size, conv_resample=True, **options)
    weights = conv.state_dict()
    for name in weights.keys() - plain.state_dict().keys():
        weights[name].zero_()
        if name.endswith("weight"):
            time = (1,) if len(size) == 3 else ()
            spatial = min(len(size), 2)
            window = slice(1, 3) if name.startswith("input") else 1
            value = 0.5**spatial if name.startswith("input") else 1.0
            for channel in range(32):
                weights[name][(channel, channel, *time, *(window,) * spatial)] = value
    conv.load_state_dict(weights)
    x = noise(*size)
    torch.testing.assert_close(plain(x, T), conv(x, T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("value", [None, -1])
def test_num_heads_upsample_defaults_to_num_heads(value):
    x = noise(8, 8)
    expected = make(num_heads_upsample=2)(x, T)
    assert torch.equal(make(num_heads_upsample=value)(x, T), expected)
    assert relative_error(make(num_heads_upsample=4)(x, T), expected) > 1e-3


@pytest.mark.parametrize("use_scale_shift_norm", [True, False])
def test_activation_checkpointing_preserves_the_gradient_under_dropout(use_scale_shift_norm):
    gradients = []
    for use_checkpoint in (False, True):
        options = {"dropout": 0.5, "use_scale_shift_norm": use_scale_shift_norm}
        net = make(use_checkpoint=use_checkpoint, **options).train()
        x = noise(8, 8).requires_grad_()
        torch.manual_seed(3)
        net(x, T).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    assert all(g is not None and g.any() for g in gradients[0])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_dropout_is_active_only_in_training():
    net, x = make(dropout=0.3), noise(8, 8)
    expected = make(dropout=0.0)(x, T)
    assert torch.equal(net(x, T), expected)
    torch.manual_seed(0)
    first, second = net.train()(x, T), net(x, T)
    assert relative_error(first, expected) > 1e-3
    assert relative_error(second, first) > 1e-3


@torch.no_grad()
def test_label_embeddings_are_added_to_the_time_embedding():
    net, plain, x = make(num_classes=3), make(), noise(8, 8)
    weights = net.state_dict()
    assert not torch.equal(net(x, T, torch.tensor([0, 1])), net(x, T, torch.tensor([0, 2])))
    plain.load_state_dict({k: w for k, w in weights.items() if k != "label_emb.weight"})
    plain.time_embed[2].bias += weights["label_emb.weight"][2]
    torch.testing.assert_close(net(x, T, torch.tensor([2, 2])), plain(x, T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8,), (8, 8), (2, 8, 8)])
def test_self_conditioning_concatenates_the_estimate_or_zeros(size):
    net, plain, x, x0 = make(size, self_condition=True), make(size), noise(*size), noise(*size)
    assert torch.equal(net(x, T), net(x, T, None, torch.zeros_like(x)))
    assert relative_error(net(x, T, None, x0), net(x, T)) > 1e-3
    weights = net.state_dict()
    weights["input_blocks.0.0.weight"] = weights["input_blocks.0.0.weight"][:, 3:]
    plain.load_state_dict(weights)
    torch.testing.assert_close(net(x, T), plain(x, T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_equal_those_of_the_forward_pass():
    net, x = make(num_classes=3, self_condition=True), noise(8, 8)
    inputs = (x, T, torch.tensor([0, 2]), noise(8, 8, seed=1))
    features = net.features(*inputs)
    assert list(features) == ["down", "middle", "up"]
    assert [tuple(h.shape[1:]) for h in features["down"]] == [
        (32, 8, 8), (32, 8, 8), (32, 4, 4), (64, 4, 4),
    ]  # fmt: skip
    assert features["middle"].shape == (2, 64, 4, 4)
    assert [tuple(h.shape[1:]) for h in features["up"]] == [
        (64, 4, 4), (64, 8, 8), (32, 8, 8), (32, 8, 8),
    ]  # fmt: skip
    assert torch.equal(net.out(features["up"][-1]), net(*inputs))


@torch.no_grad()
def test_a_first_level_wider_than_the_stem():
    net, x = make(channel_mult=(2, 1), num_heads_upsample=1), noise(8, 8)
    assert net.out[2].weight.shape[1] == 64
    assert net(x, T).isfinite().all()


@torch.no_grad()
def test_the_network_accepts_all_sizes_that_its_levels_halve():
    net, larger = make(), make((12, 10))
    x = noise(12, 10)
    assert torch.equal(net(x, T), larger(x, T))


@torch.no_grad()
@pytest.mark.parametrize("size", [(8,), (8, 8), (2, 8, 8)])
def test_autocast_is_close_to_float32(size):
    net, x = make(size), noise(*size)
    expected = net(x, T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = net(x, T)
    assert actual.isfinite().all()
    assert 0 < relative_error(actual, expected) < 0.03
    assert relative_error(net.bfloat16()(x.bfloat16(), T), expected) < 0.05


def test_a_new_network_predicts_zero():
    net = IDDPMUNet(3, 4, (8, 8), **SMALL, attention_resolutions=(1, 2))
    assert not net(noise(8, 8), T).any()


@torch.no_grad()
def test_the_network_compiles_as_one_graph():
    net, x = make(num_classes=2, self_condition=True), noise(8, 8)
    inputs = (x, T, torch.tensor([0, 1]), x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), net(*inputs))


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, {"y": torch.tensor([0, 1])}, "the network has no classes; call it without labels y"),
        ({"num_classes": 3}, {}, r"the network has 3 classes and needs labels y of shape \(B,\)"),
        ({"num_classes": 3}, {"y": torch.tensor([0])}, r"labels y have shape \(1,\), not \(2,\)"),
        ({}, {"x_self_cond": noise(8, 8)}, "x_self_cond requires a network with self_condition"),
        ({}, {"x": noise(8, 7)}, r"spatial size \(8, 7\), not a multiple of \(2, 2\)"),
        ({}, {"x": noise(8)}, r"spatial size \(8,\), not a multiple of \(2, 2\)"),
    ],
)
def test_invalid_inputs(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(**options)(**{"x": noise(8, 8), "t": T, **inputs})


@pytest.mark.parametrize(
    ("size", "options", "line"),
    [
        (
            (8, 8),
            {"dims": 3},
            "dims=3: the data are images of 8x8, which has 2 spatial axes; "
            "use dims=null or other data",
        ),
        (
            (2, 2, 2, 2),
            {},
            "dims=4: the data are data of 2x2x2x2, which has 4 spatial axes; "
            "use dims=null or other data",
        ),
        (
            (28, 28),
            {"channel_mult": (1, 2, 2, 2)},
            "channel_mult=[1,2,2,2]: 4 levels halve the size 3 times, but 28x28 is not divisible "
            "by 8; set data.image_size to a multiple of 8, shorten channel_mult or set pad=true",
        ),
        (
            (8, 8),
            {"model_channels": 48},
            "model_channels=48: GroupNorm has 32 groups; make it a multiple of 32",
        ),
        (
            (8, 8),
            {"num_heads": 3},
            "num_heads=3: does not divide the 64 channels of a level with attention; use a divisor",
        ),
        (
            (8, 8),
            {"num_heads_upsample": 5},
            "num_heads_upsample=5: does not divide the 64 channels of a level with attention; "
            "use a divisor",
        ),
        (
            (32, 32),
            {"attention_resolutions": (32, 16)},
            "attention_resolutions=[32,16]: the values are downsampling rates, and the levels "
            "have [1,2]; did you mean these resolutions? They are the rates [1,2]",
        ),
        (
            (32, 32),
            {"attention_resolutions": (2, 4)},
            "attention_resolutions=[2,4]: the values are downsampling rates, and the levels "
            "have [1,2]",
        ),
        ((8, 8), {"num_res_blocks": 0}, "num_res_blocks=0: must be greater than zero"),
        ((8, 8), {"num_heads_upsample": 0}, "num_heads_upsample=0: must be greater than zero"),
        ((8, 8), {"channel_mult": ()}, "channel_mult=[]: needs at least one entry"),
        (
            (8, 8),
            {"dropout": 1.5},
            "dropout=1.5: must be a probability, at least 0 and below 1",
        ),
    ],
)
def test_error_messages(size, options, line):
    with pytest.raises(ConfigError) as error:
        make(size, **options)
    assert str(error.value) == line
