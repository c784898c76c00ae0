"""Every kind of task on real data, with and without SiFT, beside linear baselines: a table and a plot.

    python benchmarks/tasks.py --data DATA --model MODEL --output OUTPUT

``DATA`` holds the labelled files that docs/results.md names. Killed at any moment, the same command continues; what was
measured so far is always in ``OUTPUT/tasks.json``, ``tasks.md`` and ``tasks.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import baselines
from baselines import Rows
from matplotlib.figure import Figure

from unbraid.report import markdown_table

HERE = Path(__file__).parent
SIFT = 5.0
"""The weight of SiFT, that of the original's scripts for MNLI."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Data, and what is measured on it.

    Attributes:
        metric: of results.json.
        linear: the score of the linear baseline, of training and test rows.
        train: files to learn from, a pattern.
        test: file to score.
        dev: file to choose by; None: the first rows of the shuffled training data.
        rows: of training, drawn with a fixed seed; None: all.
        seeds: how many.
        known: a baseline that is not computed here, in percent.
    """

    metric: str
    linear: Callable[[Rows, Rows], float]
    train: str
    test: str
    dev: str | None
    rows: int | None = None
    seeds: int = 1
    known: str = ""


def _split(name: str) -> dict[str, str]:
    return {split: f"{name}.{split}.jsonl.gz" for split in ("train", "dev", "test")}


TASKS = {
    "sentiment": Task(
        metric="accuracy",
        linear=lambda train, test: baselines.classified(train, test, "text"),
        **_split("vader_movie"),
        seeds=3,
        known="bigram naive Bayes 82.2",
    ),
    "score": Task(
        metric="pearson_spearman",
        linear=lambda train, test: baselines.scored(train, test, "text", "score"),
        **_split("vader_movie"),
        seeds=3,
    ),
    "ner": Task(
        metric="f1",
        linear=lambda train, test: baselines.tagged(train, test, "tokens", "ner")["f1"],
        **_split("wnut16_ner"),
        seeds=3,
    ),
    "qasc": Task(metric="accuracy", linear=baselines.chosen, **_split("qasc_mc"), seeds=3, known="word overlap 62.7"),
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
    "cosmosqa": Task(
        metric="accuracy", linear=baselines.chosen, **_split("cosmosqa_mc"), rows=2_500, known="chance 31"
    ),
    "qa": Task(
        metric="f1",
        linear=baselines.answered,
        train="squadshifts_*.jsonl.gz",
        test="squad_dev.jsonl.gz",
        dev=None,
        rows=4_000,
    ),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured on a task so far, in percent.

    Attributes:
        rows: of training.
        linear: of the baseline.
        plain: of each seed, without SiFT.
        sift: of each seed, with SiFT.
    """

    rows: int
    linear: float
    plain: list[float] = dataclasses.field(default_factory=list)
    sift: list[float] = dataclasses.field(default_factory=list)


def read(paths: Sequence[Path]) -> Rows:
    """All rows of some JSON Lines files, compressed or not."""
    rows = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def prepare(name: str, data: Path, output: Path) -> dict[str, Path]:
    """Writes the rows that a task learns from, chooses by and is scored on."""
    task, folder = TASKS[name], output / "data" / name
    train = read(sorted(data.glob(task.train)))
    random.Random(0).shuffle(train)  # noqa: S311, an order, no secret
    dev = train[:500] if task.dev is None else read([data / task.dev])
    train = train[500:] if task.dev is None else train
    parts = {"train": train[: task.rows], "dev": dev, "test": read([data / task.test])}
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    return {part: folder / f"{part}.jsonl" for part in parts}


def finetune(name: str, model: str, files: dict[str, Path], output: Path, seed: int, sift: bool) -> float:
    """The test score of one run in percent; a run that is finished is only read."""
    folder = output / "runs" / f"{name}-{'sift' if sift else 'plain'}-{seed}"
    if not (folder / "results.json").is_file():
        recipe = HERE / "tasks" / f"{name}.toml"
        options = ["--model", model, "--output", folder, "--training.seed", seed]
        options += [part for split, path in files.items() for part in (f"--task.{split}", path)]
        options += ["--sift.weight", SIFT] if sift else []
        command = [sys.executable, "-m", "unbraid", "finetune", recipe, *options]
        subprocess.run([str(part) for part in command], check=True)  # noqa: S603, our own command
    scores = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return 100 * scores["test"][TASKS[name].metric]


def report(found: dict[str, Found], output: Path) -> None:
    """Writes what was measured so far."""
    described = {name: dataclasses.asdict(task) for name, task in found.items()}
    (output / "tasks.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    head = ["", "metric", "rows", "plain", "SiFT", "seeds", "linear", "known"]
    rows = [
        [
            name,
            TASKS[name].metric,
            f"{task.rows:,}",
            _shown(task.plain),
            _shown(task.sift),
            str(TASKS[name].seeds),
            _shown([task.linear]),
            TASKS[name].known,
        ]
        for name, task in found.items()
    ]
    (output / "tasks.md").write_text(markdown_table(head, rows), encoding="utf-8")
    _plot(found).savefig(output / "tasks.png", dpi=110)


def _shown(scores: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.1f}{spread}"


def _plot(found: dict[str, Found]) -> Figure:
    """A bar for each way, a dot for each seed."""
    figure = Figure((9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ways = {"linear": "#bbbbbb", "plain": "#4477aa", "sift": "#cc6677"}
    for shift, (way, colour) in zip((-0.28, 0, 0.28), ways.items(), strict=True):
        runs = [[task.linear] if way == "linear" else getattr(task, way) for task in found.values()]
        means = [statistics.fmean(scores) if scores else 0.0 for scores in runs]
        axes.bar([place + shift for place in range(len(runs))], means, 0.24, color=colour, label=way)
        dots = [(place + shift, score) for place, scores in enumerate(runs) for score in scores if way != "linear"]
        if dots:
            axes.scatter(*zip(*dots, strict=True), color="black", s=8, zorder=3)
    names = [f"{name}\n{TASKS[name].metric.replace('_', ', ')}" for name in found]
    axes.set_xticks(range(len(found)), names, fontsize=8)
    axes.set_ylabel("test score, percent")
    axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Runs what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled files")
    parser.add_argument("--model", required=True, help="pretrained model to fine-tune")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of all of them")
    arguments = parser.parse_args()
    files = {name: prepare(name, arguments.data, arguments.output) for name in arguments.tasks}
    found: dict[str, Found] = {}
    for name in arguments.tasks:
        train, test = read([files[name]["train"]]), read([files[name]["test"]])
        found[name] = Found(len(train), 100 * TASKS[name].linear(train, test))
        print(f"{name}: linear baseline {found[name].linear:.1f}", flush=True)
    for way, name in itertools.product(("plain", "sift"), arguments.tasks):
        for seed in range(TASKS[name].seeds):
            score = finetune(name, arguments.model, files[name], arguments.output, seed, way == "sift")
            getattr(found[name], way).append(score)
            report(found, arguments.output)


if __name__ == "__main__":
    main()
