"""The Gaussian diffusion process: pure mathematics on tensors of any rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddpm.diffusion.given import Given
from ddpm.diffusion.likelihood import EIGHT_BITS, bound_term
from ddpm.diffusion.objective import Objective
from ddpm.diffusion.schedule import Schedule
from ddpm.errors import ConfigError, require

Network = Callable[..., Tensor]
Step = TypeVar("Step", int, Tensor)
FixedVariance = Literal["fixed_small", "fixed_large"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


class Prediction(NamedTuple):
    """What is believed of x_t: the clean data and the noise in it, both (B, C, *spatial).

    ``spread`` is what the network says of the reverse step's variance, of the channels that it
    answers about, see :meth:`GaussianDiffusion.log_variance`; None where it says nothing.
    """

    x0: Tensor
    eps: Tensor
    spread: Tensor | None = None


class GaussianDiffusion:
    """The forward process q, its posterior, what a network's answer means, and the loss.

    Args:
        schedule: the noise schedule.
        objective: what the network predicts.
        mask: bool, the entries of a sample that are given clean, see :class:`Given`.
        variance: of the reverse step: ``fixed_small`` (the posterior's), ``fixed_large`` (the
            forward step's; Ho et al. 2020, section 3.2), ``learned_range`` (the network says where
            between the two its logarithm lies; Nichol & Dhariwal 2021, equation 15) or ``learned``
            (it says the logarithm). Fixed ones do not touch training, and a sampler may choose
            otherwise: small is better in few steps, large in the full number.
        loss: ``simple`` (the objective's), ``vlb`` (T times a term of the variational bound, in
            bits per dimension) or ``hybrid`` (simple plus ``vlb_weight`` times the bound, which
            then teaches the variance only; Nichol & Dhariwal 2021, equation 16).
        vlb_weight: of the bound in the hybrid loss; 0.001 is T / 1000 a term.
        bin_width: of the values that the data can have in -1..1, for the bound's last term; the
            default is that of 8 bits.
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
        mask: Tensor | None = None,
        *,
        variance: Variance = "fixed_small",
        loss: Literal["simple", "hybrid", "vlb"] = "simple",
        vlb_weight: float = 0.001,
        bin_width: float = EIGHT_BITS,
        offset_noise: float = 0.0,
        self_condition: bool = False,
        rescale_timesteps: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        require(offset_noise >= 0, "offset_noise", offset_noise, "must be 0 (off) or above")
        require(0 <= label_dropout < 1, "label_dropout", label_dropout, "must be in [0, 1)")
        require(vlb_weight > 0, "vlb_weight", vlb_weight, "must be above 0; loss=simple is without")
        require(0 < bin_width <= 2, "bin_width", bin_width, "must be above 0 and at most 2")
        self.learns_variance = variance in ("learned", "learned_range")
        if self.learns_variance:
            problem = "does not teach a learned variance; take hybrid or vlb, or a fixed variance"
            require(loss != "simple", "loss", loss, problem)
        else:
            problem = f"is for a learned variance, and variance={variance}; take simple or vlb"
            require(loss != "hybrid", "loss", loss, problem)
        problem = "is not part of the variational bound; leave it at 0, or take loss=simple"
        require(loss == "simple" or offset_noise == 0, "offset_noise", offset_noise, problem)
        if schedule.ends_in_noise and objective.needs_signal:
            problem = (
                "leaves no signal at the last step, where the noise says nothing of x0 (Lin et al. "
                "2023); take objective=pred_v or pred_x0"
            )
            raise ConfigError("schedule.zero_terminal_snr", True, problem, absolute=True)
        self.schedule, self.objective, self.given = schedule, objective, Given(mask)
        self.variance: Variance = variance
        self.loss_kind, self.vlb_weight, self.bin_width = loss, vlb_weight, bin_width
        self.offset_noise = offset_noise
        self.self_condition, self.rescale_timesteps = self_condition, rescale_timesteps
        self.label_dropout = label_dropout

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    def output_channels(self, channels: int) -> int:
        """How many channels the network must give for data of ``channels`` channels.

        One for each that is not given whole, and one more for its variance if that is learned.
        """
        return (channels - len(self.given.channels)) * (2 if self.learns_variance else 1)

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
        """Draw x_t of q(x_t | x0) in float32 (Ho et al. 2020, equation 4); t is (B,).

        Given entries stay clean.
        """
        a, s = self.schedule.scales(t, x0)
        return self.given.keep(a * x0.float() + s * noise.float(), x0.float())

    def posterior(self, x0: Tensor, x_t: Tensor, t: Step, s: Step) -> tuple[Tensor, Any]:
        """Mean and variance of q(x_s | x_t, x0) for any s < t (Ho et al. 2020, equation 7).

        t and s are both whole numbers or both tensors (B,), and so is the variance. At s = -1,
        clean data, the mean is x0 and the variance 0.
        """
        at, as_, step = self._pair(t, s, x0)
        x0_part = as_**0.5 * (1 - step) / (1 - at)
        x_t_part = step**0.5 * (1 - as_) / (1 - at)
        mean = _single(x0_part) * x0 + _single(x_t_part) * x_t
        return mean, self.posterior_variance(t, s, x0)

    def posterior_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Variance of q(x_s | x_t, x0), ``fixed_small``; 0 at s = -1."""
        at, as_, step = self._pair(t, s, like)
        return (1 - step) * (1 - as_) / (1 - at)

    def step_variance(self, t: Step, s: Step, like: Tensor | None = None) -> Any:
        """Variance of the forward step from x_s to x_t, ``1 - alpha_bar_t / alpha_bar_s``."""
        return 1 - self._pair(t, s, like)[2]

    def _pair(self, t: Step, s: Step, like: Tensor | None = None) -> tuple:
        """Alpha-bar at t, at s, and their ratio; Python floats, or float64 of ``like``'s rank."""
        if isinstance(t, Tensor):
            at, as_ = (self.schedule.alpha_bar_at(step, like) for step in (t, s))
        else:
            at, as_ = (float(self.schedule.alpha_bar_at(step)) for step in (t, s))
        return at, as_, at / as_

    def log_variance(
        self,
        spread: Tensor | None,
        t: Step,
        s: Step,
        after: Step | None = None,
        *,
        like: Tensor,
        kind: Variance | None = None,
    ) -> Tensor:
        """The logarithm of the reverse step's variance from t to s, (B, C, *spatial) float32.

        The posterior's variance of the step to clean data is 0. In its place stands that of the
        step before it, ``after`` to t, as in improved-diffusion.

        Args:
            spread: what the network says, for a learned variance.
            t: a step, or steps (B,).
            s: the step or steps to go to; -1 is clean data.
            after: the step or steps before t on the way; default t + 1.
            like: (B, C, *spatial), for the result's shape and device.
            kind: of variance; default what the process has.
        """
        kind = kind or self.variance
        if kind == "learned":
            assert spread is not None
            return spread
        small, large = self._log_bounds(t, s, after, like)
        if kind == "learned_range":
            assert spread is not None
            share = (spread + 1) / 2
            return share * large + (1 - share) * small
        if kind == "fixed_large":
            clean = torch.as_tensor(s).reshape(-1, *[1] * (like.ndim - 1)).to(like.device) < 0
            small = torch.where(clean, small, large)
        return torch.as_tensor(small, dtype=torch.float32, device=like.device).expand_as(like)

    def _log_bounds(self, t: Step, s: Step, after: Step | None, like: Tensor) -> tuple:
        """Logarithms of the posterior's variance and of the forward step's.

        Python floats for whole numbers, which a GPU need not wait for; else float32 tensors.
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
            x_t: (B, C, *spatial), float32; given entries are clean in it.
            t: (B,) steps in 0..T-1.
            previous_x0: an earlier estimate of x0, for a self-conditioned network.
            cond: further inputs of the network, such as labels ``y``.
        """
        return self.read(self.ask(model, x_t, t, previous_x0, **cond), x_t, t)

    def ask(
        self,
        model: Network,
        x_t: Tensor,
        t: Tensor,
        previous_x0: Tensor | None = None,
        **cond: object,
    ) -> Tensor:
        """The network's answer in float32; zeros stand for a missing estimate of x0."""
        if self.self_condition:
            known = torch.zeros_like(x_t) if previous_x0 is None else previous_x0
            cond = {**cond, "x_self_cond": known}
        return model(x_t, self.network_time(t), **cond).float()

    def read(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What an answer about x_t means; of given entries x0 is what x_t has there."""
        output, spread = self.parted(answer)
        a, s = self.schedule.scales(t, x_t)
        part = self.objective.x0(self.given.drawn(x_t), output, a, s)
        x0 = self.given.keep(self.given.whole(part, x_t), x_t)
        return Prediction(x0, (x_t - a * x0) / s, spread)

    def parted(self, answer: Tensor) -> tuple[Tensor, Tensor | None]:
        """An answer's first half for the objective, its second for the variance."""
        if not self.learns_variance:
            return answer, None
        output, spread = answer.chunk(2, dim=1)
        return output, spread

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
        answer = self.ask(model, x_t, t, previous, **cond)
        if self.loss_kind == "vlb":
            return self.num_steps * bound_term(self, self.read(answer, x_t, t), x0, x_t, t)
        simple = self._simple_loss(answer, x0, t, noise)
        if self.loss_kind == "simple":
            return simple
        output, spread = self.parted(answer)
        assert spread is not None
        frozen = self.read(torch.cat([output.detach(), spread], dim=1), x_t, t)
        return simple + self.vlb_weight * self.num_steps * bound_term(self, frozen, x0, x_t, t)

    def _simple_loss(self, answer: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The objective's weighted error of each sample, (B,)."""
        a, s = self.schedule.scales(t, x0)
        target = self.given.drawn(self.objective.target(x0, noise, a, s))
        error = self.given.mean(self.objective.error(self.parted(answer)[0], target))
        return error * self.objective.weight(self.schedule.snr(t)).float()


def _single(value: Any) -> Any:
    """Coefficients of a tensor of steps in float32; Python's are as exact as they are."""
    return value.float() if isinstance(value, Tensor) else value
