"""UniPC: equality with diffusers, order of convergence, and closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm.diffusion import linear
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DPMpp, UniPC
from ddpm.samplers.base import SamplingPath
from tests.oracle import normal
from tests.samplers.convergence import (
    GRIDS,
    START,
    STOP,
    ExactDenoiser,
    double_oracle,
    errors,
    fine_schedule,
    slopes,
)
from tests.samplers.diffusers_cases import (
    TOLERANCE,
    assert_equals_up_to_rounded_times,
    cases,
    denoiser,
    difference,
    run,
)

CASES, KARRAS = cases("unipc"), cases("unipc", spacing="karras")
COUNTS = [320, 640]


def configured(case, **options):
    """Return the sampler of a case."""
    uncorrected = case.get("uncorrected", 0)
    chosen = {
        "order": case["order"],
        "variant": case.get("variant", "bh2"),
        "corrector": uncorrected is not None,
        "uncorrected_steps": uncorrected or 0,
        "lower_order_final": case["lower_order_final"],
    }
    return UniPC(**{**chosen, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name, dtype):
    case = CASES[name]
    # One step from t=999 divides x - sigma eps by alpha = 0.006: float32 cancels to 6e-5.
    tolerance = 1e-4 if len(case["times"]) == 2 else TOLERANCE
    assert difference(run(configured(case), case, dtype=dtype), case) < tolerance


@pytest.mark.parametrize("name", KARRAS)
def test_equals_diffusers_with_karras_sigmas_up_to_its_rounding_of_times(name):
    assert_equals_up_to_rounded_times(configured(KARRAS[name]), KARRAS[name])


@pytest.mark.parametrize(("schedule", "spacing", "shape"), GRIDS)
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence(order, variant, corrector, schedule, spacing, shape):
    deviations = errors(
        lambda steps: UniPC(
            steps=steps,
            spacing=spacing,
            order=order,
            variant=variant,
            corrector=corrector,
            lower_order_final=False,
        ),
        double_oracle(fine_schedule(schedule), shape),
        COUNTS,
        start=START[schedule],
        stop=STOP,
        exact=order,
    )
    assert slopes(deviations, COUNTS)[-1] == pytest.approx(order + corrector, abs=0.15)
    assert deviations[-1] < {1: 1e-2, 2: 1e-4, 3: 1e-5, 4: 1e-7}[order + corrector]


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_as_shipped(order, corrector, spacing):
    # The last step has order 1 and its result is not corrected: an error of order 2.
    deviations = errors(
        lambda steps: UniPC(steps=steps, spacing=spacing, order=order, corrector=corrector),
        double_oracle(fine_schedule("linear"), (1, 2, 3)),
        COUNTS,
        start=8000,
        stop=STOP,
    )
    expected = 1 if order == 1 and not corrector else 2
    assert slopes(deviations, COUNTS)[-1] == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("stop", [-1, 100])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": 1, "variant": "bh1"}, DDIM(steps=20, spacing="trailing")),
        ({"order": 2, "variant": "bh2"}, DPMpp(order=2, lower_order_final=True)),
        ({"order": 3, "variant": "bh1"}, DPMpp(order=3, lower_order_final=True)),
        ({"order": 3, "variant": "bh2"}, DPMpp(order=3, lower_order_final=True)),
    ],
)
def test_the_predictor_is_ddim_or_dpm_solver(options, expected, stop):
    x = normal(2)(torch.empty(2, 1, 4, dtype=torch.float64))
    sampler = UniPC(corrector=False, **options)
    predict = denoiser("pred_v")
    times = sampler.timesteps(predict.diffusion.schedule, stop=stop)
    path = SamplingPath(predict.diffusion, times)
    if isinstance(expected, DDIM):
        out, other = (
            each.sample(predict, x, randn_like=None, stop=stop) for each in (sampler, expected)
        )
        torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)
        return
    pairs = zip(sampler.coefficients(path), expected.coefficients(path), strict=True)
    for index, (step, factors) in enumerate(pairs):
        assert step.corrector is None
        if options == {"order": 3, "variant": "bh1"} and index in (1, len(path) - 2):
            continue  # of order 2, where bh1 is another solver
        assert step.predictor.x == pytest.approx(factors.x, rel=1e-12)
        assert step.predictor.predictions == pytest.approx(factors.predictions, rel=1e-9)


def test_the_corrected_state_is_the_start_of_the_next_step():
    oracle = double_oracle(linear(num_steps=1000), (1, 2, 2))
    x = normal(4)(torch.empty(3, 1, 2, 2, dtype=torch.float64))
    sampler, predict = UniPC(steps=3, order=1), ExactDenoiser(oracle)
    times = sampler.timesteps(oracle.schedule, start=800, stop=200)
    out = sampler.sample(predict, x, randn_like=None, start=800, stop=200)
    schedule, a, s = oracle.schedule, oracle.schedule.alpha, oracle.schedule.sigma
    state, corrected = None, x
    for t, u in pairwise(times):
        h = (schedule.log_snr(u) - schedule.log_snr(t)) / 2
        weight = a(u) * -math.expm1(-h)
        m0 = predict(corrected if state is None else state, t).x0
        start = corrected
        state = s(u) / s(t) * start + weight * m0
        if u == times[-1]:
            break
        m1 = predict(state, u).x0
        corrected = s(u) / s(t) * start + weight * (m0 + m1) / 2
    torch.testing.assert_close(out, state, rtol=1e-12, atol=1e-12)


def test_corrected_steps():
    def corrected(**options):
        sampler = UniPC(steps=6, order=2, **options)
        diffusion = denoiser().diffusion
        path = SamplingPath(diffusion, sampler.timesteps(diffusion.schedule))
        factors = sampler.coefficients(path)
        return [None if each[0] is None else len(each[0].predictions) for each in factors]

    assert corrected() == [None, 2, 3, 3, 3, 3]
    assert corrected(uncorrected_steps=2) == [None, None, None, 3, 3, 3]
    assert corrected(corrector=False) == [None] * 6


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 4}, {"uncorrected_steps": -1}])
def test_invalid_options_are_rejected(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        UniPC(**options)
