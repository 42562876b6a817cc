"""The tutorial's network: its stages against formulas, and its errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.networks import find
from ddpm.models import SimpleUNet
from ddpm.models.simple_unet import DoubleConv, Down, SelfAttention, Up
from tests.reference_cases import filled


def make(size=(16, 16), **options):
    options = {"width": 8, "time_dim": 8, "num_heads": 2, **options}
    net = SimpleUNet(3, 3, size, **options)
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_has_the_size_of_the_tutorial():
    net = SimpleUNet(3, 3, (32, 32))
    assert sum(p.numel() for p in net.parameters()) == 14_553_731
    assert net.state_dict()["up1.conv.conv1.0.weight"].shape == (128, 512, 3, 3)


def test_blocks_match_their_formulas():
    torch.manual_seed(0)
    block, x = DoubleConv(4, 6), normal(2, 4, 5, 7)
    h = x
    for layers in (block.conv1, block.conv2):
        h = F.conv2d(h, layers[0].weight, layers[0].bias, padding=1)
        mean, std = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), correction=0, keepdim=True)
        h = F.relu((h - mean) / (std + 1e-5).sqrt())
    torch.testing.assert_close(block(x), h, rtol=1e-4, atol=1e-5)
    down, emb = Down(4, 6, 10), normal(2, 10)
    shift = F.linear(F.relu(emb), down.emb_layer[1].weight, down.emb_layer[1].bias)
    expected = down.down[1](F.max_pool2d(x[..., :4, :6], 2)) + shift[:, :, None, None]
    torch.testing.assert_close(down(x[..., :4, :6], emb), expected)
    up, skip = Up(7, 6, 10), normal(2, 3, 10, 14)
    larger = F.interpolate(x, size=(10, 14), mode="bilinear", align_corners=True)
    shift = F.linear(F.silu(emb), up.emb_layer[1].weight, up.emb_layer[1].bias)
    expected = up.conv(torch.cat([skip, larger], 1)) + shift[:, :, None, None]
    torch.testing.assert_close(up(x, skip, emb), expected)


@pytest.mark.slow
@torch.no_grad()
def test_the_network_compiles_as_one_graph():
    net, x = make(num_classes=2, self_condition=True), normal(2, 3, 16, 16)
    inputs = (x, torch.tensor([3, 9]), torch.tensor([0, 1]), x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), net(*inputs))


def test_attention_equals_that_of_torch_with_a_feed_forward_network():
    torch.manual_seed(1)
    ours, theirs = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.mha.state_dict())
    x = normal(3, 8, 4, 2)
    tokens = x.flatten(2).transpose(1, 2)
    normed = F.layer_norm(tokens, (8,))
    tokens = tokens + theirs(normed, normed, normed)[0]
    hidden = F.gelu(ours.ff_self[1](F.layer_norm(tokens, (8,))))
    tokens = tokens + ours.ff_self[3](hidden)
    torch.testing.assert_close(ours(x), tokens.transpose(1, 2).reshape(x.shape))


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (40, 8)])
def test_sizes_divisible_by_8(size):
    net = make(size)
    output = net(normal(2, 3, *size), torch.tensor([0.5, 900]))
    assert output.shape == (2, 3, *size) and output.isfinite().all()
    with pytest.raises(ValueError, match="not a multiple"):
        net(normal(2, 3, 12, 8), torch.tensor([1, 2]))


@torch.no_grad()
def test_the_output_depends_on_time_label_and_estimate():
    net, x, t = make(num_heads=1), normal(2, 3, 16, 16), torch.tensor([3, 700])
    assert (net(x, t) - net(x, t.flip(0))).abs().max() > 0.1
    net = SimpleUNet(3, 3, (16, 16), 4, True, width=8, time_dim=8, num_heads=2).eval()
    y, estimate = torch.tensor([0, 3]), normal(2, 3, 16, 16, seed=1)
    assert not torch.equal(net(x, t, y), net(x, t, y.flip(0)))
    assert not torch.equal(net(x, t, y), net(x, t, y, estimate))
    # A label embedding is added to that of the time: one of zeros changes nothing.
    plain = SimpleUNet(3, 3, (16, 16), None, True, width=8, time_dim=8, num_heads=2).eval()
    shared = {n: w for n, w in net.state_dict().items() if not n.startswith("label_emb")}
    plain.load_state_dict(shared)
    net.label_emb.weight[0] = 0
    torch.testing.assert_close(net(x, t, torch.zeros_like(y)), plain(x, t))


@torch.no_grad()
def test_norms_and_softmax_remain_in_float32_under_autocast():
    net, x, t = make(), normal(2, 3, 16, 16), torch.tensor([3, 700])
    plain = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(x, t)
    assert float((inside.float() - plain).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize(
    ("size", "options", "line"),
    [
        (
            (12, 16),
            {"pad": False},
            "size=12x16: is not divisible by 8; set data.image_size to a multiple of 8 or set "
            "pad=true",
        ),
        (
            (16,),
            {},
            "_target_=ddpm.models.SimpleUNet: is for images, but the data are sequences of "
            "length 16; use another model",
        ),
        (
            (16, 16),
            {"num_heads": 3},
            "num_heads=3: width must be divisible by num_heads",
        ),
        (
            (16, 16),
            {"time_dim": 7},
            "time_dim=7: must be even: half sines, half cosines",
        ),
        ((16, 16), {"width": 0}, "width=0: must be greater than zero"),
    ],
)
def test_error_messages(size, options, line):
    with pytest.raises(ConfigError) as caught:
        SimpleUNet(3, 3, size, **options)
    assert str(caught.value) == line


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, 5])
def test_import_infers_the_options_from_the_weights(classes):
    net = SimpleUNet(1, 2, (16, 16), classes, width=16, time_dim=24).eval()
    options = find("simple-unet").infer(net.state_dict())
    assert options == {"c_in": 1, "c_out": 2, "time_dim": 24, "num_classes": classes}
    imported = import_network("simple-unet", options, net.state_dict()).eval()
    inputs = (
        normal(2, 1, 16, 16),
        torch.tensor([1, 5]),
        None if classes is None else torch.ones(2).long(),
    )
    assert torch.equal(imported(*inputs), net(*inputs))
