"""Labelled texts and pairs of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from unbraid.tasks.config import DataConfig
from unbraid.tasks.labels import check_label
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows

SequenceKind = Literal["classification", "multi-label", "regression"]
"""The kinds of labels of a text or a pair of texts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and what is known of it.

    Attributes:
        text: the text, or the first of the pair.
        pair: the second text, or None.
        label: the name of its class, the names of its several labels, its score, or None where not known.
        group: what it belongs together with, in folds and for the metric exact, or None.
    """

    text: str
    pair: str | None = None
    label: str | tuple[str, ...] | float | None = None
    group: str | None = None


def read_examples(
    source: str, data: DataConfig, *, kind: SequenceKind | None = None, labels: Sequence[str] | None = None
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
    return [_example(row, data, kind, known) for row in read_rows(source, data)]


def _example(row: Row, data: DataConfig, kind: SequenceKind | None, known: frozenset[str] | None) -> Example:
    label: str | tuple[str, ...] | float | None = None
    if kind == "regression":
        label = row.number(data.label)
    elif kind == "classification":
        label = row.name(data.label)
        check_label(label, known, row.place)
    elif kind == "multi-label":
        label = tuple(row.names(data.label))
        for name in label:
            check_label(name, known, row.place)
    pair = None if data.pair is None else row.text(data.pair)
    return Example(row.text(data.text), pair, label, group_of(row, data))
