"""The names of classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from unbraid.errors import InputError


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in order: as numbers if all of them are, else as text.

    >>> sorted_labels(["10", "9", "10"])
    ('9', '10')
    >>> sorted_labels(["b", "a", "9"])
    ('9', 'a', 'b')
    """
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def training_labels(labels: Iterable[str], source: str) -> tuple[str, ...]:
    """The classes of the training data, in the order of their ids.

    Args:
        labels: of the examples.
        source: where they come from, for messages.

    Raises:
        InputError: there are fewer than two.
    """
    names = sorted_labels(labels)
    if len(names) < 2:
        found = f"only the label {names[0]}" if names else "no label"
        raise InputError(f"{source} has {found}; it takes two or more classes.")
    return names


def check_label(label: str, labels: Collection[str] | None, place: str) -> None:
    """Checks that a label is one of the classes, if these are known.

    Args:
        label: its name.
        labels: the classes; None allows any.
        place: where it stands.

    Raises:
        InputError: it is none of them.
    """
    if labels is not None and label not in labels:
        names = sorted_labels(labels)
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise InputError(f"{place}: the label {label!r} is unknown; the classes of this task are {listed}.")
