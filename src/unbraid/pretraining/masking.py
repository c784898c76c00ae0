"""Masked language modelling's choice: which tokens to predict and what stands in their place."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from unbraid.objective import IGNORED
from unbraid.pretraining.config import MaskingConfig

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer


def example_rng(seed: int, epoch: int, row: int) -> random.Random:
    """The randomness of one row in one epoch, whatever batch or process it is masked in.

    >>> example_rng(0, 1, 2).random() == example_rng(0, 1, 2).random() != example_rng(0, 2, 1).random()
    True
    """
    return random.Random(f"{seed} {epoch} {row}")  # noqa: S311, nothing here is secret


class Masker:
    """Hides whole-word n-gram spans of a sequence.

    Source: microsoft/DeBERTa, DeBERTa/apps/tasks/mlm_task.py (NGramMaskGenerator) @ 4d7fe0b, for
    ``budget="left_to_right"``, which gives the original's choice and draws for the same ``random.Random``.
    """

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.mask_id = tokenizer.mask_id
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[list(tokenizer.special_ids)] = True
        whole_words = config.max_ngram > 1
        self.continues = tokenizer.continues_word if whole_words else np.zeros(len(tokenizer), dtype=bool)
        self.cumulative = list(accumulate(1 / n for n in range(1, config.max_ngram + 1)))
        # The original draws its random tokens from the whole vocabulary, [CLS] and [PAD] included.
        spread = config.budget == "spread"
        self.replacements: Sequence[int] = np.flatnonzero(~self.special).tolist() if spread else range(len(tokenizer))

    def __call__(self, ids: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Hides some tokens of one sequence.

        Args:
            ids: (T,) int64, with [CLS] and [SEP].
            rng: consumed; see :func:`example_rng`.

        Returns:
            The masked ids and the labels, (T,) int64 each; labels are -100 where nothing is predicted. At least
            one token is predicted unless all are special.
        """
        masked, labels = ids.copy(), np.full_like(ids, IGNORED)
        places = np.flatnonzero(~self.special[ids])
        if len(places):
            begins = ~self.continues[ids[places]]
            begins[0] = True
            units = begins.cumsum() - 1
            spread = self.config.budget == "spread"
            chosen = places[self._spread(units, rng) if spread else self._left_to_right(units, len(ids), rng)]
            labels[chosen] = ids[chosen]
            masked[chosen] = [self._replace(token, rng) for token in ids[chosen].tolist()]
        return masked, labels

    def _spread(self, units: np.ndarray, rng: random.Random) -> np.ndarray:
        """Chooses every unit with the same probability, at regular distances.

        Windows of n / probability units tile an endless line, each with a span of n at a random place in it. The
        sequence lies anywhere on that line: the window it begins in is one of n with probability ~ n * p(n), which
        is uniform in n. No span is longer than the share of the whole sequence that is to be predicted.

        Args:
            units: (T',) int64, the unit (word) of every token that is not special, from 0.
            rng: consumed.

        Returns:
            (T',) bool, the tokens to predict.
        """
        count = int(units[-1]) + 1
        hidden = np.zeros(count, dtype=bool)
        probability = self.config.probability
        longest = max(1, min(self.config.max_ngram, int(count * probability)))
        n = rng.randrange(longest) + 1
        edge = -rng.random() * n / probability
        while edge < count:
            width = n / probability
            start = math.ceil(edge + rng.random() * (width - n))
            hidden[max(start, 0) : max(start + n, 0)] = True
            edge += width
            n = self._ngram(rng, longest)
        if not hidden.any():
            hidden[rng.randrange(count)] = True
        return hidden[units]

    def _left_to_right(self, units: np.ndarray, length: int, rng: random.Random) -> np.ndarray:
        """Chooses a span per window of n * int(1 / probability) units, and keeps the first until the budget is met.

        One unit in int(1 / probability) is chosen (16.7 % for 15 %), so the budget is met before the end of the
        sequence, and the last tenth of it is hardly ever predicted.

        Args:
            units: (T',) int64, the unit (word) of every token that is not special, from 0.
            length: tokens in the sequence, special ones included.
            rng: consumed.

        Returns:
            (T',) bool, the tokens to predict.
        """
        probability = self.config.probability
        count = int(units[-1]) + 1
        hidden = np.zeros(count, dtype=bool)
        edge = 0
        while edge < count:
            n = self._ngram(rng, self.config.max_ngram)
            width = min(n * int(1 / probability), count - edge)
            start = edge + rng.randint(0, width - 1)
            hidden[start : start + n] = True
            edge = max(edge + width, min(start + n, count))
        most = math.ceil(512 * probability / 10) * 10
        budget = min(most, max(1, round(length * probability)))
        chosen = hidden[units]
        before = np.bincount(units, weights=chosen).cumsum()
        last = int(np.searchsorted(before, budget))  # the word that meets the budget is predicted whole
        return chosen & (units <= last)

    def _ngram(self, rng: random.Random, longest: int) -> int:
        """A length up to ``longest``, with p(n) ~ 1/n."""
        return bisect(self.cumulative, rng.random() * self.cumulative[longest - 1]) + 1

    def _replace(self, token: int, rng: random.Random) -> int:
        fate = rng.random()
        if fate < self.config.mask_fraction:
            return self.mask_id
        if fate < self.config.mask_fraction + self.config.keep_fraction:
            return token
        return rng.choice(self.replacements)
