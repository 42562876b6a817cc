"""The mathematics of diffusion: schedules, objectives, the process and the denoiser.

Nothing here holds parameters, draws random numbers of its own or names an axis: every function
works on ``(B, C, *spatial)`` of any rank.
"""

from ddpm.diffusion.denoiser import Clip, Denoiser, Denoises, Guided
from ddpm.diffusion.given import Given
from ddpm.diffusion.likelihood import bound_term, discretised_log_likelihood, normal_kl, prior_term
from ddpm.diffusion.objective import Objective, PredNoise, PredV, PredX0
from ddpm.diffusion.process import GaussianDiffusion, Prediction
from ddpm.diffusion.schedule import Schedule, cosine, linear, sigmoid
from ddpm.diffusion.timesteps import LossSecondMoment, Timesteps, Uniform

__all__ = [
    "Clip",
    "Denoiser",
    "Denoises",
    "GaussianDiffusion",
    "Given",
    "Guided",
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
    "cosine",
    "discretised_log_likelihood",
    "linear",
    "normal_kl",
    "prior_term",
    "sigmoid",
]
