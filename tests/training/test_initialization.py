"""Copies of weights between networks that differ in channels, classes or levels."""

import pytest
import torch

from ddpm.data import ImageCodec
from ddpm.data.spec import DataSpec
from ddpm.models import IDDPMUNet, UNet
from ddpm.runs.initialization import class_rows
from ddpm.training.initialization import copy_weights, module_names

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 1, "attn_dim_head": 8}


def unet(seed, channels=1, classes=4, **options):
    torch.manual_seed(seed)
    return UNet(channels, channels, (8, 8), classes, False, **{**SMALL, **options})


def test_equal_networks_are_copied_completely():
    source, network = unet(0), unet(1)
    result = copy_weights(network, source.state_dict(), {n: n for n in range(4)})
    assert result.fits and result.num_copied == result.num_values
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_what_does_not_fit_stays_new():
    source, network, before = (
        unet(0),
        unet(1, channels=3, classes=6),
        unet(1, channels=3, classes=6),
    )
    rows = {0: 1, 2: 0, 5: 3}
    result = copy_weights(network, source.state_dict(), rows)
    assert module_names(result.new) == ["init_conv", "final_conv"]
    assert result.unused == ("init_conv.weight", "final_conv.weight", "final_conv.bias")
    assert result.rows == {"label_emb.weight": (3, 6)} and not result.fits
    there, here, unchanged = (each.state_dict() for each in (source, network, before))
    for name in here:
        if name in result.copied:
            assert torch.equal(here[name], there[name])
        elif name in result.new:
            assert torch.equal(here[name], unchanged[name])
    table, old = here["label_emb.weight"], there["label_emb.weight"]
    assert torch.equal(table[[0, 2, 5]], old[[1, 0, 3]])
    assert torch.equal(table[[1, 3, 4]], unchanged["label_emb.weight"][[1, 3, 4]])
    new = sum(here[name].numel() for name in result.new) + 3 * table.shape[1]
    assert result.num_copied == result.num_values - new


def test_the_row_of_no_class_may_be_missing_in_either_network():
    rows = {n: n for n in range(5)}
    for here, there in ((4, 5), (5, 4)):
        result = copy_weights(unet(0, classes=here), unet(1, classes=there).state_dict(), rows)
        assert result.rows == {"label_emb.weight": (4, here)}


def test_levels_and_kinds_of_networks_may_differ():
    result = copy_weights(unet(1, dim_mults=(1, 2, 4)), unet(0).state_dict(), {})
    assert "downs.0.0.block1.proj.weight" in result.copied and result.new and result.unused
    torch.manual_seed(0)
    other = IDDPMUNet(1, 1, (8, 8), None, False, model_channels=32, channel_mult=(1,), 
                      attention_resolutions=())  # fmt: skip
    assert copy_weights(unet(1), other.state_dict(), {}).copied == ()


def spec(names, count=None):
    count = len(names) if count is None and names is not None else count
    return DataSpec((1, 8, 8), count, names, ImageCodec((1, 8, 8)))


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (spec(["cat", "dog"]), spec(["bird", "cat", "dog"]), {1: 0, 2: 1, 3: 2}),
        (spec(["cat", "dog"]), spec(["dog"]), {0: 1, 1: 2}),
        (spec(None, 2), spec(["a", "b", "c"]), {0: 0, 1: 1, 3: 2}),
        (spec(None), spec(["a"]), {}),
        (spec(["a"]), spec(None), {}),
    ],
)
def test_classes_are_the_same_if_their_names_are(old, new, rows):
    """The last row stands for "no class"."""
    assert class_rows(old, new) == rows
