"""Numbers that say how good a trained model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.diffusion import DenoiserProtocol, bound_term, prior_term


@dataclass(frozen=True)
class Bound:
    """The variational bound of a batch, in bits per dimension.

    Attributes:
        steps: (K,) the steps of the terms, rising.
        terms: (B, K) of each sample, float32 on the CPU.
        prior: (B,) what separates q(x_T | x0) from pure noise.
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
    y: Tensor | None = None,
    on_step: Callable[[], object] | None = None,
) -> Bound:
    """The variational bound of clean data, one draw of the noise a term (Ho et al. 2020, eq. 5).

    Args:
        denoiser: predicts x0 and the noise; with the clipping of sampling.
        x0: (B, C, *spatial) in model space.
        randn_like: draws the noise.
        steps: those of a respaced process, rising; default all T.
        y: (B,) class labels.
        on_step: called after each term.
    """
    diffusion = denoiser.diffusion
    kept = list(range(diffusion.num_steps)) if steps is None else steps
    nodes = [-1, *kept, kept[-1]]  # there is none after the last; only the first asks
    terms = []
    for index, (s, t) in enumerate(pairwise(nodes[:-1])):
        every = [torch.full((len(x0),), n, device=x0.device) for n in (t, s, nodes[index + 2])]
        x_t = diffusion.diffuse(x0, every[0], randn_like(x0))
        prediction = denoiser(x_t, t, y=y)
        terms.append(bound_term(diffusion, prediction, x0, x_t, *every).cpu())
        if on_step is not None:
            on_step()
    return Bound(tuple(kept), torch.stack(terms, dim=1), prior_term(diffusion, x0, kept[-1]).cpu())
