"""What the commands share: composing the config, and one line for each mistake."""

from __future__ import annotations

import difflib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ddpm import streams
from ddpm.cli import values
from ddpm.errors import ConfigError, Stopped
from ddpm.lifetime import leaving, one_of_several
from ddpm.signals import STOPPED_STATUS, StopSignal, broken_off_by

# A function of the options, or a dataclass of them whose instances are called; gives a number.
Command = Callable[..., Any]
BUSY = "ddpm-busy"  # the name of threads that may be in one long call of a library
_NO_CHOICE = "Config group override must be a string"  # Hydra's bare ValueError for data=null
_FROM_CHECKPOINT = ("model", "diffusion", "schedule", "objective", "timesteps", "data", "trainer")


def config_dir() -> Path:
    """Where the configs lie: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "configs", package.parent / "configs"):
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(f"no configs beside {package}; reinstall ddpm")


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
                    print(usage(config_name))
                else:
                    _compose(config_name, command)
        except Stopped as stopped:
            if str(stopped) and os.environ.get("RANK", "0") == "0":
                _tell(config_name, str(stopped))
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
            _tell(config_name, str(error))
            failures.append(error)
            if os.getpid() != starter and not sweeps.keeps_table(config_name):
                raise  # else the process that started the sweep would not know
        return None

    try:
        sys.argv[1:] = [readable(argument, sys.argv[1:]) for argument in sys.argv[1:]]
        typed = sys.argv[1:]
        with _obeying():
            sys.argv[1:] = _prepared(config_name, typed)
    except ConfigError as error:
        _tell(config_name, str(error))
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
        if not composing and _NO_CHOICE not in str(error):
            raise
        if os.environ.get("DDPM_DEBUG"):
            raise
        _tell(config_name, explain(config_name, error, typed))
        sys.exit(1)
    except OSError as error:  # of Hydra, which makes the folder of a sweep
        _tell(config_name, f"{error.filename or 'out'}: {error.strerror}; choose another out=")
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

    Values are quoted where :func:`ddpm.cli.values.literal` says so. Beside ``resume``, options may
    be those of groups that are not the default ones, so they are marked as additions.
    """
    from ddpm.cli import sweeps

    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if value:
        sweep = sweeps.is_asked_for(arguments)
        value = values.literal(key.lstrip("+"), value, sweep=sweep)
    if key.startswith("network."):  # arguments of somebody else's constructor: any are possible
        key = f"++{key}"
    plain = "." in key and "@" not in key and key[0].isalpha()
    if plain and any(a.startswith("resume=") for a in arguments):
        key = f"++{key}"
    return f"{key}={value}"


def usage(config_name: str) -> str:
    """The text of ``--help``: the root config, which explains itself, and what the groups hold."""
    place = config_dir()
    lines = (place / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    groups = {name for line in lines if (name := line.strip(" -").partition(":")[0])}
    parts = [
        f"  {folder.name}={'|'.join(sorted(path.stem for path in folder.glob('*.yaml')))}"
        for folder in sorted(place.iterdir())
        if folder.name in groups and folder.is_dir()
    ]
    options = [f"  {line}" for line in lines if re.match(r"[a-z]\w*: ", line)]
    return "\n".join(
        [
            f"usage: ddpm-{config_name} [option=value | group=choice | group.option=value] ...",
            "",
            *about,
            "",
            "groups, and the choices in them:",
            *parts,
            "",
            "options at their defaults:",
            *options,
            "",
            "--cfg job shows all options of the groups as composed; -m runs a sweep over values",
            "given with commas; --hydra-help lists the flags of Hydra.",
        ]
    )


def _prepared(config_name: str, arguments: list[str]) -> list[str]:
    """Return the arguments for Hydra; of a sweep, say where its jobs write."""
    from ddpm.cli import sweep_options, sweep_outputs, sweeps, workers

    workers.refuse_sweeps(arguments)
    prepared = sweeps.placed(config_name, sweeps.prepared(config_name, arguments))
    if sweeps.is_asked_for(prepared):
        prepared, places = sweep_outputs.separated(config_name, prepared)
        if places and any(a.endswith(sweep_options.SWEEPER) for a in prepared):
            places = [f"{places[0].rstrip(':')}, with its number"]  # some may become one job
        print("\n".join(places), end="\n" if places else "", flush=True)
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
    from ddpm.instantiate import check, load_plugins, plain, typed
    from ddpm.memory import is_out_of_memory

    options = values.expanded(plain(config))
    launched = options.pop("launch", None)
    if "ckpt" in options:
        for key in _FROM_CHECKPOINT:
            if key in options:
                raise ConfigError(key, None, _not_here(key))
    checked = check(options, command)
    if launched is not None:
        count = workers.count(typed(launched, workers.Launch, "launch"), checked["device"])
        if count > 1:
            return workers.start(count, _run, config, command)
    load_plugins(checked["plugins"])
    try:
        return _call(command, checked)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short = shortage(error, options)
    # Out of the handler: the error's frames hold what filled the memory, and a sweep goes on.
    raise short


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


def overrides() -> list[str]:
    """The options that were typed, without those that are for Hydra itself."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def typed_options() -> list[tuple[str, str]]:
    """The typed options with a value other than null: the key, and key and value as typed."""
    typed = [values.as_typed(text.lstrip("+~")) for text in overrides()]
    pairs = [(text.partition("=")[0].partition("@")[0], text) for text in typed]
    return [(key, text) for key, text in pairs if not text.endswith("=null")]


def choices() -> dict[str, str]:
    """Which file of each config group was chosen."""
    from hydra.core.hydra_config import HydraConfig

    return dict(HydraConfig.get().runtime.choices)


def tell(message: str) -> None:
    """Say something on the error stream."""
    print(message, file=sys.stderr, flush=True)


def say(accelerator: Any, message: str) -> None:
    """Say something on the output stream, once for all processes."""
    if accelerator.is_main_process:
        print(message, flush=True)


def warn_once(accelerator: Any, lines: Iterable[str]) -> None:
    """Print warnings on the error stream, once for all processes."""
    from ddpm.progress import warn

    for line in lines if accelerator.is_main_process else ():
        warn(line)


def _tell(config_name: str, message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)  # where the first process says the same, the launcher ends us meanwhile
    print(f"ddpm-{config_name}: {message}", file=sys.stderr)


def _not_here(key: str) -> str:
    return f"the {key} comes from the checkpoint; leave it out"


def explain(config_name: str, error: Exception, arguments: list[str]) -> str:
    """A composition error of Hydra or OmegaConf in one line: key, value, remedy."""
    told = str(error)
    typed = {
        a.lstrip("+~").split("=", 1)[0]: values.as_typed(a.partition("=")[2])
        for a in arguments
        if "=" in a
    }
    unknown = re.search(r"Could not override '([^']+)'", told)
    if unknown:
        key = unknown[1]
        group = key.split(".")[0].split("@")[0]
        said = f"{key}={typed[key]}" if key in typed else key
        if config_name != "train" and group in _FROM_CHECKPOINT:
            return f"{said}: {_not_here(group)}"
        return f"{said}: there is no such option{_near(config_name, key, arguments)}"
    if _NO_CHOICE in told:
        empty = (key for key, value in typed.items() if (config_dir() / key).is_dir() and value)
        group = next((key for key in empty if typed[key].lower() in ("null", "none", "~")), "group")
        return f"{group}=null: must be one of its choices; --help lists them"
    choice = re.search(r"Could not find '([^']+)'", told)
    if choice:
        group, _, name = choice[1].rpartition("/")
        found = re.search(
            r"Available options in '[^']*':\s*(.+?)(?:\nConfig search|\Z)", told, re.S
        )
        names = found[1].split() if found else []
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{group}={name}: there is no such choice (there are: {', '.join(names)}){hint}"
    if type(error).__name__ == "OverrideParseException":
        text = getattr(error, "override", "") or ""
        return f"{text}: cannot be read; quote values with = , or spaces: 'key=\"the value\"'"
    return " ".join(line.strip() for line in told.splitlines() if line.strip())


def _near(config_name: str, key: str, arguments: list[str]) -> str:
    """A suggestion for an unknown option, from the config without the values that were typed."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from ddpm.errors import did_you_mean

    place = config_dir()
    groups = [a for a in arguments if (place / a.split("=", 1)[0]).is_dir()]
    single = [a for a in groups if "," not in a]
    swept = [f"{a.partition('=')[0]}={choice}" for a in groups if a not in single
             for choice in a.partition("=")[2].split(",")]  # fmt: skip
    GlobalHydra.instance().clear()
    known: list[str] = []
    try:
        with initialize_config_dir(config_dir=str(place), version_base="1.3"):
            for choice in [[one] for one in swept] or [[]]:
                known += _paths(compose(config_name, overrides=[*single, *choice]))
    except Exception:  # the suggestion is a courtesy: any trouble here must not hide the mistake
        return ""
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [path for path in known if path.rsplit(".", 1)[-1] == leaf]
    if same_leaf:
        return did_you_mean(same_leaf[0], same_leaf)
    parent = key.rpartition(".")[0]
    beside = [path for path in known if path.rpartition(".")[0] == parent]
    if difflib.get_close_matches(key, known, n=1, cutoff=0.7):
        return did_you_mean(key, known)
    return did_you_mean(key, beside or [path for path in known if "." not in path])


def _paths(config: Any, prefix: str = "") -> list[str]:
    """All dotted paths of a config."""
    found = []
    for key in config:
        path = f"{prefix}{key}"
        found.append(path)
        node = config._get_node(key)
        if node is not None and hasattr(node, "keys") and not node._is_none():
            found.extend(_paths(node, f"{path}."))
    return found
