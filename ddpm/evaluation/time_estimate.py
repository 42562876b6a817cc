"""Estimated durations of the stages of an evaluation, corrected after each stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddpm.console import duration, info
from ddpm.distributed.sharding import Shard
from ddpm.evaluation.partial_results import PartialResults
from ddpm.pipeline import SamplingPipeline
from ddpm.training.trial import median_seconds

_TRIAL_SECONDS = 0.3
_MIN_CALLS = 200  # network calls of a stage that is worth an estimate
_MIN_SECONDS_LEFT = 60.0  # for an estimate after a stage


@dataclass(frozen=True)
class Stage:
    """A stage of an evaluation.

    Attributes:
        metrics: the requested metrics that it computes, such as ``fid, kid``.
        name: of its partial results.
        option: the option that determines its length.
        count: the value of that option.
        calls: network calls per item.
        batches: batches that the process with the most batches has to compute.
    """

    metrics: str
    name: str
    option: str
    count: int
    calls: int
    batches: int = 0

    @property
    def calls_left(self) -> int:
        """Network calls that are left, each with a whole batch."""
        return self.batches * self.calls


class Estimate:
    """Prints how long each stage takes and, after each stage, how long the others will take.

    Args:
        main: True on the process that prints.
    """

    def __init__(self, main: bool) -> None:
        self.main = main
        self.stages: list[Stage] = []
        self._seconds_per_call = self._start = 0.0

    def add(self, stage: Stage, shard: Shard, partial_results: PartialResults) -> None:
        """Add the next stage, without the finished batches of this process."""
        finished = sum(partial_results.has(stage.name, batch) for batch in shard.batches())
        self.stages.append(replace(stage, batches=shard.most_batches - finished))

    def begin(
        self, pipeline: SamplingPipeline, classes: Sequence[int] | None, batch_size: int
    ) -> None:
        """Measure the duration of a network call and print the estimates.

        Args:
            pipeline: denoiser and sampler.
            classes: numbers of classes; None for an unconditional model.
            batch_size: samples per call.
        """
        long = [stage for stage in self.stages if stage.calls_left >= _MIN_CALLS]
        if not long:
            self.stages = []
            return
        size = min(batch_size, long[0].count)
        call = pipeline.benchmark_call(size, classes)
        self._seconds_per_call = median_seconds(call, pipeline.device, seconds=_TRIAL_SECONDS)
        for stage in long:
            seconds, fewer = self._seconds_per_call * stage.calls_left, max(stage.count // 10, 2)
            self._print(
                f"{stage.metrics}: {stage.option}={stage.count} of {stage.calls} network calls "
                f"each: about {duration(seconds)} on this machine; {stage.option}={fewer} takes "
                f"{duration(seconds * fewer / stage.count)}"
            )
        if len(long) > 1:
            total = self._seconds_per_call * sum(stage.calls_left for stage in self.stages)
            self._print(f"in all about {duration(total)}")
        self._start = time.perf_counter()

    def done(self, metrics: str) -> None:
        """Print how long the other stages will take, estimated from the stage of these metrics."""
        now = time.perf_counter()
        stage = next((each for each in self.stages if each.metrics == metrics), None)
        if stage is None:
            return
        if stage.calls_left:
            self._seconds_per_call = (now - self._start) / stage.calls_left
        self.stages.remove(stage)
        self._start = now
        left = self._seconds_per_call * sum(each.calls_left for each in self.stages)
        if left >= _MIN_SECONDS_LEFT:
            self._print(f"{metrics}: done; about {duration(left)} left")

    def _print(self, line: str) -> None:
        if self.main:
            info(line)
