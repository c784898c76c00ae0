"""Results as tables: medians, ratios, geometric means; and the page that shows them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unbraid.bench.record import read
from unbraid.errors import InputError
from unbraid.files import replace_text

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Around what `unbraid bench page` writes."""

_EMPTY = "No results yet.\n"
_FEWEST_TOKENS = {"attention": 128}
"""Smaller shapes do not enter a benchmark's geometric means."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: a line above it.
        head: of the columns.
        rows: each as long as the head.
    """

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def tables(result: dict[str, Any]) -> list[Table]:
    """All tables of a file of results."""
    cells = result["cells"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["part"], cell["dtype"]), []).append(cell)
    measured = [_measured(f"{result['benchmark']}: {part}, {dtype}", group) for (part, dtype), group in groups.items()]
    parts = dict.fromkeys(part for part, _ in groups)
    means = (_means(result["benchmark"], part, [cell for cell in cells if cell["part"] == part]) for part in parts)
    return [*measured, *(table for table in means if table.rows)]


def _measured(title: str, cells: list[dict[str, Any]]) -> Table:
    """A row for each contestant, a column for each shape."""
    names = dict.fromkeys(outcome["name"] for cell in cells for outcome in cell["contestants"])
    columns = []
    for cell in cells:
        outcomes = {outcome["name"]: outcome for outcome in cell["contestants"]}
        ours = next((outcome["median"] for outcome in cell["contestants"] if outcome["role"] == "ours"), None)
        columns.append([_cell(outcomes.get(name), ours, cell) for name in names])
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    return Table(f"{title} ({cells[0]['unit']})", ["", *(cell["shape"] for cell in cells)], rows)


def _cell(outcome: dict[str, Any] | None, ours: float | None, cell: dict[str, Any]) -> str:
    """Median, half the distance of the quartiles in percent of it, and its ratio to the first of ours."""
    if outcome is None or outcome["median"] is None:
        return "" if outcome is None else "-"
    median = outcome["median"]
    text = _number(median)
    if outcome["rounds"] > 1:
        text += f" ±{50 * (outcome['high'] - outcome['low']) / median:.0f}%"
    if cell["part"] == "step":
        text += f", {1000 * cell['tokens'] / median:,.0f} tokens/s"
    return f"{text}, {median / ours:.2f}x" if ours and outcome["role"] != "ours" else text


def _number(value: float) -> str:
    """Three digits, or all before the point.

    >>> [_number(x) for x in (0.01234, 1.234, 12345.6)]
    ['0.0123', '1.23', '12,346']
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _means(benchmark: str, part: str, cells: list[dict[str, Any]]) -> Table:
    """Geometric means of each rival's median over each of ours; the ragged batch stands by itself."""
    counted = [
        cell for cell in cells if cell["shape"] != "ragged" and cell["tokens"] >= _FEWEST_TOKENS.get(benchmark, 0)
    ]
    ragged = [cell for cell in cells if cell["shape"] == "ragged"]
    everyone = dict.fromkeys((outcome["name"], outcome["role"]) for cell in cells for outcome in cell["contestants"])
    ours = [name for name, role in everyone if role == "ours"]
    others = [name for name, role in everyone if role != "ours"]
    dtypes = dict.fromkeys(cell["dtype"] for cell in cells)
    head = ["times the median of", *(f"{name}, {dtype}" for dtype in dtypes for name in ours)]
    rows = []
    for group, label in ((counted, ""), (ragged, " (ragged)")):
        for rival in (*others, "the best rival of each cell") if group else ():
            row = [
                _ratio([cell for cell in group if cell["dtype"] == dtype], rival, name)
                for dtype in dtypes
                for name in ours
            ]
            if any(row):
                rows.append([rival + label, *row])
    shapes = ", ".join(dict.fromkeys(cell["shape"] for cell in counted))
    title = f"{benchmark}: {part}, a rival's median over ours, geometric mean of {shapes or 'no shape'}"
    return Table(title, head, rows)


def _ratio(cells: list[dict[str, Any]], rival: str, ours: str) -> str:
    """The mean ratio, and of how many shapes if not of all."""
    ratios = [ratio for cell in cells if (ratio := _cell_ratio(cell, rival, ours)) is not None]
    if not ratios:
        return ""
    missing = "" if len(ratios) == len(cells) else f" ({len(ratios)} of {len(cells)})"
    return f"{geometric_mean(ratios):.2f}{missing}"


def _cell_ratio(cell: dict[str, Any], rival: str, ours: str) -> float | None:
    medians = {outcome["name"]: outcome["median"] for outcome in cell["contestants"] if outcome["median"] is not None}
    rivals = {outcome["name"] for outcome in cell["contestants"] if outcome["role"] == "rival"}
    if rival == "the best rival of each cell":
        against = min((medians[name] for name in rivals & medians.keys()), default=None)
    else:
        against = medians.get(rival)
    return None if against is None or ours not in medians else against / medians[ours]


def notes(result: dict[str, Any]) -> list[str]:
    """Who was not measured where, and why; and how far the outputs of the others differ at most."""
    reasons: dict[tuple[str, str], list[str]] = {}
    differences: dict[tuple[str, str], float] = {}
    for cell in result["cells"]:
        for outcome in cell["contestants"]:
            where = f"{cell['part']} {cell['shape']} {cell['dtype']}"
            if outcome["reason"]:
                reasons.setdefault((outcome["name"], outcome["reason"]), []).append(where)
            elif outcome["difference"] is not None:
                key = outcome["name"], cell["dtype"]
                differences[key] = max(differences.get(key, 0.0), outcome["difference"])
    lines = [f"{name} not measured: {reason} ({'; '.join(where)})" for (name, reason), where in reasons.items()]
    if differences:
        shown = ", ".join(f"{name} {dtype} {value:.1e}" for (name, dtype), value in differences.items())
        lines.append(f"Largest difference from transformers in float32, relative to the largest value: {shown}.")
    return lines


def about(result: dict[str, Any]) -> str:
    """Machine, threads, versions, commit and date in a paragraph."""
    machine = result["machine"]
    extensions = [name for name, present in machine["extensions"].items() if present]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['capability']} "
        f"({', '.join(extensions) or 'no extensions'}), {machine['system']}; {result['threads']} threads; {versions}; "
        f"commit {result['commit'] or 'unknown'}; {result['date']}."
    )


def render(results: Sequence[dict[str, Any]]) -> str:
    """Results as Markdown, one section each."""
    return "\n".join(_section(result) for result in results) or _EMPTY


def _section(result: dict[str, Any]) -> str:
    def parts() -> Iterator[str]:
        yield f"## {result['benchmark'].capitalize()}: {result['settings']['model']}\n"
        yield about(result) + "\n"
        for table in tables(result):
            yield table.markdown()
        if lines := notes(result):
            yield "".join(f"- {line}\n" for line in lines)

    return "\n".join(parts())


def write_page(page: Path, folder: Path) -> None:
    """Puts the tables of a folder's results between the two marks of a page.

    Raises:
        InputError: there is no such page, it lacks the marks, or a file is no result.
    """
    replace_text(page, with_results(page, folder))


def with_results(page: Path, folder: Path) -> str:
    """The page with the tables of a folder's results between its marks; see :func:`write_page`."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"{page} is no page with the marks {BEGIN} and {END}; give another --page.")
    rendered = render([read(path) for path in sorted(folder.glob("*.json"))])
    return pattern.sub(lambda match: f"{match[1]}\n{rendered}\n{match[2]}", text)
