"""Options that are declared beside the code that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

ABOVE_0 = "must be above 0, or null for none"


def option(default: Any, *, free: bool = False, legacy: Any = MISSING) -> Any:
    """Return the declaration of an option, for the body of a subclass of :class:`Options`.

    Args:
        default: the value if the user sets none.
        free: the option affects no result, so that it may change when a run is resumed.
        legacy: the value that does what versions without the option, or with another default, did.
    """
    metadata = {"free": free, **({} if legacy is MISSING else {"legacy": legacy})}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of groups of options; a class that inherits several groups has all their options.

    Subclasses override ``_validate``, which is called for each group.

    Raises:
        ConfigError: a value is out of range.
    """

    def __post_init__(self) -> None:
        for group in type(self).__mro__:
            if "_validate" in vars(group):
                group._validate(self)

    def _validate(self) -> None:
        """Raise a ConfigError for a value of this group that is out of range."""


def free_options(group: type[Options]) -> frozenset[str]:
    """Return the names of the options that may change when a run is resumed."""
    return frozenset(each.name for each in fields(group) if each.metadata.get("free"))


def legacy_defaults(group: type[Options]) -> Mapping[str, Any]:
    """Return the options whose value in older runs differs from the default, with that value."""
    declared = {each.name: each.metadata for each in fields(group)}
    return {name: each["legacy"] for name, each in declared.items() if "legacy" in each}
