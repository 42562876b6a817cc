"""The training loss of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.diffusion.conditioning import Conditioning
from ddpm.diffusion.denoiser import Denoiser, Network
from ddpm.diffusion.likelihood import bound_term
from ddpm.diffusion.process import GaussianDiffusion

_ERRORS = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class DiffusionLoss:
    """Training loss per sample.

    Args:
        diffusion: the process; the options are in its ``loss_options`` and its objective.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.diffusion, self.options = diffusion, diffusion.loss_options

    def sample_noise(
        self, x0: Tensor, randn_like: Callable[[Tensor], Tensor] = torch.randn_like
    ) -> Tensor:
        """Sample the noise of a training step in the shape of x0: standard normal, plus offset."""
        eps = randn_like(x0)
        if self.options.offset_noise > 0:
            per_channel = x0.new_empty(x0.shape[:2])
            offset = randn_like(per_channel).reshape(*per_channel.shape, *[1] * (x0.ndim - 2))
            eps = eps + self.options.offset_noise * offset
        return eps

    def drop(self, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning without that of a random share of the samples.

        The share is ``label_dropout``; torch's global generator draws them.
        """
        share = self.options.label_dropout
        if share == 0 or not conditioning:
            return conditioning
        first = next(iter(conditioning.values()))
        return conditioning.dropped(torch.rand(len(first), device=first.device) < share)

    def __call__(
        self,
        model: Network,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        estimator: Network | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the weighted loss of each sample, (B,) float32.

        Args:
            model: the network, see :class:`~ddpm.diffusion.Denoiser`.
            x0: (B, C, *spatial) clean data in model space.
            t: (B,) times, 0 to T-1; the bound rounds real times to timesteps.
            noise: shaped as x0, see :meth:`sample_noise`.
            estimator: for self-conditioning, the bare network, which makes the first estimate of
                x0 without a gradient; None in steps without self-conditioning.
            conditioning: of the batch.
        """
        diffusion, kind = self.diffusion, self.options.loss
        if kind != "simple" and t.is_floating_point():
            t = t.round().long()
        x_t, previous = diffusion.diffuse(x0, t, noise), None
        if diffusion.self_condition and estimator is not None:
            with torch.no_grad():
                previous = Denoiser(estimator, diffusion)(x_t, t, None, conditioning).x0
        denoiser = Denoiser(model, diffusion)

        def bound(output: Tensor) -> Tensor:
            return bound_term(diffusion, denoiser.interpret(output, x_t, t), x0, t)

        output = denoiser.output(x_t, t, previous, conditioning)
        if kind == "vlb":
            return diffusion.num_steps * bound(output)
        mean_output, variance_output = diffusion.split_output(output)
        simple = self._simple(mean_output, x0, t, noise)
        if variance_output is None:
            return simple
        frozen = torch.cat([mean_output.detach(), variance_output], dim=1)
        return simple + self.options.vlb_weight * diffusion.num_steps * bound(frozen)

    def _simple(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the objective's weighted error of each sample, (B,)."""
        objective, schedule = self.diffusion.objective, self.diffusion.schedule
        mask = self.diffusion.conditioning_mask
        target = mask.select_generated(objective.target(x0, noise, *schedule.scales(t, x0)))
        error = mask.masked_mean(self.error(output, target))
        return error * objective.weight(schedule.snr(t)).float()

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the unweighted error of each entry, (B, C, *spatial) float32."""
        function = _ERRORS[self.diffusion.objective.loss]
        return function(output.float(), target.float(), reduction="none")
