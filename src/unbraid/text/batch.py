"""Encoded examples to one packed batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.packing import Packing


@dataclasses.dataclass(frozen=True)
class Batch:
    """One packed batch.

    Attributes:
        input_ids: (N,) int64.
        packing: of the N rows.
        labels: (N,) int64 per token (-100 = not predicted), or one per example, or None.
        token_type_ids: (N,) int64 or None.
        causal: whether no token may see a later one, as predicting the next token asks for.
    """

    input_ids: Tensor
    packing: Packing
    labels: Tensor | None = None
    token_type_ids: Tensor | None = None
    causal: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.packing.to(device),
            None if self.labels is None else self.labels.to(device),
            None if self.token_type_ids is None else self.token_type_ids.to(device),
            self.causal,
        )


def pack(
    sequences: Sequence[Sequence[int]],
    labels: Tensor | None = None,
    token_types: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Lays encoded sequences end to end.

    >>> pack([[1, 7, 2], [1, 2]]).input_ids.tolist()
    [1, 7, 2, 1, 2]
    """
    ids = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    types = None
    if token_types is not None:
        types = torch.tensor([kind for sequence in token_types for kind in sequence], dtype=torch.int64)
    return Batch(ids, Packing.from_lengths([len(sequence) for sequence in sequences]), labels, types)
