"""Text wherever it lies (text files, JSONL, Parquet, hub data sets), streamed piece by piece."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import glob
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig


class Piece(NamedTuple):
    """A document, or a part of it.

    Attributes:
        opens: whether a document begins here.
        text: never only white space.
        done: share of the source read so far, 0 to 1.
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
        pieces: begins a new reading.
    """

    name: str
    fingerprint: str
    size: int
    pieces: Callable[[], Iterator[Piece]]

    def __iter__(self) -> Iterator[Piece]:
        """The pieces of all documents, in order.

        Raises:
            InputError: the source is unreadable, not UTF-8, lacks the column or holds no text.
        """
        empty = True
        for piece in self.pieces():
            if piece.text and not piece.text.isspace():
                empty = False
                yield piece
        if empty:
            raise InputError(f"{self.name} holds no text; leave it out or fill it.")


def find_sources(config: CorpusConfig) -> list[Source]:
    """The sources that ``config.path`` names, files in the order of their names.

    Raises:
        InputError: a path leads nowhere, or to a kind of file that is not read.
    """
    return [source for path in config.paths for source in _resolve(path, config)]


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
    match _kind(file):
        case ".txt":
            pieces = functools.partial(_read_text, file, config.document)
        case ".jsonl":
            pieces = functools.partial(_read_jsonl, file, config.column)
        case ".parquet":
            pieces = functools.partial(_read_parquet, file, config.column)
        case _:
            raise InputError(f"{file} is not a {_KINDS} file; convert or rename it.")
    stat = file.stat()
    return Source(str(file), f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}", stat.st_size, pieces)


def _read_text(file: Path, document: str) -> Iterator[Piece]:
    opens = True
    for _, line, done in _lines(file):
        if line:
            # A space, so that byte-level BPE too sees that a word begins.
            yield Piece(opens, line if opens else f" {line}", done)
        opens = document == "line" or not line


def _read_jsonl(file: Path, column: str) -> Iterator[Piece]:
    for number, line, done in _lines(file):
        if line:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file} line {number} is not JSON ({error}).") from error
            where = f"{file} line {number}"
            if not isinstance(record, dict):
                raise InputError(f"{where} is not a JSON object; write one object per line.")
            _check_column(where, column, list(record))
            yield Piece(True, _check_text(where, column, record[column]), done)


def _read_parquet(file: Path, column: str) -> Iterator[Piece]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            _check_column(str(file), column, table.schema_arrow.names)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield Piece(True, _check_text(f"{file} row {row}", column, value), row / table.metadata.num_rows)
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
    return Source(
        name, dataset._fingerprint, texts.data.nbytes, functools.partial(_read_hub, name, config.column, texts)
    )


def _read_hub(name: str, column: str, dataset: Any) -> Iterator[Piece]:
    for row, record in enumerate(dataset, 1):
        yield Piece(True, _check_text(f"{name} row {row}", column, record[column]), row / len(dataset))


def _lines(file: Path) -> Iterator[tuple[int, str, float]]:
    """The number of each line from 1, the line without the white space around it, the share of the file read."""
    size, number = file.stat().st_size, 0
    opener = _OPENERS.get(file.suffix, lambda raw: raw)
    try:
        with file.open("rb") as raw, opener(raw) as lines:
            for number, line in enumerate(lines, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").strip(), raw.tell() / size
    except UnicodeDecodeError as error:
        raise InputError(f"{file} line {number} is not UTF-8 ({error.reason}); re-encode the file.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file} cannot be read after line {number} ({error}); it may be truncated.") from error


def _open_zstd(raw: IO[bytes]) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


def _check_column(where: str, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise InputError(f"{where} has no column {column!r}, only {', '.join(columns)}; set column to one of them.")


def _check_text(where: str, column: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{where}: {column!r} is {type(value).__name__}, not text; remove the record or set column to another."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {column!r} is not valid Unicode ({error.reason}); remove the record.") from error
    return value
