"""Import and export of networks and checkpoints of other systems."""

from ddpm.interop.networks import import_network

__all__ = ["import_network"]
