"""CoNLL-2003's columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from unbraid.errors import InputError
from unbraid.tasks.rows import Row, read_lines


def read_conll(path: Path) -> Iterator[Row]:
    """Reads words with their labels: the first and the last of a line's columns; empty lines end sentences.

    A row is a document, from one -DOCSTART- to the next, as the original reads them; or a sentence, where there is
    none. Its column sentences has the number of words of each. Labels may begin entities with I- (IOB1, as the original
    files do) or always with B- (BIO, as most copies do); in the row it is always B-.

    Raises:
        InputError: a line with one column, or a label that is none of O, B- and I-.
    """
    document: list[_Sentence] = []
    whole = False
    for sentence in _sentences(path):
        if document and (sentence is None or not whole):
            yield _row(document)
            document = []
        if sentence is None:
            whole = True
        else:
            document.append(sentence)
    if document:
        yield _row(document)


class _Sentence(NamedTuple):
    place: str
    words: list[str]
    labels: list[str]


def _sentences(path: Path) -> Iterator[_Sentence | None]:
    """The sentences of a file, and None where a document begins."""
    sentence = None
    for number, line in enumerate(itertools.chain(read_lines(path), [""]), 1):
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            sentence = sentence or _Sentence(f"{path}, line {number}", [], [])
            label = cells[-1]
            if len(cells) < 2 or not (label == "O" or label[:2] in ("B-", "I-")):
                place = f"{path}, line {number}"
                raise InputError(f"{place}: {line.strip()!r} is no word with its label (O, B-... or I-...) at the end.")
            sentence.words.append(cells[0])
            sentence.labels.append(label)
            continue
        if sentence:
            yield sentence
            sentence = None
        if cells:
            yield None


def _row(document: Sequence[_Sentence]) -> Row:
    words = [word for sentence in document for word in sentence.words]
    labels = [label for sentence in document for label in beginning(sentence.labels)]
    sentences = [len(sentence.words) for sentence in document]
    return Row(document[0].place, {"words": words, "label": labels, "sentences": sentences})


def beginning(labels: Sequence[str]) -> list[str]:
    """The labels of a sentence with B- wherever an entity begins.

    >>> beginning(["I-LOC", "I-LOC", "B-LOC", "I-PER", "O"])
    ['B-LOC', 'I-LOC', 'B-LOC', 'B-PER', 'O']
    """
    before = ["O", *labels]
    return [
        f"B-{label[2:]}" if label[:2] == "I-" and previous[1:] != label[1:] else label
        for previous, label in zip(before, labels, strict=False)
    ]
