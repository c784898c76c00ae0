"""Encoded examples to one packed batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.packing import Packing
from unbraid.text.encoding import Span


@dataclasses.dataclass(frozen=True)
class Batch:
    """One packed batch.

    Attributes:
        input_ids: (N,) int64.
        packing: of the N rows.
        labels: (N,) int64 per token (-100 = not predicted), or one per example, or None.
        token_type_ids: (N,) int64 or None.
        causal: whether no token may see a later one, as predicting the next token asks for.
        spans: (S, 2) int64 or None: of each stretch that the task is about its first row and one past its last.
    """

    input_ids: Tensor
    packing: Packing
    labels: Tensor | None = None
    token_type_ids: Tensor | None = None
    causal: bool = False
    spans: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.packing.to(device),
            None if self.labels is None else self.labels.to(device),
            None if self.token_type_ids is None else self.token_type_ids.to(device),
            self.causal,
            None if self.spans is None else self.spans.to(device),
        )


def pack(
    sequences: Sequence[Sequence[int]],
    labels: Tensor | None = None,
    token_types: Sequence[Sequence[int]] | None = None,
    spans: Sequence[Sequence[Span]] | None = None,
) -> Batch:
    """Lays encoded sequences end to end.

    Args:
        sequences: B lists of token ids.
        labels: as :class:`Batch` has them.
        token_types: B lists, as long as those of the ids.
        spans: of each sequence any number of stretches, each its first token and one past its last.

    >>> pack([[1, 7, 2], [1, 2]]).input_ids.tolist()
    [1, 7, 2, 1, 2]
    >>> pack([[1, 7, 2], [1, 2]], spans=[[(1, 2), (0, 3)], [(0, 1)]]).spans.tolist()
    [[1, 2], [0, 3], [3, 4]]
    """
    ids = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    types = None
    if token_types is not None:
        types = torch.tensor([kind for sequence in token_types for kind in sequence], dtype=torch.int64)
    packing = Packing.from_lengths([len(sequence) for sequence in sequences])
    rows = None
    if spans is not None:
        ends = torch.tensor([end for each in spans for span in each for end in span], dtype=torch.int64).view(-1, 2)
        counts = torch.tensor([len(each) for each in spans])
        rows = ends + packing.offsets[:-1].repeat_interleave(counts)[:, None]
    return Batch(ids, packing, labels, types, spans=rows)
