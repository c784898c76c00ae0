"""The table and the plot of benchmarks/tasks.py."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unbraid.report import markdown_table


@dataclasses.dataclass(frozen=True)
class Row:
    """A task with some number of examples, in percent.

    Attributes:
        task: by its name.
        metric: that is shown.
        examples: to learn from.
        scores: of each column the scores of its seeds so far.
        linear: of the baseline with the same examples.
        known: a baseline that is not computed here.
    """

    task: str
    metric: str
    examples: int
    scores: Mapping[str, Sequence[float]]
    linear: float
    known: str = ""


def table(rows: Sequence[Row], columns: Sequence[str], seeds: int) -> str:
    """A Markdown table with mean and standard deviation, and the number of seeds where they are fewer than asked."""
    head = ["", "metric", "examples", *columns, "linear", "known"]
    body = [
        [
            row.task,
            row.metric.replace("_", ", "),
            f"{row.examples:,}",
            *(_shown(row.scores[column], seeds) for column in columns),
            f"{row.linear:.1f}",
            row.known,
        ]
        for row in rows
    ]
    return markdown_table(head, body)


def _shown(scores: Sequence[float], seeds: int) -> str:
    """One cell.

    >>> _shown([80.0, 82.0], 3), _shown([80.0], 1), _shown([], 3)
    ('81.0 ± 1.4 (2)', '80.0', '')
    """
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    fewer = f" ({len(scores)})" if len(scores) < seeds else ""
    return f"{statistics.fmean(scores):.1f}{spread}{fewer}"


def plot(rows: Sequence[Row], columns: Sequence[str]) -> Figure:
    """A panel a task: score over number of examples, a line a column, its bars the deviation over the seeds."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    across = min(4, len(tasks))
    down = -(-len(tasks) // across)
    figure = Figure((3.1 * across + 1, 2.6 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for task, axes in zip(tasks, panels, strict=False):  # the last row of panels may be longer
        _panel(axes, [row for row in rows if row.task == task], columns)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel("training examples", fontsize="small")
    figure.supylabel("test score, percent", fontsize="small")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _panel(axes: Axes, rows: Sequence[Row], columns: Sequence[str]) -> None:
    for number, column in enumerate(columns):
        shown = [(row.examples, row.scores[column]) for row in rows if row.scores[column]]
        at = [examples for examples, _ in shown]
        means = [statistics.fmean(scores) for _, scores in shown]
        spreads = [statistics.stdev(scores) if len(scores) > 1 else math.nan for _, scores in shown]
        style = {"marker": "o", "markersize": 3, "capsize": 2, "elinewidth": 1}
        axes.errorbar(at, means, spreads, label=column, color=f"C{number}", **style)
    sizes = [row.examples for row in rows]
    axes.plot(sizes, [row.linear for row in rows], "--", label="linear", color="#777", marker=".", markersize=3)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize="x-small")
    axes.minorticks_off()
    axes.set_title(f"{rows[0].task} ({rows[0].metric.replace('_', ', ')})", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.3)
