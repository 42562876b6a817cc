"""DEIS: equality with diffusers, order of convergence, ends of the path."""

import pytest
import torch

from ddpm.diffusion import cosine, linear
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DEIS
from tests.oracle import SHAPES, normal
from tests.samplers.convergence import (
    ExactDenoiser,
    assert_no_state,
    double_oracle,
    errors,
    no_noise,
    operations,
    slopes,
)
from tests.samplers.diffusers_cases import TOLERANCE, cases, difference, run

CASES = cases("deis")
FINE = linear(num_steps=20000)


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name):
    case = CASES[name]
    # Its lower_order_final is for paths of fewer than 15 steps, our null.
    lower = None if case["lower_order_final"] else False
    assert difference(run(DEIS(order=case["order"], lower_order_final=lower), case), case) < (
        TOLERANCE
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence(shape, spacing, order):
    counts = [80, 160, 320]

    def build(steps):
        return DEIS(steps=steps, spacing=spacing, order=order, lower_order_final=False)

    oracle = double_oracle(FINE, shape)
    values = errors(build, oracle, counts, start=12000, stop=2000, exact=order - 1)
    assert slopes(values, counts) == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_as_shipped(spacing, order):
    """The first step has order 1, a local error of order 2, which remains."""
    counts = [320, 640, 1280]
    oracle = double_oracle(FINE, (2, 4))
    values = errors(
        lambda steps: DEIS(steps=steps, spacing=spacing, order=order),
        oracle,
        counts,
        start=10000,
        stop=1000,
    )
    assert slopes(values, counts) == pytest.approx([min(order, 2)] * 2, abs=0.15)


def test_order_1_is_ddim():
    oracle = double_oracle(cosine(num_steps=50), (2, 4))
    x = normal(0)(torch.empty(3, 2, 4, dtype=torch.float64))
    ours, ddim = (
        sampler.sample(ExactDenoiser(oracle), x, randn_like=no_noise)
        for sampler in (DEIS(steps=7, order=1, spacing="uniform"), DDIM(steps=7))
    )
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
def test_step_from_pure_noise_and_to_clean_data(steps, order, spacing):
    """At zero terminal SNR the first step is DDIM's, and the noise there has no later role."""
    oracle = double_oracle(cosine(num_steps=100, zero_terminal_snr=True), (2, 4))
    x = normal(1)(torch.empty(3, 2, 4, dtype=torch.float64))
    sampler = DEIS(steps=steps, order=order, spacing=spacing, lower_order_final=False)
    denoiser, seen = ExactDenoiser(oracle), []
    result = sampler.sample(
        denoiser, x, randn_like=no_noise, on_step=lambda done, total, x: seen.append((done, total))
    )
    assert denoiser.times == sampler.timesteps(oracle.schedule)[:-1]
    assert seen == [(i + 1, steps) for i in range(steps)]
    assert result.isfinite().all()
    if steps == 20:
        exact = (result - oracle.mu) / oracle.sigma
        assert (exact - x).abs().max() < 0.4


def test_coefficients_with_tiny_steps_are_accurate():
    """The weights of a constant noise give DDIM's, without cancellation."""
    oracle = double_oracle(FINE, (2, 4))
    times = [500.0, 500 - 1e-6, 500 - 2e-6, 500 - 3e-6]
    x = normal(2)(torch.empty(3, 2, 4, dtype=torch.float64))
    ours = DEIS(order=3, lower_order_final=False).sample(
        ExactDenoiser(oracle), x, randn_like=no_noise, times=times
    )
    rate = (oracle.flow(x, 500.0, 499.0) - x) / 1
    torch.testing.assert_close(ours, x + 3e-6 * rate, rtol=0, atol=1e-8)


def test_alternating_use_of_one_sampler():
    assert_no_state(DEIS(steps=5))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_number_of_tensor_operations(order):
    """Two for the noise, one for x0, and one per prediction."""
    oracle = double_oracle(linear(num_steps=1000), (2, 4))
    assert operations(DEIS(order=order), oracle, 10) == order + 3


def test_options():
    assert DEIS().history == 2
    assert len(DEIS().timesteps(FINE)) == 21
    for order in (0, 4):
        with pytest.raises(ConfigError, match="order"):
            DEIS(order=order)
