"""Errors of the system, such as a full disk or too little memory, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ddpm.errors import ConfigError
from ddpm.memory import is_out_of_memory, on_gpu, requested

Options = Mapping[str, Any]
T = TypeVar("T")
_HIGHER = "a higher trainer.accumulate (the same batch in smaller parts)"


def converted(work: Callable[[], T], options: Options) -> T:
    """Call a function and return its result.

    Args:
        work: a command.
        options: its composed options.

    Raises:
        ConfigError: the system reported an error, or the memory was not sufficient.
    """
    try:
        return work()
    except Exception as error:
        if is_out_of_memory(error):
            short = shortage(error, options)
        elif isinstance(error, OSError):
            place, remedy = str(error.filename or "out"), "fix this and run the same command again"
            raise ConfigError(place, None, str(error.strerror), remedy) from error
        else:
            raise
    # Outside of the handler: the frames of the error hold the memory that the next job needs.
    raise short


def shortage(error: BaseException, options: Options) -> ConfigError:
    """Return the error of a command that ran out of memory.

    Args:
        error: one that :func:`ddpm.memory.is_out_of_memory` recognizes.
        options: composed options of the command.
    """
    size = requested(error)
    where = "the GPU" if on_gpu(error) else "this machine"
    what = f"{where} ran out of memory" + (f" (allocating {size})" if size else "")
    if "trainer" in options:
        return _of_training(what, options)
    if "batch_size" not in options:
        return ConfigError("memory", None, f"{what}; use a machine with more memory, or free some")
    remedies = ["use a smaller batch_size (with the same results)"]
    if options.get("precision") in (("no",) if on_gpu(error) else ("no", "auto")):
        remedies.append("precision=bf16")
    return ConfigError("batch_size", options["batch_size"], f"{what}; {', or '.join(remedies)}")


def _of_training(what: str, options: Options) -> ConfigError:
    """Return the error of a training; the remedies that change least come first."""
    from ddpm.distributed.devices import world_size

    trainer, model = options["trainer"], options["model"]
    resumed = options.get("resume") is not None  # the options are those of the run
    remedies = [_HIGHER] if resumed else _smaller_parts(trainer, world_size(), "GPU" in what)
    if resumed or trainer["precision"] in (("no",) if "GPU" in what else ("no", "auto")):
        remedies.append("trainer.precision=bf16")
    if model.get("use_checkpoint") is False:
        remedies.append("model.use_checkpoint=true (a new run)")
    remedies.append("a smaller trainer.batch_size")
    problem = f"{what}; set {', or '.join(filter(None, [', '.join(remedies[:-1]), remedies[-1]]))}"
    problem += "; to change trainer options of an existing run, add override=true"
    return ConfigError("trainer.batch_size", None if resumed else trainer["batch_size"], problem)


def _smaller_parts(trainer: Options, world: int, gpu: bool) -> list[str]:
    """Return the remedy of smaller micro-batches; none if they have one item each."""
    batch_size, accumulate = trainer["batch_size"], trainer["accumulate"]
    automatic = "trainer.accumulate=auto (the same batch in parts that fit)"
    if accumulate == "auto" or (batch_size is None and not gpu):
        return [_HIGHER]
    if batch_size is None:
        return [automatic]
    samples = batch_size // world  # per step and process
    larger = range(2 * accumulate, samples + 1)
    parts = next((each for each in larger if samples % each == 0), None)
    if parts is None:
        return []
    return [automatic if gpu else f"trainer.accumulate={parts} (the same batch in smaller parts)"]
