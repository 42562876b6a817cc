"""All checks, in order of value."""

from __future__ import annotations

from scripts.gpu import commands, numerics, runs, scaler, speed

CHECKS = [
    *numerics.CHECKS,
    *commands.CHECKS,
    *scaler.CHECKS,
    *speed.CHECKS,
    *runs.KILLS,
    *runs.OPTIONS,
]
