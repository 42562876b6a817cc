"""Deterministic DDIM, written down once more: no part of it comes from `ddpm`."""

from itertools import pairwise

import numpy as np
import torch


def ddim(noise_of, x, alpha_bar, num_calls, roots=None):
    """Clean data in float64 from x at the last step, clipped to -1..1 (Song et al. 2020, eq. 12).

    ``noise_of(x, t)`` is asked at ``num_calls`` steps, each a stride above the one before.
    ``roots`` are those of alpha-bar and of what it lacks to 1, where they are to be had better.
    """
    num_steps, x = len(alpha_bar), x.double()
    signal, noise = roots or (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    grid = [num_steps * i // num_calls - 1 for i in range(num_calls, -1, -1)]
    for t, to in pairwise(grid):
        eps = noise_of(x.float(), t).double()
        x0 = ((x - noise[t] * eps) / signal[t]).clamp(-1, 1)
        if to >= 0:
            x = signal[to] * x0 + noise[to] / noise[t] * (x - signal[t] * x0)
    return x0


def linear(num_steps):
    """Alpha-bar of betas that go evenly from 1e-4 to 0.02 (Ho et al. 2020)."""
    return torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, num_steps)))


def sigmoid(num_steps):
    """Alpha-bar that falls as the logistic function does from -3 to 3 (Jabri et al. 2022)."""
    falls = 1 / (1 + np.exp(np.linspace(-3, 3, num_steps + 1)))
    line = (falls - falls[-1]) / (falls[0] - falls[-1])
    betas = np.minimum(1 - line[1:] / line[:-1], 0.999)
    return torch.from_numpy(np.cumprod(1 - betas))
