"""Questions with the answers in their contexts: SQuAD's own JSON, or a table with a question a row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unbraid.errors import InputError
from unbraid.tasks.config import DataConfig
from unbraid.tasks.formats.squad import nested_rows
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about a text.

    Attributes:
        question: the question.
        context: the text, untouched.
        answers: the right answers, each with its first character in the context; none if it cannot be answered.
        group: what it belongs together with in folds, or None.
    """

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    group: str | None = None


def read_questions(source: str, data: DataConfig) -> list[Question]:
    """Reads the questions of one file, or of one split of a hub data set.

    Args:
        source: the file, or the split when ``data.dataset`` is given.
        data: where from and which columns.

    Raises:
        InputError: what is wrong with the data, and where: an answer that is not in its context, or a question without
            an answer where ``data.unanswerable`` does not allow it.
    """
    return [_question(row, data) for row in question_rows(source, data)]


def question_rows(source: str, data: DataConfig) -> Iterator[Row]:
    """The rows of a table, or of SQuAD's nested JSON, whose columns are then question, context and answers.

    Arguments as of :func:`read_rows`.

    Raises:
        InputError: what is wrong with the file, and where.
    """
    plain = data.dataset is None and data.format is None
    nested = nested_rows(Path(source)) if plain and source.endswith((".json", ".json.gz")) else None
    return read_rows(source, data) if nested is None else nested


def _question(row: Row, data: DataConfig) -> Question:
    context = row.text(data.context or "context")
    answers = tuple(_answer(entry, context, row.place) for entry in _entries(row.cell(data.answers), row.place))
    if not answers and not data.unanswerable:
        raise InputError(
            f"{row.place}: the question has no answer; drop it, or set data.unanswerable if questions may have none."
        )
    return Question(row.text(data.question), context, answers, group_of(row, data))


def _entries(answers: Any, place: str) -> list[tuple[Any, Any]]:
    """The text and the first character of each answer, from either of the two forms that there are."""
    if isinstance(answers, str):  # a cell of CSV
        try:
            answers = json.loads(answers)
        except (ValueError, RecursionError):
            answers = None
    match answers:
        case {"text": list(texts), "answer_start": list(starts)} if len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
        case list() if all(isinstance(entry, dict) for entry in answers):
            return [(entry.get("text"), entry.get("answer_start")) for entry in answers]
    raise InputError(
        f"{place}: the answers are not as in SQuAD; give a list of objects with text and answer_start, "
        "or one object with a list of each."
    )


def _answer(entry: tuple[Any, Any], context: str, place: str) -> tuple[str, int]:
    match entry:
        case str(text), int(start) if text.strip() and start >= 0:
            if context.startswith(text, start):
                return text, start
            raise InputError(
                f"{place}: the answer {text!r} does not stand at character {start} of its context; "
                "mend its answer_start or drop it."
            )
    raise InputError(f"{place}: {entry!r} is no answer; give its text and the place where it starts.")
