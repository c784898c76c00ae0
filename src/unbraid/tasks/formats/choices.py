"""Multiple choice: RACE's folders of JSON, SWAG's CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.formats.columns import expected, renamed
from unbraid.tasks.rows import Row, read_csv, read_lines

_LETTERS = "ABCD"


def read_race(path: Path) -> Iterator[Row]:
    """Reads RACE: a file has one passage and its questions, each with four options; the answer is a letter.

    Raises:
        InputError: no JSON, another nesting, or an answer that is none of the four letters.
    """
    try:
        passage = json.loads("".join(read_lines(path)))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON; fetch the file again.") from None
    with expected(str(path), "RACE"):
        for number, question in enumerate(passage["questions"]):
            place = f"{path}, question {number}"
            cells = {
                "context": passage["article"],
                "question": question,
                "choices": passage["options"][number],
                "id": f"{path.parent.name}{path.name}-{number}",
            }
            if "answers" in passage:
                letter = passage["answers"][number]
                if letter not in tuple(_LETTERS):
                    raise InputError(f"{place}: the answer is {letter!r}, which is none of the letters A to D.")
                cells["label"] = _LETTERS.index(letter)
            yield Row(place, cells)


def read_swag(path: Path) -> Iterator[Row]:
    """Reads SWAG: a sentence, the beginning of the next one, and four endings. The first column, the id, has no name.

    Raises:
        InputError: a column that is not there, or no CSV.
    """
    columns = {"context": "sent1", "question": "sent2", "label": "label", "id": ""}
    for row in read_csv(path):
        choices = [row.text(f"ending{number}") for number in range(4)]
        yield Row(row.place, {**renamed(row, columns).cells, "choices": choices})
