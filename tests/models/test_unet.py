"""The denoising-diffusion-pytorch U-Net, against itself and formulas.

See also interop/test_lucidrains.
"""

import pytest
import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.models import UNet
from ddpm.models.layers import LayerNorm, attend, linear_attend
from ddpm.models.unet_blocks import SelfAttention, StandardizedConv
from tests.reference_cases import filled, relative_error

T = torch.tensor([7, 600])
SIZES = {1: (8,), 2: (8, 4)}


def make(dims: int = 2, size: tuple[int, ...] | None = None, **options) -> UNet:
    """Return a small network in eval mode, with weights that are functions of their names."""
    shared = {key: options.pop(key) for key in ("num_classes", "self_condition") if key in options}
    size = SIZES[dims] if size is None else size
    net = UNet(3, 5, size, **shared, dims=dims, **{"dim": 8, "dim_mults": (1, 2), **options})
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def noise(dims: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    ("options", "same", "other"),
    [
        ({}, {"full_attn": (False, True)}, {"full_attn": (True, False)}),
        ({"full_attn": True}, {"full_attn": (True, True)}, {}),
        ({"full_attn": False}, {"full_attn": (False, False)}, {}),
        ({"attn_heads": 2}, {"attn_heads": (2, 2)}, {"attn_heads": (1, 2)}),
        ({"attn_dim_head": 8}, {"attn_dim_head": (8, 8)}, {"attn_dim_head": (4, 8)}),
        ({"attn_heads": (1, 2)}, {"attn_heads": (1, 2), "mid_attn_heads": 2}, {"attn_heads": 1}),
        ({"mid_attn_heads": 4}, {}, {"mid_attn_heads": 2}),
        ({"mid_attn_dim_head": 32}, {}, {"mid_attn_dim_head": 16}),
        ({"init_dim": 8}, {}, {"init_dim": 16}),
        ({"num_mem_kv": 0}, {}, {"num_mem_kv": 2}),
        ({"block_norm": "group"}, {"resnet_block_groups": 8}, {"resnet_block_groups": 4}),
        ({"block_norm": "rms"}, {"block_norm": "rms", "resnet_block_groups": 3}, {}),
        ({"weight_standardized": False}, {}, {"weight_standardized": True}),
        ({"attn_norm": "rms"}, {}, {"attn_norm": "layer"}),
        (
            {"full_attn": False},
            {"full_attn": (False, False)},
            {"full_attn": False, "divide_values": True},
        ),
        ({"dropout": 0.5}, {}, {"dim": 16}),
        ({"sinusoidal_pos_emb_theta": 10000}, {}, {"sinusoidal_pos_emb_theta": 50}),
        (
            {"learned_sinusoidal_cond": True},
            {"random_fourier_features": True, "learned_sinusoidal_dim": 16},
            {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 4},
        ),
    ],
)
def test_each_option_changes_the_network_and_matches_its_equivalents(dims, options, same, other):
    x = noise(dims)
    expected = make(dims, **options)(x, T)
    assert torch.equal(make(dims, **same)(x, T), expected)
    assert relative_error(make(dims, **other)(x, T), expected) > 1e-3


@torch.no_grad()
def test_a_wider_stem_reaches_the_last_convolution():
    net, x = make(init_dim=16), noise()
    assert net.init_conv.weight.shape[0] == 16
    assert net.final_conv.weight.shape[1] == 16
    cut = net.final_conv.weight.clone()
    net.final_conv.weight[:, 8:] = 0
    changed = net(x, T)
    net.final_conv.weight.copy_(cut)
    assert relative_error(changed, net(x, T)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("num_mem_kv", [0, 3])
def test_attention_matches_its_formula_with_memory_prepended(full, dims, num_mem_kv):
    layer = SelfAttention(dims, 6, full=full, heads=2, dim_head=4, num_mem_kv=num_mem_kv)
    x = torch.randn(2, 6, *(4,) * dims)
    flat = layer.norm(x).flatten(2)
    qkv = torch.einsum("oi,bin->bon", layer.to_qkv.weight.flatten(1), flat)
    q, k, v = qkv.reshape(2, 3, 2, 4, -1).unbind(1)
    if num_mem_kv:
        memory = layer.mem_kv.transpose(-1, -2) if full else layer.mem_kv
        k, v = (torch.cat((m.expand(2, -1, -1, -1), z), -1) for m, z in zip(memory, (k, v)))  # noqa: B905
    out = attend(q.mT, k.mT, v.mT).mT if full else linear_attend(q, k, v)
    expected = layer.to_out(out.reshape(2, 8, *x.shape[2:]))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_kernels_are_standardised_per_output_channel(dims):
    layer = StandardizedConv(dims, 3, 4)
    weight = layer.weight.flatten(1)
    kernels = (weight - weight.mean(1, keepdim=True)) / (
        weight.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    layer.weight.copy_(5 * layer.weight + 1)  # scale and offset cancel, except for epsilon
    x = torch.zeros(1, 3, *(3,) * dims)
    x[0, 1, *(1,) * dims] = 1
    impulse = kernels.reshape(layer.weight.shape)[:, 1].flip(tuple(range(1, dims + 1)))
    shape = (-1, *(1,) * dims)
    torch.testing.assert_close(
        layer(x)[0], impulse + layer.bias.reshape(shape), atol=2e-3, rtol=2e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_the_layer_norm_has_a_larger_epsilon_in_half_precision(dims):
    norm, x = LayerNorm(dims, 4), torch.randn(2, 4, *(3,) * dims) * 0.03
    norm.g.copy_(torch.arange(1.0, 5).reshape(norm.g.shape))
    for dtype, eps in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        rounded = x.to(dtype).float()
        centred = rounded - rounded.mean(1, keepdim=True)
        expected = centred / (rounded.var(1, correction=0, keepdim=True) + eps).sqrt() * norm.g
        error = relative_error(norm(x.to(dtype)), expected)
        assert error < (1e-6 if dtype == torch.float32 else 5e-3)


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_values_are_divided_by_the_number_of_positions(dims):
    options = {"full": False, "heads": 2, "dim_head": 4, "num_mem_kv": 0}
    plain = SelfAttention(dims, 6, **options)
    divided = SelfAttention(dims, 6, **options, divide_values=True)
    divided.load_state_dict(plain.state_dict())
    plain.to_qkv.weight[16:] /= 4**dims
    x = torch.randn(2, 6, *(4,) * dims)
    torch.testing.assert_close(divided(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("full", [True, False])
def test_the_memory_receives_gradients(full):
    net = make(full_attn=full, num_mem_kv=2)
    net(noise(), T).square().sum().backward()
    memories = {name: p.grad for name, p in net.named_parameters() if name.endswith("mem_kv")}
    assert len(memories) == 5
    assert all(grad.abs().sum() > 0 for grad in memories.values())


@pytest.mark.parametrize("learned", [True, False])
def test_only_learned_frequencies_receive_gradients(learned):
    option = "learned_sinusoidal_cond" if learned else "random_fourier_features"
    net = make(**{option: True})
    net(noise(), T).square().sum().backward()
    grad = net.time_mlp[0].weights.grad
    assert (grad is not None and grad.any()) if learned else grad is None
    both = make(learned_sinusoidal_cond=True, random_fourier_features=True)
    assert not both.time_mlp[0].weights.requires_grad


@torch.no_grad()
def test_dropout_is_active_only_in_training():
    net, x = make(dropout=0.3), noise()
    expected = net(x, T)
    torch.manual_seed(0)
    first, second = net.train()(x, T), net(x, T)
    assert relative_error(first, expected) > 1e-3
    assert relative_error(second, first) > 1e-3
    assert torch.equal(make().train()(x, T), expected)


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_label_embeddings_are_added_to_the_time_embedding(dims):
    net, plain, x = make(dims, num_classes=3), make(dims), noise(dims)
    weights = net.state_dict()
    plain.load_state_dict({k: w for k, w in weights.items() if k != "label_emb.weight"})
    plain.time_mlp[3].bias += weights["label_emb.weight"][2]
    torch.testing.assert_close(net(x, T, torch.tensor([2, 2])), plain(x, T), atol=1e-5, rtol=1e-5)
    assert not torch.equal(net(x, T, torch.tensor([0, 1])), net(x, T, torch.tensor([0, 2])))


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
def test_self_conditioning_concatenates_the_estimate_or_zeros(dims):
    net, plain, x = make(dims, self_condition=True), make(dims), noise(dims)
    assert torch.equal(net(x, T), net(x, T, None, torch.zeros_like(x)))
    assert relative_error(net(x, T, None, noise(dims, 1)), net(x, T)) > 1e-3
    weights = net.state_dict()
    weights["init_conv.weight"] = weights["init_conv.weight"][:, 3:]
    plain.load_state_dict(weights)
    torch.testing.assert_close(net(x, T), plain(x, T), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_real_timesteps():
    net, x = make(), noise()
    assert torch.equal(net(x, T.float()), net(x, T))
    assert 0 < relative_error(net(x, T + 0.01), net(x, T)) < 0.01


@torch.no_grad()
def test_the_network_accepts_all_sizes_that_its_levels_halve():
    x = torch.randn(2, 3, 10, 6)
    assert torch.equal(make(size=(8, 8))(x, T), make(size=(10, 6))(x, T))


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"num_mem_kv": 2}, 0.05),
        ({"num_mem_kv": 2, "block_norm": "rms"}, 0.05),
        # The larger epsilon in half precision has a strong effect with so few channels.
        ({"weight_standardized": True, "attn_norm": "layer", "divide_values": True}, 0.15),
    ],
    ids=["group", "rms", "old"],
)
def test_autocast_is_close_to_float32(dims, options, tolerance):
    net, x = make(dims, **options), noise(dims)
    expected = net(x, T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = net(x, T)
    assert actual.isfinite().all()
    assert 0 < relative_error(actual, expected) < tolerance
    assert relative_error(net.bfloat16()(x.bfloat16(), T), expected) < 2 * tolerance


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_network_compiles_as_one_graph(dims):
    old = {"weight_standardized": True, "attn_norm": "layer", "divide_values": True}
    net = make(dims, num_mem_kv=2, num_classes=2, self_condition=True, **old)
    x = noise(dims)
    inputs = (x, T, torch.tensor([0, 1]), x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), net(*inputs))


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, {"y": torch.tensor([0, 1])}, "the network has no classes; call it without labels y"),
        ({"num_classes": 3}, {}, r"the network has 3 classes and needs labels y of shape \(B,\)"),
        ({}, {"x_self_cond": noise()}, "x_self_cond requires a network with self_condition"),
        ({}, {"x": torch.zeros(2, 3, 8, 7)}, r"spatial size \(8, 7\), not a multiple of \(2, 2\)"),
    ],
)
def test_invalid_inputs(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(**options)(**{"x": noise(), "t": T, **inputs})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"dims": 1, "size": (32, 32)},
            "dims=1: unet1d is a sequence network but the data are images of 32x32; use model=unet",
        ),
        (
            {"dims": 2, "size": (64,)},
            "dims=2: unet is an image network but the data are sequences of length 64; "
            "use model=unet1d",
        ),
        (
            {"dims": 2, "size": (8, 32, 32)},
            "dims=2: unet is an image network but the data are videos of 8x32x32; "
            "use model=iddpm_unet",
        ),
        (
            {"dims": 3, "size": (8, 32, 32)},
            "dims=3: must be 1 or 2; for videos use model=iddpm_unet",
        ),
        (
            {"dim_mults": (1, 2, 4, 8), "size": (28, 28)},
            "dim_mults=[1,2,4,8]: 4 levels halve the size 3 times, but 28x28 is not divisible "
            "by 8; set data.image_size to a multiple of 8, shorten dim_mults or set pad=true",
        ),
        ({"dim_mults": ()}, "dim_mults=[]: needs at least one entry"),
        (
            {"attn_heads": (2, 4, 8)},
            "attn_heads=[2,4,8]: has 3 entries, but dim_mults makes 2 levels; "
            "set 2 entries or a single value for all",
        ),
        (
            {"attn_dim_head": (32,)},
            "attn_dim_head=[32]: has 1 entries, but dim_mults makes 2 levels; "
            "set 2 entries or a single value for all",
        ),
        (
            {"full_attn": (False, False, False, True)},
            "full_attn=[false,false,false,true]: has 4 entries, but dim_mults makes 2 levels; "
            "set 2 entries or a single value for all",
        ),
        (
            {"dim": 12},
            "dim=12: a level has 12 channels, not divisible into 8 groups; make dim a multiple "
            "of 8, lower resnet_block_groups or set block_norm=rms",
        ),
        (
            {"init_dim": 12},
            "init_dim=12: a level has 12 channels, not divisible into 8 groups; make init_dim a "
            "multiple of 8, lower resnet_block_groups or set block_norm=rms",
        ),
        (
            {"dim": 12, "init_dim": 8},
            "dim=12: a level has 12 channels, not divisible into 8 groups; make dim a multiple "
            "of 8, lower resnet_block_groups or set block_norm=rms",
        ),
        (
            {"dim": 2, "block_norm": "rms"},
            "dim=2: is also the width of the time embedding, which needs two frequencies; "
            "use 4 or more",
        ),
        (
            {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 7},
            "learned_sinusoidal_dim=7: must be even and positive: half sines, half cosines",
        ),
        ({"sinusoidal_pos_emb_theta": 0}, "sinusoidal_pos_emb_theta=0: must be greater than zero"),
        ({"num_mem_kv": -1}, "num_mem_kv=-1: must be 0 or more"),
        ({"mid_attn_heads": 0}, "mid_attn_heads=0: must be greater than zero"),
        ({"init_dim": 0}, "init_dim=0: must be greater than zero"),
        ({"dropout": -0.1}, "dropout=-0.1: must be a probability, at least 0 and below 1"),
    ],
)
def test_error_messages(options, line):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value) == line


@torch.no_grad()
def test_rms_norm_allows_odd_widths():
    net = make(dim=5, block_norm="rms")
    assert net(noise(), T).isfinite().all()
