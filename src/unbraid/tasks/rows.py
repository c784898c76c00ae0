"""Rows of labelled data, from CSV, TSV, JSON Lines and Parquet files and from data sets of the hub."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unbraid.errors import InputError
from unbraid.text.encoding import Span

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        place: where it stands, for messages: "reviews.csv, line 7".
        cells: column -> value.
    """

    place: str
    cells: dict[str, Any]

    def cell(self, column: str) -> Any:
        """The value in a column.

        Raises:
            InputError: no such column, or nothing in it.
        """
        if column not in self.cells:
            raise InputError(
                f"{self.place}: there is no column {column!r}, only {', '.join(self.cells)}; name the right one."
            )
        value = self.cells[column]
        if value is None:
            raise InputError(f"{self.place}: column {column!r} is missing its value; fill it in or drop the row.")
        return value

    def text(self, column: str) -> str:
        """A text, possibly empty.

        Raises:
            InputError: no such column, no value, no text, or lone surrogates in it.
        """
        return _text(self.cell(column), f"{self.place}: column {column!r}")

    def name(self, column: str) -> str:
        """The name of a class; whole numbers and truth values are written as JSON writes them.

        >>> Row("a.jsonl, line 1", {"label": 1.0}).name("label")
        '1'
        >>> Row("a.jsonl, line 1", {"label": True}).name("label")
        'true'

        Raises:
            InputError: no such column, no value, or nothing that names a class.
        """
        return _name(self.cell(column), f"{self.place}: column {column!r}")

    def items(self, column: str) -> list[Any]:
        """A list; a text, as a cell of CSV is, is read as JSON.

        >>> Row("a.csv, line 2", {"words": '["a", "b"]'}).items("words")
        ['a', 'b']

        Raises:
            InputError: no such column, no value, or no list.
        """
        value = self.cell(column)
        if isinstance(value, str):
            with contextlib.suppress(ValueError, RecursionError):  # no JSON is no list, as is told below
                value = json.loads(value)
        if not isinstance(value, list):
            raise InputError(f"{self.place}: column {column!r} holds {value!r}, which is not a list.")
        return value

    def texts(self, column: str) -> list[str]:
        """A list of texts.

        Raises:
            InputError: no such column, no value, no list, or something else in it than texts.
        """
        items = self.items(column)
        place = f"{self.place}: column {column!r}"
        return [_text(item, place) for item in items]

    def names(self, column: str) -> list[str]:
        """A list of names of classes; see :meth:`name`.

        Raises:
            InputError: no such column, no value, no list, or something in it that names no class.
        """
        items = self.items(column)
        place = f"{self.place}: column {column!r}"
        return [_name(item, place) for item in items]

    def span(self, column: str, text: str) -> Span:
        """A stretch [start, end) of characters of a text.

        >>> Row("a.csv, line 2", {"span1": "[4, 7]"}).span("span1", "The cat.")
        (4, 7)

        Raises:
            InputError: no such column, no value, or no stretch of the text.
        """
        return _span(self.items(column), text, f"{self.place}: column {column!r}")

    def spans(self, column: str, text: str) -> list[Span]:
        """A list of stretches of a text; see :meth:`span`.

        Raises:
            InputError: no such column, no value, no list, or something in it that is no stretch of the text.
        """
        return [_span(item, text, f"{self.place}: column {column!r}") for item in self.items(column)]

    def number(self, column: str) -> float:
        """A finite number.

        Raises:
            InputError: no such column, no value, or no finite number.
        """
        value = self.cell(column)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{self.place}: column {column!r} holds {value!r}, which is not a finite number.")
        return number


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place} holds {value!r}, which is not a text.")
    if _SURROGATE.search(value):
        raise InputError(f"{place} holds half of a surrogate pair; write the character whole.")
    return value


def _name(value: Any, place: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool | int) else ""
    if not name:
        raise InputError(
            f"{place} holds {value!r}, which names no class; fill it in, or choose the kind regression for scores."
        )
    return name


def _span(value: Any, text: str, place: str) -> Span:
    match value:
        case [int(start), int(end)] if 0 <= start < end <= len(text):
            return start, end
    raise InputError(
        f"{place} holds {value!r}, which is no stretch of the {len(text)} characters of the text; "
        "give [start, end), counted from 0, with start before end."
    )


def read_table(path: Path) -> Iterator[Row]:
    """Reads a table, row by row.

    CSV follows RFC 4180 (quotes). TSV has no quoting, as in the files of GLUE: a tab always ends a cell.
    JSON Lines has one object a line. Empty lines are passed over.

    Args:
        path: of a .csv, .tsv, .jsonl, .json or .parquet file; text also .gz.

    Raises:
        InputError: what is wrong with the file, and where.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{path} is none of the known kinds of file: {', '.join(_READERS)} (text also with .gz).")
    return _READERS[suffix](path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends, without a byte order mark."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield decode_line(line, f"{path}, line {number}", first=number == 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def decode_line(line: bytes | bytearray, place: str, *, first: bool) -> str:
    """A line of UTF-8.

    Args:
        line: its bytes.
        place: where it stands.
        first: whether a byte order mark may precede it.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: byte {error.start + 1} is not UTF-8; convert it to UTF-8.") from None


def read_csv(path: Path) -> Iterator[Row]:
    """The rows below the header of a CSV file."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    reader = csv.reader(read_lines(path), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: this is not CSV ({error}); see to its quotes.") from None
        if cells is None:
            return
        if header and cells:
            yield table_row(f"{path}, line {line}", header, cells)
        header = header or _header(f"{path}, line {line}", cells)


def read_tsv(path: Path) -> Iterator[Row]:
    """The rows below the header of a TSV file."""
    cells_of_lines = read_cells(path)
    header = _header(*next(cells_of_lines, ("", [])))
    for place, cells in cells_of_lines:
        yield table_row(place, header, cells)


def read_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the cells of every line of a TSV file that is not empty."""
    for line, text in enumerate(read_lines(path), 1):
        cells = text.rstrip("\r\n").split("\t")
        if cells != [""]:
            yield f"{path}, line {line}", cells


def _header(place: str, cells: list[str]) -> list[str]:
    for name in cells:
        if name and cells.count(name) > 1:
            raise InputError(f"{place}: there are several columns {name!r}; rename all but one.")
    return cells


def table_row(place: str, header: Sequence[str], cells: Sequence[str]) -> Row:
    """A row of a table.

    Raises:
        InputError: not as many cells as columns.
    """
    if len(cells) != len(header):
        raise InputError(f"{place}: there are {len(cells)} cells but {len(header)} columns; see to its separators.")
    return Row(place, dict(zip(header, cells, strict=True)))


def read_json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file, one a line."""
    for line, text in enumerate(read_lines(path), 1):
        if text.strip():
            yield json_row(text, f"{path}, line {line}")


def json_row(text: str, place: str) -> Row:
    """A line of JSON Lines.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        cells = json.loads(text)
    except (ValueError, RecursionError):
        cells = None
    if not isinstance(cells, dict):
        raise InputError(f"{place}: this is not a JSON object; write one object a line.")
    return Row(place, cells)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    row += 1
                    yield Row(f"{path}, row {row}", cells)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def read_hub(dataset: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a split of a data set on the hub, with the names of its classes instead of their numbers.

    Raises:
        InputError: it cannot be loaded.
    """
    from datasets import ClassLabel, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        table = load_dataset(dataset, subset, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"split {split!r} of the data set {dataset} cannot be loaded: {reason}") from None
    classes = {name: feature.names for name, feature in table.features.items() if isinstance(feature, ClassLabel)}
    for number, row in enumerate(table, 1):
        cells = dict(row)
        for name, names in classes.items():
            unknown = cells[name] in (None, -1)
            cells[name] = None if unknown else names[cells[name]]
        yield Row(f"{dataset} {split}, row {number}", cells)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".json": read_json_lines,
    ".parquet": _read_parquet,
}
