"""Heun's method: equality with diffusers, order of convergence, churn, network calls.

The cases of diffusers' tests are not sampling paths: their loop passes the scaled input of the
model on as the sample, which therefore shrinks at each step. The cases ``heun/path of ...`` are of
the same scheduler and model with a loop that keeps the sample.
"""

import math
from itertools import pairwise

import pytest
import torch

from ddpm.diffusion import (
    GaussianDiffusion,
    PredX0,
    class_conditioning,
    cosine,
    linear,
)
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, Heun
from tests.oracle import SHAPES, normal
from tests.samplers.convergence import (
    ExactDenoiser,
    double_oracle,
    errors,
    no_noise,
    operations,
    slopes,
)
from tests.samplers.diffusers_cases import (
    TOLERANCE,
    cases,
    denoiser,
    difference,
    sample_input,
    table_denoiser,
)

CASES = {name: case for name, case in cases("heun").items() if name.startswith("heun/path")}
FINE = linear(num_steps=20000)


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name):
    case = CASES[name]
    predict = table_denoiser(case) if "noise" in case else denoiser(case["objective"])
    x = Heun().sample(
        predict, sample_input(case["shape"]), randn_like=no_noise, times=case["times"]
    )
    assert difference(x, case) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
def test_order_of_convergence(shape, spacing):
    counts = [40, 80, 160]
    values = errors(
        lambda steps: Heun(steps=steps, spacing=spacing),
        double_oracle(FINE, shape),
        counts,
        start=12000,
        stop=2000,
    )
    assert slopes(values, counts) == pytest.approx([2, 2], abs=0.15)


def test_order_of_convergence_from_noise_to_clean_data():
    """As shipped: the step to clean data returns the prediction at timestep 0."""
    oracle, counts, values = double_oracle(FINE, (2, 4)), [80, 160, 320], []
    x = normal(4)(torch.empty(4, 2, 4, dtype=torch.float64))
    exact, _ = oracle.predict(oracle.flow(x, 19999, 0), *FINE.signal_noise(0))
    for steps in counts:
        result = Heun(steps=steps).sample(ExactDenoiser(oracle), x, randn_like=no_noise)
        values.append(float((result - exact).abs().max()))
    assert slopes(values, counts)[-1] == pytest.approx(2, abs=0.15)


def test_order_of_convergence_from_pure_noise_without_signal():
    """The first step, where sigma / alpha is infinite, does not lower the order."""
    schedule = cosine(num_steps=5000, zero_terminal_snr=True)
    oracle, counts, values = double_oracle(schedule, (2, 4)), [40, 80, 160], []
    x = normal(5)(torch.empty(4, 2, 4, dtype=torch.float64))
    exact, _ = oracle.predict(oracle.flow(x, 4999, 0), *schedule.signal_noise(0))
    for steps in counts:
        predict = ExactDenoiser(oracle)
        result = Heun(steps=steps).sample(predict, x, randn_like=no_noise)
        assert predict.times[0] == 4999
        values.append(float((result - exact).abs().max()))
    assert slopes(values, counts)[-1] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("s_noise", [1.0, 1.05])
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_churn_keeps_the_distribution(spacing, s_noise):
    """Mean and variance per element are the data's; with more noise than removed, more."""
    count, oracle = 4000, double_oracle(linear(num_steps=1000), (2, 4))
    draw = normal(6)
    x = draw(torch.empty(count, 2, 4, dtype=torch.float64))
    sampler = Heun(steps=60, spacing=spacing, churn=20, s_noise=s_noise)
    predict = ExactDenoiser(oracle)
    z = (sampler.sample(predict, x, randn_like=draw) - oracle.mu) / oracle.sigma
    assert len(predict.times) == 119
    error = 5 / math.sqrt(count)
    assert z.mean(0).abs().max() < error + 0.01
    deviation = z.std(0) - 1
    if s_noise == 1:
        assert deviation.abs().max() < error / math.sqrt(2) + 0.02
    else:
        assert deviation.mean() > error / math.sqrt(2)


def test_churn_is_limited_to_noise_levels():
    schedule = linear(num_steps=1000)
    oracle = double_oracle(schedule, (2, 4))
    x = torch.zeros(1, 2, 4, dtype=torch.float64)

    def first_times(**options):
        predict = ExactDenoiser(oracle)
        sampler = Heun(steps=10, **options)
        sampler.sample(predict, x, randn_like=torch.randn_like)
        return predict.times[::2], sampler.timesteps(schedule)[:-1]

    rho = {t: math.exp(-schedule.log_snr(t) / 2) for t in first_times()[1]}
    for growth, churn in ((1.2, 2), (math.sqrt(2), 100)):
        churned, times = first_times(churn=churn, s_min=0.05, s_max=50)
        for t_hat, t in zip(churned, times, strict=True):
            factor = growth if 0.05 <= rho[t] <= 50 else 1
            assert math.exp(-schedule.log_snr(t_hat) / 2) == pytest.approx(factor * rho[t])
    churned, times = first_times(churn=100)
    assert churned[0] == times[0] == 999  # no timestep has more noise
    assert max(churned) <= 999
    assert first_times(churn=0, s_noise=2)[0] == times


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("stop", [-1, 100])
@pytest.mark.parametrize("churn", [0, 5])
def test_number_of_network_calls(steps, stop, churn):
    oracle, calls = double_oracle(linear(num_steps=1000), (2, 4)), []
    sampler, predict = Heun(steps=steps, churn=churn), ExactDenoiser(oracle)
    sampler.sample(
        predict,
        torch.zeros(1, 2, 4, dtype=torch.float64),
        randn_like=torch.randn_like,
        start=800,
        stop=stop,
        on_step=lambda done, total, x: calls.append((done, total)),
    )
    total = 2 * steps - (stop < 0)
    assert len(predict.times) == total
    assert calls == [(i + 1, total) for i in range(total)]
    assert sampler.num_calls(steps, clean=stop < 0) == total
    assert sampler.num_calls(0) == 0
    if churn == 0:
        times = sampler.timesteps(oracle.schedule, start=800, stop=stop)
        assert predict.times[0::2] == times[: len(predict.times[0::2])]
        assert predict.times[1::2] == times[1 : 1 + len(predict.times[1::2])]


@pytest.mark.parametrize(("churn", "expected"), [(0, 6), (5, 9)])
def test_number_of_tensor_operations(churn, expected):
    """Two for the noise, two for Euler's step, two for the correction, three for the churn."""
    oracle = double_oracle(linear(num_steps=1000), (2, 4))
    assert operations(Heun(steps=6, churn=churn), oracle, 3) == expected


def test_one_step_to_clean_data_is_the_prediction():
    for zero in (False, True):
        oracle = double_oracle(linear(num_steps=100, zero_terminal_snr=zero), (2, 4))
        x = normal(7)(torch.empty(3, 2, 4, dtype=torch.float64))
        ours, ddim = (
            sampler.sample(ExactDenoiser(oracle), x, randn_like=no_noise)
            for sampler in (Heun(steps=1), DDIM(steps=1))
        )
        torch.testing.assert_close(ours, ddim, rtol=0, atol=0)


def test_alternating_use_of_one_sampler():
    """A sampler has no state: results do not depend on what it sampled before."""
    sampler, results = Heun(steps=5, churn=2), {}
    for name in "abab":
        shape = {"a": (2, 4), "b": (1, 4, 4)}[name]
        oracle = double_oracle(linear(num_steps={"a": 100, "b": 300}[name]), shape)
        x = normal(8)(torch.empty(2, *shape, dtype=torch.float64))
        result = sampler.sample(ExactDenoiser(oracle), x, randn_like=normal(9))
        torch.testing.assert_close(result, results.setdefault(name, result), rtol=0, atol=0)


@pytest.mark.parametrize("churn", [0, 5])
def test_conditioning_entries_are_clean_in_every_network_call(churn):
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, :2] = True
    oracle = double_oracle(linear(num_steps=100), (2, 4))
    clean = normal(10)(torch.empty(3, 2, 4, dtype=torch.float64))

    class Masked(ExactDenoiser):
        def __init__(self):
            super().__init__(oracle)
            self.diffusion = GaussianDiffusion(oracle.schedule, PredX0(), mask=mask)

        def __call__(self, x_t, t, previous_x0=None, conditioning=None):
            torch.testing.assert_close(x_t[:, mask], clean[:, mask], rtol=0, atol=0)
            prediction = super().__call__(x_t, t)
            return prediction.with_x0(torch.where(mask, x_t, prediction.x0))

    x = normal(11)(torch.empty(3, 2, 4, dtype=torch.float64))
    predict = Masked()
    result = Heun(steps=6, churn=churn).sample(predict, x, randn_like=normal(12), condition=clean)
    assert len(predict.times) == 11
    torch.testing.assert_close(result[:, mask], clean[:, mask], rtol=0, atol=0)


def test_both_calls_of_a_step_get_the_previous_prediction_and_the_conditioning():
    seen, conditioning = [], class_conditioning(torch.tensor([0, 1, 0]), 2)

    class Recording(ExactDenoiser):
        def __call__(self, x_t, t, previous_x0=None, conditioning=None):
            prediction = super().__call__(x_t, t)
            seen.append((previous_x0, prediction.x0, conditioning))
            return prediction

    predict = Recording(double_oracle(linear(num_steps=100), (2, 4)))
    x = normal(13)(torch.empty(3, 2, 4, dtype=torch.float64))
    Heun(steps=4).sample(predict, x, randn_like=no_noise, conditioning=conditioning)
    assert len(seen) == 7
    assert seen[0][0] is None
    for (_, x0, _), (previous, _, received) in pairwise(seen):
        assert previous is x0
        assert received is conditioning


@pytest.mark.parametrize(
    ("option", "value"),
    [("churn", -1), ("s_min", -0.1), ("s_max", -1), ("s_noise", -1)],
)
def test_options_outside_their_ranges(option, value):
    with pytest.raises(ConfigError, match=option):
        Heun(**{option: value})
