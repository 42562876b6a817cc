"""The networks: anything that maps ``(x_t, t)`` to a prediction of the shape of x_t."""

from ddpm.models.iddpm_unet import IDDPMUNet
from ddpm.models.simple_unet import SimpleUNet
from ddpm.models.unet import UNet
from ddpm.models.unet3d import UNet3D

__all__ = ["IDDPMUNet", "SimpleUNet", "UNet", "UNet3D"]
