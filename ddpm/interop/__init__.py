"""Networks and checkpoints of other systems, brought here and taken back."""

from ddpm.interop.networks import import_network

__all__ = ["import_network"]
