"""The networks: anything that maps ``(x_t, t)`` to a prediction of the shape of x_t."""

from ddpm.models.iddpm_unet import IDDPMUNet
from ddpm.models.unet import UNet

__all__ = ["IDDPMUNet", "UNet"]
