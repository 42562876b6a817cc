"""Layers that the networks share, against formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddpm.errors import ConfigError
from ddpm.models.embeddings import FourierEmbedding, SinusoidalEmbedding
from ddpm.models.layers import (
    GroupNorm,
    RMSNorm,
    attend,
    avg_pool_nd,
    check_dropout,
    check_positive,
    conv_nd,
    linear_attend,
    standardize_channels,
    unit_vectors,
    zero_module,
)
from tests.reference_cases import relative_error

HALF_TYPES = [torch.bfloat16, torch.float16]


def reference_embedding(t: float, dim: int, n: int, cos_first: bool) -> list[float]:
    """Return the embedding of one timestep, computed in Python floats."""
    angles = [t * 10000 ** (-i / n) for i in range(dim // 2)]
    sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
    return (cosines + sines if cos_first else sines + cosines) + [0.0] * (dim % 2)


def leaves(*tensors, dtype=None):
    """Return copies of tensors, of another type if requested, that require gradients."""
    return [tensor.detach().clone().to(dtype).requires_grad_() for tensor in tensors]


def with_gradients(function, inputs, slope):
    """Return the output of a function, and the gradients of its inner product with ``slope``."""
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, slope.to(out.dtype))]


def check_same_function(function, reference, inputs, tolerance=2e-6):
    """Compare outputs and gradients of two functions in float32, relative to the largest value."""
    slope = torch.randn_like(reference(*inputs))
    actual, expected = (
        with_gradients(each, leaves(*inputs, dtype=torch.float32), slope)
        for each in (function, reference)
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("dim", [8, 9])
@pytest.mark.parametrize(("cos_first", "reach_end"), [(True, False), (False, True)])
def test_sinusoidal_embedding_matches_its_formula(dim, cos_first, reach_end):
    embed = SinusoidalEmbedding(dim, cos_first=cos_first, reach_end=reach_end)
    times = [0.0, 3.0, 977.5]
    n = dim // 2 - reach_end
    expected = torch.tensor([reference_embedding(t, dim, n, cos_first) for t in times])
    actual = embed(torch.tensor(times), torch.float32)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_sinusoidal_embedding_accepts_integer_timesteps():
    embed = SinusoidalEmbedding(8, cos_first=True, reach_end=False)
    t = torch.tensor([0, 999])
    assert torch.equal(embed(t, torch.float32), embed(t.double(), torch.float32))


EMBEDDINGS = [
    lambda: SinusoidalEmbedding(32, cos_first=False, reach_end=True),
    lambda: FourierEmbedding(32, learned=True),
]


@pytest.mark.parametrize("make", EMBEDDINGS)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_embeddings_remain_in_float32_in_half_precision(make, dtype):
    embed, t = make(), torch.tensor([998.25])
    expected = embed(t, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embed.to(dtype)(t, torch.float32), expected)
    assert torch.equal(embed(t, dtype), expected.to(dtype))
    assert torch.equal(embed.double().float()(t, torch.float32), expected)


@pytest.mark.parametrize("make", EMBEDDINGS)
def test_embeddings_in_float64_are_computed_in_float64(make):
    embed, t = make().double(), torch.tensor([998.25], dtype=torch.float64)
    (frequencies,) = [*embed.parameters(), *embed.buffers()]
    assert frequencies.dtype == torch.float64
    scale = 2 * math.pi if isinstance(embed, FourierEmbedding) else 1
    sines = [math.sin(998.25 * f * scale) for f in frequencies.tolist()]
    actual = embed(t, torch.float64)[0, -32:-16]
    torch.testing.assert_close(actual, torch.tensor(sines, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_gradient_of_an_embedding_keeps_its_type():
    embed = FourierEmbedding(4, learned=True)
    embed(torch.tensor([0.5]), torch.float32).sum().backward()
    embed.bfloat16()(torch.tensor([0.5]), torch.bfloat16).sum().backward()
    assert embed.weights.dtype == embed.weights.grad.dtype == torch.float32
    assert set(embed.state_dict()) == {"weights"}
    assert not SinusoidalEmbedding(4, cos_first=True, reach_end=False).state_dict()


@pytest.mark.parametrize("learned", [True, False])
def test_fourier_embedding_matches_its_formula(learned):
    embed = FourierEmbedding(4, learned=learned)
    assert embed.weights.requires_grad is learned
    with torch.no_grad():
        embed.weights.copy_(torch.tensor([0.5, -0.25]))
    expected = [[0.5, math.sin(math.pi / 2), math.sin(-math.pi / 4), 0.0, math.cos(math.pi / 4)]]
    actual = embed(torch.tensor([0.5]), torch.float32)
    torch.testing.assert_close(actual, torch.tensor(expected))


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("norm", [GroupNorm(4, 16), RMSNorm(1, 16)])
def test_norms_do_not_overflow_in_half_precision(norm, dtype):
    x = (1e4 * torch.randn(2, 16, 5)).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, norm(x.float()).to(dtype))
    torch.testing.assert_close(norm.to(dtype)(x), out)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_in_half_precision_is_as_accurate_as_with_converted_inputs(dtype, layout):
    x, slope = (2 * torch.randn(2, 4, 16, 8, 8) + 1).to(dtype)
    norm, outputs = GroupNorm(4, 16), []
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    for wide in (False, True):
        copy = x.clone(memory_format=layout).requires_grad_()
        out = norm(copy.float() if wide else copy).to(dtype)
        inputs = (copy, norm.weight, norm.bias)
        gradients = torch.autograd.grad(out, inputs, slope.to(memory_format=layout))
        outputs.append([out.detach(), *gradients])
    for actual, expected in zip(*outputs, strict=True):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) < (1e-2 if actual.dtype == dtype else 1e-5)
    assert float((outputs[0][0] != outputs[1][0]).float().mean()) < 1e-3
    assert float((outputs[0][1] != outputs[1][1]).float().mean()) < 1e-2


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rms_norm_matches_its_formula(dims):
    norm = RMSNorm(dims, 6)
    x = torch.randn(2, 6, *(3,) * dims)
    with torch.no_grad():
        norm.g.mul_(2)
    torch.testing.assert_close(norm(x), 2 * x / x.square().mean(1, keepdim=True).sqrt())


@pytest.mark.parametrize("shape", [(2, 6, 50), (3, 32, 8, 8), (2, 16, 3, 4, 4)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_unit_vectors_equal_those_of_torch(shape, scale):
    check_same_function(unit_vectors, F.normalize, [scale * torch.randn(shape)], 1e-6)


def test_unit_vectors_of_zeros_are_zeros_with_the_gradient_of_torch():
    check_same_function(unit_vectors, F.normalize, [torch.zeros(1, 4, 2)], 1e-6)


def standardized_by_torch(x):
    """Return ``x`` with mean 0 and variance 1 over the channels, by ``torch.var_mean``."""
    var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    return (x - mean) * (var + 1e-5).rsqrt()


@pytest.mark.parametrize("shape", [(2, 6, 50), (3, 32, 8, 8), (2, 16, 3, 4, 4)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_standardized_channels_equal_those_of_torch(shape, mean):
    def ours(x):
        return standardize_channels(x, 1e-5)

    inputs = [mean + torch.randn(shape)]
    check_same_function(ours, standardized_by_torch, inputs, 1e-6 * (1 + mean))


def test_other_devices_use_the_norms_of_torch():
    x = torch.empty(2, 4, 3, device="meta")
    assert unit_vectors(x).shape == standardize_channels(x, 1e-5).shape == x.shape


@pytest.mark.parametrize("keys", [5, 7])
def test_attend_matches_its_formula(keys):
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, keys, 4), torch.randn(2, 3, keys, 4)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)


def test_attend_computes_its_softmax_in_float32():
    # Near 300 the spacing of bfloat16 is 2, too coarse for the differences of these scores.
    q = torch.full((1, 1, 1, 64), 6.0).bfloat16()
    k = torch.full((1, 1, 64, 64), 6.25).bfloat16()
    k[..., :1] += torch.linspace(-0.5, 0.5, 64).bfloat16()[:, None]
    v = torch.linspace(-1, 1, 64).bfloat16()[None, None, :, None].expand(1, 1, 64, 64)
    exact = attend(q.double(), k.double(), v.double())
    assert float(exact.mean()) > 0.1
    torch.testing.assert_close(attend(q, k, v).double(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("tokens", [16, 64, 256])
@pytest.mark.parametrize("strided", [False, True])
def test_attend_equals_matrix_products(tokens, strided):
    def products(q, k, v):
        return torch.softmax(q @ k.mT / 4, dim=-1) @ v

    def transposed(q, k, v):
        return attend(*(each.mT.contiguous().mT for each in (q, k, v)))

    inputs = torch.randn(3, 2, 2, tokens, 16)
    check_same_function(transposed if strided else attend, products, inputs)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_attend_in_half_precision_only_rounds_inputs_and_outputs(dtype, autocast):
    q, k, v, slope = torch.randn(4, 2, 3, 40, 16).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        actual = with_gradients(attend, leaves(q, k, v), slope)
    expected = with_gradients(attend, leaves(q, k, v, dtype=torch.float32), slope)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs.to(dtype))


def test_attend_compiles_as_one_graph_under_autocast():
    q, k, v = torch.randn(3, 2, 3, 8, 4).bfloat16()
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(q, k, v), attend(q, k, v))


def test_linear_attend_matches_its_formula():
    q, k, v = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 7), torch.randn(2, 3, 4, 7)
    kernel = torch.softmax(q, 2).transpose(-1, -2) @ torch.softmax(k, 3) / 2
    torch.testing.assert_close(linear_attend(q, k, v), (kernel @ v.transpose(-1, -2)).mT)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8, 50), (2, 3, 2, 16, 64)])
def test_linear_attend_equals_its_formula_by_einsum(shape):
    def by_einsum(qkv):
        q, k, v = qkv.unbind(1)
        q, k = torch.softmax(q, dim=-2) / math.sqrt(q.shape[-2]), torch.softmax(k, dim=-1)
        context = torch.einsum("bhdm,bhem->bhde", k, v)
        return torch.einsum("bhde,bhdn->bhen", context, q)

    def ours(qkv):
        return linear_attend(*qkv.unbind(1))

    check_same_function(ours, by_einsum, [torch.randn(shape)])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_and_pooling_of_every_rank(dims):
    x = torch.randn(1, 2, *(4,) * dims)
    conv = conv_nd(dims, 2, 3, 1, bias=False)
    expected = torch.einsum("oi,bi...->bo...", conv.weight.reshape(3, 2), x)
    torch.testing.assert_close(conv(x), expected)
    pooled = avg_pool_nd(dims, 4)(x)
    torch.testing.assert_close(pooled.flatten(1), x.flatten(2).mean(-1))
    assert not zero_module(conv)(x).any()


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (lambda: check_positive(dim=8, heads=0), "heads=0: must be greater than zero"),
        (lambda: check_positive(mults=(1, -2)), "mults=[1,-2]: must be greater than zero"),
        (lambda: check_positive(mults=()), "mults=[]: needs at least one entry"),
        (
            lambda: check_dropout(1.0),
            "dropout=1.0: must be a probability, at least 0 and below 1",
        ),
    ],
)
def test_error_lines(check, line):
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == line


def test_valid_values_pass_the_checks():
    check_positive(dim=1, mults=(1, 2), unset=None)
    check_dropout(0.0)


@pytest.mark.parametrize("window", [2, (1, 2, 2), (2, 3, 1)])
def test_deterministic_pooling_in_three_dimensions_equals_that_of_torch(window):
    """torch has no deterministic gradient on a GPU; on a CPU the results are equal bit for bit."""
    pool, plain = avg_pool_nd(3, window), torch.nn.AvgPool3d(window)
    x = torch.randn(2, 3, 4, 7, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = plain(theirs)
    torch.use_deterministic_algorithms(True)
    try:
        means = pool(ours)
        half = pool(x.bfloat16())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(half, plain(x.bfloat16().float()).bfloat16())
    assert torch.equal(means, expected) and torch.equal(pool(x), expected)
    slope = torch.randn(means.shape, generator=torch.Generator().manual_seed(1))
    means.backward(slope)
    expected.backward(slope)
    assert torch.equal(ours.grad, theirs.grad)
    assert "AvgPool3D" not in str(means.grad_fn.next_functions)
