"""The mathematics of diffusion: schedules, objectives, the process and the denoiser.

Nothing here holds parameters, draws random numbers of its own or names an axis: every function
works on ``(B, C, *spatial)`` of any rank.
"""

from ddpm.diffusion.denoiser import Clip, Denoiser, Denoises, Guided
from ddpm.diffusion.objective import Objective, PredNoise, PredV, PredX0
from ddpm.diffusion.process import GaussianDiffusion, Prediction
from ddpm.diffusion.schedule import Schedule, cosine, linear, sigmoid

__all__ = [
    "Clip",
    "Denoiser",
    "Denoises",
    "GaussianDiffusion",
    "Guided",
    "Objective",
    "PredNoise",
    "PredV",
    "PredX0",
    "Prediction",
    "Schedule",
    "cosine",
    "linear",
    "sigmoid",
]
