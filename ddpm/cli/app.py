"""Framework of the commands: composition of the config, errors in one line, exit status."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from ddpm import streams
from ddpm.cli import argument_errors, invocation
from ddpm.cli.usage import usage
from ddpm.config import values
from ddpm.config.location import config_dir
from ddpm.errors import ConfigError, Stopped, reported_as
from ddpm.lifetime import BUSY, leaving, one_of_several
from ddpm.signals import STOPPED_STATUS, StopSignal, interrupted_by

# A function of the options, or a dataclass of the options whose instances are callable.
Command = Callable[..., Any]


def main(config_name: str, command: Callable[[], Command]) -> None:
    """Compose and check the config of a command, run the command, and exit with its status.

    The status is 0 on success, 1 after a user's error, and 75 (EX_TEMPFAIL) after a signal or
    Ctrl-C: no work is lost, and the same command continues or starts again. A second signal ends
    the process at once with 128 + its number.

    Args:
        config_name: name of the root config, and of the command after ``ddpm-``.
        command: imports and returns the function to call with the root's options. It is called
            only when there is work to do, so that ``--help`` does not wait for torch.
    """
    streams.protect()
    with leaving() if one_of_several() else nullcontext():
        try:
            with StopSignal(last=True):  # from the start: also while Hydra and torch are imported
                if {"-h", "--help"} & set(sys.argv[1:]):
                    print(usage(config_name, sys.argv[1:]))
                else:
                    _compose(config_name, command)
        except Stopped as stopped:
            if str(stopped) and os.environ.get("RANK", "0") == "0":
                _report(config_name, str(stopped))
            if any(thread.name == BUSY for thread in threading.enumerate()):
                # The end of the interpreter would destroy objects that a library still uses.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(STOPPED_STATUS)
            sys.exit(STOPPED_STATUS)


def _compose(config_name: str, command: Callable[[], Command]) -> None:
    """Let Hydra compose the config, or the configs of a sweep, and run the command."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    typed = _read_arguments(config_name)
    import hydra  # after the errors that are found without it
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ddpm.cli import sweeps

    failures: list[BaseException] = []
    status = 0
    try:
        options = {"version_base": "1.3", "config_path": str(config_dir())}
        with _signals_first(), _composing_once(sys.argv[1:]):
            hydra.main(**options, config_name=config_name)(_job(config_name, command, failures))()
    except ConfigError as error:
        failures.append(error)  # of a job in another process, which has printed it
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        composing = isinstance(error, HydraException | OmegaConfBaseException)
        if not composing and argument_errors.NO_CHOICE not in str(error):
            raise
        if os.environ.get("DDPM_DEBUG"):
            raise
        _report(config_name, str(argument_errors.explain(config_name, error, typed)))
        sys.exit(1)
    except OSError as error:  # of Hydra, which makes the folder of a sweep
        _report(config_name, f"{error.filename or 'out'}: {error.strerror}; choose another out=")
        sys.exit(1)
    except Exception:  # of a launcher that misses the results of stopped jobs
        if not sweeps.is_stopping():
            raise
    finally:
        status = sweeps.finish()
    if failures or status:
        sys.exit(status or 1)


@contextmanager
def _composing_once(arguments: Sequence[str]) -> Iterator[None]:
    """Keep Hydra from composing the config first for ``hydra.mode``, which only users set."""
    from hydra._internal.hydra import Hydra

    before = Hydra.get_mode
    if not any("hydra" in each or each.startswith(("-c", "--config")) for each in arguments):
        Hydra.get_mode = lambda *_, **__: None
    try:
        yield
    finally:
        Hydra.get_mode = before


def _read_arguments(config_name: str) -> list[str]:
    """Check ``sys.argv`` and prepare it for Hydra; return the arguments as typed, but quoted.

    After an error the process exits with status 1.
    """
    try:
        argument_errors.check_arguments(config_name, sys.argv[1:])
        argument_errors.check_names(config_name, sys.argv[1:])
        typed = [readable(argument, sys.argv[1:]) for argument in sys.argv[1:]]
        with _signals_first():
            sys.argv[1:] = _prepared(config_name, typed)
    except ConfigError as error:
        _report(config_name, str(error))
        sys.exit(1)
    return typed


def _job(
    config_name: str, command: Callable[[], Command], failures: list[BaseException]
) -> Callable[[Any], float | None]:
    """Return the function that Hydra calls with the config of each job.

    It prints a ConfigError and appends it to ``failures``, so that the other jobs of a sweep run.
    """
    from ddpm.cli import sweeps

    starter = os.getpid()  # launchers run jobs in other processes

    def job(config: Any) -> float | None:
        streams.protect()

        def work() -> float | None:
            with _signals_first():
                return _run(config, command())

        try:
            return sweeps.record_job(config_name, config, starter, work)
        except ConfigError as error:
            if os.environ.get("DDPM_DEBUG"):
                import traceback

                traceback.print_exc()
            _report(config_name, str(error))
            failures.append(error)
            if os.getpid() != starter and not sweeps.has_table(config_name):
                raise  # only a table would show the failure to the process that started the sweep
        return None

    return job


def readable(argument: str, arguments: list[str]) -> str:
    """Return an argument in the form that Hydra's grammar requires.

    Values are quoted by :func:`ddpm.config.values.literal`. Beside ``resume``, ``init`` and the
    ``_target_`` of a group, options may belong to choices other than the defaults, so that they are
    marked as additions.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    key = "init.ckpt" if key == "init" else key
    if value:
        sweep = invocation.starts_sweep(arguments)
        value = values.literal(key.lstrip("+"), value, sweep=sweep)
    if argument_errors.is_addition(key, arguments):
        key = f"++{key}"
    return f"{key}={value}"


def _prepared(config_name: str, arguments: list[str]) -> list[str]:
    """Return the arguments for Hydra, and print the places of a sweep's results."""
    from ddpm.cli import sweep_options, sweep_outputs, sweeps, workers
    from ddpm.console import info

    workers.reject_sweep(arguments)
    prepared = sweeps.with_sweep_dir(config_name, sweeps.prepare(config_name, arguments))
    if invocation.starts_sweep(prepared):
        prepared, places = sweep_outputs.separate(config_name, prepared)
        if places and any(a.endswith(sweep_options.SWEEPER) for a in prepared):
            places = [f"{places[0].rstrip(':')}, with its number"]  # several may become one
        if places:
            info("\n".join(places))
    return prepared


@contextmanager
def _signals_first() -> Iterator[None]:
    """Raise Stopped in place of an error that a signal has caused.

    An import that a signal interrupts may raise any error.
    """
    try:
        yield
    except Exception as error:
        signal = interrupted_by()
        if signal is None:
            raise
        raise Stopped(f"stopped by {signal}") from error


def _run(config: Any, command: Command) -> float | None:
    """Check the composed options and run the command, in several processes if requested."""
    from ddpm.checkpoint_paths import check_checkpoint
    from ddpm.cli import workers
    from ddpm.cli.system_errors import converted
    from ddpm.config.declared import check_types
    from ddpm.config.registry import load_plugins, with_typed_classes
    from ddpm.config.schema import check, typed
    from ddpm.config.text import plain
    from ddpm.memory import import_torch

    typed_keys = {key for key, _ in invocation.typed_options()}
    options, typed_as = invocation.resolved(values.expanded(plain(config)), typed_keys)
    launch = options.pop("launch", None)
    for key in argument_errors.FROM_CHECKPOINT if "ckpt" in options else ():
        if key in options:
            raise ConfigError(key, None, argument_errors.from_checkpoint(key))
    checked = check(options, command, hint=_hint)
    check_types(checked, typed_keys, typed_as)
    check_checkpoint(checked)
    if launch is not None:
        count = workers.count(typed(launch, workers.Launch, "launch"), checked["device"])
        if count > 1:
            return workers.start(count, _run, config, command)
    load_plugins(checked["plugins"])
    checked |= with_typed_classes(checked, {*typed_as, *typed_keys})

    def work() -> float | None:
        import_torch()
        with reported_as(typed_as):
            result = command(**checked)
            return result() if isinstance(command, type) else result

    return converted(work, options)


def _hint(key: str, value: object) -> str:
    """Return the end of a message about an unknown option of a command."""
    from ddpm.errors import render

    name = invocation.command_name()
    return argument_errors.advice(name, key, render(value), invocation.overrides())


def _report(config_name: str, message: str) -> None:
    """Print the last line of a command that failed or stopped."""
    from ddpm.console import note

    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)  # if the first process prints the same, the launcher ends this one meanwhile
    note(f"ddpm-{config_name}: {message}")
