"""Extraction of a network's weights from a checkpoint, whatever wraps them.

Networks are saved inside dictionaries (``{"state_dict": ...}``, ``{"model": ..., "ema": ...}``),
as a part of other modules (``model.``, ``ema.ema_model.``) and inside wrappers of torch
(``module.``, ``_orig_mod.``), in any combination. All of these are prefixes of the dotted name of
an entry. So a network is located by the name of its first layer, its anchor: the part of the name
before the anchor is the prefix of the whole network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.interop.files import Parts

Anchors = Mapping[str, Sequence[int]]
"""Parameter names that every network of a system has, with their possible numbers of axes."""

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_DEPTH = 16  # of nested dictionaries, which can contain themselves
_EMA = re.compile(
    r"(?<![A-Za-z])(ema|Ema|EMA)|(?<=[a-z])E(ma|MA)|[Aa]verag|(?<![a-z])swa|[Ss]hadow"
)
_ONLINE = re.compile(r"online(_model)?")  # raw weights in the state of ema-pytorch
_TRAINING = re.compile(
    r"opt|optim|\w*optimi[sz]er\w*|\w*sched(uler)?s?|\w*scheduler\w*|\w*scaler\w*|callbacks|loops"
    r"|hyper_parameters|hparams\w*|args|config|cfg|\w*rng\w*|\w*random_state\w*|logs?|history"
    r"|metrics?|meters?"
)
_COUNTERS = ("initted", "step", "n_averaged", "num_updates", "num_batches_tracked", "decay")
_NUMBERS = re.compile(
    r"\w*steps?|\w*iter(ation)?s?|\w*epochs?|\w*loss(es)?|best_\w+|lr|scale_factor|logvar"
)
_TABLES = re.compile(
    r"(log_|sqrt_|posterior_)\w+|alphas?(_\w+)?|betas?(_\w+)?|sigmas?(_\w+)?|snrs?|lvlb_weights"
    r"|(p2_)?loss_weights?|timesteps?"
)


def unwrap(content: Any, source: str, anchors: Anchors) -> Parts:
    """Return the weights of the network, their average, and other entries of a checkpoint.

    Of several equal raw networks the first is used, and one in ema-pytorch's state
    (``online_model``) only as a last resort. If a file contains averaged weights only, they are
    returned as both.

    Args:
        content: dictionaries, lists and tensors of the file.
        source: name of the system.
        anchors: of the system's networks.

    Raises:
        ConfigError: (key ``file``) no network, several different ones, or further weights.
        ValueError: a step that is not a number.
    """
    leaves = dict(_flat(content))
    tensors = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    require(bool(tensors), "file", None, f"contains no weights, and so no network of {source}")
    prefixes = _prefixes(tensors, anchors)
    require(bool(prefixes), "file", None, f"contains no network of {source}")
    networks = _Networks(leaves, prefixes)
    networks.require_nothing_else(source)
    raw, ema = networks.choose(source, "raw"), networks.choose(source, "ema")
    raw = networks.choose(source, "online") if raw is None else raw
    main = raw if raw is not None else ema
    assert main is not None
    step = networks.beside(main, "step", "global_step")
    version = networks.beside(main, "version")
    return Parts(
        raw=networks.weights[main],
        ema=None if ema is None else networks.weights[ema],
        buffers=_tables(tensors, main),
        step=None if step is None else _step_number(step),
        version=version if isinstance(version, str) else None,
        only_average=raw is None,
        ignored=networks.ignored(main, ema),
    )


def holds_network(content: Any, anchors: Anchors) -> bool:
    """Return True if a checkpoint contains a network with these anchors."""
    return bool(_prefixes({n: v for n, v in _flat(content) if isinstance(v, Tensor)}, anchors))


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each entry with its dotted name, without the names of torch's wrappers.

    Raises:
        ConfigError: (key ``file``) two different entries have the same name.
    """
    done: dict[str, Any] = {}
    for path, value in _walk(content, (), set()):
        parts = ".".join(path).split(".")
        name = ".".join(part for part in parts if part not in _WRAPPERS) or ".".join(path)
        if name in done:
            if isinstance(value, Tensor) and isinstance(done[name], Tensor):
                problem = f"contains {name} twice with different values; save one network alone"
                require(_same(done[name], value), "file", None, problem)
            continue
        done[name] = value
        yield name, value


def _walk(
    value: Any, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the entries of nested dictionaries, and of lists of them; each container once."""
    items: Any = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
        items = enumerate(value)
    training = bool(path) and _TRAINING.fullmatch(path[-1]) and path[-1] != "callbacks"
    if items is None or training or len(path) >= _DEPTH:
        yield path, value
    elif id(value) not in seen:
        seen.add(id(value))
        for key, inside in items:
            yield from _walk(inside, (*path, str(key)), seen)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _prefixes(tensors: Mapping[str, Tensor], anchors: Anchors) -> list[str]:
    """Return the prefixes before the first anchor that occurs."""
    for anchor, axes in anchors.items():
        prefixes = [
            name.removesuffix(anchor)
            for name, value in tensors.items()
            if f".{name}".endswith(f".{anchor}") and value.ndim in axes
        ]
        if prefixes:
            return prefixes
    return []


def _kind(prefix: str) -> str:
    """Return ``raw``, ``ema``, or ``online`` for the raw weights in ema-pytorch's state."""
    for part in reversed(prefix.split(".")):
        if _ONLINE.fullmatch(part):
            return "online"
        if _EMA.search(part):
            return "ema"
    return "raw"


@dataclass
class _Networks:
    """The entries of a file, assigned to the networks in it.

    Attributes:
        leaves: all entries by name.
        prefixes: of the networks.
        weights: of each network, by prefix.
        others: entries that are not weights: counters, tables, the training state.
        unknown: names of tensors that are neither.
    """

    leaves: Mapping[str, Any]
    prefixes: Sequence[str]
    weights: dict[str, dict[str, Tensor]] = field(init=False)
    others: list[str] = field(init=False, default_factory=list)
    unknown: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.weights = {prefix: {} for prefix in self.prefixes}
        for name, value in self.leaves.items():
            inside = [prefix for prefix in self.prefixes if name.startswith(prefix)]
            prefix = max(inside, key=len, default=None)
            if not isinstance(value, Tensor) or self._is_extra(name, value, prefix):
                self.others.append(name)
            elif prefix is None:
                self.unknown.append(name)
            else:
                self.weights[prefix][name.removeprefix(prefix)] = value
        self._read_squashed()

    def _is_extra(self, name: str, value: Tensor, prefix: str | None) -> bool:
        """Return True if name and shape show that a tensor is not a weight of a network."""
        parts = name.removeprefix(prefix or "").split(".")
        if any(map(_TRAINING.fullmatch, parts)) or (parts[-1] in _COUNTERS and value.numel() == 1):
            return True
        if prefix is not None and len(parts) > 1:  # inside a layer of a network
            return False
        if value.ndim == 0 and (prefix is None or not value.is_floating_point()):
            return True
        named = _TABLES.fullmatch(parts[-1]) or _NUMBERS.fullmatch(parts[-1])
        return value.ndim <= 1 and bool(named)

    def _read_squashed(self) -> None:
        """Read averages whose names lack their dots, as saved by latent diffusion's code."""
        for prefix in [each for each in self.prefixes if _kind(each) == "raw"]:
            parts, names = prefix.split("."), self.weights[prefix]
            outer = {"".join(parts[n:]) for n in range(len(parts))}
            squashed = {f"{o}{name.replace('.', '')}": name for name in names for o in outer}
            if len(squashed) < len(outer) * len(names):
                continue  # names without dots are ambiguous
            for name in list(self.unknown):
                place, _, last = name.rpartition(".")
                if last in squashed and _EMA.search(place):
                    self.weights.setdefault(f"{place}.", {})[squashed[last]] = self.leaves[name]
                    self.unknown.remove(name)

    def require_nothing_else(self, source: str) -> None:
        """Raise ConfigError for tensors that are neither weights nor recognized extras."""
        names = ", ".join(self.unknown[:3])
        more = f" and {len(self.unknown) - 3} more" if len(self.unknown) > 3 else ""
        problem = (
            f"contains tensors beside the network of {source} that would be lost: {names}{more}; "
            "save the network's state dict alone, with torch.save(network.state_dict(), ...)"
        )
        require(not self.unknown, "file", None, problem)

    def kind(self, prefix: str) -> str:
        """Return the kind of a network; beside an ``AveragedModel`` of torch is its counter."""
        parts = prefix.split(".")[:-1]
        places = ["".join(f"{part}." for part in parts[:n]) for n in range(len(parts) + 1)]
        averaged = any(f"{place}n_averaged" in self.leaves for place in places)
        return "ema" if averaged else _kind(prefix)

    def choose(self, source: str, kind: str) -> str | None:
        """Return the prefix of the network of a kind; ConfigError for several different ones."""
        first, *rest = [each for each in self.weights if self.kind(each) == kind] or [None]
        if first is None:
            return None
        mine = self.weights[first]
        for other in rest:
            assert other is not None
            its = self.weights[other]
            same = its.keys() == mine.keys() and all(_same(its[n], mine[n]) for n in mine)
            problem = (
                f"contains several different networks of {source} (under '{first}' and '{other}'); "
                "save one of them alone, with torch.save(network.state_dict(), ...)"
            )
            require(same, "file", None, problem)
        return first

    def beside(self, prefix: str, *names: str) -> Any:
        """Return the value of the first of these names at or above a network, or None."""
        parts = prefix.split(".")[:-1]
        for depth in range(len(parts), -1, -1):
            place = "".join(f"{part}." for part in parts[:depth])
            for name in names:
                value = self.leaves.get(f"{place}{name}")
                if value is not None and _kind(place) == "raw":
                    return value
        return None

    def ignored(self, raw: str, ema: str | None) -> list[str]:
        """Return the names of unused entries, grouped by their parent."""
        names: dict[str, None] = {}
        tables = 0
        for name in self.others:
            parts = name.split(".")
            training = [n for n, part in enumerate(parts) if _TRAINING.fullmatch(part)]
            if _TABLES.fullmatch(parts[-1]) and not training:
                tables += 1
            elif parts[-1] not in ("step", "global_step", "version") or training or len(parts) > 1:
                names[".".join(parts[: training[0] + 1]) if training else name] = None
        unused = [each for each in self.weights if each not in (raw, ema)]
        copies = [f"a second copy of the weights ({each})" for each in unused]
        of_process = [f"{tables} tables of the noise schedule"] if tables else []
        return [*names, *copies, *of_process]


def _tables(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tables of the process nearest to the network, by name."""
    parts = prefix.split(".")

    def shared(place: str) -> int:
        pairs = zip(place.split("."), parts, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(parts))

    for name in ("betas", "loss_weight", "p2_loss_weight"):
        places = [n.removesuffix(name) for n in tensors if f".{n}".endswith(f".{name}")]
        if places:
            place = max(places, key=shared)
            inside = {n.removeprefix(place): v for n, v in tensors.items() if n.startswith(place)}
            return {n: v for n, v in inside.items() if "." not in n and v.ndim == 1}
    return {}


def _step_number(step: Any) -> int:
    """Return the number of optimizer steps; ValueError if it is invalid."""
    number = int(step)
    if number < 0:
        raise ValueError(f"step {number}")
    return number


def plain(
    weights: Mapping[str, Tensor], which: str, key: str, file: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights in float32, and the names of their other dtypes.

    Args:
        weights: of the file.
        which: ``raw`` or ``averaged``, for the error.
        key: option of the file, for the error.
        file: its path, for the error.

    Raises:
        ConfigError: a tensor that is not floating point, or values that are not finite.
    """
    result, types, bad = {}, set(), []
    for name, value in weights.items():
        usual = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not (usual and value.is_floating_point()):
            kind = str(value.dtype).removeprefix("torch.")
            problem = f"{name} is {kind}, not floating point; save the weights as float32"
            raise ConfigError(key, file, problem)
        if value.dtype != torch.float32:
            types.add(str(value.dtype).removeprefix("torch."))
        result[name] = value.detach().to(torch.float32)
        wrong = int((~torch.isfinite(result[name])).sum())
        if wrong:
            bad.append(f"{wrong} of {value.numel()} in {name}")
    more = f" and in {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    problem = (
        f"its {which} weights contain NaN or infinite values: {bad[0] if bad else ''}{more}; "
        "use a checkpoint that was saved before the training diverged"
    )
    require(not bad, key, file, problem)
    return result, sorted(types)
