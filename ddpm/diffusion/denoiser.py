"""Denoisers: from x_t and the network to predictions of x0 and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.conditioning import Conditioning
from ddpm.diffusion.objective import add_scaled
from ddpm.diffusion.process import GaussianDiffusion

Network = Callable[..., Tensor]
Clip = Literal["none", "static", "dynamic"]


@dataclass(eq=False)
class Prediction:
    """Prediction of x0 and noise from x_t; unpacks to ``x0, eps, variance_output``.

    Attributes:
        x0: (B, C, *spatial) clean data.
        x_t: (B, C, *spatial) that it was predicted from.
        a, s: alpha and sigma at the time of x_t, floats or broadcastable to it; s is above 0.
        variance_output: (B, generated channels, *spatial), the network's output for the variance
            of the reverse step, see :meth:`GaussianDiffusion.log_variance`; None if it is fixed.
    """

    x0: Tensor
    x_t: Tensor
    a: float | Tensor
    s: float | Tensor
    variance_output: Tensor | None = None

    @cached_property
    def eps(self) -> Tensor:
        """Noise (B, C, *spatial) that x0 leaves in x_t, computed once."""
        return add_scaled(self.x_t, -self.a, self.x0) / self.s

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x0, self.eps, self.variance_output))

    def with_x0(self, x0: Tensor) -> Prediction:
        """Return the prediction from the same x_t with another x0, and the noise that it leaves."""
        return Prediction(x0, self.x_t, self.a, self.s, self.variance_output)


@runtime_checkable
class DenoiserProtocol(Protocol):
    """Interface that samplers and guidance require of a denoiser.

    Attributes:
        diffusion: the process.
        needs_gradients: True if a call differentiates the network, which ``torch.inference_mode``
            forbids.
    """

    diffusion: GaussianDiffusion
    needs_gradients: bool

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise from x_t.

        Args:
            x_t: (B, C, *spatial), float32; its conditioning entries are clean.
            t: real time of the whole batch, 0 to T-1.
            previous_x0: (B, C, *spatial) earlier prediction of x0, for a self-conditioned network.
            conditioning: of the batch; None for an unconditional network.
        """
        ...


def without_gradients(denoiser: DenoiserProtocol) -> AbstractContextManager[Any]:
    """Return the fastest context without gradients in which a denoiser can be called."""
    return torch.no_grad() if denoiser.needs_gradients else torch.inference_mode()


class Denoiser:
    """Predicts with a network; x0 is not clipped.

    The arguments of its methods are those of :class:`DenoiserProtocol`, except that t may also be
    (B,) times, as in training.

    Args:
        model: the network, or a wrapper such as a distributed one, called as
            ``model(x_t, time, y=..., x_self_cond=...)``. Whole times are int64, others float32.
        diffusion: the process the network was trained for.
    """

    needs_gradients = False

    def __init__(self, model: Network, diffusion: GaussianDiffusion) -> None:
        self.model, self.diffusion = model, diffusion

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor | float,
        previous_x0: Tensor | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Predict x0 and the noise."""
        return self.interpret(self.output(x_t, t, previous_x0, conditioning), x_t, t)

    def output(
        self,
        x_t: Tensor,
        t: Tensor | float,
        previous_x0: Tensor | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the network's output (B, output channels, *spatial) in the type of x_t.

        Zeros replace a missing ``previous_x0``.
        """
        diffusion, network_input, inputs = self.diffusion, x_t, dict(conditioning or {})
        if diffusion.self_condition:
            inputs["x_self_cond"] = torch.zeros_like(x_t) if previous_x0 is None else previous_x0
        if diffusion.objective.preconditions:
            a, s = self.scales(t, x_t)
            network_input = diffusion.objective.scale_input(x_t, a, s)
            network_input = diffusion.conditioning_mask.apply(network_input, x_t)
        return self.model(network_input, self.network_time(t, x_t), **inputs).to(x_t.dtype)

    def scales(self, t: Tensor | float, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return alpha and sigma at t, see :meth:`Schedule.scales`."""
        return self.diffusion.schedule.scales(t, like)

    def network_time(self, t: Tensor | float, x_t: Tensor) -> Tensor:
        """Return the time input of the network, (B,).

        It is t, or ``t * 1000 / T`` in float32, unless the objective has a time of its own.
        """
        diffusion, time = self.diffusion, t
        if diffusion.rescale_timesteps:
            factor = 1000.0 / diffusion.num_steps
            if isinstance(t, Tensor):
                time = t.float() * factor
            else:  # rounded as a product of tensors
                time = float(np.float32(t) * np.float32(factor))
        elif not isinstance(t, Tensor) and float(t).is_integer():
            time = int(t)
        if diffusion.objective.preconditions:
            time = diffusion.objective.network_time(time, *self.scales(t))
        if isinstance(time, Tensor):
            return time
        dtype = torch.int64 if isinstance(time, int) else torch.float32
        return torch.full((len(x_t),), time, dtype=dtype, device=x_t.device)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor | float) -> Prediction:
        """Return the prediction that a network's output (B, output channels, *spatial) implies.

        At conditioning entries, x0 is x_t.
        """
        diffusion, mask = self.diffusion, self.diffusion.conditioning_mask
        output, variance_output = diffusion.split_output(output)
        a, s = self.scales(t, x_t)
        generated = diffusion.objective.x0(mask.select_generated(x_t), output, a, s)
        x0 = mask.apply(mask.merge(generated, x_t), x_t)
        return Prediction(x0, x_t, a, s, variance_output)


class DenoiserWrapper:
    """Base class of denoisers that wrap a denoiser, and call nothing but it."""

    def __init__(self, denoiser: DenoiserProtocol) -> None:
        self.denoiser, self.diffusion = denoiser, denoiser.diffusion
        self.needs_gradients = denoiser.needs_gradients


class Clipping(DenoiserWrapper):
    """Wraps a denoiser; the predicted x0 is clipped to the range of the data.

    The noise is what the clipped x0 leaves in x_t.

    Args:
        denoiser: unclipped.
        clip: ``static`` clamps x0 to the bounds; ``dynamic`` clamps each sample at a quantile of
            its magnitudes and rescales it to the bounds (Saharia et al. 2022, arXiv 2205.11487,
            section 2.3); ``none`` leaves it as it is.
        bounds: range of clean data in model space.
        dynamic_quantile: the quantile of ``dynamic``, in (0, 1].
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        clip: Clip = "static",
        *,
        bounds: tuple[float, float] = (-1.0, 1.0),
        dynamic_quantile: float = 0.995,
    ) -> None:
        super().__init__(denoiser)
        self.clip, self.bounds, self.dynamic_quantile = clip, bounds, dynamic_quantile

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0, clipped, and the noise."""
        prediction = self.denoiser(x_t, t, previous_x0, conditioning)
        if self.clip == "none":
            return prediction
        x0 = self._clipped(prediction.x0)
        return prediction.with_x0(self.diffusion.conditioning_mask.apply(x0, x_t))

    def _clipped(self, x0: Tensor) -> Tensor:
        low, high = self.bounds
        if self.clip == "static":
            return x0.clamp(low, high)
        middle, half = (low + high) / 2, (high - low) / 2
        size = (x0 - middle).abs().flatten(1)
        limit = torch.quantile(size.float(), self.dynamic_quantile, dim=1).clamp(min=half)
        limit = limit.reshape(-1, *[1] * (x0.ndim - 1))
        return middle + (x0 - middle).clamp(-limit, limit) * (half / limit)
