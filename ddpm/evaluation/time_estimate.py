"""Expected durations of the parts of an evaluation, corrected as the work goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddpm.console import duration, echo
from ddpm.distributed.batches import Share
from ddpm.evaluation.partial_results import Parts
from ddpm.generation import SamplingPipeline
from ddpm.training.trial import median_seconds

_TRIAL_SECONDS = 0.3
_WORTH_TELLING = 200  # network calls, below which nobody waits long
_LONG = 60.0  # seconds that are left, from which on it is said after each part


@dataclass(frozen=True)
class Stage:
    """A part of an evaluation.

    Attributes:
        metrics: the requested metrics that it is for, such as ``fid, kid``.
        part: the name under which its finished batches are kept.
        option: the option that determines its length.
        count: the value of that option.
        calls: network calls per item.
        batches: batches that the busiest process still has to do.
    """

    metrics: str
    part: str
    option: str
    count: int
    calls: int
    batches: int = 0

    @property
    def left(self) -> int:
        """Network calls of whole batches that are left."""
        return self.batches * self.calls


class Estimate:
    """Says how long each stage takes, and after each how long the rest will take.

    Args:
        main: True on the process that prints.
    """

    def __init__(self, main: bool) -> None:
        self.main = main
        self.stages: list[Stage] = []
        self._per_call = self._began = 0.0

    def add(self, stage: Stage, share: Share, parts: Parts) -> None:
        """Add the next stage, without the batches of this process that are finished."""
        finished = sum(parts.has(stage.part, batch) for batch in share.batches())
        self.stages.append(replace(stage, batches=share.most - finished))

    def begin(
        self, pipeline: SamplingPipeline, classes: Sequence[int] | None, batch_size: int
    ) -> None:
        """Measure some network calls, which count for nothing, and print the estimates."""
        long = [stage for stage in self.stages if stage.left >= _WORTH_TELLING]
        if not long:
            self.stages = []
            return
        size = min(batch_size, long[0].count)
        call = pipeline.benchmark_call(size, classes)
        self._per_call = median_seconds(call, pipeline.device, seconds=_TRIAL_SECONDS)
        for stage in long:
            took, fewer = self._per_call * stage.left, max(stage.count // 10, 2)
            self._say(
                f"{stage.metrics}: {stage.option}={stage.count} of {stage.calls} network calls "
                f"each: about {duration(took)} on this machine; {stage.option}={fewer} takes "
                f"{duration(took * fewer / stage.count)}"
            )
        if len(long) > 1:
            total = self._per_call * sum(stage.left for stage in self.stages)
            self._say(f"in all about {duration(total)}")
        self._began = time.perf_counter()

    def done(self, metrics: str) -> None:
        """Print how long the rest will take, by the time that the stage just done took."""
        now = time.perf_counter()
        stage = next((each for each in self.stages if each.metrics == metrics), None)
        if stage is None:
            return
        if stage.left:
            self._per_call = (now - self._began) / stage.left
        self.stages.remove(stage)
        self._began = now
        left = self._per_call * sum(each.left for each in self.stages)
        if left >= _LONG:
            self._say(f"{metrics}: done; about {duration(left)} left")

    def _say(self, line: str) -> None:
        if self.main:
            echo(line)
