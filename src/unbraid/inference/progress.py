"""Progress on the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PATIENCE_S = 2.0
"""How long work may take before it shows its progress."""


@contextlib.contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, if that is a terminal, that appears when the work takes long and goes with its end.

    Standard output stays as it is: what is printed there meanwhile should not go to the same terminal.

    Args:
        total: how many of whatever is counted there are; None if nobody knows.

    Yields:
        What takes how many more are done.
    """
    began = time.monotonic()
    console = Console(stderr=True)
    goal, left = ("", []) if total is None else (f" of {total:,}", [TimeRemainingColumn()])
    count = TextColumn("{task.completed:,.0f}" + goal)
    columns = TextColumn("Predicting"), BarColumn(), count, TimeElapsedColumn(), *left
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=False)
    task = bar.add_task("", total=total)

    def advance(more: float) -> None:
        bar.advance(task, more)
        if not bar.live.is_started and time.monotonic() - began > _PATIENCE_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
