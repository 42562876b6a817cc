"""Record of the operations on tensors."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Records operations on tensors, without views.

    Attributes:
        names: of the operations, in their order.
        active: False pauses the record.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.active = True

    @property
    def reads(self) -> int:
        """Number of scalars that the host has read, each of which waits for a GPU."""
        return self.names.count("aten._local_scalar_dense.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operator and call it."""
        outputs = func._schema.returns
        is_view = any(each.alias_info and not each.alias_info.is_write for each in outputs)
        if self.active and not is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
