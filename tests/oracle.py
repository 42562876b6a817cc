"""A Gaussian whose perfect denoiser, and whose probability-flow ODE, are formulas.

The data's elements are independent, each with a mean and a standard deviation of its own, so that
an axis that is mixed up or a coefficient that is broadcast wrongly shows in the samples.
"""

import math

import torch

from ddpm.diffusion import Denoiser, GaussianDiffusion, PredNoise, PredV, PredX0

OBJECTIVES = {"pred_noise": PredNoise, "pred_x0": PredX0, "pred_v": PredV}
SHAPES = [(2, 32), (1, 8, 8), (1, 4, 4, 4)]


class Oracle:
    """Data N(mu, sigma^2) of shape (C, *spatial), and the network that knows it.

    At a ``scale`` of 1/4 hardly any of the data lies outside -1..1.
    """

    def __init__(self, schedule, shape, scale=1.0):
        count = math.prod(shape)
        self.schedule = schedule
        self.mu = scale * torch.linspace(-0.9, 0.6, count).reshape(1, *shape)
        self.sigma = scale * torch.linspace(0.4, 0.8, count).flip(0).reshape(1, *shape)

    def predict(self, x_t, a, s):
        """E[x0 | x_t] and E[eps | x_t]."""
        total = (a * self.sigma) ** 2 + s**2
        away = (x_t - a * self.mu) / total
        return self.mu + a * self.sigma**2 * away, s * away

    def variance(self, t):
        """The variance of x_t; at -1 that of the data."""
        a, s = self.schedule.signal_noise(t)
        return (a * self.sigma.double()) ** 2 + s**2

    def reverse_variance(self, t, s):
        """The variance of x_s given x_t, where nothing is known of x0 but what x_t says."""
        step = 1 - (self.schedule.signal_noise(t)[0] / self.schedule.signal_noise(s)[0]) ** 2
        return step * self.variance(s) / self.variance(t)

    def flow(self, x, t, u):
        """The exact solution at u of the probability-flow ODE through x at t."""
        (at, st), (au, su) = self.schedule.signal_noise(t), self.schedule.signal_noise(u)
        spread = (((au * self.sigma) ** 2 + su**2) / ((at * self.sigma) ** 2 + st**2)) ** 0.5
        return au * self.mu + spread * (x - at * self.mu)

    def network(self, objective):
        """The perfect network for one of the objectives, with the times it was asked about."""
        asked = []

        def answer(x_t, time):
            asked.append(int(time[0]))
            a, s = self.schedule.signal_noise(int(time[0]))
            x0, eps = self.predict(x_t, a, s)
            return {"pred_noise": eps, "pred_x0": x0, "pred_v": a * eps - s * x0}[objective]

        return answer, asked

    def denoiser(self, objective, **options):
        """The perfect denoiser, unclipped, with the times its network was asked about."""
        network, asked = self.network(objective)
        diffusion = GaussianDiffusion(self.schedule, OBJECTIVES[objective](), **options)
        return Denoiser(network, diffusion, clip="none"), asked


def normal(seed):
    """A ``randn_like`` with a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
