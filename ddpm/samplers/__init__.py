"""Samplers: ``base`` contains the sampling loop, every other file one update rule.

An option outside its range raises :class:`~ddpm.errors.ConfigError`.
"""

from ddpm.samplers.base import Sampler
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.deis import DEIS
from ddpm.samplers.dpmpp import DPMpp
from ddpm.samplers.heun import Heun
from ddpm.samplers.ipndm import IPNDM
from ddpm.samplers.unipc import UniPC

__all__ = ["DDIM", "DDPM", "DEIS", "IPNDM", "DPMpp", "Heun", "Sampler", "UniPC"]
