"""Denoising networks, which map ``(x_t, t)`` to a prediction with the spatial size of x_t."""

from ddpm.models.iddpm_unet import IDDPMUNet
from ddpm.models.simple_unet import SimpleUNet
from ddpm.models.unet import UNet
from ddpm.models.unet3d import UNet3D

__all__ = ["IDDPMUNet", "SimpleUNet", "UNet", "UNet3D"]
