"""Packing: sequences laid end to end, one row per real token, no padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.errors import InputError


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each row of a packed (N, ...) tensor belongs.

    Positions are carried, not recomputed, so left padding and holes in a mask stay exact.
    Sequences never see each other, whatever lies next to them in memory.

    Attributes:
        offsets: (B + 1,) int64; sequence b owns the rows ``offsets[b]:offsets[b + 1]``.
        positions: (N,) int64; the place of each row in its own sequence, increasing within a sequence.
        max_length: a bound above every position; distances lie in ``(-max_length, max_length)``.
        longest: the most rows that any sequence has.
        mask: (B, T) bool or None. Given, the rows are a padded batch kept whole (N = B * T, for exporters
            and compilers, whose shapes cannot depend on the data) and the mask says which of them are real.
    """

    offsets: Tensor
    positions: Tensor
    max_length: int
    longest: int
    mask: Tensor | None = None

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str | None = None) -> Packing:
        """Packs sequences of the given lengths, each numbered from 0.

        >>> Packing.from_lengths([2, 3]).positions.tolist()
        [0, 1, 0, 1, 2]
        """
        counts = torch.tensor(lengths, dtype=torch.int64)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        positions = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts)
        longest = max(lengths, default=0)
        return cls(offsets.to(device), positions.to(device), longest, longest)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packing:
        """Packs the true cells of a (B, T) mask in row-major order; a cell's column is its position."""
        counts = mask.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        positions = mask.nonzero()[:, 1]
        return cls(offsets, positions, mask.shape[1], int(counts.max()) if len(counts) else 0)

    @classmethod
    def whole(cls, mask: Tensor) -> Packing:
        """Keeps all B * T rows of a padded batch; ``mask`` (B, T) bool says which are real."""
        batch, length = mask.shape
        steps = torch.arange(length, device=mask.device)
        offsets = torch.arange(batch + 1, device=mask.device) * length
        return cls(offsets, steps.repeat(batch), length, length, mask)

    @property
    def batch_size(self) -> int:
        """The number of sequences, empty ones included."""
        return len(self.offsets) - 1

    @functools.cached_property
    def sequence_ids(self) -> Tensor:
        """(N,) int64: the sequence that each row belongs to."""
        rows = torch.arange(len(self.positions), device=self.offsets.device)
        return torch.searchsorted(self.offsets, rows, right=True) - 1

    @functools.cached_property
    def ranks(self) -> Tensor:
        """(N,) int64: the number of rows before each row in its own sequence."""
        return torch.arange(len(self.positions), device=self.offsets.device) - self.offsets[self.sequence_ids]

    def select(self, rows: Tensor) -> Packing:
        """The packing of some rows, in their order; sequences that lose all their rows stay, empty.

        Args:
            rows: (M,) int64, increasing indices of rows.
        """
        offsets = torch.searchsorted(rows, self.offsets)
        counts = offsets.diff()
        longest = int(counts.max()) if len(counts) else 0
        return Packing(offsets, self.positions[rows], self.max_length, longest)

    def to(self, device: torch.device | str) -> Packing:
        """The same packing on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Packing(self.offsets.to(device), self.positions.to(device), self.max_length, self.longest, mask)


def pad(rows: Tensor, packing: Packing, columns: Tensor, width: int) -> Tensor:
    """Spreads packed rows over a padded batch, zeros elsewhere.

    Args:
        rows: (N, ...).
        packing: of the rows.
        columns: (N,) int64, the column of each row: ``packing.positions`` or ``packing.ranks``.
        width: T, the number of columns.

    Returns:
        (B, T, ...).
    """
    padded = rows.new_zeros(packing.batch_size * width, *rows.shape[1:])
    cells = packing.sequence_ids * width + columns
    return padded.index_copy(0, cells, rows).view(packing.batch_size, width, *rows.shape[1:])


def check_mask(attention_mask: Tensor, shape: torch.Size) -> Tensor:
    """A (B, T) attention mask as booleans.

    Raises:
        InputError: another shape than the ids'.
    """
    if attention_mask.shape != shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)} but input_ids has {tuple(shape)}; "
            "give one 0 or 1 per token."
        )
    return attention_mask.bool()
