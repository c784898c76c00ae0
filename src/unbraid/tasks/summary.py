"""Several runs side by side: their scores, mean and standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table

Scores = Mapping[str, Mapping[str, float]]
"""The metrics on each set of examples, by their names."""


def mean(runs: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """The mean over runs of every metric that all of them have.

    >>> mean([{"dev": {"f1": 0.5}}, {"dev": {"f1": 1.0}}])
    {'dev': {'f1': 0.75}}
    """
    return _each(statistics.fmean, runs)


def deviation(runs: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """The standard deviation of these metrics over two or more runs, which are a sample.

    >>> deviation([{"dev": {"f1": 0.0}}, {"dev": {"f1": 1.0}}])
    {'dev': {'f1': 0.7071067811865476}}
    """
    return _each(statistics.stdev, runs)


def table(rows: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """A table of the terminal.

    Args:
        rows: metrics by the name of the row; what a row lacks stays empty.
        title: above it.
    """
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    heads = [name.replace("_", "\n") for name in names]
    columns = Table("", *heads, title=title, box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    for column in columns.columns[1:]:
        column.justify = "right"
    for row, metrics in rows.items():
        columns.add_row(row, *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names))
    return columns


def _each(measure: Callable[[list[float]], float], runs: Sequence[Scores]) -> dict[str, dict[str, float]]:
    return {
        part: {
            name: measure([run[part][name] for run in runs])
            for name in metrics
            if all(name in run[part] for run in runs)
        }
        for part, metrics in runs[0].items()
    }
