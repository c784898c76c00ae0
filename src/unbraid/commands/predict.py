"""``unbraid predict``: ask a model about texts."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from unbraid.errors import InputError

if TYPE_CHECKING:
    from unbraid.inference import Predictor

CHUNK = 512
"""Texts predicted at a time."""

COMPARED = 64
"""Texts that a lower precision is compared on."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Asks a model about texts: their classes, the labels of their words, what stands at [MASK]; as the model does.

    Prints one JSON object a text, in order. Texts are read from the command line, else from a file, else from standard
    input, one a line.
    """

    model: tyro.conf.Positional[str]
    """Folder or hub name of a fine-tuned model or of a masked language model."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to predict, or questions; with --pair each of them is the first of a pair."""
    pair: tuple[str, ...] = ()
    """Second texts, or the contexts of questions, as many as texts."""
    choices: tuple[str, ...] = ()
    """Choices of the questions on the command line, for a model of multiple choice."""
    file: str | None = None
    """File to read: texts one a line, or .csv, .tsv, .jsonl or .parquet with a column of texts."""
    text_column: str | None = None
    """Column of the text, or of the question; default: text, or question."""
    words_column: str | None = None
    """Column of the list of words to label, instead of a text."""
    pair_column: str | None = None
    """Column of the second text, or of the context of a question; default: none, or context."""
    choices_columns: tuple[str, ...] | None = None
    """Column of the list of choices, or the columns of the choices; default: choices, or choice1 and so on."""
    output: str | None = None
    """File to write; by default standard output."""
    max_length: Annotated[int, Field(ge=3)] | None = None
    """Longest text in tokens; longer ones are cut and say so, or are read in windows where words are labelled. By
    default what the model was made for."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """How many tokens to offer for each [MASK]."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the model; below float32 it says how far the first answers are from float32's."""


def run(config: Config) -> None:
    """Predicts and writes."""
    from unbraid.files import write_lines

    predictor = load(config)

    def lines() -> Iterator[str]:
        for number, inputs in enumerate(_chunks(_inputs(config, predictor))):
            if number == 0 and config.precision != "float32":
                _lower(predictor, config.precision, inputs[:COMPARED])
            for asked, prediction in zip(inputs, _predict(predictor, inputs, config.top_k), strict=True):
                yield json.dumps({"input": asked.text, **prediction}, ensure_ascii=False)

    if config.output is None:
        for line in lines():
            print(line)
    else:
        write_lines(Path(config.output), lines())


def load(config: Config) -> Predictor:
    """The predictor that the model's architecture asks for.

    Raises:
        InputError: a model without a head that predicts, or see :meth:`Predictor.from_pretrained`.
    """
    from unbraid.inference import Classifier, FillMask
    from unbraid.inference.answers import QuestionAnswerer
    from unbraid.inference.choices import MultipleChooser
    from unbraid.inference.tokens import TokenClassifier
    from unbraid.model.folder import architecture_of

    kinds = (Classifier, FillMask, TokenClassifier, QuestionAnswerer, MultipleChooser)
    predictors = {kind.head.architecture: kind for kind in kinds}
    architecture = architecture_of(config.model)
    if architecture not in predictors:
        raise InputError(
            f"{config.model} holds a model of the architecture {architecture or 'unknown'}, which predicts nothing; "
            f"give one of {', '.join(predictors)}."
        )
    return predictors[architecture].from_pretrained(config.model, max_length=config.max_length)


class Input(NamedTuple):
    """What is asked of the model at once."""

    text: str | list[str]
    """A text, or a list of words."""
    pair: str | None = None
    """The second text of a pair, or the context of a question."""
    choices: tuple[str, ...] | None = None
    """What may answer the question."""

    @property
    def asked(self) -> Any:
        """What a predictor takes as the first of a pair."""
        from unbraid.inference.choices import Choices

        return self.text if self.choices is None else Choices(str(self.text), self.choices)


def _columns(inputs: Sequence[Input]) -> tuple[list[Any], list[str] | None]:
    return [each.asked for each in inputs], [each.pair for each in inputs if each.pair is not None] or None


def _predict(predictor: Predictor, inputs: Sequence[Input], top_k: int) -> Sequence[Mapping[str, Any]]:
    from unbraid.inference import FillMask

    texts, pairs = _columns(inputs)
    if isinstance(predictor, FillMask):
        return predictor.predict(texts, pairs, top_k=top_k)
    return predictor.predict(texts, pairs)


def _lower(predictor: Predictor, precision: Literal["bfloat16", "int8"], inputs: Sequence[Input]) -> None:
    """Changes the precision, and says how far the answers to some inputs are from what they were."""
    from unbraid.inference import difference
    from unbraid.model.precision import set_precision

    columns = _columns(inputs)
    expected = predictor.outputs(*columns)
    set_precision(predictor.model, precision)
    print(f"{precision} against float32: {difference(expected, predictor.outputs(*columns))}", file=sys.stderr)


def _chunks(inputs: Iterator[Input]) -> Iterator[list[Input]]:
    while chunk := list(itertools.islice(inputs, CHUNK)):
        yield chunk


def _inputs(config: Config, predictor: Predictor) -> Iterator[Input]:
    from unbraid.inference.choices import MultipleChooser

    chooses = isinstance(predictor, MultipleChooser)
    choices = config.choices if chooses else None
    if config.choices and not chooses:
        raise InputError("choices are for a model of multiple choice, and this is none.")
    if config.texts:
        if config.file is not None:
            raise InputError("texts are given on the command line and as a file; give one of them.")
        if config.pair and len(config.pair) != len(config.texts):
            raise InputError(f"there are {len(config.texts)} texts but {len(config.pair)} second texts.")
        for text, pair in zip(config.texts, config.pair or (None,) * len(config.texts), strict=True):
            yield Input(text, pair, choices)
    elif config.file is not None and not config.file.endswith(".txt"):
        yield from _table(config, config.file, predictor)
    elif config.file is not None:
        try:
            with Path(config.file).open(encoding="utf-8") as file:
                yield from (Input(line.rstrip("\n"), None, choices) for line in file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config.file} cannot be read as UTF-8 text ({error}).") from error
    else:
        yield from (Input(line.rstrip("\n"), None, choices) for line in sys.stdin)


def _table(config: Config, path: str, predictor: Predictor) -> Iterator[Input]:
    from unbraid.inference.answers import QuestionAnswerer
    from unbraid.inference.choices import MultipleChooser
    from unbraid.tasks.config import DataConfig
    from unbraid.tasks.multiple_choice import choices_of, context_of
    from unbraid.tasks.rows import read_rows
    from unbraid.tasks.squad import question_rows

    text, pair = config.text_column or predictor.columns[0], config.pair_column or predictor.columns[1]
    for row in question_rows(path) if isinstance(predictor, QuestionAnswerer) else read_rows(path):
        first = row.text(text) if config.words_column is None else row.texts(config.words_column)
        if isinstance(predictor, MultipleChooser):
            context = context_of(row, DataConfig(context=config.pair_column))
            yield Input(first, context, choices_of(row, config.choices_columns))
        else:
            yield Input(first, None if pair is None else row.text(pair))
