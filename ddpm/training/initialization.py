"""Initial weights of a network from those of another one, as far as they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CopiedWeights:
    """Weights of a network that were copied from another one.

    Attributes:
        copied: names of the tensors that were copied.
        rows: tables of classes that were copied in part: name to the copied and all rows.
        new: names of the tensors that were not copied, because the other network has none of that
            name and shape.
        unused: names of the tensors of the other network that were not copied.
        num_copied: number of copied values.
        num_values: number of all values of the network.
    """

    copied: tuple[str, ...]
    rows: Mapping[str, tuple[int, int]]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    num_copied: int
    num_values: int

    @property
    def fits(self) -> bool:
        """True if every tensor of both networks was copied."""
        return not (self.rows or self.new or self.unused)


@torch.no_grad()
def copy_weights(
    network: nn.Module, weights: Mapping[str, Tensor], rows: Mapping[int, int]
) -> CopiedWeights:
    """Copy the tensors of a state dict into the tensors of a network with the same name and shape.

    The table of the class embedding is copied by rows.

    Args:
        network: network to change.
        weights: state dict of the other network.
        rows: classes of the network to classes of the other one; a class of "no class" included.
    """
    state, tables = network.state_dict(), class_tables(network)
    copied, partial, new, number = [], {}, [], 0
    for name, tensor in state.items():
        other = weights.get(name)
        if name in tables and other is not None and other.shape[1:] == tensor.shape[1:]:
            # One of the two may lack the row of "no class".
            in_both = (pair for pair in rows.items() if pair[0] < len(tensor))
            pairs = [(here, there) for here, there in in_both if there < len(other)]
            for here, there in pairs:
                tensor[here].copy_(other[there])
            number += sum(tensor[here].numel() for here, _ in pairs)
            if len(pairs) == len(tensor) == len(other):
                copied.append(name)
            else:
                partial[name] = len(pairs), len(tensor)
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
            number += tensor.numel()
            copied.append(name)
        else:
            new.append(name)
    unused = [name for name in weights if name not in {*copied, *partial}]
    total = sum(tensor.numel() for tensor in state.values())
    return CopiedWeights(tuple(copied), partial, tuple(new), tuple(unused), number, total)


def class_tables(network: nn.Module) -> set[str]:
    """Return the names of the weights of the class embeddings of a network."""
    classes = getattr(network, "num_classes", None)
    return {
        f"{name}.weight"
        for name, module in network.named_children()
        if isinstance(module, nn.Embedding) and module.num_embeddings == classes
    }


def module_names(names: Iterable[str]) -> list[str]:
    """Return the modules of tensors, ``out.2`` of ``out.2.weight``, once each and in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
