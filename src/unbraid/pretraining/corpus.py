"""Corpus: text tokenised once into memory-mapped files, documents kept apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from unbraid.errors import InputError
from unbraid.files import write_atomically
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.sources import Piece, Source, find_sources

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer

_FORMAT = 1
_BATCH_CHARACTERS = 1 << 19  # enough to keep the tokenizer's threads busy, little enough to stay small in memory


@dataclasses.dataclass(frozen=True)
class Documents:
    """Some documents of a corpus.

    Attributes:
        ids: (tokens of the corpus,) uint16 or uint32, memory-mapped; all documents end to end, no special tokens.
        begins: (D,) int64; document d is ``ids[begins[d]:ends[d]]``.
        ends: (D,) int64.
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.begins)

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of one document."""
        return self.ids[self.begins[index] : self.ends[index]]

    @property
    def num_tokens(self) -> int:
        """Tokens of these documents, without special ones."""
        return int((self.ends - self.begins).sum())


class Corpus:
    """A tokenised corpus on disk; see :func:`prepare`.

    Its folder holds ``ids.bin`` (uint16 or uint32), ``offsets.bin`` (D + 1 uint64, where each document begins),
    ``hashes.bin`` (D uint64, a hash of each document's text) and ``corpus.json``, which describes them.

    Attributes:
        description: counts and origin, as in ``corpus.json``.
        ids: (tokens,) memory-mapped, as are the other two.
        offsets: (D + 1,) uint64.
        hashes: (D,) uint64.
    """

    def __init__(self, folder: str | Path, held_out: float = 0.0) -> None:
        """Opens a prepared corpus.

        Args:
            folder: as :func:`prepare` made it.
            held_out: share of the documents that ``held_out`` gets, and ``train`` does not.

        Raises:
            InputError: the folder is not a complete corpus.
        """
        folder = Path(folder)
        try:
            self.description = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            self.ids = _map(folder / "ids.bin", self.description["dtype"], self.description["tokens"])
            self.offsets = _map(folder / "offsets.bin", "uint64", self.description["documents"] + 1)
            self.hashes = _map(folder / "hashes.bin", "uint64", self.description["documents"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} is not a complete tokenised corpus ({error}); delete it.") from error
        self._held_out = self.hashes < held_out * 2.0**64

    @cached_property
    def train(self) -> Documents:
        """The documents to train on."""
        return self._documents(~self._held_out)

    @cached_property
    def held_out(self) -> Documents:
        """The documents kept for evaluation.

        Chosen by a hash of their text: the same whatever the seed and the tokenizer, no matter what is added to the
        corpus, and copies of a document are all on one side.
        """
        return self._documents(self._held_out)

    def _documents(self, chosen: np.ndarray) -> Documents:
        offsets = self.offsets.astype(np.int64)
        return Documents(self.ids, offsets[:-1][chosen], offsets[1:][chosen])


def prepare(config: CorpusConfig, tokenizer: Tokenizer, cache_folder: str | Path) -> Corpus:
    """Tokenises the text, or finds it already tokenised.

    Memory does not grow with the text: only a batch of lines or records is held at a time. The result is a folder of
    ``cache_folder`` named by what it was made from (the files' names, sizes and times of change, the tokenizer), so
    that any change makes a new one. It appears under that name only when complete; of several processes one writes
    and the others wait for it.

    Args:
        config: what to read; only ``path``, ``column``, ``split``, ``subset`` and ``document`` ask for new tokens.
        tokenizer: from text to ids.
        cache_folder: made if need be.

    Raises:
        InputError: text that cannot be read (see :mod:`unbraid.pretraining.sources`), or a cache that cannot be
            written; nothing is left behind.
    """
    sources = find_sources(config)
    origin = {
        "format": _FORMAT,
        "tokenizer": _tokenizer_fingerprint(tokenizer),
        "sources": [source.fingerprint for source in sources],
        "column": config.column,
        "document": config.document,
    }
    cache = Path(cache_folder)
    folder = cache / hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                write_atomically(folder, lambda partial: _write(partial, sources, tokenizer, origin))
    except OSError as error:
        raise InputError(
            f"cannot write the tokenised corpus to {cache} ({error}); make room there or choose another folder."
        ) from error
    return Corpus(folder, config.held_out)


def _write(folder: Path, sources: list[Source], tokenizer: Tokenizer, origin: dict[str, object]) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    tokens = documents = document_begin = 0
    digest = hashlib.blake2b(digest_size=8)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with (
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "offsets.bin").open("wb") as offsets_file,
        (folder / "hashes.bin").open("wb") as hashes_file,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task("Tokenising", total=1.0)

        def close_document() -> None:
            nonlocal documents, document_begin, digest
            if tokens > document_begin:
                offsets_file.write(tokens.to_bytes(8, "little"))
                hashes_file.write(digest.digest())
                documents += 1
            document_begin = tokens
            digest = hashlib.blake2b(digest_size=8)

        offsets_file.write(bytes(8))
        for batch in _batches(_read(sources)):
            progress.update(bar, completed=batch[-1].done)
            for piece, ids in zip(batch, tokenizer.encode_plain([piece.text for piece in batch]), strict=True):
                if piece.opens:
                    close_document()
                ids_file.write(ids.astype(dtype).tobytes())
                tokens += len(ids)
                digest.update(piece.text.encode())
        close_document()
    if not documents:
        raise InputError("the text gives no tokens; check the tokenizer and the files.")
    description = {"documents": documents, "tokens": tokens, "dtype": np.dtype(dtype).name, **origin}
    (folder / "corpus.json").write_text(json.dumps(description, indent=2), encoding="utf-8")


def _read(sources: list[Source]) -> Iterator[Piece]:
    """The pieces of all sources; ``done`` is the share of them all."""
    total, before = sum(source.size for source in sources), 0
    for source in sources:
        for piece in source:
            yield piece._replace(done=(before + piece.done * source.size) / total)
        before += source.size


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


def _tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of all that the tokenizer saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _map(file: Path, dtype: str, length: int) -> np.ndarray:
    mapped = np.memmap(file, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
    if len(mapped) != length:
        raise ValueError(f"{file.name} has {len(mapped)} entries instead of {length}")
    return np.asarray(mapped)
