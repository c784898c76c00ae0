"""Labelled texts and pairs of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig, Kind, TaskConfig
from unbraid.tasks.rows import Row, read_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and what is known of it.

    Attributes:
        text: the text, or the first of the pair.
        pair: the second text, or None.
        label: the name of its class, its score, or None where not known.
    """

    text: str
    pair: str | None = None
    label: str | float | None = None


@dataclasses.dataclass(frozen=True)
class Splits:
    """The data of a task.

    Attributes:
        labels: the names of the classes in the order of their ids; None for regression.
        train: to learn from.
        dev: to choose the best checkpoint by.
        test: to score it on, or None.
    """

    labels: tuple[str, ...] | None
    train: list[Example]
    dev: list[Example]
    test: list[Example] | None


def read_splits(config: TaskConfig) -> Splits:
    """Reads all data of a task; the classes are the configured ones or else those of the training data.

    Raises:
        InputError: what is wrong with the data, and where.
    """
    train = read_examples(config.train, config.data, kind=config.kind, labels=config.labels)
    labels = config.labels
    if config.kind == "classification" and labels is None:
        labels = sorted_labels(str(example.label) for example in train)
        if len(labels) < 2:
            raise InputError(f"{config.train} has only the label {', '.join(labels)}; it takes two or more classes.")
    dev = read_examples(config.dev, config.data, kind=config.kind, labels=labels)
    test = None if config.test is None else read_examples(config.test, config.data, kind=config.kind, labels=labels)
    return Splits(labels, train, dev, test)


def read_examples(
    source: str, data: DataConfig, *, kind: Kind | None = None, labels: Sequence[str] | None = None
) -> list[Example]:
    """Reads the examples of one file, or of one split of a hub data set.

    Args:
        source: the file, or the split when ``data.dataset`` is given.
        data: where from and which columns.
        kind: what the labels are; None reads none.
        labels: the classes there may be; None allows any.

    Raises:
        InputError: what is wrong with the data, and where.
    """
    known = None if labels is None else frozenset(labels)
    rows = read_rows(source, dataset=data.dataset, subset=data.subset)
    return [_example(row, data, kind, known) for row in rows]


def _example(row: Row, data: DataConfig, kind: Kind | None, known: frozenset[str] | None) -> Example:
    label: str | float | None = None
    if kind == "regression":
        label = row.number(data.label)
    elif kind == "classification":
        label = row.name(data.label)
        if known is not None and label not in known:
            names = sorted_labels(known)
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise InputError(f"{row.place}: the label {label!r} is unknown; the classes of this task are {listed}.")
    pair = None if data.pair is None else row.text(data.pair)
    return Example(row.text(data.text), pair, label)


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
