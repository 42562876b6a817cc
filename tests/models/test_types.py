"""Networks whose parameters are cast to another type."""

from copy import deepcopy

import pytest
import torch

from tests.models.small_networks import LEARNED, NETWORKS, make
from tests.reference_cases import relative_error

T = torch.tensor([10.25, 700.25])
LABELS = torch.tensor([0, 2])
CASES = [*((name, None) for name in NETWORKS), *((n, LABELS) for n in ("unet3d", "simple_unet"))]


@torch.no_grad()
@pytest.mark.parametrize(("name", "y"), CASES)
def test_a_network_in_float64_computes_in_float64(name, y):
    network, x = make(name, None if y is None else 3)
    wide, x64, t64 = deepcopy(network).double(), x.double(), T.double()
    out = wide(x64, t64, y)
    assert out.dtype == torch.float64
    # The float32 phases of random frequencies, up to 4,400 radians, are wrong by 3e-4.
    assert relative_error(network(x, T, y), out) < (2e-3 if name in LEARNED else 1e-4)
    # Differences of 1e-9 in the data and in time would be lost in float32.
    for difference in (wide(x64 + 1e-9, t64, y) - out, wide(x64, t64 + 1e-9, y) - out):
        assert 0 < difference.norm() / out.norm() < 1e-6
    double = wide(x64 + 2e-9, t64, y) - out
    assert relative_error(double, 2 * (wide(x64 + 1e-9, t64, y) - out)) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("name", "y"), CASES)
def test_a_network_in_bfloat16_is_close_to_float32(name, y):
    """Also at a time of 700, which bfloat16 rounds to multiples of 4."""
    network, x = make(name, None if y is None else 3)
    x = x.bfloat16()
    expected = network(x.float(), T, y)
    out = deepcopy(network).bfloat16()(x, T, y)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.1
