"""``unbraid predict``: classify texts, or fill their masks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    """Classifies texts, or fills the [MASK]s of texts, whichever the model does; one JSON object a text.

    Texts are read from the command line, else from a file, else from standard input, one a line.
    """

    model: tyro.conf.Positional[str]
    """Folder or hub name of a fine-tuned model or of a masked language model."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to predict; with --pair each of them is the first of a pair."""
    pair: tuple[str, ...] = ()
    """Second texts, as many as texts."""
    file: str | None = None
    """File to read: texts one a line, or .csv, .tsv, .jsonl or .parquet with a column of texts."""
    text_column: str = "text"
    """Column of the text."""
    pair_column: str | None = None
    """Column of the second text."""
    output: str | None = None
    """File to write; by default standard output."""
    max_length: Annotated[int, Field(ge=3)] | None = None
    """Longest text in tokens; longer ones are cut, and say so. By default what the model was made for."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """How many tokens to offer for each [MASK]."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the model; below float32 it says how far the first answers are from float32's."""


def run(config: Config) -> None:
    """Predicts and writes."""
    from unbraid.files import write_lines
    from unbraid.inference import Classifier, FillMask
    from unbraid.model.folder import has_masked_language_model

    head = FillMask if has_masked_language_model(config.model) else Classifier
    predictor = head.from_pretrained(config.model, max_length=config.max_length)

    def lines() -> Iterator[str]:
        for number, (texts, pairs) in enumerate(_chunks(config)):
            if number == 0 and config.precision != "float32":
                _lower(predictor, config.precision, texts[:COMPARED], pairs and pairs[:COMPARED])
            if isinstance(predictor, FillMask):
                predictions = predictor.predict(texts, pairs, top_k=config.top_k)
            else:
                predictions = predictor.predict(texts, pairs)
            for text, prediction in zip(texts, predictions, strict=True):
                yield json.dumps({"input": text, **prediction}, ensure_ascii=False)

    if config.output is None:
        for line in lines():
            print(line)
    else:
        write_lines(Path(config.output), lines())


def _lower(
    predictor: Predictor, precision: Literal["bfloat16", "int8"], texts: list[str], pairs: list[str] | None
) -> None:
    """Changes the precision, and says how far the answers to some texts are from what they were."""
    from unbraid.inference import difference
    from unbraid.model.precision import set_precision

    expected = predictor.outputs(texts, pairs)
    set_precision(predictor.model, precision)
    print(f"{precision} against float32: {difference(expected, predictor.outputs(texts, pairs))}", file=sys.stderr)


def _chunks(config: Config) -> Iterator[tuple[list[str], list[str] | None]]:
    """The texts, and the second texts if they are pairs, a chunk at a time."""
    texts: list[str] = []
    pairs: list[str] = []
    for text, pair in _inputs(config):
        texts.append(text)
        if pair is not None:
            pairs.append(pair)
        if len(texts) == CHUNK:
            yield texts, pairs or None
            texts, pairs = [], []
    if texts:
        yield texts, pairs or None


def _inputs(config: Config) -> Iterator[tuple[str, str | None]]:
    if config.texts:
        if config.file is not None:
            raise InputError("texts are given on the command line and as a file; give one of them.")
        if config.pair and len(config.pair) != len(config.texts):
            raise InputError(f"there are {len(config.texts)} texts but {len(config.pair)} second texts.")
        yield from zip(config.texts, config.pair or (None,) * len(config.texts), strict=True)
    elif config.file is not None and not config.file.endswith(".txt"):
        from unbraid.tasks.config import DataConfig
        from unbraid.tasks.examples import read_examples

        columns = DataConfig(text=config.text_column, pair=config.pair_column)
        for example in read_examples(config.file, columns):
            yield example.text, example.pair
    elif config.file is not None:
        try:
            with Path(config.file).open(encoding="utf-8") as file:
                yield from ((line.rstrip("\n"), None) for line in file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config.file} cannot be read as UTF-8 text ({error}).") from error
    else:
        yield from ((line.rstrip("\n"), None) for line in sys.stdin)
