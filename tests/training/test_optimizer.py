"""The optimizer, and its defaults that depend on the device and the network."""

import pytest
import torch
from torch import nn

from ddpm.training.optimizer import AdamW, default_batch_size, default_learning_rate


@pytest.mark.parametrize(
    ("device", "parts", "size"),
    [("cpu", 1, 16), ("cuda", 1, 128), ("cpu", 3, 18), ("cuda", 6, 132)],
)
def test_default_batch_size_is_a_multiple_of_its_parts(device, parts, size):
    assert default_batch_size(device, parts) == size


@pytest.mark.parametrize(("parameters", "rate"), [(9_999_999, 1e-3), (10_000_000, 2e-4)])
def test_default_learning_rate(parameters, rate):
    network = nn.Linear(parameters, 1, bias=False, device="meta")
    assert default_learning_rate(network) == rate


def test_the_optimizer_equals_that_of_torch():
    """Same weights, same state, and checkpoints of one are those of the other."""
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    options = {"lr": 0.1, "weight_decay": 0.2, "fused": True}
    ours, theirs = (
        kind(net.parameters(), **options)
        for kind, net in zip((AdamW, torch.optim.AdamW), networks, strict=True)
    )
    for step in range(4):
        if step == 2:
            state = ours.state_dict()
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict(state)
        for net, optimizer in zip(networks, (ours, theirs), strict=True):
            optimizer.zero_grad()
            net(torch.full((1, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
        assert torch.equal(networks[0].weight, networks[1].weight)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert not networks[0].weight.grad.requires_grad
