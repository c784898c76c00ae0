"""The runs of benchmarks/tasks.py: which, in which order, and side by side in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

from unbraid.errors import InputError

COSTLY = ("nli", "cosmosqa", "qa")
"""Tasks that come after the others."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: by its name.
        examples: to learn from.
        model: by its name.
        sift: whether with SiFT.
        seed: of the head, of dropout and of the order of the examples.
    """

    task: str
    examples: int
    model: str
    sift: bool
    seed: int

    @property
    def column(self) -> str:
        """Where it stands in the table."""
        return f"{self.model} + SiFT" if self.sift else self.model

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.task}-{self.examples}-{self.model}-{'sift' if self.sift else 'plain'}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of a run: its test score in percent, the minutes that its pieces took, its precision."""

    run: Run
    score: float
    minutes: float
    precision: str


def plan(sizes: Mapping[str, Sequence[int]], models: Sequence[str], sift: Sequence[str], seeds: int) -> list[Run]:
    """All runs, those first that tell most for their time.

    Args:
        sizes: numbers of examples of each task, from few to many.
        models: names.
        sift: those of them that are trained with SiFT too.
        seeds: how many.

    >>> [run.name for run in plan({"qa": [5], "ner": [5, 9]}, ["a"], ["a"], 1)][:4]
    ['ner-5-a-plain-0', 'qa-5-a-plain-0', 'ner-5-a-sift-0', 'qa-5-a-sift-0']
    """
    tasks = sorted(sizes, key=lambda task: task in COSTLY)
    return [
        Run(task, sizes[task][rank], model, with_sift, seed)
        for rank in range(max(map(len, sizes.values())))
        for with_sift in (False, True)
        for seed, task in itertools.product(range(seeds), tasks)
        for model in (sift if with_sift else models)
        if rank < len(sizes[task])
    ]


def begun_in(folder: Path) -> str | None:
    """The precision of a run that has begun: it goes on in no other."""
    recipe = folder / "recipe.json"
    return json.loads(recipe.read_text(encoding="utf-8"))["training"]["precision"] if recipe.is_file() else None


def collect(run: Run, folder: Path, metric: str) -> Finished | None:
    """What became of a run, None if it has no results yet; of one that has them the weights are removed."""
    if not (folder / "results.json").is_file():
        return None
    for weights in ("best", "checkpoints"):
        shutil.rmtree(folder / weights, ignore_errors=True)  # mostly they are gone
    scores, recipe = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("results.json", "recipe.json")
    )
    return Finished(run, 100 * scores["test"][metric], _minutes(folder), recipe["training"]["precision"])


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[int]:
    """Holds a folder, so that no two processes ever write the same run.

    Yields:
        The file descriptor of the lock. A process that inherits it holds the folder too, until it ends, even if this
        one is killed before.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is at work in {folder}, perhaps a run that outlived its benchmark: wait, or end it."
            ) from None
        yield lock.fileno()


def side_by_side(commands: Mapping[Path, Sequence[str]], jobs: int, lock: int) -> Generator[Path]:
    """Runs commands, ``jobs`` at a time; what they print goes to ``FOLDER/log.txt``.

    They share the cores, unless OMP_NUM_THREADS says how many threads each has.

    If this ends early, they are told to stop, and waited for.

    Args:
        commands: of each run's folder.
        jobs: how many at a time: two processes of one thread do more than one of two.
        lock: see :func:`sole`.

    Yields:
        The folder of each when it has ended, however it did.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    waiting = iter(commands.items())
    active: dict[subprocess.Popen[bytes], tuple[Path, float]] = {}  # and when they began

    def note(process: subprocess.Popen[bytes]) -> Path:
        folder, began = active.pop(process)
        minutes = _minutes(folder) + (time.monotonic() - began) / 60
        (folder / "minutes.json").write_text(json.dumps(minutes), encoding="utf-8")
        return folder

    try:
        while True:
            for folder, command in itertools.islice(waiting, jobs - len(active)):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "log.txt").open("ab") as log:
                    process = subprocess.Popen(  # noqa: S603, our own command
                        command,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        pass_fds=[lock],
                        start_new_session=True,  # Ctrl-C is for us; a second signal would end them without a checkpoint
                    )
                active[process] = folder, time.monotonic()
            if not active:
                return
            for process in [process for process in active if process.poll() is not None]:
                yield note(process)
            time.sleep(0.1)
    finally:
        for process in active:
            process.terminate()
        for process in list(active):
            process.wait()
            note(process)


def _minutes(folder: Path) -> float:
    """What the pieces of a run took so far."""
    path = folder / "minutes.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else 0.0
