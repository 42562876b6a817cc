"""Inversion of deterministic sampling: the x_t that leads to given data."""

from __future__ import annotations

from torch import Tensor

from ddpm.diffusion import Conditioning, DenoiserProtocol, without_gradients
from ddpm.samplers import DDIM
from ddpm.samplers.base import OnStep, SamplingPath


def invert(
    sampler: DDIM,
    denoiser: DenoiserProtocol,
    x: Tensor,
    *,
    start: int,
    conditioning: Conditioning | None = None,
    refine: int = 3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the x at ``start`` from which deterministic sampling yields the given ``x``.

    The result has the shape of ``x``. The steps are inverted one by one. The noise at a step's
    upper end is unknown: it is first predicted at the lower end (Song et al. 2020, section 4.3),
    then ``refine`` times from the current estimate of the upper end. This fixed-point iteration
    converges to the exact inverse of the step, except for self-conditioned networks, whose sampling
    depends on their earlier predictions.

    Args:
        sampler: whose steps are inverted, with ``eta`` 0.
        denoiser: with clipping a step has many inverses, of which one is returned; a network that
            predicts the noise needs clipping, because its unclipped x0 diverges near T.
        x: (B, C, *spatial) clean data in model space.
        start: timestep of the result.
        conditioning: of the batch; None for an unconditional network.
        refine: network calls per step beyond the first.
        on_step: called after each network call with (finished calls, all calls, current x).
    """
    diffusion, clean, done = denoiser.diffusion, x, 0
    schedule, mask = diffusion.schedule, diffusion.conditioning_mask
    pairs = SamplingPath(diffusion, sampler.timesteps(schedule, start=start)).pairs[::-1]
    with without_gradients(denoiser):
        for t, s in pairs:
            (a_t, s_t), (a_s, s_s) = schedule.signal_noise(t), schedule.signal_noise(s)
            guess, at = (x, s) if s >= 0 else (mask.apply(a_t * x, clean), t)
            for _ in range(refine + 1):
                x0, eps, _ = denoiser(guess, at, conditioning=conditioning)
                # x = a_s x0 + s_s eps determines one of the two from the other. Keep the predicted
                # one that is less sensitive to the guess, so that the iteration converges.
                if a_s * a_t < s_s * s_t:
                    eps = (x - a_s * x0) / s_s
                else:
                    x0 = (x - s_s * eps) / a_s
                guess, at, done = mask.apply(a_t * x0 + s_t * eps, clean), t, done + 1
                if on_step is not None:
                    on_step(done, len(pairs) * (refine + 1), guess)
            x = guess
    return x
