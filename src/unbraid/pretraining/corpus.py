"""Corpus: text tokenised once, in parallel, and the documents to train on and to hold out."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.shards import Shard, write_shard
from unbraid.pretraining.sources import Part, cut, find_languages

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer

SHARD_BYTES = 1 << 26
"""Text of a shard: half a minute of work, that a kill can cost."""

_FORMAT = 2
_CHUNK = 1 << 13  # documents that are looked at together
_Job = Callable[[Callable[[float], object]], None]  # work that reports the share done


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of some shards that are to be trained on, or those that are held out.

    Nothing is kept in memory for a document: what is asked for is read from the shards.

    Attributes:
        shards: where they lie.
        folder: for what is derived from them.
        share: of the documents that are held out.
        held_out: whether these are the ones.
        joined: whether rows run from one document into the next.
    """

    shards: tuple[Shard, ...]
    folder: Path
    share: float
    held_out: bool
    joined: bool = False

    def __len__(self) -> int:
        """The number of documents."""
        return self._totals[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of these documents, without special ones."""
        return self._totals[1]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The ids of each document."""
        for begins, lengths in self.spans():
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
                yield self.ids(begin, length)

    def spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where the documents begin among all tokens of the shards, and their lengths, (n,) int64 each, in lots."""
        for shard, begin in zip(self.shards, self._begins, strict=True):
            for first in range(0, shard.num_documents, _CHUNK):
                offsets = shard.offsets[first : first + _CHUNK + 1]
                chosen = self._chosen(shard.hashes[first : first + _CHUNK])
                yield begin + offsets[:-1][chosen], np.diff(offsets)[chosen]

    def ids(self, begin: int, length: int) -> np.ndarray:
        """The ids from a place among all tokens on, within a document: (length,) uint16 or uint32."""
        number = bisect.bisect_right(self._begins, begin) - 1
        place = begin - self._begins[number]
        return self.shards[number].ids[place : place + length]

    def joined_ids(self, begin: int, length: int) -> np.ndarray:
        """The ids from a place within one of the documents on, and on into the next of them."""
        found: list[np.ndarray] = []
        number = bisect.bisect_right(self._begins, begin) - 1
        place = begin - self._begins[number]
        while length:
            shard = self.shards[number]
            document = int(np.searchsorted(shard.offsets, np.int64(place), side="right")) - 1
            while length and document < shard.num_documents:
                end = int(shard.offsets[document + 1])
                if self._chosen(shard.hashes[document : document + 1])[0]:
                    found.append(shard.ids[place : min(end, place + length)])
                    length -= len(found[-1])
                place, document = end, document + 1
            number, place = number + 1, 0
        return np.concatenate(found)

    def _chosen(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes < self.share * 2.0**64) == self.held_out

    @functools.cached_property
    def _begins(self) -> list[int]:
        """The tokens before each shard."""
        return list(itertools.accumulate([shard.num_tokens for shard in self.shards[:-1]], initial=0))

    @functools.cached_property
    def _totals(self) -> tuple[int, int]:
        """The documents and their tokens."""
        counts = [(len(lengths), int(lengths.sum())) for _, lengths in self.spans()]
        return sum(documents for documents, _ in counts), sum(tokens for _, tokens in counts)


class Corpus:
    """A tokenised corpus on disk; see :func:`prepare`.

    Attributes:
        train: the documents to train on.
        languages: the same, each language by itself; one where the configuration does not tell them apart.
        held_out: the documents kept for evaluation, of all languages. Chosen by a hash of their text: the same whatever
            the seed and the tokenizer, no matter what is added to the corpus, and copies of a document are all on one
            side.
    """

    def __init__(self, languages: Sequence[Sequence[Shard]], folder: Path, config: CorpusConfig) -> None:
        """Divides the documents of the shards.

        Args:
            languages: the shards of each language.
            folder: for what is derived from them.
            config: ``held_out`` and ``rows``.
        """

        def documents(shards: Sequence[Shard], held_out: bool) -> Documents:
            return Documents(tuple(shards), folder, config.held_out, held_out, config.rows == "stream")

        everything = [shard for shards in languages for shard in shards]
        self.train = documents(everything, False)
        self.held_out = documents(everything, True)
        self.languages = tuple(documents(shards, False) for shards in languages)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this corpus from one of other text: its tokens, and a hash of all documents in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for shard in self.train.shards:
            digest.update(shard.hashes.data)
        return {"tokens": sum(shard.num_tokens for shard in self.train.shards), "documents": digest.hexdigest()}


def prepare(
    config: CorpusConfig,
    tokenizer: Tokenizer,
    cache_folder: str | Path,
    *,
    processes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Corpus:
    """Tokenises the text, or finds it already tokenised.

    Memory does not grow with the text. It is cut into shards, each made by a process of its own as soon as one of
    ``processes`` is free; a single shard is made by this process. A shard is a folder of ``cache_folder`` named by what
    it was made from (the files' names, sizes and times of change, the tokenizer), so that any change makes a new one,
    and what has not changed is not done again. It appears under that name only when complete: the same call after a
    kill makes those that are missing. Of several processes that call this one works and the others wait for it.

    A script that calls this for more than a shard of text needs the usual ``if __name__ == "__main__"``.

    Args:
        config: what to read; only ``path``, ``column``, ``split``, ``subset`` and ``document`` ask for new tokens.
        tokenizer: from text to ids.
        cache_folder: made if need be.
        processes: to work at the same time; by default one for each core. They do not touch the result.
        shard_bytes: of text in a shard, about. It does not touch the documents and their order.

    Raises:
        InputError: text that cannot be read (see :mod:`unbraid.pretraining.sources`), a cache that cannot be written,
            or a process that was killed; the shards that are complete stay.
    """
    cache = Path(cache_folder)
    origin = {
        "format": _FORMAT,
        "tokenizer": _tokenizer_fingerprint(tokenizer),
        "column": config.column,
        "document": config.document,
    }
    languages = [
        [(_folder(cache, origin, parts), parts) for parts in cut(sources, shard_bytes)]
        for sources in find_languages(config)
    ]
    shards = dict(itertools.chain.from_iterable(languages))
    if not all(folder.exists() for folder in shards):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(cache / ".lock"):
                missing = {folder: parts for folder, parts in shards.items() if not folder.exists()}
                _write_shards(missing, tokenizer, origin, processes)
        except OSError as error:
            raise InputError(
                f"cannot write the tokenised corpus to {cache} ({error}); make room there or choose another folder."
            ) from error
    corpus = Corpus([[Shard.open(folder) for folder, _ in language] for language in languages], cache, config)
    if not any(shard.num_documents for shard in corpus.train.shards):
        raise InputError("the text gives no tokens; check the tokenizer and the files.")
    return corpus


def _folder(cache: Path, origin: dict[str, Any], parts: Sequence[Part]) -> Path:
    made_from = origin | {"parts": _fingerprints(parts)}
    return cache / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _fingerprints(parts: Sequence[Part]) -> list[str]:
    return [part.fingerprint for part in parts]


def _write_shards(
    shards: Mapping[Path, Sequence[Part]], tokenizer: Tokenizer, origin: dict[str, Any], processes: int | None
) -> None:
    sizes = {folder: sum(part.size for part in parts) for folder, parts in shards.items()}
    done = dict.fromkeys(shards, 0.0)
    jobs = {
        folder: functools.partial(write_shard, folder, parts, tokenizer, origin | {"parts": _fingerprints(parts)})
        for folder, parts in shards.items()
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Tokenising", total=sum(sizes.values()))

        def report(folder: Path, share: float) -> None:
            progress.update(bar, advance=(share - done[folder]) * sizes[folder])
            done[folder] = share

        cores = _cores()
        count = min(processes or len(cores), len(shards))
        if count > 1:
            _in_processes(jobs, [cores[slot::count] or cores for slot in range(count)], report)
        else:
            for folder, job in jobs.items():
                job(functools.partial(report, folder))


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _in_processes(jobs: Mapping[Path, _Job], slots: list[list[int]], report: Callable[[Path, float], None]) -> None:
    """Makes each shard in a process of its own, so that what one leaves in memory is gone with it.

    Args:
        jobs: makes each shard.
        slots: the cores of each process at work.
        report: called with a shard and the share of it that is done.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    waiting, running = iter(jobs.items()), {}

    def start(cores: list[int]) -> None:
        for folder, job in itertools.islice(waiting, 1):
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_work, args=(sender, cores, job), daemon=True)
            process.start()
            sender.close()
            running[receiver] = process, folder, cores

    try:
        for cores in slots:
            start(cores)
        while running:
            for receiver in wait(list(running)):
                process, folder, cores = running[receiver]
                message = _receive(receiver)
                if isinstance(message, Exception):
                    raise message
                report(folder, 1.0 if message is None else message)
                if message is None:
                    del running[receiver]
                    _end(process, receiver)
                    start(cores)
    finally:
        for receiver, (process, _, _) in running.items():
            process.kill()  # nothing half-made is taken for whole
            _end(process, receiver)


def _receive(receiver: Any) -> float | Exception | None:
    """The share done; at the end None, or what went wrong."""
    try:
        return receiver.recv()
    except EOFError:
        return InputError(
            "a process that tokenised was killed, perhaps because memory ran out; the same command continues."
        )


def _end(process: Any, receiver: Any) -> None:
    receiver.close()
    process.join()
    process.close()


def _work(sender: Connection, cores: list[int], job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers it
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # else the tokenizer has as many threads in every process as there are cores
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        try:
            job(sender.send)
        except Exception as error:  # to be raised by the parent
            error.add_note(traceback.format_exc())
            sender.send(error)
        else:
            sender.send(None)


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
