"""Rows: documents cut to training length, and the order in which an epoch visits them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np

from unbraid.errors import InputError
from unbraid.files import write_atomically
from unbraid.pretraining.corpus import Documents
from unbraid.pretraining.shards import check_sizes, map_file

_FORMAT = 1
_WINDOW = 64  # micro-batches whose rows are sorted by length together
_ROUNDS = 8  # with fewer, some permutations of a few numbers come more often than others


class Lengths:
    """The lengths of rows that are numbered from the longest to the shortest.

    They are kept as the number of rows of each length, and so take no memory for a row.

    >>> lengths = Lengths(np.array([0, 0, 1, 0, 3]))
    >>> len(lengths), lengths.sum(), lengths[np.arange(4)].tolist()
    (4, 14, [4, 4, 4, 2])
    """

    def __init__(self, counts: np.ndarray) -> None:
        """Takes the number of rows of 0, 1, 2, ... tokens: (L + 1,) int64."""
        self.counts = counts
        self._ends = counts[::-1].cumsum()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._ends[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows, int64, in the shape of ``rows``."""
        return len(self.counts) - 1 - np.searchsorted(self._ends, rows, side="right")

    def sum(self) -> int:
        """The tokens of all rows."""
        return int(self.counts @ np.arange(len(self.counts)))


class Rows:
    """Pieces of documents that fit a sequence, from the longest to the shortest, then in the order of the corpus.

    A row never crosses from one document into another; each document is cut from its beginning, and its last row takes
    what is left. If the documents are ``joined``, they are cut end to end instead, and only the last row is not full.

    Where each row begins is written beside the corpus once and memory-mapped: 8 bytes of disk for a row. Of several
    processes one writes and the others wait for it.

    Attributes:
        lengths: tokens of each row, [CLS] and [SEP] included.
    """

    def __init__(self, documents: Documents, sequence_length: int) -> None:
        """Cuts the documents, or finds them already cut.

        Args:
            documents: what to cut.
            sequence_length: most tokens of a row, [CLS] and [SEP] included.

        Raises:
            InputError: the disk is full or cannot be written, or the file is damaged.
        """
        made_from = [_FORMAT, [shard.folder.name for shard in documents.shards]]
        made_from += [documents.share, documents.held_out, documents.joined, sequence_length]
        name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
        folder = documents.folder / f"rows-{name}"
        try:
            if not folder.exists():
                with filelock.FileLock(documents.folder / f".{folder.name}.lock"):
                    if not folder.exists():
                        write_atomically(folder, lambda partial: _write(partial, documents, sequence_length))
        except OSError as error:
            raise InputError(f"cannot write {folder} ({error}); make room there or choose another folder.") from error
        try:
            check_sizes(folder, {"counts.bin": 8 * (sequence_length + 1)})
            self.lengths = Lengths(np.fromfile(folder / "counts.bin", "<i8"))
            check_sizes(folder, {"begins.bin": 8 * len(self.lengths)})
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is damaged ({error}); delete it.") from error
        self._begins = folder / "begins.bin"
        self._documents = documents

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The ids of one row, without [CLS] and [SEP]."""
        begin, length = int(map_file(self._begins, "<i8")[row]), int(self.lengths[np.array(row)]) - 2
        read = self._documents.joined_ids if self._documents.joined else self._documents.ids
        return read(begin, length)


def _write(folder: Path, documents: Documents, sequence_length: int) -> None:
    """Writes how many rows there are of each length, and where each row begins among the tokens of the shards."""
    cut = _cut_joined if documents.joined else _cut
    counts = np.zeros(sequence_length + 1, np.int64)
    for _, lengths in cut(documents, sequence_length - 2):
        counts += np.bincount(lengths + 2, minlength=len(counts))
    counts.astype("<i8").tofile(folder / "counts.bin")
    following = counts.sum() - counts.cumsum()  # the number of the next row of each length
    with (folder / "begins.bin").open("wb") as file:
        for begins, lengths in cut(documents, sequence_length - 2):
            present, sizes = np.unique(lengths + 2, return_counts=True)
            runs = np.split(begins[lengths.argsort(kind="stable")], sizes.cumsum()[:-1])
            for length, run in zip(present.tolist(), runs, strict=False):  # of nothing, one empty run
                file.seek(8 * following[length])
                file.write(run.astype("<i8").tobytes())
                following[length] += len(run)


def _cut(documents: Documents, room: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where rows begin, and how many tokens of a document they have, (n,) int64 each, in the order of the corpus."""
    for begins, lengths in documents.spans():
        counts = -(-lengths // room)
        first = counts.cumsum() - counts
        before = (np.arange(counts.sum()) - first.repeat(counts)) * room  # tokens of the document before each row
        yield begins.repeat(counts) + before, np.minimum(lengths.repeat(counts) - before, room)


def _cut_joined(documents: Documents, room: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of documents that are laid end to end."""
    before, total = 0, documents.num_tokens
    for begins, lengths in documents.spans():
        ends = before + lengths.cumsum()
        after = before + int(lengths.sum())
        starts = np.arange(-(-before // room) * room, after, room)
        document = np.searchsorted(ends, starts, side="right")
        yield (begins + lengths - ends)[document] + starts, np.minimum(total - starts, room)
        before = after


class Order:
    """Which rows each micro-batch has: a pure function of the seed and the micro-batch's index, without end.

    Nothing is kept or computed for a row that is not asked for. The rows, longest first, are divided into strata of
    ``per_epoch`` rows of almost one length, and an epoch gives each of its ``per_epoch`` micro-batches one row of every
    stratum, by a permutation of its own. So all have about the same tokens. Then the rows of 64 micro-batches at a time
    (there are at least 4 such windows) are sorted by length, so that the rows of a micro-batch are about equally long
    (attention pads them to the longest), cut again into micro-batches of the same share of the tokens, and these are
    shuffled: a row belongs to the micro-batch in whose share it begins. Every row comes once an epoch.

    A micro-batch has (all tokens / ``per_epoch``) tokens, give or take less than two of the longest rows: one where it
    is cut, which is the usual deviation, and one that chance may add to a whole window. None is empty.

    Attributes:
        per_epoch: micro-batches in an epoch: its tokens / ``batch_tokens``, rounded down, and at least 1.
    """

    def __init__(self, lengths: Lengths, batch_tokens: int, seed: int) -> None:
        """Plans nothing yet; the plan of a window is made when it is first asked for, and kept until the next.

        Args:
            lengths: tokens of each row, none above ``batch_tokens``.
            batch_tokens: tokens of a micro-batch, on average.
            seed: of the shuffles.

        Raises:
            InputError: there is no row.
        """
        if not len(lengths):
            raise InputError("no document in this part of the corpus; give more text, or change held_out or document.")
        self._lengths = lengths
        self._seed = seed
        self.per_epoch = max(1, lengths.sum() // batch_tokens)
        self._windows = max(-(-self.per_epoch // _WINDOW), min(4, self.per_epoch))
        self._latest: tuple[int, int, list[np.ndarray]] = (-1, -1, [])

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        """The epoch that micro-batch ``index`` belongs to, and its rows, int64."""
        if index < 0:
            raise IndexError(f"micro-batch {index} does not exist")
        epoch, batch = divmod(index, self.per_epoch)
        window = ((batch + 1) * self._windows - 1) // self.per_epoch
        begin, end = (edge * self.per_epoch // self._windows for edge in (window, window + 1))
        if self._latest[:2] != (epoch, window):
            self._latest = (epoch, window, self._plan(epoch, begin, end))
        return epoch, self._latest[2][batch - begin]

    def _plan(self, epoch: int, begin: int, end: int) -> list[np.ndarray]:
        """The rows of the micro-batches of a window."""
        strata = np.arange(-(-len(self._lengths) // self.per_epoch))[:, None]
        keys = np.random.SeedSequence((self._seed, epoch)).generate_state(len(strata), np.uint64)[:, None]
        rows = strata * self.per_epoch + permute(np.arange(begin, end), self.per_epoch, keys)
        rng = np.random.default_rng((self._seed, epoch, begin))
        rows = rng.permutation(rows[rows < len(self._lengths)])  # so that chance orders rows of one length
        lengths = self._lengths[rows]
        by_length = lengths.argsort(kind="stable")
        rows, lengths = rows[by_length], lengths[by_length]

        count = end - begin
        share = (lengths.cumsum() - lengths) * count // lengths.sum()
        numbers = np.arange(count + 1)
        edges = np.searchsorted(share, numbers)
        # A row may be longer than a share; the micro-batches next to it still get a row each.
        edges = np.maximum.accumulate(edges - numbers) + numbers
        edges = np.minimum(edges, len(rows) - count + numbers)
        return [rows[edges[number] : edges[number + 1]] for number in rng.permutation(count)]


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of the numbers below ``size`` takes some of them, without computing the others.

    Args:
        values: int64, from 0 to ``size`` - 1.
        size: of what is permuted.
        keys: uint64, of a shape that broadcasts with ``values``; each is a permutation.

    Returns:
        int64, of the shape that both broadcast to.

    Source: a Feistel network (Luby and Rackoff 1988) on the next power of 4, walked until it comes back below ``size``
    (Black and Rogaway 2002, cycle walking); its rounds mix with the finaliser of SplitMix64 (Steele et al. 2014).

    >>> sorted(permute(np.arange(10), 10, np.array([7], np.uint64)).tolist()) == list(range(10))
    True
    """
    shape = np.broadcast_shapes(values.shape, keys.shape)
    found = np.broadcast_to(values, shape).astype(np.uint64).ravel()
    keys = np.broadcast_to(keys, shape).ravel()
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))  # bits
    mask = (np.uint64(1) << half) - np.uint64(1)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> half, found[walking] & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix((right << np.uint64(3)) + np.uint64(number) ^ keys[walking]) & mask)
        found[walking] = left << half | right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64).reshape(shape)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
