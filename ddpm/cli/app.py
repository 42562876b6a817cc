"""What the commands share: composing the config, and one line for each mistake."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ddpm import streams
from ddpm.cli import explaining, invocation
from ddpm.cli.usage import usage
from ddpm.config import values
from ddpm.config.location import config_dir
from ddpm.errors import ConfigError, Stopped, reported_as
from ddpm.lifetime import BUSY, leaving, one_of_several
from ddpm.signals import STOPPED_STATUS, StopSignal, broken_off_by

# A function of the options, or a dataclass of them whose instances are called; gives a number.
Command = Callable[..., Any]


def main(config_name: str, command: Callable[[], Command]) -> None:
    """Compose the config of a command, check it, run it, and exit with what came of it.

    The status is 0 when all is done, 1 after a user's mistake, and 75 after a signal, Ctrl-C among
    them, in every command and any number of processes: nothing is lost, and the same command
    continues or starts afresh. A second signal ends the process at once with 128 + its number.

    Args:
        config_name: the root config, and the command's name after ``ddpm-``.
        command: imports and returns the function to call with the root's options. It is called
            only when there is work to do, so that ``--help`` does not wait for torch.
    """
    streams.protect()
    with leaving() if one_of_several() else nullcontext():
        try:
            with StopSignal(last=True):  # from the start: also while Hydra and torch are loaded
                if {"-h", "--help"} & set(sys.argv[1:]):
                    print(usage(config_name, sys.argv[1:]))
                else:
                    _compose(config_name, command)
        except Stopped as stopped:
            if str(stopped) and os.environ.get("RANK", "0") == "0":
                _report(config_name, str(stopped))
            if any(thread.name == BUSY for thread in threading.enumerate()):
                # Python would take apart what a library still works with.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(STOPPED_STATUS)
            sys.exit(STOPPED_STATUS)


def _compose(config_name: str, command: Callable[[], Command]) -> None:
    """Have Hydra compose the config, or those of a sweep, and call the command."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ddpm.cli import sweeps

    failures: list[BaseException] = []
    starter = os.getpid()  # launchers run jobs in other processes

    def job(config: Any) -> float | None:
        streams.protect()

        def work() -> float | None:
            with _obeying():
                return _run(config, command())

        try:
            return sweeps.recorded(config_name, config, starter, work)
        except ConfigError as error:
            if os.environ.get("DDPM_DEBUG"):
                traceback.print_exc()
            _report(config_name, str(error))
            failures.append(error)
            if os.getpid() != starter and not sweeps.keeps_table(config_name):
                raise  # else the process that started the sweep would not know
        return None

    try:
        explaining.check_arguments(config_name, sys.argv[1:])
        sys.argv[1:] = [readable(argument, sys.argv[1:]) for argument in sys.argv[1:]]
        typed = sys.argv[1:]
        with _obeying():
            sys.argv[1:] = _prepared(config_name, typed)
    except ConfigError as error:
        _report(config_name, str(error))
        sys.exit(1)
    status = 0
    try:
        options = {"version_base": "1.3", "config_path": str(config_dir())}
        with _obeying():
            hydra.main(**options, config_name=config_name)(job)()
    except ConfigError as error:
        failures.append(error)  # of a job in another process, which has told it
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        composing = isinstance(error, HydraException | OmegaConfBaseException)
        if not composing and explaining.NO_CHOICE not in str(error):
            raise
        if os.environ.get("DDPM_DEBUG"):
            raise
        _report(config_name, explaining.explain(config_name, error, typed))
        sys.exit(1)
    except OSError as error:  # of Hydra, which makes the folder of a sweep
        _report(config_name, f"{error.filename or 'out'}: {error.strerror}; choose another out=")
        sys.exit(1)
    except Exception:  # a launcher that misses jobs which were told to stop
        if not sweeps.is_stopping():
            raise
    finally:
        status = sweeps.conclude()
    if failures or status:
        sys.exit(status or 1)


def readable(argument: str, arguments: list[str]) -> str:
    """An argument as Hydra's grammar reads it.

    Values are quoted where :func:`ddpm.config.values.literal` says so. Beside ``resume`` and
    the ``_target_`` of a group, options may be those of choices that are not the default ones, so
    they are marked as additions.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if value:
        sweep = invocation.starts_sweep(arguments)
        value = values.literal(key.lstrip("+"), value, sweep=sweep)
    if key.startswith("network."):  # arguments of somebody else's constructor: any are possible
        key = f"++{key}"
    plain = "." in key and "@" not in key and key[0].isalpha()
    group = key.partition(".")[0]
    others = ("resume=", f"{group}._target_=")
    if plain and any(a.startswith(others) for a in arguments):
        key = f"++{key}"
    return f"{key}={value}"


def _prepared(config_name: str, arguments: list[str]) -> list[str]:
    """Return the arguments for Hydra; of a sweep, say where its jobs write."""
    from ddpm.cli import sweep_options, sweep_outputs, sweeps, workers
    from ddpm.console import info

    workers.refuse_sweeps(arguments)
    prepared = sweeps.placed(config_name, sweeps.prepared(config_name, arguments))
    if invocation.starts_sweep(prepared):
        prepared, places = sweep_outputs.separated(config_name, prepared)
        if places and any(a.endswith(sweep_options.SWEEPER) for a in prepared):
            places = [f"{places[0].rstrip(':')}, with its number"]  # some may become one job
        if places:
            info("\n".join(places))
    return prepared


@contextmanager
def _obeying() -> Iterator[None]:
    """Raise Stopped in place of errors inside that a signal has caused.

    An import that it breaks off may end with any error, of which a line would be printed.
    """
    try:
        yield
    except Exception as error:
        signal = broken_off_by()
        if signal is None:
            raise
        raise Stopped(f"stopped by {signal}") from error


def _run(config: Any, command: Command) -> float | None:
    from ddpm.cli import workers
    from ddpm.cli.memory import shortage
    from ddpm.config.registry import load_plugins
    from ddpm.config.schema import check, typed
    from ddpm.config.text import plain
    from ddpm.memory import is_out_of_memory

    options, typed_as = invocation.resolved(values.expanded(plain(config)))
    launched = options.pop("launch", None)
    if "ckpt" in options:
        for key in explaining.FROM_CHECKPOINT:
            if key in options:
                raise ConfigError(key, None, explaining.not_here(key))
    checked = check(options, command, hint=_hint)
    if launched is not None:
        count = workers.count(typed(launched, workers.Launch, "launch"), checked["device"])
        if count > 1:
            return workers.start(count, _run, config, command)
    load_plugins(checked["plugins"])
    checked |= _retargeted(checked, typed_as)
    try:
        with reported_as(typed_as):
            return _call(command, checked)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short = shortage(error, options)
    # Out of the handler: the error's frames hold what filled the memory, and a sweep goes on.
    raise short


def _retargeted(options: dict[str, Any], aliased: Iterable[str]) -> dict[str, Any]:
    """Return the config groups whose class was typed, as in ``sampler._target_=mine.Own``.

    Args:
        options: of the command.
        aliased: options that were typed by other names.
    """
    from ddpm.config.registry import retargeted

    typed = {*aliased, *(key for key, _ in invocation.typed_options())}
    groups = [key.removesuffix("._target_") for key in typed if key.endswith("._target_")]
    return {key: retargeted(options[key], key, typed) for key in groups if key in options}


def _hint(key: str, value: object) -> str:
    """The end of a message about an option that a command does not have."""
    from ddpm.errors import render

    name = invocation.command_name()
    return explaining.advice(name, key, render(value), invocation.overrides())


def _call(command: Command, options: dict[str, Any]) -> float | None:
    """Run a command on its checked options."""
    from ddpm.memory import is_out_of_memory

    try:
        made = command(**options)
        return made() if isinstance(command, type) else made
    except OSError as error:
        if is_out_of_memory(error):
            raise
        problem = f"{error.strerror}; mend that, then run the same command again"
        raise ConfigError(str(error.filename or "out"), None, problem) from error


def _report(config_name: str, message: str) -> None:
    """Print the last line of a command that failed or stopped."""
    from ddpm.console import note

    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)  # if the first process prints the same, the launcher ends this one meanwhile
    note(f"ddpm-{config_name}: {message}")
