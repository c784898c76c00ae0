"""Plots, and an HTML report of one page that needs nothing beside it."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from unbraid.files import replace_text

COLOURS = ("#2457a7", "#d1603d", "#3d8f5f", "#8a5fb0")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e4e4e4; text-align: left }
th { background: #f5f6f8 } img { max-width: 100% } code { background: #f5f6f8; padding: 0 .25rem } .note { color: #555 }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report: a heading, a paragraph, and HTML (plots and tables)."""

    title: str
    text: str
    body: str = ""


def read_metrics(run: Path, kind: str) -> dict[str, np.ndarray]:
    """The columns of a run's metrics.jsonl, ``kind`` train or evaluation; NaN where a row has no number."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.pop("kind") == kind]
    names = {name for row in rows for name in row}
    return {name: np.array([np.nan if row.get(name) is None else row[name] for row in rows]) for name in names}


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and up to ``window - 1`` before it.

    >>> smooth(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [1.0, 2.0, 4.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (sums[ends] - sums[begins]) / (ends - begins)


def curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], x: str, y: str, levels: Mapping[str, float] | None = None
) -> str:
    """A line for each name, ``(x values, y values)``, and a dashed level for each of ``levels``; an HTML image."""
    figure = Figure((8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, (at, values)) in zip(COLOURS, series.items(), strict=False):  # more colours than lines
        axes.plot(at, values, label=name, color=colour, marker="o" if len(at) < 40 else None, markersize=3)
    for name, level in (levels or {}).items():
        axes.axhline(level, label=name, color="#777", linestyle="--", linewidth=1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _image(figure)


def comparison(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x: str,
    y: str,
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float | None]]]],
) -> bytes:
    """Several variants in one picture: a curve of each, and beside it panels of dots, one row a variant.

    The y axis is of the last nine tenths of the curves, or their steep beginning would hide how they differ.

    Args:
        lines: variant -> (S,) x values and (repetitions, S) y values; the mean is drawn, and the range shaded.
        x: name of the x axis.
        y: name of the y axis.
        panels: title -> series -> variant -> its mean, and its spread for an error bar.

    Returns:
        A PNG.
    """
    figure = Figure((7 + 3 * len(panels), max(4.0, 1.8 + 0.36 * len(lines))), layout="constrained")
    left, *rest = figure.subplots(1, 1 + len(panels), width_ratios=[1.6] + [1] * len(panels), squeeze=False)[0]
    for index, (name, (at, values)) in enumerate(lines.items()):
        colour, dashes = f"C{index % 10}", ("-", "--")[index // 10 % 2]
        left.plot(at, values.mean(0), dashes, label=name, color=colour, marker="o", markersize=3, linewidth=1.3)
        left.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    late = np.concatenate([values[:, at >= at[-1] / 10].ravel() for at, values in lines.values()])
    margin = 0.05 * np.ptp(late) or 1.0
    left.set_ylim(late.min() - margin, late.max() + margin)
    left.set_xlabel(x)
    left.set_ylabel(y)
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize="small")
    places = {name: -index for index, name in enumerate(lines)}
    for axes, (title, series) in zip(rest, panels.items(), strict=True):
        for number, (name, dots) in enumerate(series.items()):
            shift = 0.16 * ((len(series) - 1) / 2 - number)
            means, spreads = zip(*dots.values(), strict=True)
            bars = None if set(spreads) == {None} else [np.nan if spread is None else spread for spread in spreads]
            at = [places[variant] + shift for variant in dots]
            axes.errorbar(means, at, xerr=bars, fmt="os^Dvp"[number % 6], markersize=4, capsize=2, label=name)
        axes.axvline(0, color="#777", linestyle="--", linewidth=1)
        axes.set_yticks(list(places.values()), list(places) if axes is rest[0] else [""] * len(places))
        axes.set_ylim(0.6 - len(places), 0.6)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    return _png(figure)


def attention_map(weights: np.ndarray, tokens: Sequence[str]) -> str:
    """Attention weights (T, T), queries down, keys across, with their tokens; an HTML image.

    The colours are of the square root, or the many small weights would all be white.
    """
    figure = Figure((6.5, 6), layout="constrained")
    axes = figure.add_subplot()
    shown = _draw_map(axes, weights, tokens, float(weights.max()))
    axes.set_xlabel("attended to (key)")
    axes.set_ylabel("attending (query)")
    _square_scale(figure.colorbar(shown, shrink=0.7))
    return _image(figure)


def attention_maps(columns: Mapping[str, Sequence[tuple[np.ndarray, Sequence[str]]]]) -> bytes:
    """Attention maps of several models side by side, a column for each and a row for each text.

    The colours are those of :func:`attention_map`, the same for all maps of the picture; they end at the weight that
    one in a thousand exceeds, or a few would make the others pale.

    Args:
        columns: name -> for each text the weights (T, T) and their tokens.

    Returns:
        A PNG.
    """
    maps = list(columns.values())
    largest = float(np.quantile(np.concatenate([weights.ravel() for column in maps for weights, _ in column]), 0.999))
    figure = Figure((1 + 3.6 * len(maps), 0.5 + 3.6 * len(maps[0])), layout="compressed")
    grid = figure.subplots(len(maps[0]), len(maps), squeeze=False)
    shown = None
    for column, (name, texts) in enumerate(columns.items()):
        grid[0, column].set_title(name)
        for axes, (weights, tokens) in zip(grid[:, column], texts, strict=True):
            shown = _draw_map(axes, weights, tokens, largest)
            axes.tick_params(labelsize=4, length=1, pad=1)
            if column:
                axes.set_yticklabels([])
    for axes in grid[:, 0]:
        axes.set_ylabel("attending (query)")
    for axes in grid[-1]:
        axes.set_xlabel("attended to (key)")
    if shown is not None:
        _square_scale(figure.colorbar(shown, ax=grid, shrink=0.6, extend="max", aspect=40, pad=0.01))
    return _png(figure)


def _draw_map(axes: Axes, weights: np.ndarray, tokens: Sequence[str], largest: float) -> AxesImage:
    """Draws one map, its colours up to the weight ``largest``."""
    shown = axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=math.sqrt(largest), interpolation="nearest")
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, parse_math=False)
    axes.set_yticks(range(len(tokens)), tokens, parse_math=False)
    return shown


def _square_scale(bar: Colorbar) -> None:
    """Labels the colours of roots by the weights themselves."""
    lowest, highest = bar.ax.get_ylim()
    ticks = [tick for tick in bar.get_ticks() if lowest <= tick <= highest]
    bar.set_ticks(ticks, labels=[f"{tick**2:.2g}" for tick in ticks])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; every cell is escaped."""

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source is aligned too, the first column to the left.

    >>> print(markdown_table(["", "loss"], [["a", "2.5"], ["long", "3"]]), end="")
    |      | loss |
    |------|-----:|
    | a    |  2.5 |
    | long |    3 |
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(cells))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 1) + ("-:"[i > 0]) for i, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)]) + "\n"


def write_report(path: Path, title: str, introduction: str, sections: Sequence[Section]) -> None:
    """Writes the page, whole or not at all."""
    parts = [f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.text)}</p>\n{part.body}" for part in sections]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{html.escape(title)}</h1>\n<p class=note>{html.escape(introduction)}</p>\n" + "\n".join(parts) + "\n"
        "</body></html>\n"
    )
    replace_text(path, page)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ")  # what the font lacks is drawn as a box
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _image(figure: Figure) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(_png(figure)).decode()}" alt="">'
