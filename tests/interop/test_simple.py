"""The tutorial's simple U-Net reproduces the recorded outputs of its code."""

import pytest
import torch
from torch import nn

from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.networks import find
from tests.reference_cases import filled, load_case, relative_error


def import_case(**kwargs):
    """Return the network in eval mode, the metadata of the case and its arrays."""
    meta, arrays = load_case("simple_unet")
    weights = filled(meta["state_dict"])
    return import_network("simple-unet", {**meta["kwargs"], **kwargs}, weights).eval(), meta, arrays


@torch.no_grad()
def test_reference_case():
    net, meta, arrays = import_case()
    assert sum(p.numel() for p in net.parameters()) == meta["parameters"]
    assert relative_error(net(arrays["x"], arrays["t"]), arrays["out"]) < 1e-4
    assert list(net.state_dict()) == [name for name, _ in meta["state_dict"]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["down1", "down2", "down3", "up1", "up2", "up3"])
def test_the_time_is_rectified_on_the_way_down_and_gated_on_the_way_up(name):
    net, _, arrays = import_case()
    gate = nn.SiLU() if name.startswith("down") else nn.ReLU()
    net.get_submodule(f"{name}.emb_layer").register_module("0", gate)
    assert relative_error(net(arrays["x"], arrays["t"]), arrays["out"]) > 1e-2


@torch.no_grad()
def test_arguments_without_effect_are_accepted():
    net, _, arrays = import_case(img_size=16, device="cuda")
    assert relative_error(net(arrays["x"], arrays["t"]), arrays["out"]) < 1e-4


def test_arguments_are_inferred_from_weights():
    _, meta, _ = import_case()
    weights = filled(meta["state_dict"])
    shown = find("simple-unet").infer(weights)
    assert shown == {"c_in": 3, "c_out": 3, "time_dim": 128, "num_classes": None}
    with pytest.raises(ConfigError) as caught:
        import_network("simple-unet", {"time_dim": 256}, weights)
    assert str(caught.value) == (
        "state_dict.down1.emb_layer.1.weight=[128,128]: the network has the "
        "shape [128,256] there; use the arguments that the weights were trained with"
    )
