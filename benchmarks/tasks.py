"""Every kind of task on real data, with few examples and many: models side by side, and linear baselines.

    python benchmarks/tasks.py --data DATA --output OUTPUT --models NAME=MODEL NAME=scratch:MODEL ... --sift NAME

``DATA`` holds the labelled files that docs/results.md names. ``scratch:MODEL`` stands for the architecture and the
tokenizer of a model with fresh weights, the same for all seeds of fine-tuning.

The examples of a task are drawn with a fixed seed, the same for every model and seed: the 500 are the first of the
2,000, which are the first of all. A number within a tenth of all stands for all. A run makes the passes of its recipe,
or more: as many as 200 updates take, so that few examples are not also little training. The best weights are chosen by
up to 500 dev examples, four or five times a run, and scored once on up to 2,000 test examples. All models have the same
rules.

The order of the runs: small sizes before large ones; of a size all plain runs before those with SiFT; of these seed 0
of all tasks and models before seed 1; of a seed the costly tasks last. Killed at any moment, the same command
continues, also with another precision for the runs that have not begun. What was measured so far is always in
``OUTPUT/tasks.json``, ``tasks.md`` and ``tasks.png``; the first of them is all that another machine needs to go on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import math
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import task_data
import task_report
import torch
from task_data import TASKS
from task_record import Record
from task_runs import Finished, Run, begun_in, collect, plan, side_by_side, sole

from unbraid import Deberta, Tokenizer
from unbraid.errors import InputError
from unbraid.files import read_toml, replace_text
from unbraid.training.precision import Precision

HERE = Path(__file__).parent
UPDATES = 200
"""The fewest that a run makes."""
SIFT = 5.0
"""The weight of SiFT, that of the original's scripts for MNLI."""
SCRATCH = "scratch:"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What was asked for, and where it is.

    Attributes:
        output: folder of it all.
        models: name -> folder or name on the hub, or scratch: before such.
        sift: names of models that are trained with SiFT too.
        seeds: how many.
        sizes: task -> numbers of examples, from few to many.
        precision: of the runs that have not begun, as ``unbraid finetune --training.precision`` names it.
    """

    output: Path
    models: Mapping[str, str]
    sift: Sequence[str]
    seeds: int
    sizes: Mapping[str, Sequence[int]]
    precision: str = "float32"

    def folder(self, run: Run) -> Path:
        """Of a run."""
        return self.output / "runs" / run.name

    def command(self, run: Run) -> list[str]:
        """What makes a run, or continues it."""
        recipe = HERE / "tasks" / f"{run.task}.toml"
        source = self.models[run.model]
        options = {
            "--model": scratch(self.output, run.model) if source.startswith(SCRATCH) else source,
            "--output": self.folder(run),
            "--task.train": examples(self.output, run.task, run.examples),
            "--task.dev": examples(self.output, run.task, "dev"),
            "--task.test": examples(self.output, run.task, "test"),
            "--training.seed": run.seed,
            "--training.epochs": epochs(recipe, run.examples),
            "--training.precision": begun_in(self.folder(run)) or self.precision,
        }
        if run.sift:
            options["--sift.weight"] = SIFT
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "unbraid", "finetune", str(recipe), *words]

    def collect(self, run: Run) -> Finished | None:
        """What became of a run, if it has ended well."""
        return collect(run, self.folder(run), TASKS[run.task].metric)

    def compute_linear(self, record: Record) -> None:
        """The linear baselines that are not known yet."""
        for task, count in ((task, count) for task, counts in self.sizes.items() for count in counts):
            if count not in record.linear.get(task, {}):
                train, test = (task_data.read([examples(self.output, task, part)]) for part in (count, "test"))
                percent = 100 * TASKS[task].linear(train, test)
                record.add_linear(task, count, percent)
                print(f"linear baseline {task}-{count}: {percent:.1f}", flush=True)

    def report(self, record: Record) -> None:
        """Writes the table and the plot of what was asked for, as far as it is measured."""
        runs = plan(self.sizes, list(self.models), self.sift, self.seeds)
        columns = list(dict.fromkeys(run.column for run in runs))
        scores: dict[tuple[str, int, str], list[float]] = collections.defaultdict(list)
        for run in runs:
            if run in record.finished:
                scores[run.task, run.examples, run.column].append(record.finished[run].score)
        rows = [
            task_report.Row(
                task,
                TASKS[task].metric,
                count,
                {column: scores[task, count, column] for column in columns},
                record.linear[task][count],
                TASKS[task].known if count == counts[-1] else "",
            )
            for task, counts in self.sizes.items()
            for count in counts
        ]
        replace_text(self.output / "tasks.md", task_report.table(rows, columns, self.seeds))
        task_report.plot(rows, columns).savefig(self.output / "tasks.png", dpi=110)


def examples(output: Path, task: str, part: str | int) -> Path:
    """The file of a task's dev or test examples, or of so many to learn from."""
    return output / "data" / task / (f"train-{part}.jsonl" if isinstance(part, int) else f"{part}.jsonl")


def scratch(output: Path, name: str) -> Path:
    """The folder of a model with fresh weights."""
    return output / "scratch" / name


def prepare(options: argparse.Namespace) -> Benchmark:
    """Draws the examples and writes them, and the models with fresh weights."""
    sizes: dict[str, list[int]] = {}
    for task in options.tasks:
        rows = task_data.draw(TASKS[task], options.data)
        sizes[task] = task_data.sizes(options.examples, len(rows["train"]))
        for count in sizes[task]:
            task_data.write(examples(options.output, task, count), rows["train"][:count])
        for part in ("dev", "test"):
            task_data.write(examples(options.output, task, part), rows[part])
    for name, source in options.models.items():
        if source.startswith(SCRATCH):
            write_fresh(source.removeprefix(SCRATCH), scratch(options.output, name))
    return Benchmark(options.output, options.models, options.sift, options.seeds, sizes, options.precision)


def epochs(recipe: Path, examples: int) -> float:
    """Passes over the examples: the recipe's, or as many as ``UPDATES`` updates take."""
    fields = read_toml(recipe)
    return max(fields["training"]["epochs"], UPDATES / math.ceil(examples / fields["task"]["batch_size"]))


def write_fresh(model: str, folder: Path) -> None:
    """Writes the architecture of a model with fresh weights of a fixed seed, and its tokenizer."""
    torch.manual_seed(0)
    Deberta(Deberta.from_pretrained(model).config).save_pretrained(folder)
    Tokenizer.from_pretrained(model).save_pretrained(folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL", help="MODEL may be scratch:MODEL")
    parser.add_argument("--sift", nargs="+", default=[], metavar="NAME", help="models to train with SiFT too")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of all of them")
    parser.add_argument("--examples", nargs="+", type=_size, default=[500, 2000, None], help="numbers, or full")
    parser.add_argument("--seeds", type=_count, default=3, help="how many")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of runs not yet begun")
    parser.add_argument("--jobs", type=_count, default=1, help="runs at a time; they share the cores")
    options = parser.parse_args(arguments)
    models = [model.partition("=")[::2] for model in options.models]
    if wrong := [name for name, model in models if not (re.fullmatch(r"\w+", name) and model)]:
        parser.error(f"--models {wrong[0]}: give a name of letters and digits and a model, as in mini=FOLDER.")
    options.models = dict(models)
    if len(options.models) < len(models) or len(set(options.sift)) < len(options.sift):
        parser.error("two models have the same name.")
    if unknown := set(options.sift) - options.models.keys():
        parser.error(f"--sift {', '.join(sorted(unknown))}: not among --models.")
    return options


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number above 0.")
    return int(word)


def _size(word: str) -> int | None:
    return None if word == "full" else _count(word)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the runs that are not there yet.

    Raises:
        InputError: data or a model is not there, another process is at work here, a name stands for another model, or
            the record is damaged.
    """
    options = parse(arguments)
    with sole(options.output) as lock:
        record = Record.read(options.output / "tasks.json")
        record.name(options.models)
        benchmark = prepare(options)
        runs = plan(benchmark.sizes, list(benchmark.models), benchmark.sift, benchmark.seeds)
        for run in runs:
            if run not in record.finished and (each := benchmark.collect(run)):
                record.add(each)
        coming = {benchmark.folder(run): run for run in runs if run not in record.finished}
        done = len(runs) - len(coming)
        print(f"{len(runs)} runs, {done} of them finished", flush=True)
        benchmark.compute_linear(record)
        benchmark.report(record)
        commands = {folder: benchmark.command(run) for folder, run in coming.items()}
        failed: list[str] = []
        with contextlib.closing(side_by_side(commands, options.jobs, lock)) as ended:
            for count, folder in enumerate(ended, done + 1):
                run = coming[folder]
                said = f"run {count} of {len(runs)}: {run.name}"
                if each := benchmark.collect(run):
                    record.add(each)
                    benchmark.report(record)
                    print(f"{said}, {TASKS[run.task].metric} {each.score:.1f}, {each.minutes:.1f} minutes", flush=True)
                else:
                    failed.append(run.name)
                    print(f"{said} failed, see {folder / 'log.txt'}", flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(runs)} runs failed, the same command tries again: {', '.join(failed)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs with a checkpoint, as Ctrl-C does
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues.")
