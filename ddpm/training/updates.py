"""Updates of the weights: applied where the gradient is finite, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable

from ddpm.distributed.consensus import Agreed, PostedStatus, agree, post_status
from ddpm.training.step import GradientDecision, StepResult
from ddpm.training.trainer import Trainer

# Decides about the gradient of a step, equally on every process; raises to end the training.
Decide = Callable[[StepResult, Agreed], GradientDecision]


class Updates:
    """Applies the gradients of training steps, or skips them.

    On a CPU the host decides, then updates the weights. With a GPU each step would wait there: the
    host until the gradient is computed, then the GPU until the host has queued more work. So the
    optimizer skips a gradient that is not finite on the device, and the host decides about a step
    after it has queued the forward and backward passes of the next one. The update of the average
    and the next learning rate depend on the decision, and follow it.

    Args:
        trainer: computes and applies the gradients.
        decide: see :data:`Decide`.
        delayed: decide about a step during the next one; None = on a GPU.
    """

    def __init__(self, trainer: Trainer, decide: Decide, *, delayed: bool | None = None) -> None:
        self.trainer, self.decide = trainer, decide
        on_gpu = trainer.accelerator.device.type != "cpu"
        self.delayed = on_gpu if delayed is None else delayed
        self._open: tuple[StepResult, PostedStatus] | None = None

    def apply(
        self, result: StepResult, *, stop: bool = False, failed: bool = False, save: bool = False
    ) -> None:
        """Apply the gradient of a step, after the decision about the step before it.

        Args:
            result: of :meth:`Trainer.accumulate_gradient`.
            stop, failed, save: see :func:`ddpm.distributed.consensus.agree`.
        """
        self.settle()
        trainer, accelerator = self.trainer, self.trainer.accelerator
        if not self.delayed:
            agreed = agree(accelerator, result.norm, stop=stop, failed=failed, save=save)
            trainer.apply_gradient(self.decide(result, agreed))
            return
        status = post_status(accelerator, result.norm, stop=stop, failed=failed, save=save)
        trainer.apply_if_finite(status.nonfinite)
        self._open = result, status

    def settle(self) -> None:
        """Decide about the latest step, if that is delayed.

        Counters, average, logs and checkpoints are complete after this.
        """
        if self._open is not None:
            (result, status), self._open = self._open, None
            self.trainer.conclude(self.decide(result, status.read()).counts)


def if_finite(result: StepResult, agreed: Agreed) -> GradientDecision:
    """Decide to use every gradient that is finite."""
    return GradientDecision(use=agreed.finite, counts=agreed.finite)
