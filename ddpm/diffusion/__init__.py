"""The mathematics of diffusion: schedules, objectives, the process, its loss, and denoisers.

Nothing here has parameters, draws random numbers of its own or names an axis: every function
works on ``(B, C, *spatial)`` of any rank. An option outside its range, or in
contradiction to another one, raises :class:`~ddpm.errors.ConfigError`.
"""

from ddpm.diffusion.conditioning import Conditioning, class_conditioning
from ddpm.diffusion.conditioning_mask import ConditioningMask
from ddpm.diffusion.denoiser import (
    Clip,
    Clipping,
    Denoiser,
    DenoiserProtocol,
    DenoiserWrapper,
    Prediction,
    without_gradients,
)
from ddpm.diffusion.likelihood import bound_term, discretised_log_likelihood, normal_kl, prior_term
from ddpm.diffusion.loss import DiffusionLoss
from ddpm.diffusion.loss_options import LossOptions
from ddpm.diffusion.objective import EDM, Objective, PredFlow, PredNoise, PredV, PredX0
from ddpm.diffusion.process import GaussianDiffusion
from ddpm.diffusion.schedule import Schedule
from ddpm.diffusion.schedules import cosine, edm, linear, rectified, sigmoid, table

__all__ = [
    "Schedule", "cosine", "edm", "linear", "rectified", "sigmoid", "table",
    "EDM", "Objective", "PredFlow", "PredNoise", "PredV", "PredX0",
    "ConditioningMask", "GaussianDiffusion",
    "DiffusionLoss", "LossOptions",
    "bound_term", "discretised_log_likelihood", "normal_kl", "prior_term",
    "Clip", "Clipping", "Conditioning", "Denoiser", "DenoiserProtocol", "DenoiserWrapper",
    "Prediction", "class_conditioning", "without_gradients",
]  # fmt: skip
