"""The data of benchmarks/tasks.py: which sets, and which of their rows."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import baselines
from baselines import Rows

from unbraid.errors import InputError
from unbraid.files import write_lines

DEV_EXAMPLES = 500
"""To choose the best weights by, at most."""
TEST_EXAMPLES = 2000
"""To score, at most: one standard error of a share is then 1.1 points or less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Data, and what is measured on it.

    Attributes:
        metric: of results.json.
        linear: the score of the linear baseline, of training and test rows.
        train: files to learn from, a pattern.
        test: file to score.
        dev: file to choose by; None: the first rows of the shuffled training data.
        rows: of training at most, drawn with a fixed seed; None: all.
        known: a baseline that is not computed here, in percent.
    """

    metric: str
    linear: Callable[[Rows, Rows], float]
    train: str
    test: str
    dev: str | None
    rows: int | None = None
    known: str = ""


class _Files(TypedDict):
    train: str
    dev: str
    test: str


def _split(name: str) -> _Files:
    return {"train": f"{name}.train.jsonl.gz", "dev": f"{name}.dev.jsonl.gz", "test": f"{name}.test.jsonl.gz"}


TASKS = {
    "sentiment": Task(
        metric="accuracy",
        linear=lambda train, test: baselines.classified(train, test, "text"),
        **_split("vader_movie"),
        known="bigram naive Bayes 82.2",
    ),
    "score": Task(
        metric="pearson_spearman",
        linear=lambda train, test: baselines.scored(train, test, "text", "score"),
        **_split("vader_movie"),
    ),
    "ner": Task(
        metric="f1",
        linear=lambda train, test: baselines.tagged(train, test, "tokens", "ner")["f1"],
        **_split("wnut16_ner"),
    ),
    "qasc": Task(metric="accuracy", linear=baselines.chosen, **_split("qasc_mc"), known="word overlap 62.7"),
    "nli": Task(
        metric="accuracy",
        linear=lambda train, test: baselines.classified(train, test, "premise", "hypothesis"),
        **_split("vitaminc_nli"),
        rows=16_000,
        known="majority 50, hypothesis only 33",
    ),
    "pos": Task(
        metric="accuracy",
        linear=lambda train, test: baselines.tagged(train, test, "tokens", "upos")["accuracy"],
        **_split("brown_pos"),
        rows=12_000,
        known="most frequent tag 93.1",
    ),
    "cosmosqa": Task(metric="accuracy", linear=baselines.chosen, **_split("cosmosqa_mc"), known="chance 31"),
    "qa": Task(
        metric="f1",
        linear=baselines.answered,
        train="squadshifts_*.jsonl.gz",
        test="squad_dev.jsonl.gz",
        dev=None,
        rows=4_000,
    ),
}


def read(paths: Sequence[Path]) -> Rows:
    """All rows of some JSON Lines files, compressed or not."""
    rows = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def write(path: Path, rows: Rows) -> None:
    """Writes JSON Lines, in the place of what was there."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def draw(task: Task, data: Path) -> dict[str, Rows]:
    """All that a task may learn from, in the order in which it is taken; what it chooses by; what it is scored on.

    Raises:
        InputError: files of the task are not there.
    """
    files = {
        part: sorted(data.glob(pattern))
        for part, pattern in (("train", task.train), ("dev", task.dev), ("test", task.test))
        if pattern is not None
    }
    if missing := [part for part, paths in files.items() if not paths]:
        raise InputError(f"{data} has no file {getattr(task, missing[0])}: give the folder of the labelled files.")
    rows = {part: read(paths) for part, paths in files.items()}
    for part in ("train", "dev", "test"):
        random.Random(0).shuffle(rows.get(part, []))  # noqa: S311, an order, no secret
    if task.dev is None:
        rows["dev"], rows["train"] = rows["train"][:DEV_EXAMPLES], rows["train"][DEV_EXAMPLES:]
    most = {"train": task.rows, "dev": DEV_EXAMPLES, "test": TEST_EXAMPLES}
    return {part: rows[part][:count] for part, count in most.items()}


def sizes(examples: Iterable[int | None], available: int) -> list[int]:
    """How many examples to learn from: those asked for, None for all; nearly all are all.

    >>> sizes([None, 500, 2000], 2064)
    [500, 2064]
    """
    return sorted({available if asked is None or asked > 0.9 * available else asked for asked in examples})
