"""The Gaussian diffusion process on tensors of any rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.conditioning_mask import ConditioningMask
from ddpm.diffusion.loss_options import LossKind, LossOptions
from ddpm.diffusion.objective import Objective
from ddpm.diffusion.schedule import Schedule
from ddpm.errors import ConfigError, require

Network = Callable[..., Tensor]
Step = TypeVar("Step", float, Tensor)
FixedVariance = Literal["fixed_small", "fixed_large"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]

EIGHT_BITS = 2 / 255
"""Distance of neighbouring 8-bit values in -1..1."""


class Prediction:
    """Prediction of x0 and noise from x_t; unpacks to ``x0, eps, variance_output``.

    Args:
        x0: (B, C, *spatial) clean data.
        x_t: (B, C, *spatial) that it was predicted from.
        a: alpha at the time of x_t, a float or broadcastable to it.
        s: sigma at the time of x_t, likewise, above 0.
        variance_output: (B, generated channels, *spatial), the network's output for the variance
            of the reverse step, see :meth:`GaussianDiffusion.log_variance`; None if it is fixed.
    """

    __slots__ = ("_eps", "a", "s", "variance_output", "x0", "x_t")

    def __init__(
        self,
        x0: Tensor,
        x_t: Tensor,
        a: float | Tensor,
        s: float | Tensor,
        variance_output: Tensor | None = None,
    ) -> None:
        self.x0, self.x_t, self.a, self.s = x0, x_t, a, s
        self.variance_output = variance_output
        self._eps: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """Noise (B, C, *spatial) that x0 leaves in x_t, computed once."""
        if self._eps is None:
            if isinstance(self.a, Tensor):
                self._eps = (self.x_t - self.a * self.x0) / self.s
            else:
                self._eps = torch.sub(self.x_t, self.x0, alpha=self.a) / self.s
        return self._eps

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x0, self.eps, self.variance_output))

    def with_x0(self, x0: Tensor) -> Prediction:
        """Return the prediction from the same x_t with another x0, and the noise that it leaves."""
        return Prediction(x0, self.x_t, self.a, self.s, self.variance_output)

    def chunk(self, parts: int) -> list[Prediction]:
        """Return the predictions of equal parts of a batch with one time."""
        variances = [None] * parts
        if self.variance_output is not None:
            variances = list(self.variance_output.chunk(parts))
        rows = zip(self.x0.chunk(parts), self.x_t.chunk(parts), variances, strict=True)
        return [Prediction(x0, x_t, self.a, self.s, variance) for x0, x_t, variance in rows]


class GaussianDiffusion:
    """The forward process q, its posterior, and the interpretation of the network's output.

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
        loss: see :class:`LossOptions`.
        vlb_weight: see :class:`LossOptions`.
        bin_width: distance of neighbouring values of the data in -1..1, for the bound's last term;
            the default is that of 8 bits.
        offset_noise: see :class:`LossOptions`.
        self_condition: the network also receives its previous prediction of x0 (Chen et al. 2022,
            arXiv 2208.04202); in training in every other step.
        rescale_timesteps: the network receives ``t * 1000 / T`` instead of t, as in
            improved-diffusion; without effect if the objective has a time of its own.
        label_dropout: see :class:`LossOptions`.

    Raises:
        ConfigError: an option outside its range, or options that contradict each other.
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
            loss=loss,
            vlb_weight=vlb_weight,
            offset_noise=offset_noise,
            label_dropout=label_dropout,
        )
        require(0 < bin_width <= 2, "bin_width", bin_width, "must be above 0 and at most 2")
        self.learns_variance = variance in ("learned", "learned_range")
        if self.learns_variance:
            problem = "does not train a learned variance; use hybrid or vlb, or a fixed variance"
            require(loss != "simple", "loss", loss, problem)
        else:
            problem = f"requires a learned variance, but variance={variance}; use simple or vlb"
            require(loss != "hybrid", "loss", loss, problem)
        if schedule.zero_terminal_snr and objective.requires_signal:
            problem = (
                f"leaves no signal at the last step, where {objective.signal_reason}; use "
                "objective=pred_v, pred_flow or pred_x0"
            )
            key, value = "schedule.zero_terminal_snr", True
            if not schedule.rescaled:
                key, value = "schedule", None
            raise ConfigError(key, value, problem, absolute=True)
        self.schedule, self.objective = schedule, objective
        self.conditioning_mask = ConditioningMask(mask)
        self.variance: Variance = variance
        self.bin_width = bin_width
        self.self_condition, self.rescale_timesteps = self_condition, rescale_timesteps

    @property
    def num_steps(self) -> int:
        """T, the number of timesteps."""
        return self.schedule.num_steps

    def output_channels(self, channels: int) -> int:
        """Return the number of output channels of a network for data of ``channels`` channels.

        There is one per generated channel, and one more per generated channel for a learned
        variance.
        """
        generated = channels - len(self.conditioning_mask.channels)
        return generated * (2 if self.learns_variance else 1)

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t of q(x_t | x0), float32 (Ho et al. 2020, equation 4).

        Conditioning entries stay clean.

        Args:
            x0: (B, C, *spatial) clean data in model space.
            t: (B,) timesteps, 0 to T-1.
            noise: (B, C, *spatial) standard normal.
        """
        a, s = self.schedule.scales(t, x0)
        x_t = a * x0.float() + s * noise.float()
        return self.conditioning_mask.apply(x_t, x0.float())

    def posterior(self, x0: Tensor, x_t: Tensor, t: Step, s: Step) -> tuple[Tensor, Any]:
        """Return mean and variance of q(x_s | x_t, x0) (Ho et al. 2020, equation 7).

        At s = -1, clean data, the mean is x0 and the variance 0.

        Args:
            x0: (B, C, *spatial).
            x_t: (B, C, *spatial).
            t: a timestep, or (B,) timesteps.
            s: any lower timestep, or (B,) of them, as t is.

        Returns:
            The mean (B, C, *spatial), and the variance: a float for integers, else float64
            (B, 1, ...).
        """
        x0_part, x_t_part = self.posterior_factors(t, s, x0)
        mean = _as_float32(x0_part) * x0 + _as_float32(x_t_part) * x_t
        return mean, self.posterior_variance(t, s, x0)

    def posterior_factors(self, t: Step, s: Step, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return the factors of x0 and x_t in the mean of q(x_s | x_t, x0).

        See :meth:`posterior_variance` for the arguments.
        """
        at, as_, step = self._alpha_bars(t, s, like)
        return as_**0.5 * (1 - step) / (1 - at), step**0.5 * (1 - as_) / (1 - at)

    def posterior_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Return the variance of q(x_s | x_t, x0), ``fixed_small``; 0 at s = -1.

        Args:
            t: a timestep, or (B,) timesteps.
            s: any lower timestep, or (B,) of them, as t is.
            like: (B, C, *spatial), for the rank of the result; None = (B,).
        """
        at, as_, step = self._alpha_bars(t, s, like)
        return (1 - step) * (1 - as_) / (1 - at)

    def step_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Return the variance of the forward step from x_s to x_t, ``fixed_large``.

        It is ``1 - alpha_bar_t / alpha_bar_s``; see :meth:`posterior_variance` for the arguments.
        """
        return 1 - self._alpha_bars(t, s, like)[2]

    def _alpha_bars(self, t: Any, s: Any, like: Tensor | None = None) -> tuple:
        """Return alpha-bar at t, at s, and their ratio: floats, or float64 of ``like``'s rank."""
        if isinstance(t, Tensor) and isinstance(s, Tensor):
            at, as_ = (self.schedule.alpha_bar_at(step, like) for step in (t, s))
        else:
            at, as_ = (self.schedule.alpha_bar_at(step) for step in (t, s))
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
            t: a timestep, or (B,) timesteps.
            s: a lower timestep, or (B,) of them; -1 is clean data.
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

    def _log_bounds(self, t: Step, s: Step, after: Step | None, like: Tensor) -> tuple:
        """Return the logarithms of the posterior's variance and of the forward step's.

        They are floats for integer timesteps, which need no synchronization with a GPU; else
        float32 tensors.
        """
        last = self.num_steps - 1
        if not isinstance(t, Tensor) or not isinstance(s, Tensor):
            before = min(t + 1, last) if after is None else after
            large = self.step_variance(t, s)
            small = self.posterior_variance(*((before, t) if s < 0 else (t, s)))
            return math.log(small or large), math.log(large)
        before = (t + 1).clamp(max=last) if after is None else after
        clean = s < 0
        large = self.step_variance(t, s, like)
        pair = torch.where(clean, before, t), torch.where(clean, t, s)
        small = self.posterior_variance(*pair, like)
        small = torch.where(small > 0, small, large)  # 0 in a process of a single step
        return small.log().float(), large.log().float()

    def network_time(self, t: Tensor | float, like: Tensor) -> Tensor:
        """Return the time input of the network, (B,).

        It is t, or ``t * 1000 / T`` in float32, unless the objective has a time of its own.

        Args:
            t: (B,) times, or one for the batch; whole ones are int64, others float32.
            like: (B, C, *spatial), for the size of the batch and the device.
        """
        own, factor = self.objective.preconditions, 1000.0 / self.num_steps
        scales = self._scales(t) if own else ()
        if isinstance(t, Tensor):
            t = t.float() * factor if self.rescale_timesteps else t
        elif self.rescale_timesteps:  # rounded as a product of tensors
            t = float(np.float32(t) * np.float32(factor))
        elif float(t).is_integer():
            t = int(t)
        time = self.objective.network_time(t, *scales) if own else t
        if isinstance(time, Tensor):
            return time
        dtype = torch.int64 if isinstance(time, int) else torch.float32
        return torch.full((len(like),), time, dtype=dtype, device=like.device)

    def _scales(self, t: Tensor | float, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return alpha and sigma at t: floats, or float32 tensors of the rank of ``like``."""
        if not isinstance(t, Tensor):
            return self.schedule.signal_noise(t)
        return self.schedule.scales(t, t if like is None else like)

    def predict(
        self,
        model: Network,
        x_t: Tensor,
        t: Tensor | float,
        previous_x0: Tensor | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Call the network on x_t and interpret its output.

        Args:
            model: called as ``model(x_t, time, **conditioning)``.
            x_t: (B, C, *spatial), float32; its conditioning entries are clean.
            t: (B,) times, 0 to T-1, or one for the batch.
            previous_x0: (B, C, *spatial) earlier prediction of x0, for a self-conditioned network.
            conditioning: further inputs of the network, such as labels ``y``.
        """
        output = self.call_network(model, x_t, t, previous_x0, conditioning)
        return self.interpret_output(output, x_t, t)

    def call_network(
        self,
        model: Network,
        x_t: Tensor,
        t: Tensor | float,
        previous_x0: Tensor | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the network's output (B, output channels, *spatial) in the type of x_t.

        The arguments are those of :meth:`predict`; zeros replace a missing ``previous_x0``.
        """
        inputs = dict(conditioning or {})
        if self.self_condition:
            inputs["x_self_cond"] = torch.zeros_like(x_t) if previous_x0 is None else previous_x0
        network_input = x_t
        if self.objective.preconditions:
            network_input = self.objective.scale_input(x_t, *self._scales(t, x_t))
            network_input = self.conditioning_mask.apply(network_input, x_t)
        return model(network_input, self.network_time(t, x_t), **inputs).to(x_t.dtype)

    def interpret_output(self, output: Tensor, x_t: Tensor, t: Tensor | float) -> Prediction:
        """Return the prediction that a network's output implies.

        At conditioning entries, x0 is x_t.

        Args:
            output: (B, output channels, *spatial), float32.
            x_t: (B, C, *spatial), float32.
            t: (B,) times, 0 to T-1, or one for the batch.
        """
        output, variance_output = self.split_output(output)
        a, s = self._scales(t, x_t)
        mask = self.conditioning_mask
        generated = self.objective.x0(mask.select_generated(x_t), output, a, s)
        x0 = mask.apply(mask.merge(generated, x_t), x_t)
        return Prediction(x0, x_t, a, s, variance_output)

    def split_output(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a network's output (B, output channels, *spatial) along the channels.

        Returns:
            The part for the objective, and the part for a learned variance, None if it is fixed;
            both (B, generated channels, *spatial).
        """
        if not self.learns_variance:
            return output, None
        mean_output, variance_output = output.chunk(2, dim=1)
        return mean_output, variance_output


def _as_float32(value: Any) -> Any:
    """Return coefficients that are tensors in float32, and floats unchanged."""
    return value.float() if isinstance(value, Tensor) else value
