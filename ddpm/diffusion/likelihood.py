"""The variational bound on the likelihood, term by term, in bits per dimension.

Ho et al. 2020, equation 5; with learned variances Nichol & Dhariwal 2021, section 3.1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ddpm.diffusion.process import GaussianDiffusion, Prediction

EIGHT_BITS = 2 / 255
"""The width of one of 256 values in -1..1."""


def normal_kl(mean: Tensor, log_variance: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """KL(N(mean) || N(mean_q)) of each entry, in nats."""
    log_ratio = log_variance - log_variance_q
    away = (mean - mean_q) ** 2 * torch.exp(-log_variance_q)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + away)


def discretised_log_likelihood(
    x: Tensor, mean: Tensor, log_scale: Tensor, bin_width: float = EIGHT_BITS
) -> Tensor:
    """Log-probability, in nats, of the bin around each entry of x under N(mean, exp(log_scale)^2).

    Bins are ``bin_width`` wide; the outermost, at -1 and 1, reach to infinity (Ho et al. 2020,
    equation 13). The normal distribution function is the tanh formula of Page 1977, good to 2e-4,
    because that is what the published bits per dimension were computed with.
    """
    away, scale = x - mean, torch.exp(-log_scale)
    above = _normal_cdf((away + bin_width / 2) * scale)
    below = _normal_cdf((away - bin_width / 2) * scale)
    near_an_end = min(1e-3, bin_width / 2)
    inside = torch.where(x > 1 - near_an_end, 1 - below, above - below)
    return torch.where(x < -1 + near_an_end, above, inside).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bound_term(
    diffusion: GaussianDiffusion,
    belief: Prediction,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """The term of step t, (B,) in bits per dimension: a KL divergence, or at s = -1 the decoder's.

    Args:
        diffusion: the process.
        belief: what a network says of x_t.
        x0: (B, C, *spatial) clean data in -1..1.
        x_t: the same at step t.
        t: (B,) steps.
        s: (B,) the steps before t on the grid that is walked; default t - 1.
        after: (B,) the steps after t on that grid; default t + 1.
    """
    s = t - 1 if s is None else s
    given = diffusion.given
    truth, mean = (
        given.drawn(diffusion.posterior(clean, x_t, t, s)[0]) for clean in (x0, belief.x0)
    )
    true_log = diffusion.log_variance(None, t, s, after, like=truth, kind="fixed_small")
    log = diffusion.log_variance(belief.spread, t, s, after, like=truth)
    kl = normal_kl(truth, true_log, mean, log)
    decoder = -discretised_log_likelihood(given.drawn(x0), mean, 0.5 * log, diffusion.bin_width)
    at_the_data = (s < 0).reshape(-1, *[1] * (x0.ndim - 1))
    return given.mean(torch.where(at_the_data, decoder, kl)) / math.log(2)


def prior_term(diffusion: GaussianDiffusion, x0: Tensor, last: int | None = None) -> Tensor:
    """KL(q(x_last | x0) || N(0, 1)), (B,) in bits per dimension; by default at T - 1."""
    at = diffusion.num_steps - 1 if last is None else last
    t = torch.full((len(x0),), at, device=x0.device)
    alpha_bar = diffusion.schedule.alpha_bar_at(t, x0)
    zero = torch.zeros_like(x0)
    log_variance = torch.log(1 - alpha_bar).float().expand_as(x0)
    kl = normal_kl(alpha_bar.sqrt().float() * x0, log_variance, zero, zero)
    return diffusion.given.mean(diffusion.given.drawn(kl)) / math.log(2)
