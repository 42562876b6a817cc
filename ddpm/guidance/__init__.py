"""Guidance of sampling: its options, and the denoisers that they stand for.

``options`` is imported without torch, for commands that read their arguments first;
``denoisers`` are wrappers of a denoiser that call nothing but it.
"""

from ddpm.guidance.options import (
    LATER_OPTIONS,
    NO_GUIDANCE,
    Guidance,
    GuidanceArguments,
    Guide,
    as_guidance,
    check_guide,
)

__all__ = [
    "LATER_OPTIONS", "NO_GUIDANCE",
    "Guidance", "GuidanceArguments", "Guide", "as_guidance", "check_guide",
]  # fmt: skip
