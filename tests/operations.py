"""Record of the operations on tensors."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Names of the operations on tensors while ``active``, without views."""

    def __init__(self):
        super().__init__()
        self.names, self.active = [], True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func._schema.returns
        is_view = any(each.alias_info and not each.alias_info.is_write for each in outputs)
        if self.active and not is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
