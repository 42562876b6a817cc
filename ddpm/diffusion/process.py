"""The Gaussian diffusion process: pure mathematics on tensors of any rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion.objective import Objective
from ddpm.diffusion.schedule import Schedule
from ddpm.errors import require

Network = Callable[..., Tensor]


class Prediction(NamedTuple):
    """What is believed of x_t: the clean data and the noise in it, both (B, C, *spatial)."""

    x0: Tensor
    eps: Tensor


class GaussianDiffusion:
    """The forward process q, its posterior, what a network's answer means, and the loss.

    Args:
        schedule: the noise schedule.
        objective: what the network predicts.
        variance: of the reverse step, ``fixed_small`` (the posterior's) or ``fixed_large`` (the
            forward step's), Ho et al. 2020, section 3.2. Small is better in few steps, large in
            the full number. A sampler may choose otherwise; training does not depend on it.
        offset_noise: standard deviation of noise added as one constant a channel (0.1 is usual),
            which lets samples be darker or lighter than average; 0 = off.
        self_condition: the network also sees its previous estimate of x0 (Chen et al. 2022,
            arXiv 2208.04202); in training in every other step.
        rescale_timesteps: the network is told ``t * 1000 / T`` instead of t, as
            improved-diffusion does.
        label_dropout: the share of training samples whose class label is withheld, so that the
            model can be guided (Ho & Salimans 2022); needs class labels.
    """

    def __init__(
        self,
        schedule: Schedule,
        objective: Objective,
        *,
        variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
        offset_noise: float = 0.0,
        self_condition: bool = False,
        rescale_timesteps: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        require(offset_noise >= 0, "offset_noise", offset_noise, "must be 0 (off) or above")
        require(0 <= label_dropout < 1, "label_dropout", label_dropout, "must be in [0, 1)")
        self.schedule, self.objective = schedule, objective
        self.variance, self.offset_noise = variance, offset_noise
        self.self_condition, self.rescale_timesteps = self_condition, rescale_timesteps
        self.label_dropout = label_dropout

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    def output_channels(self, channels: int) -> int:
        """How many channels the network must give for data of ``channels`` channels."""
        return channels

    def noise(
        self, x0: Tensor, randn_like: Callable[[Tensor], Tensor] = torch.randn_like
    ) -> Tensor:
        """The noise to train with, (B, C, *spatial): standard normal, plus the offset if any."""
        eps = randn_like(x0)
        if self.offset_noise > 0:
            one_a_channel = x0.new_empty(x0.shape[:2])
            offset = randn_like(one_a_channel).reshape(*one_a_channel.shape, *[1] * (x0.ndim - 2))
            eps = eps + self.offset_noise * offset
        return eps

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t of q(x_t | x0) in float32 (Ho et al. 2020, equation 4); t is (B,)."""
        a, s = self.schedule.scales(t, x0)
        return a * x0.float() + s * noise.float()

    def posterior(self, x0: Tensor, x_t: Tensor, t: int, s: int) -> tuple[Tensor, float]:
        """Mean and variance of q(x_s | x_t, x0) for any s < t (Ho et al. 2020, equation 7).

        At s = -1, clean data, the mean is x0 and the variance 0.
        """
        at, as_, step = self._pair(t, s)
        x0_part = as_**0.5 * (1 - step) / (1 - at)
        x_t_part = step**0.5 * (1 - as_) / (1 - at)
        return x0_part * x0 + x_t_part * x_t, self.posterior_variance(t, s)

    def posterior_variance(self, t: int, s: int) -> float:
        """Variance of q(x_s | x_t, x0), ``fixed_small``; 0 at s = -1."""
        at, as_, step = self._pair(t, s)
        return (1 - step) * (1 - as_) / (1 - at)

    def step_variance(self, t: int, s: int) -> float:
        """Variance of the forward step from x_s to x_t, ``1 - alpha_bar_t / alpha_bar_s``."""
        return 1 - self._pair(t, s)[2]

    def _pair(self, t: int, s: int) -> tuple[float, float, float]:
        """Alpha-bar at t, at s, and their ratio."""
        at, as_ = float(self.schedule.alpha_bar_at(t)), float(self.schedule.alpha_bar_at(s))
        return at, as_, at / as_

    def network_time(self, t: Tensor) -> Tensor:
        """The time that the network is told, (B,): t, or t * 1000 / T in float32."""
        return t.float() * (1000.0 / self.num_steps) if self.rescale_timesteps else t

    def predict(
        self,
        model: Network,
        x_t: Tensor,
        t: Tensor,
        previous_x0: Tensor | None = None,
        **cond: object,
    ) -> Prediction:
        """Ask the network about x_t (B, C, *spatial) at t (B,) and read x0 and the noise off.

        Args:
            model: called as ``model(x_t, time, **cond)``.
            x_t: (B, C, *spatial), float32.
            t: (B,) steps in 0..T-1.
            previous_x0: an earlier estimate of x0, for a self-conditioned network.
            cond: further inputs of the network, such as labels ``y``.
        """
        output = self._ask(model, x_t, t, previous_x0, cond)
        a, s = self.schedule.scales(t, x_t)
        x0 = self.objective.x0(x_t, output, a, s)
        return Prediction(x0, (x_t - a * x0) / s)

    def loss(
        self,
        model: Network,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        estimator: Network | None = None,
        **cond: object,
    ) -> Tensor:
        """The weighted training loss of each sample, (B,) float32.

        Args:
            model: any callable, a distributed wrapper too.
            x0: (B, C, *spatial) clean data in model space.
            t: (B,) steps in 0..T-1.
            noise: like x0, see :meth:`noise`.
            estimator: for self-conditioning, the bare network that makes the first estimate of
                x0 without a gradient; None in the steps that go without.
            cond: further inputs of the network.
        """
        x_t = self.diffuse(x0, t, noise)
        previous = None
        if self.self_condition and estimator is not None:
            with torch.no_grad():
                previous = self.predict(estimator, x_t, t, None, **cond).x0
        output = self._ask(model, x_t, t, previous, cond)
        a, s = self.schedule.scales(t, x0)
        error = self.objective.error(output, self.objective.target(x0, noise, a, s))
        return error * self.objective.weight(self.schedule.snr(t)).float()

    def _ask(
        self,
        model: Network,
        x_t: Tensor,
        t: Tensor,
        previous_x0: Tensor | None,
        cond: dict[str, object],
    ) -> Tensor:
        """The network's answer in float32; zeros stand for a missing estimate of x0."""
        if self.self_condition:
            known = torch.zeros_like(x_t) if previous_x0 is None else previous_x0
            cond = {**cond, "x_self_cond": known}
        return model(x_t, self.network_time(t), **cond).float()
