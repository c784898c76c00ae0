"""Shards: text tokenised once into memory-mapped files, documents kept apart."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from unbraid.errors import InputError
from unbraid.files import write_atomically
from unbraid.pretraining.sources import Part, Piece

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1 << 19  # enough to keep the tokenizer's threads busy, little enough to stay small in memory
_OPEN_FILES = 256  # a process may mostly have 1,024


@dataclasses.dataclass(frozen=True)
class Shard:
    """Tokenised documents in a folder; see :func:`write_shard`.

    Attributes:
        folder: where it lies; named by what it was made from.
        num_documents: D.
        num_tokens: without special ones.
        dtype: of the ids, ``"uint16"`` or ``"uint32"``.
    """

    folder: Path
    num_documents: int
    num_tokens: int
    dtype: str

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Opens a shard.

        Raises:
            InputError: its files are not what its description says.
        """
        try:
            description = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
            shard = cls(folder, description["documents"], description["tokens"], description["dtype"])
            sizes = {
                "ids.bin": shard.num_tokens * np.dtype(shard.dtype).itemsize,
                "offsets.bin": 8 * (shard.num_documents + 1),
                "hashes.bin": 8 * shard.num_documents,
            }
            check_sizes(folder, sizes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} is not a complete tokenised corpus ({error}); delete it.") from error
        return shard

    @property
    def ids(self) -> np.ndarray:
        """(tokens,) uint16 or uint32, memory-mapped; all documents end to end, no special tokens."""
        return map_file(self.folder / "ids.bin", f"<u{np.dtype(self.dtype).itemsize}")

    @property
    def offsets(self) -> np.ndarray:
        """(D + 1,) int64, memory-mapped: where in ``ids`` each document begins."""
        return map_file(self.folder / "offsets.bin", "<i8")

    @property
    def hashes(self) -> np.ndarray:
        """(D,) uint64, memory-mapped: a hash of each document's text."""
        return map_file(self.folder / "hashes.bin", "<u8")


def write_shard(
    folder: Path,
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    origin: dict[str, Any],
    report: Callable[[float], object],
) -> None:
    """Tokenises some text into a folder, which appears when it is complete; if it is there, nothing is done.

    It receives ``ids.bin``, ``offsets.bin`` and ``hashes.bin``, see :class:`Shard`, and ``shard.json``, which describes
    them. Only a batch of lines or records is held in memory at a time. Of several processes one writes, and the others
    wait for it.

    Args:
        folder: to write.
        parts: what to read, in order.
        tokenizer: from text to ids.
        origin: what else to tell in ``shard.json``.
        report: called now and then with the share done, 0 to 1.

    Raises:
        InputError: text that cannot be read.
        OSError: the disk is full or cannot be written.
    """
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            write_atomically(folder, lambda partial: _write(partial, parts, tokenizer, origin, report))


def _write(
    folder: Path,
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    origin: dict[str, Any],
    report: Callable[[float], object],
) -> None:
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    tokens = documents = document_begin = 0
    digest = hashlib.blake2b(digest_size=8)
    with (
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "offsets.bin").open("wb") as offsets_file,
        (folder / "hashes.bin").open("wb") as hashes_file,
    ):

        def close_document() -> None:
            nonlocal documents, document_begin, digest
            if tokens > document_begin:
                offsets_file.write(tokens.to_bytes(8, "little"))
                hashes_file.write(digest.digest())
                documents += 1
            document_begin = tokens
            digest = hashlib.blake2b(digest_size=8)

        offsets_file.write(bytes(8))
        for batch in _batches(_read(parts)):
            for piece, ids in zip(batch, tokenizer.encode_plain([piece.text for piece in batch]), strict=True):
                if piece.opens:
                    close_document()
                ids_file.write(ids.astype(dtype).tobytes())
                tokens += len(ids)
                digest.update(piece.text.encode())
            report(batch[-1].done)
        close_document()
    description = {"documents": documents, "tokens": tokens, "dtype": dtype.name, **origin}
    (folder / "shard.json").write_text(json.dumps(description, indent=2), encoding="utf-8")


def _read(parts: Sequence[Part]) -> Iterator[Piece]:
    """The pieces of all parts, none much longer than a batch; ``done`` is the share of them all."""
    total, before = sum(part.size for part in parts) or 1, 0.0
    for part in parts:
        for piece in part:
            done = (before + piece.done * part.size) / total
            for begin, end in _spans(piece.text):
                yield Piece(piece.opens and not begin, piece.text[begin:end], done)
        before += part.size


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where to cut a text that is longer than a batch: before a space, if it has any."""
    begin = 0
    while len(text) - begin > _BATCH_CHARACTERS:
        space = text.rfind(" ", begin + 1, begin + _BATCH_CHARACTERS)
        end = space if space > 0 else begin + _BATCH_CHARACTERS
        yield begin, end
        begin = end
    yield begin, len(text)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def check_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Compares files with what they should have.

    Args:
        folder: where they lie.
        sizes: bytes of each file, by name.

    Raises:
        OSError: a file is missing.
        ValueError: a file has another size.
    """
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")


@functools.lru_cache(maxsize=_OPEN_FILES)
def map_file(file: Path, dtype: str) -> np.ndarray:
    """A file of numbers as a read-only array that takes no memory of its own; the latest ones used stay open."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, mode="r"))
