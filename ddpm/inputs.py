"""Inputs of a trained model: classes, conditioning data, ends of an interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm.data.classes import class_number, format_names
from ddpm.data.spec import DataSpec
from ddpm.errors import ConfigError, require
from ddpm.files import expand
from ddpm.generation import Mode
from ddpm.guidance import Guidance

Classes = Sequence[int | str] | int | str | None


def as_list(classes: Classes | Tensor) -> list[int | str] | int | str | None:
    """Return several classes as a list, one class and None as they are."""
    if isinstance(classes, Tensor):
        return classes.tolist()
    return classes if isinstance(classes, int | str | None) else list(classes)


@dataclass(frozen=True)
class ModelInputs:
    """Checks and reads the inputs of a model.

    Attributes:
        spec: of the model's data.
        num_steps: T of the diffusion process.
    """

    spec: DataSpec
    num_steps: int

    def class_numbers(
        self, classes: Classes | Tensor, guidance: Guidance | None = None
    ) -> list[int] | None:
        """Return the numbers of classes given by number or name; by default all.

        Args:
            classes: numbers or names.
            guidance: one by a function receives the classes of an unconditional model, as numbers.

        Raises:
            ConfigError: an unconditional model, or an unknown class.
        """
        names = self.spec.names
        if names is None and guidance is not None and guidance.is_function:
            if classes is None:
                return None
            listed = as_list(classes)
            requested = listed if isinstance(listed, list) else [listed]
            numbers = [int(n) for n in map(str, requested) if n.isascii() and n.isdecimal()]
            good = len(numbers) == len(requested) > 0
            require(good, "classes", classes, "the model has no class names; use numbers from 0")
            return numbers
        if names is None:
            remedy = "leave it out, or train with data.class_cond=true"
            require(
                classes is None, "classes", classes, "the model is not class-conditional", remedy
            )
            return None
        if classes is None:
            return list(range(len(names)))
        classes = classes.tolist() if isinstance(classes, Tensor) else classes
        requested = [classes] if isinstance(classes, int | str) else list(classes)
        numbers = [class_number(each, names) for each in requested]
        indices = [number for number in numbers if number is not None]
        problem = f"the model has the classes {format_names(names)}; use some of those"
        require(len(indices) == len(requested), "classes", classes, problem)
        require(bool(indices), "classes", classes, "name at least one, or leave it out")
        return indices

    def labels(self, classes: Classes | Tensor, count: int | None = None) -> Tensor | None:
        """Return the class numbers (B,) int64 of a batch; None for an unconditional model.

        Args:
            classes: numbers or names; None = all.
            count: B, where sample i is of ``classes[i % len(classes)]``; None = one per class.

        Raises:
            ConfigError: classes of an unconditional model, or an unknown class.
        """
        numbers = self.class_numbers(classes)
        require(count is None or count >= 1, "count", count, "must be at least 1")
        if numbers is None:
            return None
        size = len(numbers) if count is None else count
        return torch.tensor([numbers[i % len(numbers)] for i in range(size)])

    def class_pair(self, classes: Classes | Tensor) -> tuple[int, int] | None:
        """Return the class numbers of the two ends of an interpolation.

        Raises:
            ConfigError: a class-conditional model without one or two classes.
        """
        numbers = self.class_numbers(classes)
        if numbers is None:
            return None
        problem = "the model is class-conditional; use classes=[3], or [3,7] for the two ends"
        require(classes is not None and len(numbers) <= 2, "classes", classes, problem)
        return numbers[0], numbers[-1]

    def condition(self, condition: str | Path | Tensor | None) -> Tensor | None:
        """Return the raw data (N, C, *spatial) whose entries condition the samples.

        Raises:
            ConfigError: a model without such entries, one that requires them, or a file that
                does not fit.
        """
        if self.spec.codec.condition_mask is None:
            problem = (
                "the model is not conditioned on data; leave it out, or train with data.condition"
            )
            require(condition is None, "condition", condition, problem)
            return None
        if condition is None:
            problem = "is missing: the model is conditioned on part of the data; name a file of it"
            raise ConfigError("condition", None, problem)
        if isinstance(condition, Tensor):
            self.check_data("condition", condition, batch=True)
            return condition
        try:
            return self.spec.codec.read_condition(expand("condition", str(condition)))
        except ConfigError as error:
            raise error.renamed("condition", str(condition)) from error

    def end(self, key: str, value: int | str | Path | Tensor) -> Tensor | int:
        """Return an end of an interpolation: a seed, or the raw data of a file.

        Raises:
            ConfigError: names ``key``; a file that cannot be read or is of another size.
        """
        if isinstance(value, int):
            return value
        if isinstance(value, Tensor):
            self.check_data(key, value)
            return value
        try:
            return self.spec.codec.read(expand(key, str(value)))
        except ConfigError as error:
            raise error.renamed(key, str(value)) from error

    def timestep(self, t: int | None, ends: Sequence[Tensor | int], mode: Mode) -> int:
        """Return the timestep to which the ends of an interpolation are noised.

        By default T-1 between two seeds and for ``ddim``, else (T-1) // 2.

        Raises:
            ConfigError: a step that the process does not have.
        """
        last = self.num_steps - 1
        if t is None:
            seeds = all(isinstance(end, int) for end in ends)
            return last if seeds or mode == "ddim" else last // 2
        require(0 <= t <= last, "t", t, f"the process has {last + 1} steps; use 0 to {last}")
        return t

    def check_data(self, key: str, data: Tensor, *, batch: bool = False) -> None:
        """Raise for data that are not the model's raw data.

        Args:
            key: name of the argument, for the message.
            data: (C, *spatial), with ``batch`` (N, C, *spatial).
            batch: there is a batch dimension.

        Raises:
            ConfigError: another shape or dtype, or values that are not finite.
        """
        shape, expected = tuple(data.shape), tuple(self.spec.shape)
        good = (shape[1:] if batch else shape) == expected and len(data) > 0
        required = f"({'N, ' if batch else ''}{', '.join(map(str, expected))})"
        require(good, key, f"shape {shape}", f"the model's data are of shape {required}")
        dtype = self.spec.codec.decode(torch.zeros(1, *expected)).dtype
        require(data.dtype == dtype, key, str(data.dtype), f"the model's data are {dtype}")
        finite = not dtype.is_floating_point or bool(data.isfinite().all())
        require(finite, key, f"shape {shape}", "has values that are not finite")
