"""DPM-Solver++: equality with diffusers, order of convergence, and closed forms."""

import functools

import pytest
import torch

from ddpm.diffusion import Clipping, linear
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DPMpp
from ddpm.samplers.base import SamplingPath
from tests.oracle import normal
from tests.samplers.convergence import (
    GRIDS,
    START,
    STOP,
    double_oracle,
    errors,
    fine_schedule,
    moments,
    slopes,
    solve,
)
from tests.samplers.diffusers_cases import (
    TOLERANCE,
    assert_equals_up_to_rounded_times,
    cases,
    denoiser,
    difference,
    run,
)

CASES, KARRAS = cases("dpmpp"), cases("dpmpp", spacing="karras")
COUNTS = [320, 640]


def configured(case):
    """Return the sampler of a case; diffusers lowers the last orders in fewer than 15 steps."""
    return DPMpp(
        order=case["order"],
        solver=case.get("variant", "midpoint"),
        sde=case.get("sde", False),
        lower_order_final=None if case["lower_order_final"] else False,
    )


def thresholded(case):
    """Return a wrapper of denoisers for diffusers' thresholding at ``min(limit, max_value)``.

    A maximum below 1 overrides the lower limit of 1: x0 is clipped to it and divided by it.
    """
    if case["max_value"] < 1:
        return functools.partial(Halved, limit=case["max_value"])
    return functools.partial(Clipping, clip="dynamic", dynamic_quantile=case["quantile"])


class Halved:
    """Wraps a denoiser; x0 is clipped to a limit and divided by it."""

    needs_gradients = False

    def __init__(self, denoiser, limit):
        self.denoiser, self.diffusion, self.limit = denoiser, denoiser.diffusion, limit

    def __call__(self, x_t, t, previous_x0=None, conditioning=None):
        prediction = self.denoiser(x_t, t, previous_x0, conditioning)
        return prediction.with_x0(prediction.x0.clamp(-self.limit, self.limit) / self.limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name, dtype):
    case = CASES[name]
    wrap = {"wrap": thresholded(case)} if "quantile" in case else {}
    # One step from t=999 divides x - sigma eps by alpha = 0.006: float32 cancels to 6e-5.
    tolerance = 1e-4 if len(case["times"]) == 2 else TOLERANCE
    assert difference(run(configured(case), case, dtype=dtype, **wrap), case) < tolerance


@pytest.mark.parametrize("name", KARRAS)
def test_equals_diffusers_with_karras_sigmas_up_to_its_rounding_of_times(name):
    assert_equals_up_to_rounded_times(configured(KARRAS[name]), KARRAS[name])


def test_cases_cover_the_options():
    options = {
        (case["order"], case.get("variant"), bool(case.get("sde")), case["stop"], lower)
        for case in CASES.values()
        for lower in [case["lower_order_final"]]
    }
    for order, sde in [(2, False), (3, False), (2, True)]:
        for variant in ("midpoint", "heun"):
            for stop in (0, -1):
                assert {(order, variant, sde, stop, lower) for lower in (True, False)} <= options


@pytest.mark.parametrize(("schedule", "spacing", "shape"), GRIDS)
@pytest.mark.parametrize(
    ("order", "solver", "slope"),
    [
        (1, None, 1),
        (2, "midpoint", 2),
        (2, "heun", 2),
        (3, None, 3),
        (3, "midpoint", 2),  # of the authors' program
    ],
)
def test_order_of_convergence(order, solver, slope, schedule, spacing, shape):
    deviations = errors(
        lambda steps: DPMpp(
            steps=steps, spacing=spacing, order=order, solver=solver, lower_order_final=False
        ),
        double_oracle(fine_schedule(schedule), shape),
        COUNTS,
        start=START[schedule],
        stop=STOP,
        exact=order - 1,
    )
    assert slopes(deviations, COUNTS)[-1] == pytest.approx(slope, abs=0.15)
    assert deviations[-1] < {1: 1e-2, 2: 1e-4, 3: 1e-6}[slope]


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_as_shipped(order, spacing):
    # The first step has order 1 and thus an error of order 2, which limits order 3.
    deviations = errors(
        lambda steps: DPMpp(steps=steps, spacing=spacing, order=order),
        double_oracle(fine_schedule("linear"), (1, 2, 3)),
        COUNTS,
        start=8000,
        stop=STOP,
    )
    assert slopes(deviations, COUNTS)[-1] == pytest.approx(min(order, 2), abs=0.15)


@pytest.mark.parametrize(("schedule", "spacing", "shape"), GRIDS)
@pytest.mark.parametrize(("order", "solver"), [(1, None), (2, "midpoint"), (2, "heun")])
def test_distribution_of_the_sde_converges(order, solver, schedule, spacing, shape):
    oracle = double_oracle(fine_schedule(schedule), [min(size, 3) for size in shape])
    alpha, variance = oracle.schedule.alpha(STOP), oracle.variance(STOP)
    counts, deviations = [160, 320], []
    for steps in counts:
        sampler = DPMpp(steps=steps, spacing=spacing, order=order, solver=solver, sde=True)
        mean, result = moments(sampler, oracle, start=START[schedule], stop=STOP)
        torch.testing.assert_close(mean, alpha * oracle.mu, rtol=0, atol=1e-12)
        deviations.append(float((result / variance - 1).abs().max()))
    assert slopes(deviations, counts)[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2])
def test_samples_of_the_sde_have_mean_and_variance_of_the_data(order):
    oracle = double_oracle(linear(num_steps=1000), (1, 2, 2))
    x = normal(0)(torch.empty(20_000, 1, 2, 2, dtype=torch.float64))
    sampler = DPMpp(steps=100, spacing="log_snr", order=order, sde=True)
    out = solve(sampler, oracle, x, sampler.timesteps(oracle.schedule), randn_like=normal(1))
    z = (out - oracle.mu) / oracle.sigma
    assert z.mean(dim=0).abs().max() < 5 / len(z) ** 0.5
    assert z.var(dim=0).sub(1).abs().max() < (0.2 if order == 1 else 0.05)


@pytest.mark.parametrize("options", [{"order": 1}, {"steps": 1}, {"steps": 1, "order": 3}])
def test_order_1_and_a_single_step_are_ddim(options):
    x = normal(2)(torch.empty(2, 1, 4, dtype=torch.float64))
    steps = options.get("steps", 20)
    out, expected = (
        sampler.sample(denoiser("pred_v"), x, randn_like=None)
        for sampler in (DPMpp(**options), DDIM(steps=steps))
    )
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_lower_orders_of_the_last_steps():
    def orders(**options):
        sampler = DPMpp(order=3, **options)
        diffusion = denoiser().diffusion
        path = SamplingPath(diffusion, sampler.timesteps(diffusion.schedule, stop=0))
        return [len(each.predictions) for each in sampler.coefficients(path)]

    assert orders(steps=14)[-3:] == [3, 2, 1]
    assert orders(steps=15)[-3:] == [3, 3, 3]
    assert orders(steps=14, lower_order_final=False)[:4] == [1, 2, 3, 3]
    assert orders(steps=14, lower_order_final=False)[-3:] == [3, 3, 3]
    assert orders(steps=30, lower_order_final=True)[-3:] == [3, 2, 1]
    assert orders(steps=2, lower_order_final=True) == [1, 1]


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 4}, {"order": 3, "sde": True}])
def test_invalid_orders_are_rejected(options):
    with pytest.raises(ConfigError, match="order"):
        DPMpp(**options)


def test_noise_is_drawn_by_the_sde_only_and_not_for_clean_data():
    drawn = []

    def randn_like(x):
        drawn.append(x)
        return torch.zeros_like(x)

    x = normal(3)(torch.empty(2, 1, 4))
    DPMpp(steps=5).sample(denoiser(), x, randn_like=randn_like)
    assert drawn == []
    DPMpp(steps=5, sde=True).sample(denoiser(), x, randn_like=randn_like)
    assert len(drawn) == 4
