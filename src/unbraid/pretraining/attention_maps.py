"""Where the last layer of a pretrained model looks: maps to be judged by eye, and shares that can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from unbraid.model.encoder import Layer
from unbraid.model.pretrained import Deberta
from unbraid.pretraining.corpus import Documents
from unbraid.pretraining.rows import Rows
from unbraid.text.batch import pack

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer

MAP_TOKENS = 48
"""Most tokens of a text that is drawn: its labels can still be read."""

MEASURED_TOKENS = 128
"""Most tokens of a row that is measured: the reference holds T x T x C numbers of each."""

MEASURED_ROWS = 64
"""Most rows that are measured."""

NEAR = 2
"""The farthest distance that counts as near."""

FREQUENT = 20
"""How many pieces count as frequent."""

SHARES = ("itself", "near", "[CLS]", "[SEP]", "frequent")
"""The names of the shares that :func:`shares` tells."""

_LOT = 16  # rows that go through the encoder together


@dataclasses.dataclass(frozen=True)
class Map:
    """The attention of one text.

    Attributes:
        tokens: T, as the vocabulary spells them, [CLS] and [SEP] included.
        weights: (T, T), queries down, keys across: the mean over the heads.
    """

    tokens: list[str]
    weights: list[list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Where a model looks in held-out text, as JSON can hold it.

    Attributes:
        shares: see :func:`shares`, over the measured rows.
        even: the same, if every token looked at all tokens alike.
        maps: of some texts.
    """

    shares: dict[str, float]
    even: dict[str, float]
    maps: list[Map]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Attention:
        """The reverse of ``dataclasses.asdict``."""
        return cls(shares=fields["shares"], even=fields["even"], maps=[Map(**each) for each in fields["maps"]])


def measure(encoder: Deberta, tokenizer: Tokenizer, documents: Documents, longest: int) -> Attention:
    """Where the last layer of an encoder looks in some documents; the same texts for every encoder.

    Read is the encoder's own last layer, on text in which nothing is hidden: what fine-tuning meets, and what a model
    without an Enhanced Mask Decoder has too. In pretraining with the decoder this layer runs as the decoder alone, and
    for predicted tokens alone: the first time with the plain layer's queries plus absolute positions, the second time
    with what came of that. So the plain layer is trained as far as these positions are small beside the states.

    Args:
        encoder: in evaluation mode.
        tokenizer: of the model and of the documents.
        documents: held-out ones. Measured are up to 64 rows of up to 128 tokens, from the longest to the shortest;
            drawn are two of up to 48 tokens, of the longest. There is at least one.
        longest: most tokens of a row, if the model was trained on shorter ones than these.

    Source: DeBERTa, figures 3 to 5, which show the last layers of pretrained models.
    """
    measured, drawn = (Rows(documents, min(most, longest)) for most in (MEASURED_TOKENS, MAP_TOKENS))
    rows = _framed(measured, _spread(len(measured), MEASURED_ROWS), tokenizer)
    frequent = frequent_pieces(rows)
    looked = [np.isin(row, frequent) for row in rows]
    flat = (torch.full((1, len(row), len(row)), 1 / len(row)) for row in rows)
    full = int(drawn.lengths.counts[drawn.lengths[np.array(0)]])  # rows as long as the first
    texts = _framed(drawn, _spread(full, 2), tokenizer)
    maps = [
        Map([tokenizer.token(token) for token in text], weights.double().mean(0).numpy().round(5).tolist())
        for text, weights in zip(texts, last_attention(encoder, texts), strict=True)
    ]
    return Attention(shares=shares(last_attention(encoder, rows), looked), even=shares(flat, looked), maps=maps)


@torch.no_grad()
def last_attention(encoder: Deberta, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """The attention weights of the last layer, (H, T, T) float32 for each row of T ids."""
    last = cast(Layer, encoder.encoder.layers[-1])
    for first in range(0, len(rows), _LOT):
        batch = pack([row.tolist() for row in rows[first : first + _LOT]])
        inputs = encoder.enter(batch.input_ids, None, None, batch.packing)
        states, relative = encoder.encode(inputs, num_layers=encoder.config.num_hidden_layers - 1)
        weights = last.attention.weights(states, relative, inputs.packing)
        for padded, length in zip(weights, batch.packing.offsets.diff().tolist(), strict=True):
            yield padded[:, :length, :length]


def shares(weights: Iterator[Tensor] | Sequence[Tensor], frequent: Sequence[np.ndarray]) -> dict[str, float]:
    """How the attention of ordinary tokens divides, 0 to 1: means over all heads and all of these tokens.

    Ordinary are all tokens but [CLS] and [SEP], the first and the last of a row. Of what each of them gives away:

    - itself: what stays with the token itself, the diagonal of a map;
    - near: what goes to other ordinary tokens at distance 1 or 2, on either side;
    - [CLS] and [SEP]: what goes to these;
    - frequent: what goes to other ordinary tokens that are frequent pieces, the vertical stripes of a map. Part of it
      is near as well.

    Args:
        weights: (H, T, T) for each row; every query's sum to 1.
        frequent: (T,) bool for each row, whether its tokens are frequent pieces.

    >>> {name: round(share, 3) for name, share in shares([torch.eye(3)[None]], [np.zeros(3, bool)]).items()}
    {'itself': 1.0, 'near': 0.0, '[CLS]': 0.0, '[SEP]': 0.0, 'frequent': 0.0}
    """
    sums, count = np.zeros(len(SHARES)), 0
    for weights_HTT, is_frequent in zip(weights, frequent, strict=True):
        places = np.arange(weights_HTT.shape[-1])
        distance = np.abs(places[1:-1, None] - places)  # (T - 2, T)
        ordinary = (places > 0) & (places < places[-1])
        goals = (
            distance == 0,
            (distance > 0) & (distance <= NEAR) & ordinary,
            np.broadcast_to(places == 0, distance.shape),
            np.broadcast_to(places == places[-1], distance.shape),
            (distance > 0) & ordinary & is_frequent,
        )
        given = weights_HTT.double().mean(0).numpy()[1:-1]  # (T - 2, T)
        sums += [given[goal].sum() for goal in goals]
        count += len(given)
    return dict(zip(SHARES, (sums / count).tolist(), strict=True))


def frequent_pieces(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The ids that occur most often between the first and the last token of the rows; of equals the lower ones.

    >>> frequent_pieces([np.array([1, 9, 8, 9, 2])]).tolist()
    [9, 8]
    """
    ids, counts = np.unique(np.concatenate([row[1:-1] for row in rows]), return_counts=True)
    return ids[np.argsort(-counts, kind="stable")][:FREQUENT]


def _spread(count: int, most: int) -> range:
    """Up to ``most`` of ``count`` numbers, evenly."""
    return range(0, count, -(-count // most))


def _framed(rows: Rows, chosen: range, tokenizer: Tokenizer) -> list[np.ndarray]:
    return [np.concatenate([[tokenizer.cls_id], rows[row], [tokenizer.sep_id]]) for row in chosen]
