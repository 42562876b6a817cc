"""The Gaussian diffusion process on tensors of any rank."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ddpm.diffusion.conditioning_mask import ConditioningMask
from ddpm.diffusion.loss_options import LossKind, LossOptions
from ddpm.diffusion.objective import Objective
from ddpm.diffusion.schedule import Schedule
from ddpm.errors import ConfigError, require

Step = TypeVar("Step", float, Tensor)
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]

EIGHT_BITS = 2 / 255
"""Distance of neighbouring 8-bit values in -1..1."""


class GaussianDiffusion:
    """The forward process q, its posterior, and the variance of the reverse step.

    Steps go from t to s: floats, or (B,) timesteps, where s = -1 is clean data. Coefficients are
    floats for floats, without a synchronization with a GPU, else float64 tensors: (B,), or (B, 1,
    ...) with the rank of a tensor ``like``.

    The options of the training loss belong to the same config node. They are in ``loss_options``,
    which only :class:`ddpm.diffusion.DiffusionLoss` and the choice of the network's classes use.

    Args:
        schedule: the noise schedule.
        objective: the target of the network.
        mask: bool, True at conditioning entries, see :class:`ConditioningMask`.
        variance: of the reverse step: ``fixed_small`` (the posterior's), ``fixed_large`` (the
            forward step's; Ho et al. 2020, section 3.2), ``learned_range`` (the network
            interpolates between their logarithms; Nichol & Dhariwal 2021, equation 15) or
            ``learned`` (the network predicts the logarithm). Fixed ones have no effect on training,
            and a sampler may override them: small is better in few steps, large in all T.
        loss, vlb_weight, offset_noise, label_dropout: see :class:`LossOptions`.
        bin_width: distance of neighbouring values of the data in -1..1, for the bound's last term;
            the default is that of 8 bits.
        self_condition: the network also receives its previous prediction of x0 (Chen et al. 2022,
            arXiv 2208.04202); in training in every other step.
        rescale_timesteps: the network receives ``t * 1000 / T`` instead of t, as in
            improved-diffusion; without effect if the objective has a time of its own.
    """

    def __init__(
        self,
        schedule: Schedule,
        objective: Objective,
        mask: Tensor | None = None,
        *,
        variance: Variance = "fixed_small",
        loss: LossKind = "simple",
        vlb_weight: float = 0.001,
        bin_width: float = EIGHT_BITS,
        offset_noise: float = 0.0,
        self_condition: bool = False,
        rescale_timesteps: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        self.loss_options = LossOptions(
            loss=loss, vlb_weight=vlb_weight, offset_noise=offset_noise, label_dropout=label_dropout
        )
        require(0 < bin_width <= 2, "bin_width", bin_width, "must be above 0 and at most 2")
        self.learns_variance = variance in ("learned", "learned_range")
        if self.learns_variance:
            problem = "does not train a learned variance; use hybrid or vlb, or a fixed variance"
            require(loss != "simple", "loss", loss, problem)
        else:
            problem = f"requires a learned variance, but variance={variance}; use simple or vlb"
            require(loss != "hybrid", "loss", loss, problem)
        if schedule.zero_terminal_snr and objective.signal_reason is not None:
            problem = (
                f"leaves no signal at the last step, where {objective.signal_reason}; use "
                "objective=pred_v, pred_flow or pred_x0"
            )
            by_option = "schedule.zero_terminal_snr", True
            key, value = by_option if schedule.rescaled else ("schedule", None)
            raise ConfigError(key, value, problem, absolute=True)
        self.schedule, self.objective = schedule, objective
        self.num_steps = schedule.num_steps
        self.conditioning_mask = ConditioningMask(mask)
        self.variance: Variance = variance
        self.bin_width = bin_width
        self.self_condition, self.rescale_timesteps = self_condition, rescale_timesteps

    def output_channels(self, channels: int) -> int:
        """Return the number of output channels of a network for data of ``channels`` channels."""
        generated = channels - len(self.conditioning_mask.channels)
        return generated * (2 if self.learns_variance else 1)

    def split_output(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the parts of a network's output for the objective and for a learned variance.

        Both are (B, generated channels, *spatial), the second is None for a fixed variance.
        """
        if not self.learns_variance:
            return output, None
        mean_output, variance_output = output.chunk(2, dim=1)
        return mean_output, variance_output

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t of q(x_t | x0), float32 (Ho et al. 2020, equation 4).

        Conditioning entries stay clean. x0 and the standard normal noise are (B, C, *spatial), the
        times t (B,).
        """
        a, s = self.schedule.scales(t, x0)
        x_t = a * x0.float() + s * noise.float()
        return self.conditioning_mask.apply(x_t, x0.float())

    def posterior(self, x0: Tensor, x_t: Tensor, t: Step, s: Step) -> tuple[Tensor, Any]:
        """Return mean and variance of q(x_s | x_t, x0) (Ho et al. 2020, equation 7).

        x0, x_t and the mean are (B, C, *spatial). At s = -1 the mean is x0 and the variance 0.
        """
        factors = self.posterior_factors(t, s, x0)
        x0_part, x_t_part = (f.float() if isinstance(f, Tensor) else f for f in factors)
        return x0_part * x0 + x_t_part * x_t, self.posterior_variance(t, s, x0)

    def posterior_factors(self, t: Step, s: Step, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return the factors of x0 and x_t in the mean of q(x_s | x_t, x0)."""
        at, as_, step = self._alpha_bars(t, s, like)
        return as_**0.5 * (1 - step) / (1 - at), step**0.5 * (1 - as_) / (1 - at)

    def posterior_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Return the variance of q(x_s | x_t, x0), ``fixed_small``; 0 at s = -1."""
        at, as_, step = self._alpha_bars(t, s, like)
        return (1 - step) * (1 - as_) / (1 - at)

    def step_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Return that of q(x_t | x_s), ``1 - alpha_bar_t / alpha_bar_s``; ``fixed_large``."""
        return 1 - self._alpha_bars(t, s, like)[2]

    def _alpha_bars(self, t: Step, s: Step, like: Tensor | None) -> tuple[Any, Any, Any]:
        """Return alpha-bar at t, at s, and their ratio."""
        at, as_ = self.schedule.alpha_bar_at(t, like), self.schedule.alpha_bar_at(s, like)
        return at, as_, at / as_

    def log_variance(
        self,
        variance_output: Tensor | None,
        t: Step,
        s: Step,
        after: Step | None = None,
        *,
        like: Tensor,
        kind: Variance | None = None,
    ) -> Tensor:
        """Return the log-variance of the reverse step from t to s, (B, C, *spatial) float32.

        The posterior's variance of the step to clean data is 0. It is replaced by that of the
        preceding step, from ``after`` to t, as in improved-diffusion.

        Args:
            variance_output: shaped as ``like``, the network's output for a learned variance.
            t: upper time.
            s: lower time.
            after: next higher timestep on the sampling grid, or (B,) of them; default t + 1.
            like: (B, C, *spatial), for the result's shape and device.
            kind: of variance; default that of the process.
        """
        kind = kind or self.variance
        if kind == "learned":
            assert variance_output is not None
            return variance_output
        small, large = self._log_bounds(t, s, after, like)
        if kind == "learned_range":
            assert variance_output is not None
            share = (variance_output + 1) / 2
            return share * large + (1 - share) * small
        if kind == "fixed_large":
            clean = torch.as_tensor(s).reshape(-1, *[1] * (like.ndim - 1)).to(like.device) < 0
            small = torch.where(clean, small, large)
        return torch.as_tensor(small, dtype=torch.float32, device=like.device).expand_as(like)

    def _log_bounds(self, t: Step, s: Step, after: Step | None, like: Tensor) -> tuple[Any, Any]:
        """Return the logarithms of the posterior's variance and of the forward step's.

        They are floats for floats, else float32 tensors. In a process of a single step, whose
        posterior's variance is 0, both are the forward step's.
        """
        last, large = self.num_steps - 1, self.step_variance(t, s, like)
        if isinstance(t, Tensor) and isinstance(s, Tensor):
            before = (t + 1).clamp(max=last) if after is None else after
            pair = torch.where(s < 0, before, t), torch.where(s < 0, t, s)
            small = self.posterior_variance(*pair, like)
            return torch.where(small > 0, small, large).log().float(), large.log().float()
        before = min(t + 1, last) if after is None else after
        small = self.posterior_variance(*((before, t) if s < 0 else (t, s)))
        return math.log(small or large), math.log(large)
