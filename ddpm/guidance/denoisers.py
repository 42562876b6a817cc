"""Guidance: denoisers that wrap denoisers, and call nothing but them.

Clip the guided x0, with :class:`ddpm.diffusion.Clipping`, not that of the denoisers. An
``interval`` (low, high) limits guidance to the noise levels ``sigma / alpha`` between these numbers
(Kynkaanniemi et al. 2024, arXiv 2404.07724); elsewhere the prediction is that of the denoiser.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ddpm.diffusion import Conditioning, DenoiserProtocol, DenoiserWrapper, Prediction
from ddpm.errors import ConfigError, require

Interval = tuple[float, float]
Score = Callable[[Tensor, float, Mapping[str, Tensor]], Tensor]


class _Guidance(DenoiserWrapper):
    """Base class of guidance: a wrapper that is active in an interval of noise levels."""

    def __init__(self, denoiser: DenoiserProtocol, interval: Interval | None) -> None:
        super().__init__(denoiser)
        problem = "must be two noise levels, the lower one first, such as [0.2,3], or null"
        good = interval is None or 0 <= interval[0] < interval[1]
        require(good, "guidance_interval", interval, problem)
        self.interval = interval

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        a, s = self.diffusion.schedule.signal_noise(t)
        active = self.interval is None or self.interval[0] * a <= s <= self.interval[1] * a
        predict = self._guided if active else self.denoiser
        return predict(x_t, t, previous_x0, conditioning)

    @abstractmethod
    def _guided(
        self, x_t: Tensor, t: float, previous_x0: Tensor | None, conditioning: Conditioning | None
    ) -> Prediction:
        """Return the guided prediction at a noise level within the interval."""


class _Unconditional(DenoiserWrapper):
    """Wraps a denoiser, which receives no conditioning."""

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        return self.denoiser(x_t, t, previous_x0)


class ClassifierFreeGuidance(_Guidance):
    """Wraps a denoiser with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    The guided prediction is ``unconditional + scale (conditional - unconditional)``: 1 is off and 0
    ignores the conditioning. Both predictions come from one call with a doubled batch. A learned
    variance is that of the conditional prediction. Without conditioning, the prediction is that of
    the denoiser.

    Args:
        denoiser: one whose network was trained with dropped conditions.
        scale: guidance scale, at least 0.
        rescale: share of the rescaling of the guided output to the standard deviation of the
            conditional one, 0 (off) to 1, which counters overexposure at large scales (Lin et al.
            2023, arXiv 2305.08891, equations 14 to 16, where it is 0.7).
        interval: noise levels with guidance; None = all.
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        *,
        scale: float,
        rescale: float = 0.0,
        interval: Interval | None = None,
    ) -> None:
        super().__init__(denoiser, interval)
        require(scale >= 0, "guidance", scale, "must be 0 or above; 1 is off")
        require(0 <= rescale <= 1, "guidance_rescale", rescale, "must be between 0 (off) and 1")
        self.scale, self.rescale = scale, rescale

    def _guided(
        self, x_t: Tensor, t: float, previous_x0: Tensor | None, conditioning: Conditioning | None
    ) -> Prediction:
        if not conditioning:
            return self.denoiser(x_t, t, previous_x0, conditioning)
        previous = None if previous_x0 is None else torch.cat([previous_x0, previous_x0])
        doubled = conditioning.followed_by(conditioning.unconditional())
        both = self.denoiser(torch.cat([x_t, x_t]), t, previous, doubled)
        x0, unconditional_x0 = both.x0.chunk(2)
        variance = None if both.variance_output is None else both.variance_output[: len(x_t)]
        conditional = Prediction(x0, x_t, both.a, both.s, variance)
        guided = conditional.with_x0(torch.lerp(unconditional_x0, x0, self.scale))
        return guided if self.rescale == 0 else self._rescaled(guided, conditional)

    def _rescaled(self, guided: Prediction, conditional: Prediction) -> Prediction:
        """Return the guided prediction with the standard deviation of the conditional output."""
        objective, a, s = self.diffusion.objective, guided.a, guided.s
        output, target = (objective.target(p.x0, p.eps, a, s) for p in (guided, conditional))
        std, target_std = (x.flatten(1).std(dim=1) for x in (output, target))
        ratio = (target_std / std.clamp(min=1e-12)).reshape(-1, *[1] * (output.ndim - 1))
        output = output * (self.rescale * ratio + 1 - self.rescale)
        return guided.with_x0(objective.x0(guided.x_t, output, a, s))


class Autoguidance(_Guidance):
    """Wraps a denoiser with guidance by a weaker one (Karras et al. 2024, arXiv 2406.02507).

    The guided prediction is ``guide + scale (main - guide)``: 1 is off. The guide is a smaller or
    less trained network for the same data; its schedule may differ, because it is called at the
    time of the same noise level.

    Args:
        denoiser: the main denoiser.
        guide: the weaker denoiser.
        scale: guidance scale, at least 0; 1.5 to 2.5 are usual.
        interval: noise levels with guidance; None = all.
        conditional: the guide receives the conditioning.
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        guide: DenoiserProtocol,
        *,
        scale: float,
        interval: Interval | None = None,
        conditional: bool = True,
    ) -> None:
        super().__init__(denoiser, interval)
        require(scale >= 0, "guide_scale", scale, "must be 0 or above; 1 is off")
        self.guide, self.scale = guide if conditional else _Unconditional(guide), scale
        self.needs_gradients |= guide.needs_gradients

    def _guided(
        self, x_t: Tensor, t: float, previous_x0: Tensor | None, conditioning: Conditioning | None
    ) -> Prediction:
        prediction = self.denoiser(x_t, t, previous_x0, conditioning)
        time = self.guide.diffusion.schedule.time(self.diffusion.schedule.log_snr(t))
        weak = self.guide(x_t, time, previous_x0, conditioning)
        return prediction.with_x0(torch.lerp(weak.x0, prediction.x0, self.scale))


class GradientGuidance(_Guidance):
    """Wraps a denoiser with the gradient of a score of its predicted x0.

    The score's gradient with respect to x_t, through the network, is added to that of the
    log-density of x_t: ``eps - scale sigma grad``, as classifier guidance does (Dhariwal & Nichol
    2021, arXiv 2105.05233, algorithm 2) with a score of x0 instead of x_t (Bansal et al. 2023,
    arXiv 2302.07121, section 3.2). At a time without signal (alpha 0) the prediction is that of the
    denoiser.

    Args:
        denoiser: called with a gradient.
        score: ``score(x0, t, conditioning)`` returns (B,), which guidance increases, such as the
            log-probability of a class; differentiable in x0 (B, C, *spatial), in model space.
            t is the real time of the batch. Another result is a ConfigError.
        scale: factor of the gradient.
        interval: noise levels with guidance; None = all.
        conditional: the denoiser receives the conditioning, as the score does.
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        score: Score,
        *,
        scale: float = 1.0,
        interval: Interval | None = None,
        conditional: bool = True,
    ) -> None:
        super().__init__(denoiser if conditional else _Unconditional(denoiser), interval)
        self.score, self.scale = score, scale
        self.needs_gradients = True

    def _guided(
        self, x_t: Tensor, t: float, previous_x0: Tensor | None, conditioning: Conditioning | None
    ) -> Prediction:
        a, s = self.diffusion.schedule.signal_noise(t)
        if a == 0:
            return self.denoiser(x_t, t, previous_x0, conditioning)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            prediction = self.denoiser(x, t, previous_x0, conditioning)
            score = self._checked_score(prediction.x0, t, conditioning or Conditioning())
            (gradient,) = torch.autograd.grad(score.sum(), x)
        variance = prediction.variance_output
        variance = None if variance is None else variance.detach()
        x0 = torch.add(prediction.x0.detach(), gradient, alpha=self.scale * s**2 / a)
        x0 = self.diffusion.conditioning_mask.apply(x0, x_t)
        return Prediction(x0, x_t, prediction.a, prediction.s, variance)

    def _checked_score(self, x0: Tensor, t: float, conditioning: Conditioning) -> Tensor:
        """Return the score (B,); raise ConfigError for another result, or missing classes."""
        try:
            score: object = self.score(x0, t, conditioning)
        except KeyError as error:
            if error.args != ("y",) or "y" in conditioning:
                raise
            problem = "the guide reads the classes of the samples; use classes=[3]"
            raise ConfigError("classes", None, problem) from error
        name, size = getattr(self.score, "__name__", type(self.score).__name__), len(x0)
        if not isinstance(score, Tensor) or score.shape != (size,):
            shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            problem = (
                f"returned {shape} for {size} samples; return one number per sample, ({size},)"
            )
            raise ConfigError("guide", name, problem)
        problem = "returned a score without a gradient; use differentiable functions of x0"
        require(score.requires_grad, "guide", name, problem)
        return score
