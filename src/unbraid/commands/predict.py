"""``unbraid predict``: ask a model about texts."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from unbraid.errors import InputError
from unbraid.settings import settings

if TYPE_CHECKING:
    from unbraid.commands.inputs import Input
    from unbraid.inference import Predictor

COMPARED = 64
"""Texts that a lower precision is compared on, at most."""


@settings
class Config:
    """Asks a model about texts: their classes, the labels of their words, what stands at [MASK]; as the model does.

    Prints one JSON object a text, in order. Texts are read from the command line, else from a file, else from standard
    input, one a line; or, with --text-column or --words-column, one JSON object a line. Standard input is answered as
    it comes.
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
    """File to read: .txt with a text a line, or .csv, .tsv, .jsonl or .parquet with a column of texts."""
    text_column: str | None = None
    """Column of the text, or of the question; default: text, or question."""
    words_column: str | None = None
    """Column of the list of words to label, instead of a text."""
    pair_column: str | None = None
    """Column of the second text, or of the context of a question; default: none, or context."""
    choices_columns: tuple[str, ...] | None = None
    """Column of the list of choices, or the columns of the choices; default: choices, or choice1 and so on."""
    spans_columns: tuple[str, str] = ("span1", "span2")
    """Columns of the two stretches that a span classification is about, each [start, end) in characters."""
    entities_column: str = "entities"
    """Column of the stretches of the context that an entity choice chooses from."""
    output: str | None = None
    """File to write, whole at the end; by default standard output, as the answers come."""
    max_length: Annotated[int, Field(ge=3)] | None = None
    """Tokens that are read at once; longer texts are read in windows, and where something is cut the answer says so.
    By default what the model was made for."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """How many tokens to offer for each [MASK]."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the model; below float32 it says how far the first answers are from float32's."""


def run(config: Config) -> None:
    """Predicts and writes."""
    _check(config)
    predictor = load(config)
    answers = _answers(config, predictor)
    if config.output is None:
        for lines in answers:
            print(*lines, sep="\n", flush=True)
        return
    _write(Path(config.output), itertools.chain.from_iterable(answers))


def _write(path: Path, answers: Iterator[str]) -> None:
    """Writes the answers; if that ends early, it tells where those before are."""
    from unbraid.files import partial_of, write_lines

    try:
        write_lines(path, answers)
    except (OSError, InputError) as error:
        said = str(error)
        if isinstance(error, OSError):
            said = f"{path} cannot be written ({error}); name another file."
        partial = partial_of(path.resolve())
        if partial.is_file():
            if partial.stat().st_size:
                said += f" What was answered before is in {partial}."
            else:
                partial.unlink()
        raise InputError(said) from None


def _check(config: Config) -> None:
    from unbraid.commands.inputs import is_text

    if config.texts and config.file is not None:
        raise InputError("texts are given on the command line and as a file; give one of them.")
    if config.pair and len(config.pair) != len(config.texts):
        raise InputError(f"there are {len(config.texts)} texts but {len(config.pair)} second texts; give one each.")
    as_rows = config.text_column is not None or config.words_column is not None
    columns = as_rows or config.pair_column is not None or config.choices_columns is not None
    if config.texts and columns:
        raise InputError("texts on the command line have no columns; leave these options out, or give a table.")
    lines = is_text(config.file) if config.file is not None else not config.texts and not as_rows
    if columns and lines:
        raise InputError(
            "a line of text has no columns; give a table, or name --text-column too and give JSON objects on standard "
            "input."
        )


def _answers(config: Config, predictor: Predictor) -> Iterator[list[str]]:
    """Of some inputs at a time the answers, as JSON."""
    from unbraid.commands.inputs import chunks, total
    from unbraid.inference.progress import progress_bar

    to_screen = config.output is None and sys.stdout.isatty()
    spelled = config.output is None and codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    done = 0
    with progress_bar(total(config, predictor)) as advance:
        for inputs in chunks(config, predictor):
            if not done and config.precision != "float32":
                _lower(predictor, config.precision, inputs[:COMPARED])
            if not to_screen:  # a bar for all would stand among the answers; one a call is gone before they are printed
                predictor.progress = _share_of(advance, len(inputs))
            try:
                predictions = _predict(predictor, inputs, config.top_k)
            except InputError as error:
                raise InputError(f"after {done} others: {error}" if done else str(error)) from None
            yield [
                json.dumps({"input": asked.text, **prediction}, ensure_ascii=spelled)
                for asked, prediction in zip(inputs, predictions, strict=True)
            ]
            done += len(inputs)


def _share_of(
    advance: Callable[[float], None], texts: int
) -> Callable[[int], AbstractContextManager[Callable[[float], None]]]:
    """Shows of some texts how many are read, by their tokens."""

    @contextlib.contextmanager
    def progress(tokens: int) -> Iterator[Callable[[float], None]]:
        yield lambda more: advance(more * texts / tokens)

    return progress


def load(config: Config) -> Predictor:
    """The predictor that the model's architecture asks for.

    Raises:
        InputError: a model without a head that predicts, or see :meth:`Predictor.from_pretrained`.
    """
    from unbraid.inference import FillMask
    from unbraid.inference.answers import QuestionAnswerer
    from unbraid.inference.choices import MultipleChooser
    from unbraid.inference.classes import Classifier
    from unbraid.inference.entities import EntityChooser
    from unbraid.inference.spans import SpanClassifier
    from unbraid.inference.tokens import TokenClassifier
    from unbraid.model.folder import architecture_of

    kinds = (
        *(Classifier, FillMask, TokenClassifier, QuestionAnswerer, MultipleChooser),
        *(SpanClassifier, EntityChooser),
    )
    predictors = {kind.head.architecture: kind for kind in kinds}
    architecture = architecture_of(config.model)
    if architecture not in predictors:
        raise InputError(
            f"{config.model} holds a model of the architecture {architecture or 'unknown'}, which predicts nothing; "
            f"give one of {', '.join(predictors)}."
        )
    return predictors[architecture].from_pretrained(config.model, max_length=config.max_length)


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
    found = difference(expected, predictor.outputs(*columns), predictor.decision)
    print(f"{precision} against float32: {found}", file=sys.stderr)
