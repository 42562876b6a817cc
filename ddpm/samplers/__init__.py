"""Samplers: the reverse loop stands in ``base``; every other file is one update rule."""

from ddpm.samplers.base import Sampler
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM

__all__ = ["DDIM", "DDPM", "Sampler"]
