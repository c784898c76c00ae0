"""Text wherever it lies (text files, JSONL, Parquet, hub data sets), streamed piece by piece."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import functools
import glob
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class Piece(NamedTuple):
    """A document, or a part of it.

    Attributes:
        opens: whether a document begins here.
        text: never only white space.
        done: share read so far of what is being read, 0 to 1.
    """

    opens: bool
    text: str
    done: float


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or a hub data set.

    Attributes:
        name: for messages.
        fingerprint: changes when the content does.
        size: bytes.
        places: how many places there are at which reading may begin (bytes, row groups or rows); 1 for a file that can
            only be read from its beginning.
        read: the pieces of the documents that begin at the places from the first argument up to the second.
    """

    name: str
    fingerprint: str
    size: int
    places: int
    read: Callable[[int, float], Iterator[Piece]]

    def __iter__(self) -> Iterator[Piece]:
        """The pieces of all documents, in order.

        Raises:
            InputError: the source is unreadable, not UTF-8, lacks the column or holds no text.
        """
        return iter(Part(self, 0, math.inf))


@dataclasses.dataclass(frozen=True)
class Part:
    """The documents that begin in a stretch of a source; the parts of a source have each document once, in order.

    Attributes:
        source: what is read.
        begin: the first place.
        end: the place after the last; infinite for the end of the source.
    """

    source: Source
    begin: int
    end: float

    @property
    def fingerprint(self) -> str:
        """Changes when the content does."""
        return f"{self.source.fingerprint} {self.begin} {self.end}"

    @property
    def size(self) -> float:
        """About how many bytes it has."""
        places = self.source.places
        return self.source.size * (min(self.end, places) - self.begin) / places

    def __iter__(self) -> Iterator[Piece]:
        """The pieces of its documents, in order.

        Raises:
            InputError: the source is unreadable, not UTF-8, lacks the column or, read as a whole, holds no text.
        """
        empty = self.begin == 0 and self.end == math.inf
        for piece in self.source.read(self.begin, self.end):
            if piece.text and not piece.text.isspace():
                empty = False
                yield piece
        if empty:
            raise InputError(f"{self.source.name} holds no text; leave it out or fill it.")


def find_sources(config: CorpusConfig) -> list[Source]:
    """The sources that ``config.path`` names, files in the order of their names.

    Raises:
        InputError: a path leads nowhere, or to a kind of file that is not read.
    """
    return [source for sources in find_languages(config) for source in sources]


def find_languages(config: CorpusConfig) -> list[list[Source]]:
    """The sources of each language; of all in one list where the languages are not told apart.

    Raises:
        InputError: as :func:`find_sources`.
    """
    found = [_resolve(path, config) for path in config.paths]
    return found if config.temperature is not None else [[source for sources in found for source in sources]]


def cut(sources: Sequence[Source], num_bytes: int) -> list[tuple[Part, ...]]:
    """Cuts large sources and gathers small ones, in order, so that each lot is read in about the same time.

    Args:
        sources: what to cut.
        num_bytes: most bytes of a lot, but for a source that cannot be cut.
    """
    lots, lot, size = [], [], 0.0
    for source in sources:
        count = min(source.places, math.ceil(source.size / num_bytes)) or 1
        edges = [source.places * number // count for number in range(count)]
        for part in map(Part, [source] * count, edges, [*edges[1:], math.inf]):
            if lot and size + part.size > num_bytes:
                lots.append(tuple(lot))
                lot, size = [], 0.0
            lot.append(part)
            size += part.size
    return [*lots, tuple(lot)]


def _resolve(path: str, config: CorpusConfig) -> list[Source]:
    if Path(path).is_dir():
        files = [file for file in sorted(Path(path).rglob("*")) if file.is_file() and _kind(file)]
        if not files:
            raise InputError(f"the folder {path} holds no {_KINDS} file.")
    elif Path(path).is_file():
        files = [Path(path)]
    else:
        matches = glob.glob(path, recursive=True)  # noqa: PTH207, Path.glob takes no absolute pattern
        files = [Path(file) for file in sorted(matches) if Path(file).is_file()]
    if files:
        return [_file(file, config) for file in files]
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not _kind(Path(path)):
        return [_hub(path, config)]
    raise InputError(f"there is no file {path}; check the path.")


_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda raw: _open_zstd(raw),
}
_KINDS = ".txt, .jsonl or .parquet"


def _kind(file: Path) -> str | None:
    """The format by the name: ".txt", ".jsonl", ".parquet", or None for anything else."""
    compressed = file.suffix in _OPENERS
    suffix = Path(file.stem).suffix if compressed else file.suffix
    return suffix if suffix in {".txt", ".jsonl"} or (suffix == ".parquet" and not compressed) else None


def _file(file: Path, config: CorpusConfig) -> Source:
    stat = file.stat()
    places = stat.st_size or 1
    match _kind(file):
        case ".txt":
            read = functools.partial(_read_text, file, config.document)
        case ".jsonl":
            read = functools.partial(_read_jsonl, file, config.column)
        case ".parquet":
            read = functools.partial(_read_parquet, file, config.column)
            with _open_parquet(file) as table:
                places = table.num_row_groups or 1
        case _:
            raise InputError(f"{file} is not a {_KINDS} file; convert or rename it.")
    if file.suffix in _OPENERS:
        places = 1
    return Source(str(file), f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}", stat.st_size, places, read)


def _read_text(file: Path, document: str, begin: int, end: float) -> Iterator[Piece]:
    """A document between empty lines belongs where the empty line before it begins, one of a line where that does."""
    by_line = document == "line"
    skipping, opens = begin > 0 and not by_line, True
    for line in _lines(file, begin, end):
        if line.place >= end and (by_line or skipping or not line.text):
            return
        skipping = skipping and bool(line.text)
        if line.text and not skipping:
            # A space, so that byte-level BPE too sees that a word begins.
            yield Piece(opens, line.text if opens else f" {line.text}", line.done)
        opens = by_line or not line.text


def _read_jsonl(file: Path, column: str, begin: int, end: float) -> Iterator[Piece]:
    for line in _lines(file, begin, end):
        if line.place >= end:
            return
        if line.text:
            try:
                record = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{line} is not JSON ({error}).") from error
            if not isinstance(record, dict):
                raise InputError(f"{line} is not a JSON object; write one object per line.")
            _check_column(line, column, list(record))
            yield Piece(True, _check_text(line, column, record[column]), line.done)


def _read_parquet(file: Path, column: str, begin: int, end: float) -> Iterator[Piece]:
    with _open_parquet(file) as table:
        _check_column(file, column, table.schema_arrow.names)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        groups = list(range(begin, int(min(end, len(sizes)))))
        first = row = sum(sizes[:begin])
        total = sum(sizes[group] for group in groups)
        for batch in table.iter_batches(batch_size=1024, row_groups=groups, columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield Piece(True, _check_text(f"{file} row {row}", column, value), (row - first) / total)


@contextlib.contextmanager
def _open_parquet(file: Path) -> Iterator[ParquetFile]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            yield table
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file} is not a readable Parquet file ({error}); it may be truncated.") from error


def _hub(name: str, config: CorpusConfig) -> Source:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        dataset = datasets.load_dataset(name, config.subset, split=config.split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{name} is neither a file nor a hub data set that could be loaded: {reason}") from error
    _check_column(name, config.column, dataset.column_names)
    texts = dataset.select_columns(config.column)
    read = functools.partial(_read_hub, name, config.column, texts)
    return Source(name, dataset._fingerprint, texts.data.nbytes, len(texts) or 1, read)


def _read_hub(name: str, column: str, dataset: Any, begin: int, end: float) -> Iterator[Piece]:
    rows = range(begin, int(min(end, len(dataset))))
    for row, record in enumerate(dataset.select(rows), begin + 1):
        yield Piece(True, _check_text(f"{name} row {row}", column, record[column]), (row - begin) / len(rows))


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """A line of a text file; as a string, where it stands.

    Attributes:
        file: where it stands.
        start: the place in the file at which reading began.
        number: counted from there, from 1.
        place: bytes of text before it.
        text: without the white space around it.
        done: share read so far.
    """

    file: Path
    start: int
    number: int
    place: int
    text: str
    done: float

    def __str__(self) -> str:
        return f"{self.file} line {_count_lines(self.file, self.start) + self.number}"


def _lines(file: Path, begin: int, end: float) -> Iterator[_Line]:
    """The lines from the first that begins at ``begin`` or after it, to the end of the file."""
    size = file.stat().st_size
    opener = _OPENERS.get(file.suffix, lambda raw: raw)
    number, place, start = 0, begin, begin
    try:
        with file.open("rb") as raw, opener(raw) as lines:
            if begin:
                lines.seek(begin - 1)
                place += len(lines.readline()) - 1
            start = place
            for number, line in enumerate(lines, 1):
                text = line.decode("utf-8" if place else "utf-8-sig").strip()
                done = min(1.0, (raw.tell() - begin) / (min(end, size) - begin))
                yield _Line(file, start, number, place, text, done)
                place += len(line)
    except UnicodeDecodeError as error:
        where = _Line(file, start, number, place, "", 0.0)
        raise InputError(f"{where} is not UTF-8 ({error.reason}); re-encode the file.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file} cannot be read after line {number} ({error}); it may be truncated.") from error


def _count_lines(file: Path, size: int) -> int:
    """The lines that end within the first bytes of a file."""
    count = 0
    with file.open("rb") as lines:
        while size and (block := lines.read(min(size, 1 << 20))):
            count += block.count(b"\n")
            size -= len(block)
    return count


def _open_zstd(raw: IO[bytes]) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


def _check_column(where: object, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise InputError(f"{where} has no column {column!r}, only {', '.join(columns)}; set column to one of them.")


def _check_text(where: object, column: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{where}: {column!r} is {type(value).__name__}, not text; remove the record or set column to another."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {column!r} is not valid Unicode ({error.reason}); remove the record.") from error
    return value
