"""Prediction files, as the servers and scripts of the papers' tasks take them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbraid.errors import InputError
from unbraid.files import write_lines
from unbraid.inference import Predictor
from unbraid.inference.answers import QuestionAnswerer
from unbraid.inference.choices import Choices
from unbraid.tasks.config import DataConfig, Kind
from unbraid.tasks.entity_choice import cloze_of
from unbraid.tasks.kinds import KINDS
from unbraid.tasks.multiple_choice import choices_of, context_of
from unbraid.tasks.named import NamedTask, Submission
from unbraid.tasks.question_answering import QuestionAnswering
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import file_of, read_rows
from unbraid.tasks.span_classification import marked_of
from unbraid.tasks.task import Task


def write_submission(
    task: NamedTask, predictor: Predictor, learned: Task[Any, Any], folder: str, output: str
) -> list[Path]:
    """Predicts the test files of a task and writes its prediction files.

    Answers are given up as :meth:`QuestionAnswering.score` gives them up: where the task has questions without one, by
    the threshold of ``learned``, and nowhere else.

    Args:
        task: of the papers.
        predictor: of a model that was fine-tuned on it; its threshold is set.
        learned: the task that this model does, see :func:`unbraid.tasks.kinds.task_of`.
        folder: with the task's files.
        output: folder for the prediction files.

    Returns:
        The files.

    Raises:
        InputError: the model does another kind of task or has other classes, or what is wrong with the data.
        OSError: the output cannot be written.
    """
    names = spelling(task, learned)
    Path(output).mkdir(parents=True, exist_ok=True)
    data = task.data()
    if isinstance(predictor, QuestionAnswerer) and isinstance(learned, QuestionAnswering):
        predictor.threshold = learned.threshold if data.unanswerable else None
    written = []
    for file, pattern in task.predicted.items():
        rows = list(read_rows(file_of(folder, pattern), data))
        texts, pairs = zip(*(_asked(row, task.kind, data) for row in rows), strict=True)
        predictions = predictor.predict(texts, None if pairs[0] is None else pairs)
        answers = [_ANSWERS[task.kind](prediction) for prediction in predictions]
        answers = [names.get(answer, answer) if isinstance(answer, str) else answer for answer in answers]
        written.append(Path(output) / file)
        write_lines(written[-1], _SHAPES[task.submission](rows, answers))
    return written


def spelling(task: NamedTask, learned: Task[Any, Any]) -> dict[str, str]:
    """How a prediction file spells the classes of a model.

    Args:
        task: of the papers.
        learned: the task that the model does.

    Returns:
        Class of the model -> spelling; nothing where there are no classes.

    Raises:
        InputError: the model does another kind of task, or has other classes.
    """
    kind = next(kind for kind, each in KINDS.items() if each is type(learned))
    if kind != task.kind:
        raise InputError(f"the model does {kind}, but this task is {task.kind}; give a model fine-tuned on it.")
    if task.labels is None:
        return {}
    known = [task.labels] if task.hub is None or task.hub.labels is None else [task.labels, task.hub.labels]
    for names in known:
        if set(names) == set(learned.labels or ()):
            return {name: task.spelling.get(label, label) for name, label in zip(names, task.labels, strict=True)}
    raise InputError(
        f"the model has the classes {', '.join(learned.labels or ())}, but this task has {', '.join(task.labels)}; "
        "give a model fine-tuned on it."
    )


def _asked(row: Row, kind: Kind, data: DataConfig) -> tuple[Any, str | None]:
    """What a predictor takes as the first and the second of a pair."""
    match kind:
        case "token-classification":
            return row.texts("words"), None
        case "question-answering":
            return row.text("question"), row.text("context")
        case "multiple-choice":
            return Choices(row.text("question"), choices_of(row, None)), context_of(row, data)
        case "span-classification":
            return marked_of(row, data)
        case "entity-choice":
            return cloze_of(row, data)
    return row.text("text"), None if data.pair is None else row.text(data.pair)


_ANSWERS: Mapping[Kind, Callable[[Mapping[str, Any]], Any]] = {
    "classification": lambda prediction: prediction["label"],
    "regression": lambda prediction: f"{prediction['score']:.4f}",
    "token-classification": lambda prediction: [word["label"] for word in prediction["words"]],
    "question-answering": lambda prediction: prediction["answer"],
    "multiple-choice": lambda prediction: prediction["index"],
    "span-classification": lambda prediction: prediction["label"],
    "entity-choice": lambda prediction: prediction["entity"],
}


def _table(header: str, rows: Sequence[Row], answers: Sequence[Any]) -> Iterator[str]:
    """Tab-separated; rows without an id go by their number."""
    yield header
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        yield f"{row.cells.get('id', number)}\t{answer}"


def _glue(rows: Sequence[Row], answers: Sequence[Any]) -> Iterator[str]:
    return _table("index\tprediction", rows, answers)


def _plain(rows: Sequence[Row], answers: Sequence[Any]) -> Iterator[str]:
    return _table("id\tlabel", rows, answers)


def _superglue(rows: Sequence[Row], answers: Sequence[Any]) -> Iterator[str]:
    for row, answer in zip(rows, answers, strict=True):
        yield json.dumps({"idx": row.cell("id"), "label": answer}, ensure_ascii=False)


def _multirc(rows: Sequence[Row], answers: Sequence[str]) -> Iterator[str]:
    """A passage a line, with the answers to its questions nested as in the test file."""
    ids = ((*row.cell("id"), int(answer)) for row, answer in zip(rows, answers, strict=True))
    for passage, in_passage in itertools.groupby(ids, key=lambda each: each[0]):
        questions = [
            {"idx": question, "answers": [{"idx": answer, "label": label} for _, _, answer, label in of_question]}
            for question, of_question in itertools.groupby(in_passage, key=lambda each: each[1])
        ]
        yield json.dumps({"idx": passage, "passage": {"questions": questions}})


def _squad(rows: Sequence[Row], answers: Sequence[str]) -> Iterator[str]:
    """One JSON object: question -> answer."""
    yield json.dumps({row.cell("id"): answer for row, answer in zip(rows, answers, strict=True)}, ensure_ascii=False)


def _conll(rows: Sequence[Row], answers: Sequence[Sequence[str]]) -> Iterator[str]:
    """A word and its label a line, an empty line after each sentence."""
    for row, labels in zip(rows, answers, strict=True):
        words = zip(row.texts("words"), labels, strict=True)
        for length in row.items("sentences"):
            yield from (f"{word} {label}" for word, label in itertools.islice(words, length))
            yield ""


_SHAPES: Mapping[Submission, Callable[[Sequence[Row], Sequence[Any]], Iterator[str]]] = {
    "glue": _glue,
    "superglue": _superglue,
    "multirc": _multirc,
    "squad": _squad,
    "conll": _conll,
    "table": _plain,
}
