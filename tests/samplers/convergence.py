"""Order of convergence of samplers on Gaussian data, in float64.

The oracle gives the exact prediction and the exact solution of the probability-flow ODE.
"""

import functools
import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.diffusion import GaussianDiffusion, Prediction, PredX0, cosine, linear
from ddpm.samplers.base import SamplingPath, StepContext
from tests.oracle import SHAPES, Oracle, normal

GRIDS = [
    ("linear", "uniform", SHAPES[0]),
    ("linear", "log_snr", SHAPES[1]),
    ("cosine", "uniform", SHAPES[1]),
    ("cosine", "log_snr", SHAPES[2]),
]
"""Schedule, spacing and shape of a test."""
START, STOP = {"linear": 16_000, "cosine": 19_000}, 1000
"""First and last timestep, of 20,000: without the ends, where the schedules are steep."""


@functools.cache
def fine_schedule(name):
    """Return a schedule of 20,000 steps."""
    return {"linear": linear, "cosine": cosine}[name](num_steps=20_000)


class ExactDenoiser:
    """Ideal denoiser of an oracle, at real times in the type of x_t.

    Attributes:
        times: of the calls.
    """

    needs_gradients = False

    def __init__(self, oracle, objective=None):
        self.oracle, self.times = oracle, []
        self.diffusion = GaussianDiffusion(oracle.schedule, objective or PredX0())

    def __call__(self, x_t, t, previous_x0=None, conditioning=None):
        self.times.append(t)
        a, s = self.diffusion.schedule.signal_noise(t)
        return Prediction(self.oracle.predict(x_t, a, s)[0], x_t, a, s)


def double_oracle(schedule, shape):
    """Return an oracle in float64."""
    oracle = Oracle(schedule, shape)
    oracle.mu, oracle.sigma = oracle.mu.double(), oracle.sigma.double()
    return oracle


def no_noise(x):
    """Fail: a deterministic sampler requires no noise."""
    raise AssertionError("a deterministic sampler has drawn noise")


def assert_no_state(sampler):
    """Check that samples do not depend on what the sampler sampled before."""
    results = {}
    for num_steps in (100, 300, 100, 300):
        oracle = double_oracle(linear(num_steps=num_steps), (2, 4))
        x = normal(8)(torch.empty(2, 2, 4, dtype=torch.float64))
        result = sampler.sample(ExactDenoiser(oracle), x, randn_like=no_noise)
        torch.testing.assert_close(result, results.setdefault(num_steps, result), rtol=0, atol=0)


def solve(sampler, oracle, x, times, *, exact=0, randn_like=no_noise):
    """Return x at the last time, with exact starting values.

    Args:
        sampler: the sampler.
        oracle: in float64.
        x: (B, C, *spatial) at the first time.
        times: of the path, descending.
        exact: number of first steps that are replaced by the exact solution. Their predictions are
            those at the exact solution.
        randn_like: draws the noise of stochastic steps.
    """
    denoiser = ExactDenoiser(oracle)
    path = SamplingPath(denoiser.diffusion, times)
    coefficients = sampler.coefficients(path)
    predictions = []
    for index in range(len(path)):
        context = StepContext(
            x, index, path, coefficients[index], denoiser, randn_like, predictions
        )
        if index < exact:
            context.predict()
            x = oracle.flow(x, *path.pairs[index])
        else:
            x = sampler.step(context)
        del predictions[sampler.history :]
    return x


def errors(build, oracle, step_counts, *, start, stop, exact=0):
    """Return the largest error at ``stop`` per number of steps.

    Args:
        build: ``build(steps)`` returns the sampler, whose ``timesteps`` are used.
        oracle: in float64.
        step_counts: numbers of steps.
        start: first timestep.
        stop: last timestep, at least 0.
        exact: see :func:`solve`.
    """
    x = normal(3)(torch.empty(4, *oracle.mu.shape[1:], dtype=torch.float64))
    expected, results = oracle.flow(x, start, stop), []
    for steps in step_counts:
        sampler = build(steps)
        times = sampler.timesteps(oracle.schedule, start=start, stop=stop)
        assert len(times) == steps + 1
        result = solve(sampler, oracle, x, times, exact=exact)
        results.append(float((result - expected).abs().max()))
    return results


class _Count(TorchDispatchMode):
    """Counts tensor operations, views included."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(sampler, oracle, index):
    """Return the number of tensor operations of a step, outside of the network.

    Those of deriving the noise from x0 count as well.

    Args:
        sampler: the sampler.
        oracle: in float64.
        index: of the step.
    """
    x, counter = torch.zeros(1, *oracle.mu.shape[1:]), _Count()
    path = SamplingPath(ExactDenoiser(oracle).diffusion, sampler.timesteps(oracle.schedule))
    coefficients = sampler.coefficients(path)
    predictions = []

    def denoise(x_t, t):
        return Prediction(x_t, x_t, *path.schedule.signal_noise(t))

    for position in range(index + 1):
        context = StepContext(
            x,
            position,
            path,
            coefficients[position],
            denoise,
            torch.randn_like,
            predictions,
        )
        counter.count = 0
        with counter:
            x = sampler.step(context)
        del predictions[sampler.history :]
    return counter.count


def slopes(values, step_counts):
    """Return the order of convergence between neighbouring numbers of steps."""
    return [
        math.log(values[i] / values[i + 1]) / math.log(step_counts[i + 1] / step_counts[i])
        for i in range(len(values) - 1)
    ]


def moments(sampler, oracle, *, start, stop):
    """Return the exact mean and variance (1, C, *spatial) of a stochastic sampler's x at ``stop``.

    x at ``start`` has its exact distribution. With the ideal denoiser of Gaussian data, the result
    is an affine function of x at ``start`` and of the noise of each step, and each row of a batch
    has one of them.
    """
    times = sampler.timesteps(oracle.schedule, start=start, stop=stop)
    rank, rows = oracle.mu.ndim - 1, iter(range(1, len(times)))
    mean = oracle.schedule.alpha(times[0]) * oracle.mu
    x = mean.repeat(len(times) + 1, *[1] * rank)
    x[0] += oracle.variance(times[0])[0].sqrt()

    def randn_like(x):
        noise = torch.zeros_like(x)
        noise[next(rows)] = 1
        return noise

    result = solve(sampler, oracle, x, times, randn_like=randn_like)
    return result[-1:], (result[:-1] - result[-1:]).pow(2).sum(dim=0, keepdim=True)
