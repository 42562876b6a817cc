"""Gaussian data with closed forms of the ideal denoiser and the probability-flow ODE.

The elements are independent and have different means and standard deviations, so that swapped axes
and wrongly broadcast coefficients change the samples.
"""

import math

import torch

from ddpm.diffusion import Denoiser, GaussianDiffusion, PredNoise, PredV, PredX0

OBJECTIVES = {"pred_noise": PredNoise, "pred_x0": PredX0, "pred_v": PredV}
SHAPES = [(2, 32), (1, 8, 8), (1, 4, 4, 4)]


class Oracle:
    """Data N(mu, sigma^2) of shape (C, *spatial), and the ideal network for them.

    With a ``scale`` of 1/4 almost all data lie within -1..1.
    """

    def __init__(self, schedule, shape, scale=1.0):
        count = math.prod(shape)
        self.schedule = schedule
        self.mu = scale * torch.linspace(-0.9, 0.6, count).reshape(1, *shape)
        self.sigma = scale * torch.linspace(0.4, 0.8, count).flip(0).reshape(1, *shape)

    def predict(self, x_t, a, s):
        """Return E[x0 | x_t] and E[eps | x_t]."""
        total = (a * self.sigma) ** 2 + s**2
        away = (x_t - a * self.mu) / total
        return self.mu + a * self.sigma**2 * away, s * away

    def variance(self, t):
        """Return the variance of x_t; at -1 that of the data."""
        a, s = self.schedule.signal_noise(t)
        return (a * self.sigma.double()) ** 2 + s**2

    def reverse_variance(self, t, s):
        """Return the variance of x_s given x_t, with unknown x0."""
        step = 1 - (self.schedule.signal_noise(t)[0] / self.schedule.signal_noise(s)[0]) ** 2
        return step * self.variance(s) / self.variance(t)

    def flow(self, x, t, u):
        """Return the exact solution at u of the probability-flow ODE through x at t."""
        (at, st), (au, su) = self.schedule.signal_noise(t), self.schedule.signal_noise(u)
        scale = (((au * self.sigma) ** 2 + su**2) / ((at * self.sigma) ** 2 + st**2)) ** 0.5
        return au * self.mu + scale * (x - at * self.mu)

    def network(self, objective):
        """Return the ideal network for an objective, and the list of its timesteps."""
        times = []

        def predict_output(x_t, time):
            times.append(int(time[0]))
            a, s = self.schedule.signal_noise(int(time[0]))
            x0, eps = self.predict(x_t, a, s)
            return {"pred_noise": eps, "pred_x0": x0, "pred_v": a * eps - s * x0}[objective]

        return predict_output, times

    def denoiser(self, objective, **options):
        """Return the ideal denoiser without clipping, and the list of its timesteps."""
        network, times = self.network(objective)
        diffusion = GaussianDiffusion(self.schedule, OBJECTIVES[objective](), **options)
        return Denoiser(network, diffusion), times


def normal(seed):
    """Return a ``randn_like`` with its own generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
