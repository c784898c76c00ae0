"""Streams of micro-batches put together from others: languages in turn, short rows before long ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import Corpus, Documents

if TYPE_CHECKING:
    from unbraid.pretraining.evaluation import Batches

_PERIOD = 1 << 16  # micro-batches after which the languages' turns repeat


def training_stream(
    corpus: Corpus,
    config: CorpusConfig,
    make: Callable[[Documents, int, int], Batches],
    run_length: Callable[[int], int],
) -> Batches:
    """The micro-batches to train on, as the configuration orders them.

    Args:
        corpus: as ``config`` made it.
        config: ``sequence_length``, ``first_length``, ``first_share``, ``temperature`` and ``seed``.
        make: micro-batches of some documents, with that ``sequence_length`` and seed.
        run_length: micro-batches of the whole run, given those of an epoch.

    Returns:
        A stream whose micro-batches are a function of the index and the seed.

    Raises:
        InputError: a language has no document to train on.
    """

    def languages(sequence_length: int, part: int) -> Batches:
        streams = [
            make(documents, sequence_length, _seed(config.seed, part, number))
            for number, documents in enumerate(corpus.languages)
        ]
        if config.temperature is None:
            return streams[0]
        return Interleaved(streams, [documents.num_tokens**config.temperature for documents in corpus.languages])

    batches = languages(config.sequence_length, 0)
    if config.first_length is None:
        return batches
    first = round(config.first_share * run_length(batches.per_epoch))
    return Successive(languages(config.first_length, 1), first, batches)


def _seed(seed: int, part: int, language: int) -> int:
    """A seed of its own for each stream; the first has the one that was given."""
    if not part and not language:
        return seed
    return int(np.random.SeedSequence((seed, part, language)).generate_state(1, np.uint64)[0])


class Interleaved:
    """Several streams in turn, each with its share; a stream goes on where it stood when its turn comes again.

    The turns are spread evenly: after any number of micro-batches each stream has had its share, give or take a few.

    Attributes:
        per_epoch: micro-batches in one pass over all streams, if each were drawn as often as it has micro-batches.
    """

    def __init__(self, streams: Sequence[Batches], weights: Sequence[float]) -> None:
        """Lays out the turns.

        Args:
            streams: what to draw from.
            weights: how often, relative to each other, each above 0; at least once in 65,536 micro-batches.
        """
        self._streams = streams
        shares = np.array(weights) / np.sum(weights)
        self._counts = np.maximum(1, np.rint(shares * _PERIOD)).astype(np.int64)  # turns in a period
        stream = np.arange(len(streams)).repeat(self._counts)
        turn = np.arange(len(stream)) - (self._counts.cumsum() - self._counts).repeat(self._counts)
        order = np.argsort((turn + 0.5) / self._counts[stream], kind="stable")
        self._stream, self._turn = stream[order], turn[order]
        self.per_epoch = sum(stream.per_epoch for stream in streams)

    def __getitem__(self, index: int) -> Any:
        """Micro-batch ``index``, from 0 without end."""
        if index < 0:
            raise IndexError(f"micro-batch {index} does not exist")
        period, place = divmod(index, len(self._stream))
        stream = self._stream[place]
        return self._streams[stream][int(period * self._counts[stream] + self._turn[place])]


class Successive:
    """One stream after another.

    Attributes:
        per_epoch: that of the second stream.
    """

    def __init__(self, first: Batches, count: int, second: Batches) -> None:
        """Takes the first ``count`` micro-batches from ``first``, and all others from the beginning of ``second``."""
        self._first, self._count, self._second = first, count, second
        self.per_epoch = second.per_epoch

    def __getitem__(self, index: int) -> Any:
        """Micro-batch ``index``, from 0 without end."""
        return self._first[index] if index < self._count else self._second[index - self._count]
