"""Labels of class-conditional networks, one of which stands for "no class"."""

from __future__ import annotations

from torch import nn

from ddpm.errors import ConfigError


def num_labels(network_class: object, num_classes: int) -> int:
    """Return the number of labels of a network that is trained with dropped labels.

    It includes one for "no class", unless the network has a null embedding of its own.

    Args:
        network_class: class of the network, or a function that returns one.
        num_classes: number of classes of the data.
    """
    has_own = isinstance(getattr(network_class, "null_label", None), int)
    return num_classes if has_own else num_classes + 1


def null_label(network: nn.Module, num_classes: int, *, required: bool = True) -> int | None:
    """Return the label that stands for "no class", the ``null_label`` of a network.

    Args:
        network: the network, see :class:`~ddpm.models.layers.Network`.
        num_classes: number of classes of the data.
        required: False returns None for a network without ``null_label``.

    Raises:
        ConfigError: the network does not have a ``null_label``, or it is a class of the data.
    """
    label = getattr(network, "null_label", None)
    if label is None and not required:
        return None
    cls = type(network)
    problem = None
    if not isinstance(label, int):
        problem = 'does not have a null_label, the label that stands for "no class"'
    elif 0 <= label < num_classes:
        problem = f"has the null_label {label}, which is one of the {num_classes} classes"
    if problem is not None:
        remedy = (
            "set null_label to the number outside of the classes that the network embeds for it, "
            "or use diffusion.label_dropout=0 and guidance=1"
        )
        name = f"{cls.__module__}.{cls.__qualname__}"
        raise ConfigError("model._target_", name, problem, remedy, absolute=True)
    return label
