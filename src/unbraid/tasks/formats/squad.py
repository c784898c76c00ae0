"""SQuAD's nested JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unbraid.errors import InputError
from unbraid.tasks.rows import Row, read_lines


def read_squad(path: Path) -> Iterator[Row]:
    """Reads SQuAD 1.1 or 2.0: one row a question; an unanswerable one has no answers, whatever was plausible.

    Raises:
        InputError: it is not such a file, or damaged.
    """
    rows = nested_rows(path)
    if rows is None:
        raise InputError(f"{path} is no JSON of SQuAD; fetch the file again.")
    return rows


def nested_rows(path: Path) -> Iterator[Row] | None:
    """See :func:`read_squad`; None if it is another file.

    Raises:
        InputError: it is such a file, but damaged.
    """
    try:
        content = json.loads("".join(read_lines(path)))
    except (ValueError, RecursionError):  # JSON Lines, or nothing that we know; its own reader will say
        return None
    nested = isinstance(content, dict) and isinstance(content.get("data"), list)
    return _flat(str(path), content["data"]) if nested else None


def _flat(source: str, articles: list[Any]) -> Iterator[Row]:
    number = 0
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    number += 1
                    answers = [] if entry.get("is_impossible") else entry.get("answers", [])
                    cells = {"question": entry["question"], "context": paragraph["context"], "answers": answers}
                    name = entry.get("id", number)
                    yield Row(f"{source}, question {name}", {**cells, "id": name})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source} is not as SQuAD's files are, after question {number} ({error!r}).") from None
    if not number:
        raise InputError(f"{source} has no examples.")
