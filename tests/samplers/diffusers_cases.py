"""Results of the schedulers of diffusers 0.42.1, with the deterministic dummy model of its tests.

The file ``diffusers_schedulers.json`` has one case per line: the options that differ from
``DEFAULTS``, the times of the sampling path, and :func:`summary` of the result in float32. Several
of the cases are also asserted, to four digits, in diffusers' ``tests/schedulers``.
"""

import json
import math
from pathlib import Path

import torch

from ddpm.diffusion import Denoiser, GaussianDiffusion, Schedule
from tests.oracle import OBJECTIVES, normal

DEFAULTS = {"objective": "pred_noise", "order": 2, "shape": (4, 3, 8, 8), "start": 0, "stop": 0}
TOLERANCE = 2e-5
_FILE = Path(__file__).parents[1] / "reference" / "diffusers_schedulers.json"


def cases(solver, *, spacing=None):
    """Return the cases of a solver by name: dicts with all options, ``times`` and ``values``.

    A case with a ``spacing`` has real times, of which diffusers passes the nearest timestep to the
    model; these are selected by their spacing.
    """
    rows = json.loads(_FILE.read_text()).items()
    selected = {name: {**DEFAULTS, **row} for name, row in rows if row["solver"] == solver}
    return {name: case for name, case in selected.items() if case.get("spacing") == spacing}


def linear_schedule(num_steps=1000):
    """Return diffusers' linear schedule, whose betas do not depend on T, and its float32 table.

    The rounding of alpha-bar to float32 changes sigma(0) by a relative 2e-4.
    """
    betas = torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float32)
    return Schedule.from_alpha_bar(torch.cumprod(1 - betas, dim=0).double())


def model(x, time, **_):
    """Return the dummy model's output, ``x t / (t + 1)``."""
    time = time.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return x * time / (time + 1)


def denoiser(objective="pred_noise", num_steps=1000):
    """Return the dummy model's denoiser, without clipping."""
    diffusion = GaussianDiffusion(linear_schedule(num_steps), OBJECTIVES[objective]())
    return Denoiser(model, diffusion)


def table_denoiser(case):
    """Return the dummy model's denoiser on the case's own table of noise, first to last.

    The times of the case are positions in the table; the model is called with ``model_times``.
    """
    noise = torch.tensor(case["noise"][::-1], dtype=torch.float64)
    model_times = torch.tensor(case["model_times"][::-1], dtype=torch.float64)
    schedule = Schedule.from_alpha_bar(1 - noise**2)
    diffusion = GaussianDiffusion(schedule, OBJECTIVES[case["objective"]]())
    return Denoiser(lambda x, time: model(x, model_times[time]), diffusion)


def sample_input(shape, *, reverse=False, dtype=torch.float64):
    """Return the tests' sample (B, C, *spatial), which rises from 0 to 1, or falls as their noise.

    The index of the batch varies fastest.
    """
    count = math.prod(shape)
    values = torch.arange(count, dtype=dtype) / count
    values = ((count - 1) / count - values) if reverse else values
    return values.reshape(*shape[1:], shape[0]).movedim(-1, 0).contiguous()


def initial(case, diffusion, dtype=torch.float64):
    """Return x at the first time of a case: the sample, diffused if the case starts later."""
    x = sample_input(case["shape"], dtype=dtype)
    if case["start"] == 0:
        return x
    alpha, sigma = diffusion.schedule.signal_noise(case["times"][0])
    return alpha * x + sigma * sample_input(case["shape"], reverse=True, dtype=dtype)


def summary(x):
    """Return sum and mean of the magnitudes, the sum, and three elements: first, 100th, last."""
    flat = x.double().flatten()
    total, count = flat.abs().sum(), len(flat)
    chosen = flat[[0, min(100, count - 2), -1]]
    return [float(value) for value in (total, total / count, flat.sum(), *chosen)]


def run(sampler, case, *, wrap=lambda denoiser: denoiser, dtype=torch.float64, times=None):
    """Return the sampler's result for a case, with the noise of seed 0.

    Args:
        sampler: the sampler.
        case: one of :func:`cases`.
        wrap: returns a denoiser that wraps the case's.
        dtype: of x; that of diffusers is float32.
        times: of the path; default those of the case.
    """
    predict = denoiser(case["objective"])
    draw = normal(0)
    return sampler.sample(
        wrap(predict),
        initial(case, predict.diffusion, dtype),
        randn_like=lambda x: draw(x.float()).to(x.dtype),
        times=times or case["times"],
    )


def difference(x, case):
    """Return the largest difference of :func:`summary` from the case's values, in relation to x."""
    actual, expected = summary(x), case["values"]
    scales = [expected[0], expected[1], expected[0], *[max(map(abs, expected[3:]))] * 3]
    return max(abs(a - b) / s for a, b, s in zip(actual, expected, scales, strict=True))


def rounds_time(denoiser):
    """Return the dummy model's denoiser whose model receives the nearest timestep."""

    def rounded(x, time, **_):
        return model(x, time.round())

    return Denoiser(rounded, denoiser.diffusion)


def assert_equals_up_to_rounded_times(sampler, case):
    """Check a case with Karras' sigmas, exactly with diffusers' rounding of times, else roughly."""
    times = karras_times(sampler, case)
    assert difference(run(sampler, case, times=times, wrap=rounds_time), case) < TOLERANCE
    assert difference(run(sampler, case, times=times), case) < 0.01


def karras_times(sampler, case):
    """Return the times of a case with Karras' sigmas, from the sampler's ``karras`` spacing.

    diffusers has the lowest sigma twice. Instead of the step of length 0 between them, a step from
    a time just above 0 calls the model at timestep 0.
    """
    schedule = linear_schedule()
    times = type(sampler)(steps=9, spacing="karras").timesteps(schedule, start=999, stop=0)
    assert [round(time) for time in times] == case["times"][:-1]
    return [*times[:-1], 1e-9, 0]
