"""The variational bound on the negative log-likelihood, in bits per dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.diffusion import Conditioning, DenoiserProtocol, bound_term, prior_term


@dataclass(frozen=True)
class Bound:
    """The variational bound of a batch, in bits per dimension.

    Attributes:
        steps: K timesteps of the terms, rising.
        terms: (B, K) terms per sample, float32 on the CPU.
        prior: (B,) divergence of q(x_T | x0) from pure noise.
    """

    steps: tuple[int, ...]
    terms: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        """(B,) upper bounds on the negative log-likelihood."""
        return self.terms.sum(1) + self.prior


@torch.inference_mode()
def bits_per_dimension(
    denoiser: DenoiserProtocol,
    x0: Tensor,
    *,
    randn_like: Callable[[Tensor], Tensor],
    steps: list[int] | None = None,
    conditioning: Conditioning | None = None,
    on_step: Callable[[], object] | None = None,
) -> Bound:
    """Estimate the variational bound of clean data (Ho et al. 2020, eq. 5).

    One draw of the noise is used per term.

    Args:
        denoiser: predicts x0 and noise from x_t; it should clip as in sampling.
        x0: (B, C, *spatial) in model space.
        randn_like: draws standard normal noise in the shape of a tensor.
        steps: timesteps of a respaced process, rising; None = all T.
        conditioning: of the batch; None for an unconditional network.
        on_step: called after each term.
    """
    diffusion = denoiser.diffusion
    timesteps = list(range(diffusion.num_steps)) if steps is None else steps
    # (s, t, next step): only the first term uses the next step, so the last may repeat t.
    nodes = [-1, *timesteps, timesteps[-1]]
    terms = []
    for index, (s, t) in enumerate(pairwise(nodes[:-1])):
        times = [torch.full((len(x0),), n, device=x0.device) for n in (t, s, nodes[index + 2])]
        x_t = diffusion.diffuse(x0, times[0], randn_like(x0))
        prediction = denoiser(x_t, t, conditioning=conditioning)
        terms.append(bound_term(diffusion, prediction, x0, *times).cpu())
        if on_step is not None:
            on_step()
    prior = prior_term(diffusion, x0, timesteps[-1]).cpu()
    return Bound(tuple(timesteps), torch.stack(terms, dim=1), prior)
