"""Rows: documents cut to training length, and the order in which an epoch visits them."""

from __future__ import annotations

import numpy as np

from unbraid.errors import InputError
from unbraid.pretraining.corpus import Documents

_WINDOW = 64  # micro-batches whose rows are sorted by length together


class Rows:
    """Pieces of documents that fit a sequence; a row never crosses from one document into another.

    Attributes:
        lengths: (R,) int64, tokens of each row, [CLS] and [SEP] included.
    """

    def __init__(self, documents: Documents, sequence_length: int) -> None:
        """Cuts each document from its beginning; its last row takes what is left.

        Args:
            documents: what to cut.
            sequence_length: most tokens of a row, [CLS] and [SEP] included.
        """
        room = sequence_length - 2
        counts = -((documents.begins - documents.ends) // room)
        first = counts.cumsum() - counts
        before = (np.arange(counts.sum()) - first.repeat(counts)) * room  # tokens of the document before each row
        self._ids = documents.ids
        self._begins = documents.begins.repeat(counts) + before
        self.lengths = np.minimum(documents.ends.repeat(counts) - self._begins, room) + 2

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """The ids of one row, without [CLS] and [SEP]."""
        begin = self._begins[row]
        return self._ids[begin : begin + self.lengths[row] - 2]


class Order:
    """Which rows each micro-batch has: a pure function of the seed and the micro-batch's index, without end.

    An epoch shuffles all rows, sorts them by length within windows of 64 micro-batches (in at least 4 windows), so
    that the rows of a micro-batch are about equally long (attention pads them to the longest), and shuffles the
    micro-batches. The cut between them falls every (tokens of an epoch / ``per_epoch``) tokens: a row belongs to the
    micro-batch in whose share it begins. So every epoch has the same number of micro-batches, none is empty, and
    each differs from the average by less than a row.

    Attributes:
        per_epoch: micro-batches in an epoch.
    """

    def __init__(self, lengths: np.ndarray, batch_tokens: int, seed: int) -> None:
        """Plans nothing yet; the plan of an epoch is made when it is first asked for, and kept until the next.

        Args:
            lengths: (R,) int64, tokens of each row, none above ``batch_tokens``.
            batch_tokens: tokens of a micro-batch, on average.
            seed: of the shuffles.

        Raises:
            InputError: there is no row.
        """
        if not len(lengths):
            raise InputError("no document in this part of the corpus; give more text, or change held_out or document.")
        self._lengths = lengths
        self._tokens = int(lengths.sum())
        self._seed = seed
        self._plan = (-1, lengths, lengths)
        self.per_epoch = max(1, self._tokens // batch_tokens)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        """The epoch that micro-batch ``index`` belongs to, and its rows, int64."""
        if index < 0:
            raise IndexError(f"micro-batch {index} does not exist")
        epoch, batch = divmod(index, self.per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, *self._make_plan(epoch))
        _, rows, cuts = self._plan
        begin, end = cuts[batch]
        return epoch, rows[begin:end]

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """All rows in order, (R,), and where among them each micro-batch begins and ends, (per_epoch, 2)."""
        rng = np.random.default_rng((self._seed, epoch))
        rows = rng.permutation(len(self._lengths))
        window = np.arange(len(rows)) * max(4, self.per_epoch // _WINDOW) // len(rows)
        # Every other window descends, so that lengths are alike on both sides of its edges.
        rows = rows[np.lexsort((np.where(window % 2, -1, 1) * self._lengths[rows], window))]
        lengths = self._lengths[rows]
        share = (lengths.cumsum() - lengths) * self.per_epoch // self._tokens
        edges = np.searchsorted(share, np.arange(self.per_epoch + 1))
        return rows, rng.permutation(np.stack([edges[:-1], edges[1:]], 1))
