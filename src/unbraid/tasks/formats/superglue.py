"""SuperGLUE's JSON Lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from unbraid.errors import InputError
from unbraid.tasks.config import Format
from unbraid.tasks.formats.columns import expected, renamed
from unbraid.tasks.rows import Row, read_json_lines

_COLUMNS: Mapping[Format, Mapping[str, str]] = {
    "boolq": {"text": "passage", "pair": "question", "label": "label", "id": "idx"},
    "cb": {"text": "premise", "pair": "hypothesis", "label": "label", "id": "idx"},
    "ax-b": {"text": "sentence1", "pair": "sentence2", "label": "label", "id": "idx"},
}


def read_superglue(form: Format, path: Path) -> Iterator[Row]:
    """Reads pairs of texts.

    Args:
        form: boolq, cb (and RTE and AX-g, whose keys are the same) or ax-b.
        path: of the file.

    Raises:
        InputError: a key that is not there, or no JSON Lines.
    """
    for row in read_json_lines(path):
        yield renamed(row, _COLUMNS[form])


def read_copa(path: Path) -> Iterator[Row]:
    """Reads COPA: the premise is the context, and the question is asked as COPA's own is.

    Raises:
        InputError: a key that is not there, a question for neither cause nor effect, or no JSON Lines.
    """
    questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
    for row in read_json_lines(path):
        asked = row.text("question")
        if asked not in questions:
            raise InputError(f"{row.place}: the question is {asked!r}; COPA asks for cause or effect.")
        cells = renamed(row, {"context": "premise", "label": "label", "id": "idx"}).cells
        choices = [row.text("choice1"), row.text("choice2")]
        yield Row(row.place, {**cells, "question": questions[asked], "choices": choices})


def read_multirc(path: Path) -> Iterator[Row]:
    """Reads MultiRC: one row an answer, of the passage and the question with it; its group is the question.

    The id is that of the passage, of the question and of the answer.

    Raises:
        InputError: another nesting, or no JSON Lines.
    """
    for row in read_json_lines(path):
        with expected(row.place, "MultiRC"):
            passage = row.cells["passage"]
            for question in passage["questions"]:
                for answer in question["answers"]:
                    ids = row.cells["idx"], question["idx"], answer["idx"]
                    cells = {
                        "text": passage["text"],
                        "pair": question["question"] + " " + answer["text"],
                        "group": f"{ids[0]}-{ids[1]}",
                        "id": ids,
                    }
                    if "label" in answer:
                        cells["label"] = answer["label"]
                    yield Row(f"{row.place}, answer {answer['idx']}", cells)


def read_record(path: Path) -> Iterator[Row]:
    """Reads ReCoRD: one row a query; the last character of an entity is its own in the file, one past it in the row.

    Entities without a character are passed over, as the original does.

    Raises:
        InputError: another nesting, or no JSON Lines.
    """
    for row in read_json_lines(path):
        with expected(row.place, "ReCoRD"):
            passage = row.cells["passage"]
            marked = [[entity["start"], entity["end"] + 1] for entity in passage["entities"]]
            entities = [[start, end] for start, end in marked if start < end]
            for query in row.cells["qas"]:
                cells = {
                    "question": query["query"],
                    "context": passage["text"],
                    "entities": entities,
                    "id": query["idx"],
                }
                if "answers" in query:
                    cells["answers"] = list(dict.fromkeys(answer["text"] for answer in query["answers"]))
                yield Row(f"{row.place}, query {query['idx']}", cells)


def read_wic(path: Path) -> Iterator[Row]:
    """Reads WiC: two sentences and the characters of the word in each.

    Raises:
        InputError: a key that is not there, or no JSON Lines.
    """
    columns = {"text": "sentence1", "pair": "sentence2", "label": "label", "id": "idx"}
    for row in read_json_lines(path):
        with expected(row.place, "WiC"):
            spans = {f"span{n}": [row.cells[f"start{n}"], row.cells[f"end{n}"]] for n in (1, 2)}
        yield Row(row.place, {**renamed(row, columns).cells, **spans})


def read_wsc(path: Path) -> Iterator[Row]:
    """Reads WSC: a text and the characters of the two phrases, which the file places by words between spaces.

    Where a phrase does not stand at its word, the nearest place where it stands is taken, whatever white space is
    between its words. One that stands nowhere does without a full stop, a comma or a quotation mark at its end.

    Raises:
        InputError: a key that is not there, a phrase that is not in its text, or no JSON Lines.
    """
    for row in read_json_lines(path):
        text = row.text("text")
        with expected(row.place, "WSC"):
            target = row.cells["target"]
            spans = {
                f"span{n}": _phrase(text, target[f"span{n}_text"], target[f"span{n}_index"], row.place) for n in (1, 2)
            }
        yield Row(row.place, {**renamed(row, {"text": "text", "label": "label", "id": "idx"}).cells, **spans})


def _phrase(text: str, phrase: str, word: int, place: str) -> list[int]:
    """The characters [start, end) of a phrase that begins with a word, counted from 0 between single spaces."""
    near = sum(len(each) + 1 for each in text.split(" ")[:word])
    for words in (phrase.split(), phrase.rstrip('.,"').split()):
        pattern = r"\s+".join(map(re.escape, words))
        found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]
        if words and found:
            return list(min(found, key=lambda span: abs(span[0] - near)))
    raise InputError(f"{place}: the phrase {phrase!r} does not stand in the text; mend it or drop the row.")
