"""Train, sample and interpolate denoising diffusion models."""

__version__ = "0.1.0"
