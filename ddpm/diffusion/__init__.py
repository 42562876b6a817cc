"""The mathematics of diffusion: schedules, objectives, the process, its loss, and denoisers.

Nothing here has parameters, draws random numbers of its own or names an axis: every function
works on ``(B, C, *spatial)`` of any rank.
"""

from ddpm.diffusion.conditioning import Conditioning, class_conditioning
from ddpm.diffusion.conditioning_mask import ConditioningMask
from ddpm.diffusion.denoiser import Clip, Clipping, Denoiser, DenoiserProtocol
from ddpm.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, GradientGuidance
from ddpm.diffusion.likelihood import bound_term, discretised_log_likelihood, normal_kl, prior_term
from ddpm.diffusion.loss import DiffusionLoss
from ddpm.diffusion.objective import Objective, PredNoise, PredV, PredX0
from ddpm.diffusion.process import GaussianDiffusion, Prediction
from ddpm.diffusion.schedule import Schedule
from ddpm.diffusion.schedules import cosine, linear, sigmoid
from ddpm.diffusion.timesteps import LossSecondMoment, Timesteps, Uniform

__all__ = [
    "Autoguidance",
    "ClassifierFreeGuidance",
    "Clip",
    "Clipping",
    "Conditioning",
    "ConditioningMask",
    "Denoiser",
    "DenoiserProtocol",
    "DiffusionLoss",
    "GaussianDiffusion",
    "GradientGuidance",
    "LossSecondMoment",
    "Objective",
    "PredNoise",
    "PredV",
    "PredX0",
    "Prediction",
    "Schedule",
    "Timesteps",
    "Uniform",
    "bound_term",
    "class_conditioning",
    "cosine",
    "discretised_log_likelihood",
    "linear",
    "normal_kl",
    "prior_term",
    "sigmoid",
]
