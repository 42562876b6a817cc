"""The variational bound on the likelihood, term by term, in bits per dimension.

Ho et al. 2020, equation 5; with learned variances Nichol & Dhariwal 2021, section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.process import EIGHT_BITS, GaussianDiffusion


def normal_kl(mean: Tensor, log_variance: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """Return the KL divergence of a normal distribution from another, q, per entry, in nats."""
    log_ratio = log_variance - log_variance_q
    away = (mean - mean_q) ** 2 * torch.exp(-log_variance_q)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + away)


def discretised_log_likelihood(
    x: Tensor, mean: Tensor, log_scale: Tensor, bin_width: float = EIGHT_BITS
) -> Tensor:
    """Return the log-probability of the bin around each entry of ``x``, in nats.

    The outermost bins, at -1 and 1, extend to infinity (Ho et al. 2020, equation 13). The normal
    distribution function is the tanh formula of Page 1977, accurate to 2e-4, because the published
    bits per dimension were computed with it.

    Args:
        x: data in -1..1, any shape, as the other tensors.
        mean: mean of the normal distribution.
        log_scale: logarithm of its standard deviation.
        bin_width: distance of neighbouring values of the data.
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
    prediction: Prediction,
    x0: Tensor,
    t: Tensor,
    s: Tensor | None = None,
    above: Tensor | None = None,
) -> Tensor:
    """Return the term of timestep t of the bound, (B,) in bits per dimension.

    It is a KL divergence, or at s = -1 the negative log-likelihood of the decoder.

    Args:
        diffusion: the process.
        prediction: from x_t, which is x0 with the noise of t.
        x0: (B, C, *spatial) clean data in -1..1.
        t: (B,) timesteps.
        s, above: (B,) next lower and higher ones on the sampling grid; default t - 1 and t + 1.
    """
    s = t - 1 if s is None else s
    mask = diffusion.conditioning_mask
    true_mean, mean = (
        mask.select_generated(diffusion.posterior(clean, prediction.x_t, t, s)[0])
        for clean in (x0, prediction.x0)
    )
    true_log = diffusion.log_variance(None, t, s, above, like=true_mean, kind="fixed_small")
    log = diffusion.log_variance(prediction.variance_output, t, s, above, like=true_mean)
    kl = normal_kl(true_mean, true_log, mean, log)
    clean = mask.select_generated(x0)
    decoder = -discretised_log_likelihood(clean, mean, 0.5 * log, diffusion.bin_width)
    at_the_data = (s < 0).reshape(-1, *[1] * (x0.ndim - 1))
    return mask.masked_mean(torch.where(at_the_data, decoder, kl)) / math.log(2)


def prior_term(diffusion: GaussianDiffusion, x0: Tensor, last: int | None = None) -> Tensor:
    """Return KL(q(x_last | x0) || N(0, 1)), (B,) in bits per dimension, of x0 (B, C, *spatial).

    ``last`` is the highest timestep of the sampling grid; default T - 1.
    """
    at = diffusion.num_steps - 1 if last is None else last
    alpha_bar = diffusion.schedule.alpha_bar_at(torch.full((len(x0),), at, device=x0.device), x0)
    zero, mask = torch.zeros_like(x0), diffusion.conditioning_mask
    log_variance = torch.log(1 - alpha_bar).float().expand_as(x0)
    kl = normal_kl(alpha_bar.sqrt().float() * x0, log_variance, zero, zero)
    return mask.masked_mean(mask.select_generated(kl)) / math.log(2)
