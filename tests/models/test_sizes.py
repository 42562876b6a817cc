"""Number of levels of the networks by the size of the data, and padding of other sizes."""

import numpy as np
import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.models import IDDPMUNet, SimpleUNet, UNet, UNet3D
from ddpm.models.sizes import (
    check_halvings,
    choose_halvings,
    crop_to,
    describe_size,
    pad_to_multiple,
)

T = torch.tensor([7, 600])
DIM_MULTS = (1, 2, 4, 8)
SMALL = {
    UNet: {"dim": 8, "attn_heads": 1, "attn_dim_head": 8},
    UNet3D: {"dim": 8, "attn_heads": 1, "attn_dim_head": 8},
    IDDPMUNet: {"model_channels": 32, "num_res_blocks": 1, "num_heads": 1},
    SimpleUNet: {"width": 8, "time_dim": 8, "num_heads": 1},
}


def noise(*size: int, channels: int = 2) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def make(target, size, *arguments, **options):
    """Return a small network whose weights are nonzero, and equal for equal parameters."""
    if target is UNet:
        options = {"dims": len(size), **options}
    net = target(2, 3, size, *arguments, **{**SMALL[target], **options})
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.trunc_normal_(weight, std=0.1, generator=generator)
    return net


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # Four levels, as in the original, for all sizes that can be halved three times.
        ((32, 32), (3, False)),
        ((256, 64), (3, False)),
        ((8, 8), (3, False)),
        ((24, 40), (3, False)),
        ((128,), (3, False)),
        # One level fewer without padding.
        ((28, 28), (2, False)),
        ((100, 60), (2, False)),
        ((100,), (2, False)),
        ((20, 20), (2, False)),
        ((12, 12), (2, False)),
        # Padded to 32x32, 52x36, 80, 224x224, 16x16 and 104x4.
        ((30, 30), (3, True)),
        ((49, 35), (2, True)),
        ((77,), (3, True)),
        ((223, 222), (3, True)),
        ((14, 14), (2, True)),
        ((101, 3), (2, True)),
        # Small data: halvings that leave 4 positions, or that need no padding.
        ((10, 10), (1, False)),
        ((7, 7), (1, True)),
        ((9, 9), (1, True)),
        ((6, 6), (1, False)),
        ((5, 5), (0, False)),
        ((1, 1), (0, False)),
        ((3,), (0, False)),
    ],
)
def test_choice_of_halvings(size, expected):
    assert choose_halvings(size, 3) == expected


@pytest.mark.parametrize(
    ("size", "pad", "expected"),
    [
        ((28, 28), True, (3, True)),  # 32x32
        ((49, 35), True, (3, True)),  # 56x40
        ((32, 32), True, (3, True)),
        ((12, 12), True, (2, True)),
        ((5, 5), True, (0, True)),
        ((30, 30), False, (1, False)),
        ((49, 35), False, (0, False)),
        ((28, 28), False, (2, False)),
    ],
)
def test_choice_of_halvings_with_explicit_padding(size, pad, expected):
    assert choose_halvings(size, 3, pad) == expected


@pytest.mark.parametrize(
    ("target", "size", "options", "note"),
    [
        (UNet, (32, 32), {"dim_mults": [1, 2, 4, 8], "pad": False}, None),
        (
            UNet,
            (28, 28),
            {"dim_mults": [1, 2, 4], "pad": False},
            "dim_mults=[1,2,4] for images of 28x28; sizes divisible by 8 have [1,2,4,8]",
        ),
        (
            UNet,
            (77,),
            {"dim_mults": [1, 2, 4, 8], "pad": True},
            "dim_mults=[1,2,4,8] for sequences of length 77, padded to 80 inside the network",
        ),
        (
            UNet3D,
            (3, 49, 35),
            {"dim_mults": [1, 2, 4], "pad": True},
            "dim_mults=[1,2,4] for videos of 3x49x35, padded to 3x52x36 inside the network; "
            "sizes divisible by 8 have [1,2,4,8]",
        ),
        (
            IDDPMUNet,
            (10, 10),
            {"channel_mult": [1, 2], "pad": False, "attention_resolutions": [2]},
            "channel_mult=[1,2] for images of 10x10; sizes divisible by 8 have [1,2,2,2]; "
            "attention_resolutions=[2]",
        ),
        (
            IDDPMUNet,
            (5, 24, 40),
            {"channel_mult": [1, 2, 2, 2], "pad": False, "attention_resolutions": [2, 4]},
            None,
        ),
        (SimpleUNet, (16, 8), {"pad": False}, None),
        (
            SimpleUNet,
            (28, 30),
            {"pad": True},
            "pad=true for images of 28x30, padded to 32x32 inside the network",
        ),
    ],
)
def test_the_choice_is_stored_and_reported(target, size, options, note):
    net = make(target, size)
    assert (net.fit.options, net.fit.note) == (options, note)
    again = make(target, size, **{k: tuple(v) if k != "pad" else v for k, v in options.items()})
    ours, theirs = net.state_dict(), again.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert again.fit.pad == net.fit.pad


ODD = [
    (UNet, (30, 30), (32, 32)),
    (UNet, (49, 35), (52, 36)),
    (UNet, (77,), (80,)),
    (UNet3D, (3, 18, 7), (3, 20, 8)),
    (IDDPMUNet, (9,), (10,)),
    (IDDPMUNet, (15, 9), (16, 12)),
    (IDDPMUNet, (3, 15, 9), (3, 16, 12)),
    (SimpleUNet, (12, 9), (16, 16)),
]


@pytest.mark.parametrize(("target", "size", "padded"), ODD)
def test_padding_inside_the_network_equals_padding_of_the_data(target, size, padded):
    x = noise(*size)
    net = make(target, size, None, True).eval()
    output = net(x, T, None, x.flip(0))
    assert output.shape == (2, 3, *size) and output.isfinite().all()
    output.square().sum().backward()
    grads = {name: w.grad for name, w in net.named_parameters()}
    assert {name for name, grad in grads.items() if grad is None} <= {"rotary_emb.freqs"}
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    before = [(n - m) // 2 for n, m in zip(padded, size, strict=True)]
    widths = [(0, 0)] * 2 + [(b, n - m - b) for b, n, m in zip(before, padded, size, strict=True)]
    explicit = torch.from_numpy(np.pad(x.numpy(), widths, mode="symmetric"))
    with torch.no_grad():
        whole = net(explicit, T, None, explicit.flip(0))
        crop = whole[(..., *(slice(b, b + m) for b, m in zip(before, size, strict=True)))]
        assert whole.shape == (2, 3, *padded)
        assert torch.equal(crop, net(x, T, None, x.flip(0)))


@torch.no_grad()
def test_features_have_the_size_of_the_padded_data():
    net = make(IDDPMUNet, (15, 9)).eval()
    features = net.features(noise(15, 9), T)
    down, middle = features["down"], features["middle"]
    assert isinstance(middle, torch.Tensor) and middle.shape == (2, 64, 4, 3)
    assert down[0].shape == (2, 32, 16, 12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("target", "size", "options"),
    [
        (UNet, (32, 32), {"dim_mults": DIM_MULTS}),
        (UNet, (8,), {"dim_mults": DIM_MULTS}),
        (UNet, (12, 12), {"dim_mults": (1, 2, 4)}),
        (UNet3D, (2, 8, 16), {"dim_mults": DIM_MULTS}),
        (IDDPMUNet, (16, 8), {"channel_mult": (1, 2, 2, 2)}),
        (SimpleUNet, (8, 8), {"pad": False}),
    ],
)
def test_default_levels_equal_explicit_levels_bit_for_bit(target, size, options):
    chosen, explicit = make(target, size), make(target, size, **options)
    assert list(chosen.state_dict()) == list(explicit.state_dict())
    x = noise(*size)
    assert torch.equal(chosen.eval()(x, T), explicit.eval()(x, T)) and not chosen.fit.pad


@torch.no_grad()
def test_explicit_levels_with_explicit_padding():
    net = make(UNet, (28, 28), dim_mults=DIM_MULTS, pad=True).eval()
    assert net.factors == (8, 8) and net(noise(28, 28), T).shape == (2, 3, 28, 28)
    assert net.fit.note == "pad=true for images of 28x28, padded to 32x32 inside the network"
    assert net(noise(5, 17), T).shape == (2, 3, 5, 17)  # any size
    with pytest.raises(ValueError, match=r"spatial size \(28,\), not a multiple of \(8, 8\)"):
        net(noise(28), T)


def test_padding_and_cropping_compile_as_one_graph():
    x = noise(9, 7)

    def both(x: torch.Tensor) -> torch.Tensor:
        padded = pad_to_multiple(x, (4, 4))
        return crop_to(padded * padded[..., :1, :], x.shape[2:])

    assert torch.equal(torch.compile(both, backend="eager", fullgraph=True)(x), both(x))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_padding_is_symmetric_reflection_and_cropping_undoes_it(length, factor):
    x = torch.arange(3.0 * length).reshape(1, 1, 3, length).requires_grad_()
    padded = pad_to_multiple(x, (1, factor))
    missing = -length % factor
    widths = (missing // 2, missing - missing // 2)
    expected = np.pad(x.detach().numpy(), [(0, 0)] * 3 + [widths], mode="symmetric")
    assert np.array_equal(padded.detach().numpy(), expected)
    assert (padded is x) == (missing == 0)
    assert torch.equal(crop_to(padded, x.shape[2:]), x)
    padded.sum().backward()
    assert x.grad is not None and float(x.grad.sum()) == padded.numel()


def test_errors_of_lists_per_level_name_the_number_of_levels():
    line = (
        "full_attn=[false,false,false,true]: has 4 entries, but dim_mults=null for images of 28x28 "
        "makes 3 levels; set 3 entries or a single value for all"
    )
    with pytest.raises(ConfigError) as error:
        make(UNet, (28, 28), full_attn=(False, False, False, True))
    assert str(error.value) == line
    assert make(UNet, (28, 28), full_attn=(False, False, True)).fit.options["pad"] is False


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((64,), "sequences of length 64"),
        ((32, 16), "images of 32x16"),
        ((8, 32, 32), "videos of 8x32x32"),
        ((1, 2, 3, 4), "data of 1x2x3x4"),
    ],
)
def test_sizes_in_words(size, text):
    assert describe_size(size) == text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("dim_mults", DIM_MULTS, (28, 28)),
            "dim_mults=[1,2,4,8]: 4 levels halve the size 3 times, but 28x28 is not divisible "
            "by 8; set data.image_size to a multiple of 8, shorten dim_mults or set pad=true",
        ),
        (
            ("channel_mult", (1, 1), (7, 6, 5), 1),
            "channel_mult=[1,1]: 2 levels halve the size 1 times, but 6x5 is not divisible "
            "by 2; resize the data to a multiple of 2, shorten channel_mult or set pad=true",
        ),
    ],
)
def test_errors_of_explicit_levels_that_the_size_does_not_allow(arguments, line):
    check_halvings("channel_mult", (1, 1), (7, 6, 4), 1)
    with pytest.raises(ConfigError) as error:
        check_halvings(*arguments)
    assert str(error.value) == line
