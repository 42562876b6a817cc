"""The moving average, compared with its closed form."""

import pytest
import torch
from ema_pytorch import EMA as LibraryEMA
from torch import nn

from ddpm.training import EMA
from scripts.operations import Operations


class Scalar(nn.Module):
    """Module with a parameter, a float buffer and an integer buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))

    def at(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
            self.scale.fill_(10 * value)
            self.count.fill_(int(100 * value))
        return self


def averaged(ema):
    return float(ema.model.weight)


VALUES = [1.0, -2.0, 0.5, 3.0, -1.0, 4.0, 0.0, 2.0, -3.0, 1.5]


def closed_form(values, decays):
    """Return the sum of all values, weighted by 1 - decay and by all later decays."""
    total = 0.0
    for k, (value, decay) in enumerate(zip(values, decays, strict=True)):
        share = 1 - decay
        for later in decays[k + 1 :]:
            share *= later
        total += share * value
    return total


@pytest.mark.parametrize("final", [0.5, 0.9999])
def test_warm_up(final):
    """Update n has the decay min(final, 1 - (1 + n)^(-2/3)), n from 0."""
    net = Scalar().at(7.0)
    ema = EMA(net, decay=final)
    decays = [min(final, 1 - (1 + n) ** (-2 / 3)) for n in range(len(VALUES))]
    for n, value in enumerate(VALUES):
        net.at(value)
        ema.update()
        assert ema.decay == pytest.approx(decays[n], abs=1e-6)
        assert averaged(ema) == pytest.approx(closed_form(VALUES[: n + 1], decays[: n + 1]), 1e-5)


@pytest.mark.parametrize("window", [0.1, 0.5])
def test_window_is_a_share_of_the_updates_so_far(window):
    """Update n has the decay min(final, 1 - (1 + n)^(-2/3), 1 - 1 / (1 + window n))."""
    net = Scalar().at(7.0)
    ema = EMA(net, decay=0.6, window=window)
    decays = [
        min(0.6, 1 - (1 + n) ** (-2 / 3), 1 - 1 / (1 + window * n)) for n in range(len(VALUES))
    ]
    for n, value in enumerate(VALUES):
        net.at(value)
        ema.update()
        assert ema.decay == pytest.approx(decays[n], abs=1e-6)
        assert averaged(ema) == pytest.approx(closed_form(VALUES[: n + 1], decays[: n + 1]), 1e-5)


@pytest.mark.parametrize(
    ("n", "window", "expected"),
    [
        (10, 0.1, 2.0),
        (100, 0.1, 11.0),  # 21.5 by the warm-up alone
        (900, 0.1, 91.0),
        (5000, 0.1, 5001 ** (2 / 3)),
        (100, None, 101 ** (2 / 3)),
        (200_000, 0.1, 1000.0),
    ],
)
def test_the_window_of_an_update(n, window, expected):
    net = Scalar()
    ema = EMA(net, decay=0.999, window=window)
    ema.load({"step": n, "initted": 1}, net.state_dict())
    ema.update()
    assert 1 / (1 - ema.decay) == pytest.approx(expected, rel=1e-3)


def test_without_warm_up_the_window_has_no_limit():
    net = Scalar()
    ema = EMA(net, decay=0.75, warmup=False, window=0.1)
    for _ in range(3):
        ema.update()
    assert ema.decay == 0.75


@pytest.mark.parametrize(("n", "decay"), [(100, 0.954), (1000, 0.99), (10_000, 0.9978)])
def test_the_documented_decays(n, decay):
    net = Scalar()
    ema = EMA(net, decay=0.9999)
    ema.load({"step": n - 1, "initted": 1}, net.state_dict())
    ema.update()
    assert ema.decay == pytest.approx(decay, abs=5e-4)


def test_without_warm_up_the_decay_is_constant_from_the_second_update_on():
    net = Scalar().at(7.0)
    ema = EMA(net, decay=0.75, warmup=False)
    decays = [0.0] + [0.75] * (len(VALUES) - 1)
    for n, value in enumerate(VALUES):
        net.at(value)
        ema.update()
        assert ema.decay == pytest.approx(decays[n])
    assert averaged(ema) == pytest.approx(closed_form(VALUES, decays), rel=1e-9)


def test_buffers_are_copied():
    net = Scalar()
    ema = EMA(net, decay=0.9, warmup=False)
    for value in VALUES:
        ema.update()
        net.at(value)
        ema.update()
        assert float(ema.model.scale) == 10 * value
        assert int(ema.model.count) == 100 * value
    assert averaged(ema) != VALUES[-1]


def test_resuming_from_a_state_is_bit_exact():
    def steps(net, ema, start, end):
        for step in range(start, end):
            torch.manual_seed(step)
            with torch.no_grad():
                net.weight.add_(torch.randn_like(net.weight))
            ema.update()

    whole = nn.Linear(5, 7)
    cut = nn.Linear(5, 7)
    cut.load_state_dict(whole.state_dict())
    one, other = EMA(whole, decay=0.99), EMA(cut, decay=0.99)
    steps(whole, one, 0, 20)
    steps(cut, other, 0, 8)
    state, weights = other.state(), {k: v.clone() for k, v in other.model.state_dict().items()}
    assert state == {"step": 8, "initted": 1}
    fresh = nn.Linear(5, 7)
    fresh.load_state_dict(cut.state_dict())
    again = EMA(fresh, decay=0.99)
    again.load(state, weights)
    steps(fresh, again, 8, 20)
    assert again.state() == one.state() and again.decay == one.decay
    assert torch.equal(again.model.weight, one.model.weight)


def test_averaged_network_stays_in_eval_mode_and_shares_no_weights():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    ema = EMA(net, decay=0.9)
    for _ in range(3):
        net.train()
        ema.update()
        assert not any(module.training for module in ema.model.modules())
        assert all(module.training for module in net.modules())
    assert not any(p.requires_grad for p in ema.model.parameters())
    with torch.no_grad():
        net[0].weight.add_(1)
    assert not torch.equal(net[0].weight, ema.model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "library"),
    [
        ({"decay": 0.9999}, {"beta": 0.9999}),
        ({"decay": 0.5}, {"beta": 0.5}),
        ({"decay": 0.0}, {"beta": 0.0}),
        ({"decay": 0.75, "warmup": False}, {"beta": 0.75, "min_value": 0.75}),
    ],
)
def test_the_average_equals_that_of_ema_pytorch(options, library, dtype):
    """The library computes the decay in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)
    net[0].bias.requires_grad_(False)
    buffers = {name for name, _ in net.named_buffers()}
    ema = EMA(net, **options)
    expected = LibraryEMA(
        net,
        update_after_step=0,
        update_every=1,
        param_or_buffer_names_no_ema=buffers,
        include_online_model=False,
        **library,
    )
    for step in range(150):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        net(torch.randn(4, 3, dtype=dtype))
        ema.update()
        expected.update()
        assert ema.decay == pytest.approx(float(expected.get_current_decay()), abs=1e-6), step
        for name, value in ema.model.state_dict().items():
            if "num_batches" in name:  # the library leaves integers alone
                assert int(value) == step + 1
            else:
                other = expected.ema_model.state_dict()[name]
                torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)
    counters = {name: int(value) for name, value in expected.named_buffers(recurse=False)}
    assert ema.state() == counters == {"step": 150, "initted": 1}
    assert ema.model.state_dict().keys() == expected.ema_model.state_dict().keys()


def test_an_update_is_one_operation_and_reads_nothing_on_the_host():
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    ema = EMA(net, decay=0.99)
    for expected in ("_foreach_copy_", "_foreach_lerp_", "_foreach_lerp_"):
        with Operations() as mode:
            ema.update()
        assert mode.names == [f"aten.{expected}.{'default' if 'copy' in expected else 'Scalar'}"]
