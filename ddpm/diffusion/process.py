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

Time = TypeVar("Time", float, Tensor)
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]

EIGHT_BITS = 2 / 255
"""Distance of neighbouring 8-bit values in -1..1."""


class GaussianDiffusion:
    """The forward process q, its posterior, and the variance of the reverse step.

    Steps go from any time t to any s < t, where s = -1 is clean data. With ``alpha_bar`` of the
    schedule and ``alpha_ts = alpha_bar_t / alpha_bar_s``, the alpha_t of Ho et al. 2020 if s = t-1,

        q(x_t | x0)  = N(sqrt(alpha_bar_t) x0, 1 - alpha_bar_t)    (Ho et al. 2020, equation 4)
        q(x_t | x_s) = N(sqrt(alpha_ts) x_s, 1 - alpha_ts)         (equation 2)

    Times are floats or (B,). Coefficients are floats for floats, without a synchronization with a
    GPU, else float64 tensors: (B,), or (B, 1, ...) with the rank of a tensor ``like``.

    Args:
        schedule: the noise schedule.
        objective: the target of the network.
        mask: bool, True at conditioning entries, see :class:`ConditioningMask`.
        variance: of the reverse step: ``fixed_small`` (the posterior's), ``fixed_large`` (the
            forward step's; Ho et al. 2020, section 3.2), ``learned_range`` (the network
            interpolates between their logarithms; Nichol & Dhariwal 2021, equation 15) or
            ``learned`` (the network predicts the logarithm). Fixed ones have no effect on training,
            and a sampler may override them: small is better in few steps, large in all T.
        loss, vlb_weight, offset_noise, label_dropout: of the training, not of the process; they are
            in ``loss_options``, see :class:`LossOptions`.
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
        problem = "does not train a learned variance; use hybrid or vlb, or a fixed variance"
        require(not self.learns_variance or loss != "simple", "loss", loss, problem)
        problem = f"requires a learned variance, but variance={variance}; use simple or vlb"
        require(self.learns_variance or loss != "hybrid", "loss", loss, problem)
        if schedule.zero_terminal_snr and objective.signal_reason is not None:
            key = "schedule.zero_terminal_snr" if schedule.rescaled else "schedule"
            problem = (
                f"leaves no signal at the last step, where {objective.signal_reason}; use "
                "objective=pred_v, pred_flow or pred_x0"
            )
            raise ConfigError(key, schedule.rescaled or None, problem, absolute=True)
        self.schedule, self.objective = schedule, objective
        self.num_steps, self.bin_width = schedule.num_steps, bin_width
        self.conditioning_mask = ConditioningMask(mask)
        self.variance: Variance = variance
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
        """Return x_t of q(x_t | x0) with a standard normal ``noise``, (B, C, *spatial) float32.

        x0 and the noise are (B, C, *spatial), the times t (B,). Conditioning entries stay clean.
        """
        alpha, sigma = self.schedule.scales(t, x0)
        x_t = alpha * x0.float() + sigma * noise.float()
        return self.conditioning_mask.apply(x_t, x0.float())

    def posterior(self, x0: Tensor, x_t: Tensor, t: Time, s: Time) -> tuple[Tensor, Any]:
        """Return mean and variance of q(x_s | x_t, x0) (Ho et al. 2020, equation 7).

        x0, x_t and the mean are (B, C, *spatial). At s = -1 the mean is x0 and the variance 0.
        """
        factors = self.posterior_factors(t, s, x0)
        of_x0, of_x_t = (f.float() if isinstance(f, Tensor) else f for f in factors)
        return of_x0 * x0 + of_x_t * x_t, self.posterior_variance(t, s, x0)

    def posterior_factors(self, t: Time, s: Time, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return the factors of x0 and x_t in the mean of q(x_s | x_t, x0)."""
        alpha_bar_t, alpha_bar_s, alpha_ts = self._alpha_bars(t, s, like)
        of_x0 = alpha_bar_s**0.5 * (1 - alpha_ts) / (1 - alpha_bar_t)
        of_x_t = alpha_ts**0.5 * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        return of_x0, of_x_t

    def posterior_variance(self, t: Time, s: Time, like: Tensor | None = None) -> Any:
        """Return the variance of q(x_s | x_t, x0), 0 at s = -1: ``fixed_small``."""
        alpha_bar_t, alpha_bar_s, alpha_ts = self._alpha_bars(t, s, like)
        return (1 - alpha_ts) * (1 - alpha_bar_s) / (1 - alpha_bar_t)

    def step_variance(self, t: Time, s: Time, like: Tensor | None = None) -> Any:
        """Return the variance of q(x_t | x_s), ``1 - alpha_ts``: ``fixed_large``."""
        return 1 - self._alpha_bars(t, s, like)[2]

    def _alpha_bars(self, t: Time, s: Time, like: Tensor | None) -> tuple[Any, Any, Any]:
        """Return ``alpha_bar_t``, ``alpha_bar_s`` and their ratio ``alpha_ts``."""
        alpha_bar_t = self.schedule.alpha_bar_at(t, like)
        alpha_bar_s = self.schedule.alpha_bar_at(s, like)
        return alpha_bar_t, alpha_bar_s, alpha_bar_t / alpha_bar_s

    def log_variance(
        self,
        variance_output: Tensor | None,
        t: Time,
        s: Time,
        above: Time | None = None,
        *,
        like: Tensor,
        kind: Variance | None = None,
    ) -> Tensor:
        """Return the log-variance of the reverse step from t to s, (B, C, *spatial) float32.

        In the step to clean data, where the posterior's variance is 0, ``fixed_small`` is that of
        the preceding step, from ``above`` to t, and ``fixed_large``, too, as in improved-diffusion.

        Args:
            variance_output: shaped as ``like``, the network's output for a learned variance; -1 and
                1 are the lower and upper end of ``learned_range``.
            t, s: upper and lower time of the step.
            above: next higher timestep on the sampling grid, or (B,) of them; default t + 1.
            like: (B, C, *spatial), for the result's shape and device.
            kind: of variance; default that of the process.
        """
        kind = kind or self.variance
        if kind == "learned":
            assert variance_output is not None
            return variance_output
        small, large = self._log_bounds(t, s, above, like)
        if kind == "learned_range":
            assert variance_output is not None
            v = (variance_output + 1) / 2
            return v * large + (1 - v) * small
        to_clean = self.schedule.alpha_bar_at(s, like) == 1
        fixed = small if kind == "fixed_small" else _where(to_clean, small, large)
        return torch.as_tensor(fixed, dtype=torch.float32, device=like.device).expand_as(like)

    def _log_bounds(self, t: Time, s: Time, above: Time | None, like: Tensor) -> tuple[Any, Any]:
        """Return the logarithms of ``fixed_small`` and of the forward step's variance.

        They are floats for floats, else float32 tensors (B, 1, ...). In a process of a single step,
        whose posterior's variance is 0, both are the forward step's.
        """
        last = self.num_steps - 1
        above = _where(t + 1 < last, t + 1, last) if above is None else above
        small = self.posterior_variance(_where(s < 0, above, t), _where(s < 0, t, s), like)
        large = self.step_variance(t, s, like)
        return _log(_where(small > 0, small, large)), _log(large)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else a if condition else b


def _log(x: Any) -> Any:
    return x.log().float() if isinstance(x, Tensor) else math.log(x)
