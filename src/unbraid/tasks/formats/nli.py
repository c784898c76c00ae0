"""Inference beyond MNLI: ANLI's JSON Lines, XNLI's TSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.formats.columns import renamed
from unbraid.tasks.rows import Row, read_json_lines, read_tsv

_ANLI_LABELS = {"c": "contradiction", "n": "neutral", "e": "entailment"}


def read_anli(path: Path) -> Iterator[Row]:
    """Reads a file of one of ANLI's rounds.

    Raises:
        InputError: a key that is not there, a label that is none of e, n and c, or no JSON Lines.
    """
    columns = {"text": "context", "pair": "hypothesis", "label": "label", "id": "uid"}
    for row in read_json_lines(path):
        cells = renamed(row, columns).cells
        if "label" in cells:
            letter = row.name("label")
            if letter not in _ANLI_LABELS:
                raise InputError(f"{row.place}: the label is {letter!r}; ANLI has e, n and c.")
            cells["label"] = _ANLI_LABELS[letter]
        yield Row(row.place, cells)


def read_xnli(path: Path) -> Iterator[Row]:
    """Reads xnli.dev.tsv or xnli.test.tsv, which have a column of the language; or multinli.train.LANGUAGE.tsv.

    The latter has no id, and calls a contradiction contradictory.

    Raises:
        InputError: a row with missing or surplus cells, or a column that is not there.
    """
    columns = {"text": "sentence1", "pair": "sentence2", "label": "gold_label", "id": "pairID", "language": "language"}
    train = {"text": "premise", "pair": "hypo", "label": "label"}
    for row in read_tsv(path):
        cells = renamed(row, train if "hypo" in row.cells else columns).cells
        if cells.get("label") == "contradictory":
            cells["label"] = "contradiction"
        if "id" in cells:
            cells["id"] = f"{cells['language']}-{cells['id']}"
        yield Row(row.place, {"language": Path(path.stem).suffix[1:], **cells})
