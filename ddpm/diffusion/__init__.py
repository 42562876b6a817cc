"""The mathematics of diffusion: schedules, objectives, the process, its loss, and denoisers.

Nothing here has parameters, draws random numbers of its own or names an axis: every function
works on ``(B, C, *spatial)`` of any rank.
"""

from ddpm.diffusion.conditioning import Conditioning, class_conditioning
from ddpm.diffusion.conditioning_mask import ConditioningMask
from ddpm.diffusion.denoiser import (
    Clip,
    Clipping,
    Denoiser,
    DenoiserProtocol,
    DenoiserWrapper,
    without_gradients,
)
from ddpm.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, GradientGuidance
from ddpm.diffusion.likelihood import bound_term, discretised_log_likelihood, normal_kl, prior_term
from ddpm.diffusion.loss import DiffusionLoss
from ddpm.diffusion.loss_options import LossOptions
from ddpm.diffusion.objective import EDM, Objective, PredFlow, PredNoise, PredV, PredX0
from ddpm.diffusion.process import GaussianDiffusion, Prediction
from ddpm.diffusion.schedule import Schedule
from ddpm.diffusion.schedules import cosine, edm, linear, rectified, sigmoid
from ddpm.diffusion.timesteps import (
    BatchPart,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Stratified,
    Timesteps,
    Uniform,
)

__all__ = [
    "EDM",
    "Autoguidance",
    "BatchPart",
    "ClassifierFreeGuidance",
    "Clip",
    "Clipping",
    "Conditioning",
    "ConditioningMask",
    "Denoiser",
    "DenoiserProtocol",
    "DenoiserWrapper",
    "DiffusionLoss",
    "GaussianDiffusion",
    "GradientGuidance",
    "LogNormal",
    "LogitNormal",
    "LossOptions",
    "LossSecondMoment",
    "Objective",
    "PredFlow",
    "PredNoise",
    "PredV",
    "PredX0",
    "Prediction",
    "Schedule",
    "Stratified",
    "Timesteps",
    "Uniform",
    "bound_term",
    "class_conditioning",
    "cosine",
    "discretised_log_likelihood",
    "edm",
    "linear",
    "normal_kl",
    "prior_term",
    "rectified",
    "sigmoid",
    "without_gradients",
]
