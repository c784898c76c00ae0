"""What ``unbraid predict`` asks: texts of the command line, lines, rows of tables, as the model takes them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from unbraid.errors import InputError
from unbraid.inference import FillMask, Predictor
from unbraid.inference.answers import QuestionAnswerer
from unbraid.inference.choices import Choices, MultipleChooser
from unbraid.inference.entities import PLACEHOLDER, Cloze, EntityChooser
from unbraid.inference.spans import Marked, SpanClassifier
from unbraid.tasks.config import DataConfig
from unbraid.tasks.entity_choice import cloze_of
from unbraid.tasks.multiple_choice import choices_of, context_of
from unbraid.tasks.rows import Row, read_lines
from unbraid.tasks.sources import read_rows
from unbraid.tasks.span_classification import marked_of
from unbraid.tasks.squad import question_rows
from unbraid.tasks.streams import arriving_lines, arriving_rows

if TYPE_CHECKING:
    from unbraid.commands.predict import Config

CHUNK = 1 << 16
"""Characters read before they are answered, in whole texts; of standard input those that have come."""


class Input(NamedTuple):
    """What is asked of the model at once."""

    text: str | list[str]
    """A text, or a list of words."""
    pair: str | None = None
    """The second text of a pair, or the context of a question."""
    choices: tuple[str, ...] | None = None
    """What may answer the question."""
    marked: Marked | Cloze | None = None
    """The text with its stretches, for a model that is asked about these."""

    @property
    def asked(self) -> Any:
        """What a predictor takes as the first of a pair."""
        if self.marked is not None:
            return self.marked
        return self.text if self.choices is None else Choices(str(self.text), self.choices)

    @property
    def characters(self) -> int:
        """The length of all its texts."""
        text = [self.text] if isinstance(self.text, str) else self.text
        return sum(map(len, (*text, self.pair or "", *(self.choices or ()))))


def is_text(path: str) -> bool:
    """Whether a file has a text a line, rather than columns."""
    return path.lower().removesuffix(".gz").endswith(".txt")


def chunks(config: Config, predictor: Predictor) -> Iterator[list[Input]]:
    """What is asked, in the pieces in which it is answered."""
    if not config.texts and config.file is None:
        yield from _arriving(config, predictor)
        return
    chunk, size = [], 0
    for each in _given(config, predictor):
        chunk.append(each)
        size += 1 + each.characters
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _arriving(config: Config, predictor: Predictor) -> Iterator[list[Input]]:
    """What is asked on standard input, whenever something has come."""
    stream, name = cast(io.BufferedIOBase, sys.stdin.buffer), "standard input"
    choices = _choices(config, predictor)
    if config.text_column is not None or config.words_column is not None:
        for rows in arriving_rows(stream, name):
            yield [_of_row(config, row, predictor) for row in rows]
    else:
        for lines in arriving_lines(stream, name):
            yield [Input(text, None, choices) for _, text in lines]


def total(config: Config, predictor: Predictor) -> int | None:
    """How many texts there are; None of a stream. A file is read through, so that its faults are told at once."""
    if not config.texts and (config.file is None or not Path(config.file).is_file()):
        return None
    marker, count = _marker(predictor), 0
    for count, each in enumerate(_given(config, predictor), 1):
        if config.file is not None and marker is not None and marker not in each.text:
            raise InputError(f"text {count} of {config.file} has no {marker}; put one where something is missing.")
    if not count:
        raise InputError(f"{config.file} has no texts.")
    return count


def _marker(predictor: Predictor) -> str | None:
    """What each text must have, for a model that fills its place."""
    if isinstance(predictor, FillMask):
        return predictor.tokenizer.token(predictor.tokenizer.mask_id)
    return PLACEHOLDER if isinstance(predictor, EntityChooser) else None


def _given(config: Config, predictor: Predictor) -> Iterator[Input]:
    """What is asked on the command line or in a file."""
    choices = _choices(config, predictor)
    if config.texts:
        for text, pair in zip(config.texts, config.pair or (None,) * len(config.texts), strict=True):
            yield Input(text, pair, choices)
    elif config.file is not None and is_text(config.file):
        for line in read_lines(Path(config.file)):
            yield Input(line.removesuffix("\n").removesuffix("\r"), None, choices)
    elif config.file is not None:
        if config.choices:
            raise InputError("a table has choices in its columns, which --choices-columns names; leave --choices out.")
        yield from _table(config, config.file, predictor)


def _choices(config: Config, predictor: Predictor) -> tuple[str, ...] | None:
    """The choices of a question that is no row of a table."""
    if isinstance(predictor, MultipleChooser):
        return config.choices
    if config.choices:
        raise InputError("choices are for a model of multiple choice, and this is none.")
    return None


def _table(config: Config, path: str, predictor: Predictor) -> Iterator[Input]:
    read = question_rows if isinstance(predictor, QuestionAnswerer) else read_rows
    for row in read(path, DataConfig()):
        yield _of_row(config, row, predictor)


def _of_row(config: Config, row: Row, predictor: Predictor) -> Input:
    text, pair = config.text_column or predictor.columns[0], config.pair_column or predictor.columns[1]
    first = row.text(text) if config.words_column is None else row.texts(config.words_column)
    if isinstance(predictor, MultipleChooser):
        context = context_of(row, DataConfig(context=config.pair_column))
        return Input(first, context, choices_of(row, config.choices_columns))
    if isinstance(predictor, SpanClassifier):
        marked, second = marked_of(row, DataConfig(text=text, pair=pair, spans=config.spans_columns))
        return Input(first, second, marked=marked)
    if isinstance(predictor, EntityChooser):
        cloze, context = cloze_of(row, DataConfig(question=text, context=pair, entities=config.entities_column))
        return Input(first, context, marked=cloze)
    return Input(first, None if pair is None else row.text(pair))
