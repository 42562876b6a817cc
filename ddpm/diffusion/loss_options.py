"""Options of the training loss that are not options of the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.errors import require

LossKind = Literal["simple", "hybrid", "vlb"]


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of :class:`~ddpm.diffusion.DiffusionLoss`, in the config node ``diffusion``.

    Attributes:
        loss: ``simple`` (the objective's), ``vlb`` (T times a term of the variational bound, in
            bits per dimension) or ``hybrid`` (simple plus ``vlb_weight`` times ``vlb``, which then
            trains the variance only; Nichol & Dhariwal 2021, equation 16).
        vlb_weight: weight of ``vlb`` in the hybrid loss.
        offset_noise: standard deviation of additional noise that is constant per channel (0.1 is
            usual), which lets samples be darker or lighter than average; 0 = off.
        label_dropout: share of training samples whose class label is dropped, for classifier-free
            guidance (Ho & Salimans 2022); requires class labels.
    """

    loss: LossKind = "simple"
    vlb_weight: float = 0.001
    offset_noise: float = 0.0
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        offset, share = self.offset_noise, self.label_dropout
        require(offset >= 0, "offset_noise", offset, "must be 0 (off) or above")
        require(0 <= share < 1, "label_dropout", share, "must be in [0, 1)")
        problem = "must be above 0; use loss=simple to train without the bound"
        require(self.vlb_weight > 0, "vlb_weight", self.vlb_weight, problem)
        problem = "is not part of the variational bound; set it to 0, or use loss=simple"
        require(self.loss == "simple" or offset == 0, "offset_noise", offset, problem)

    @property
    def drops_labels(self) -> bool:
        """True if the network is also trained without labels, and has a class for that."""
        return self.label_dropout > 0
