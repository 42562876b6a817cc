"""iPNDM: equality with diffusers, order of convergence, ends of the path.

Of the cases of diffusers' tests, ``two passes`` is not a sampling path: its second pass starts from
the result of the first, with the history of the first. The first pass is compared. diffusers runs
iPNDM on a table of its own, whose first timestep has no signal; its step from there takes x0 as 0
instead of the prediction. The other cases are on the linear schedule.
"""

import pytest
import torch

from ddpm.diffusion import cosine, linear
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, IPNDM
from ddpm.samplers.base import SamplingPath
from tests.oracle import SHAPES, normal
from tests.samplers.convergence import (
    ExactDenoiser,
    assert_no_state,
    double_oracle,
    errors,
    no_noise,
    operations,
    slopes,
    solve,
)
from tests.samplers.diffusers_cases import (
    TOLERANCE,
    cases,
    difference,
    sample_input,
    table_denoiser,
)

CASES = {name: case for name, case in cases("ipndm").items() if "noise" in case}
FINE = linear(num_steps=20000)


class WithoutPredictionAtPureNoise:
    """Wraps a denoiser; x0 is 0 where x_t has no signal."""

    needs_gradients = False

    def __init__(self, denoiser):
        self.denoiser, self.diffusion = denoiser, denoiser.diffusion

    def __call__(self, x_t, t, previous_x0=None, conditioning=None):
        prediction = self.denoiser(x_t, t, previous_x0, conditioning)
        if self.diffusion.schedule.alpha(t) > 0:
            return prediction
        return prediction.with_x0(torch.zeros_like(x_t))


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name):
    case = CASES[name]
    x = IPNDM(order=4, weights="fixed").sample(
        WithoutPredictionAtPureNoise(table_denoiser(case)),
        sample_input(case["shape"]),
        randn_like=no_noise,
        times=case["times"],
    )
    assert difference(x, case) < TOLERANCE


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (1, [1]),
        (2, [3 / 2, -1 / 2]),
        (3, [23 / 12, -16 / 12, 5 / 12]),
        (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
def test_weights_are_those_of_adams_and_bashforth(order, expected):
    oracle = double_oracle(linear(num_steps=100), (2, 4))
    path = SamplingPath(ExactDenoiser(oracle).diffusion, [90, 70, 50, 30, 10])
    factors = IPNDM(order=order).combination(path, 3)
    change = path.sigmas[4] - path.alphas[4] * path.sigmas[3] / path.alphas[3]
    # x_t = alpha_t x0 + sigma_t eps replaces x_t, which changes the factor of the newest noise.
    newest = path.sigmas[4] - change
    weights = [(f - (newest if k == 0 else 0)) / change for k, f in enumerate(factors.predictions)]
    assert weights == pytest.approx(expected, abs=1e-12)
    assert (factors.x, factors.x0) == (0, path.alphas[4])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_convergence(shape, spacing, order):
    counts = [80, 160, 320]

    def build(steps):
        return IPNDM(steps=steps, spacing=spacing, order=order, weights="variable")

    oracle = double_oracle(FINE, shape)
    values = errors(build, oracle, counts, start=12000, stop=2000, exact=order - 1)
    assert slopes(values, counts) == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("weights", ["fixed", "variable"])
def test_order_of_convergence_as_shipped(spacing, order, weights):
    """The first step has order 1, a local error of order 2, which remains.

    The strides of the uniform spacing are whole: rounded ones are unequal steps, which fixed
    weights do not allow for.
    """
    counts = [750, 1500]
    values = errors(
        lambda steps: IPNDM(steps=steps, spacing=spacing, order=order, weights=weights),
        double_oracle(FINE, (2, 4)),
        counts,
        start=10000,
        stop=1000,
    )
    assert slopes(values, counts) == pytest.approx([min(order, 2)], abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_fixed_weights_have_their_order_only_for_equal_steps(order):
    """Equal steps in sigma / alpha, and equal steps in the log-SNR."""
    oracle, counts = double_oracle(FINE, (2, 4)), [40, 80, 160]
    x = normal(3)(torch.empty(4, 2, 4, dtype=torch.float64))
    ends = [FINE.log_snr(t) for t in (9000, 2000)]
    high, low = (torch.tensor(-end / 2).double().exp().item() for end in ends)
    for equal in (True, False):
        values = []
        for steps in counts:
            if equal:
                levels = torch.linspace(high, low, steps + 1, dtype=torch.float64).log() * -2
            else:
                levels = torch.linspace(*ends, steps + 1, dtype=torch.float64)
            times = [FINE.time(level) for level in levels.tolist()]
            sampler = IPNDM(order=order)
            values.append(_error(sampler, oracle, x, times, order - 1))
        expected = order if equal else 2
        assert slopes(values, counts)[-1] == pytest.approx(expected, abs=0.15)


def _error(sampler, oracle, x, times, exact):
    result = solve(sampler, oracle, x, times, exact=exact)
    return float((result - oracle.flow(x, times[0], times[-1])).abs().max())


def test_order_1_is_ddim():
    oracle = double_oracle(cosine(num_steps=50), (2, 4))
    x = normal(0)(torch.empty(3, 2, 4, dtype=torch.float64))
    for weights in ("fixed", "variable"):
        ours = IPNDM(steps=7, order=1, spacing="uniform", weights=weights)
        samples = [
            s.sample(ExactDenoiser(oracle), x, randn_like=no_noise) for s in (ours, DDIM(steps=7))
        ]
        torch.testing.assert_close(*samples, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("weights", ["fixed", "variable"])
@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
def test_step_from_pure_noise_and_to_clean_data(steps, order, weights, spacing):
    oracle = double_oracle(cosine(num_steps=100, zero_terminal_snr=True), (2, 4))
    x = normal(1)(torch.empty(3, 2, 4, dtype=torch.float64))
    sampler = IPNDM(steps=steps, order=order, spacing=spacing, weights=weights)
    denoiser, calls = ExactDenoiser(oracle), []
    result = sampler.sample(
        denoiser, x, randn_like=no_noise, on_step=lambda done, total, x: calls.append((done, total))
    )
    assert denoiser.times == sampler.timesteps(oracle.schedule)[:-1]
    assert calls == [(i + 1, steps) for i in range(steps)]
    assert result.isfinite().all()
    if steps == 20:
        assert ((result - oracle.mu) / oracle.sigma - x).abs().max() < 0.4


def test_alternating_use_of_one_sampler():
    assert_no_state(IPNDM(steps=5))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_number_of_tensor_operations(order):
    """Two for the noise, one for x0, and one per prediction."""
    oracle = double_oracle(linear(num_steps=1000), (2, 4))
    assert operations(IPNDM(order=order), oracle, 10) == order + 3


def test_options():
    assert IPNDM().history == 2
    assert len(IPNDM().timesteps(FINE)) == 21
    for order in (0, 5):
        with pytest.raises(ConfigError, match="order"):
            IPNDM(order=order)
