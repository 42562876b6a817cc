"""Duration of a training: its estimate at the start, and ``trainer.max_minutes``."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ddpm.distributed.consensus import broadcast, gather
from ddpm.training.budget import Estimate, preview_steps
from ddpm.training.pace import PREVIEW_SHARE
from ddpm.training.trial import seconds_per_step

if TYPE_CHECKING:
    from ddpm.runs.plan import Plan
    from ddpm.samplers import Sampler
    from ddpm.training import Trainer

_MIN_STEPS = 200  # for fewer steps a trial would take a noticeable part of the run
_SHARE = 0.005  # maximum share of a run for the trial of its estimate
_SECONDS = 1.0  # maximum duration of this trial
LOOP = 1.08  # duration of a step in the loop over that in a trial, see BENCHMARKS.md
_PLAN_SHARE = 0.05  # share of trainer.max_minutes for the trial that determines the number of steps


class Timing:
    """Measures the duration of a step before the first one; every process calls each method.

    Args:
        training: the trainer, at the start or after resuming.
        sampler: the sampler of the previews.
        step: seconds per step, if measured before.
        began: ``time.monotonic()`` at the start of ``trainer.max_minutes``; None = now.
    """

    def __init__(
        self,
        training: Trainer,
        sampler: Sampler,
        step: float | None = None,
        *,
        began: float | None = None,
    ) -> None:
        self.training = training
        self._began = time.monotonic() if began is None else began
        calls = sampler.num_calls(len(sampler.timesteps(training.diffusion.schedule)) - 1)
        self.preview = preview_steps(training.options.preview_samples, calls, training.batch_size)
        training.pace.expected = self.preview
        alone = training.accelerator.num_processes == 1
        self._step = step if alone else None  # with several, the slowest process counts
        self._planned = False

    def planned(self, planned: Plan) -> Plan:
        """Return a plan whose ``trainer.max_steps`` is the last step of the run.

        For a new run with ``trainer.max_minutes`` it is the number of steps that fit into that
        time, measured now. The run stores it for resuming.
        """
        training, minutes = self.training, self.training.options.max_minutes
        if not planned.timed or minutes is None:
            training.max_steps = planned.config["trainer"]["max_steps"]
            return planned
        self._planned = True
        estimate = self._estimate(_PLAN_SHARE * 60 * minutes)
        left = 60 * minutes - (time.monotonic() - self._began)
        steps = broadcast(training.accelerator, estimate.steps(left))
        training.max_steps = training.step + steps
        trainer = {**planned.config["trainer"], "max_steps": training.max_steps}
        return replace(planned, config={**planned.config, "trainer": trainer})

    def line(self) -> str:
        """Return a message about the expected duration, empty for a run too short to measure."""
        training = self.training
        left = training.max_steps - training.step
        without = ", without evaluations" if training.options.evaluate_every else ""
        if not self._planned:
            if left < _MIN_STEPS:
                return ""
            one = self._measured(0.0) if self._step is None else self._step
            return self._estimate(min(_SHARE * left * one, _SECONDS)).line(
                training.step, training.max_steps, without
            )
        line = self._estimate(0.0).line(training.step, training.max_steps, without)
        return f"trainer.max_minutes={training.options.max_minutes:g}: {line}"

    def _estimate(self, seconds: float) -> Estimate:
        """Return the expected speed, measured for about ``seconds`` unless measured before."""
        if self._step is None:
            self._step = self._measured(seconds)
        options = self.training.options
        every = options.preview_interval
        if options.preview_every is None:  # less often, if they would exceed their share
            every = max(every, math.ceil(self.preview * (1 / PREVIEW_SHARE - 1)))
        return Estimate(LOOP * self._step, self.preview * self._step, every)

    def _measured(self, seconds: float) -> float:
        """Return the seconds per step of the slowest process."""
        return max(
            gather(self.training.accelerator, seconds_per_step(self.training, seconds=seconds))
        )
