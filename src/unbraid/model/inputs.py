"""The door of every model: padded input is packed when it enters and unpadded when it leaves."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.packing import Packing, check_mask, pad


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch inside a model.

    Attributes:
        ids: (N,) int64.
        packing: of the N tokens.
        token_type_ids: (N,) int64 or None.
        mask: (B, T) bool, which cells of the padded input the N tokens come from; None if it came packed.
    """

    ids: Tensor
    packing: Packing
    token_type_ids: Tensor | None
    mask: Tensor | None

    @classmethod
    def enter(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        packing: Packing | None,
        vocab_size: int,
    ) -> Inputs:
        """Checks a batch and packs it.

        Args:
            input_ids: (B, T) int, or (N,) with ``packing``.
            attention_mask: (B, T), 1 = real; None: all real. A token's column is its position.
            token_type_ids: the shape of input_ids, or None.
            packing: where input_ids are packed.
            vocab_size: V; ids lie in [0, V).

        Raises:
            InputError: a wrong type, shape or id, an empty batch.
        """
        if packing is None:
            if input_ids.dim() != 2 or not input_ids.numel():
                raise InputError(
                    f"input_ids has shape {tuple(input_ids.shape)}; give (sequences, tokens), at least one of each, "
                    "or packed ids together with their packing."
                )
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            mask = check_mask(mask, input_ids.shape)
            packing = Packing.from_mask(mask)
        else:
            if attention_mask is not None:
                raise InputError("packed input takes no attention_mask; its packing says which tokens are real.")
            if input_ids.shape != packing.positions.shape or not input_ids.numel():
                raise InputError(
                    f"input_ids has shape {tuple(input_ids.shape)} but its packing has "
                    f"{len(packing.positions)} tokens; give one id a token, at least one."
                )
            mask = None
        types = token_type_ids
        if types is not None and types.shape != input_ids.shape:
            raise InputError(
                f"token_type_ids has shape {tuple(types.shape)} but input_ids has {tuple(input_ids.shape)}."
            )
        if mask is not None:
            input_ids = input_ids[mask]
            types = None if types is None else types[mask]
        check_ids(input_ids, vocab_size, "input_ids")
        return cls(input_ids, packing, types, mask)

    def rows(self, cells: Tensor, name: str) -> Tensor:
        """What a (B, T) or (N,) tensor says of the N tokens.

        Raises:
            InputError: it has another shape than the ids.
        """
        shape = self.ids.shape if self.mask is None else self.mask.shape
        if cells.shape != shape:
            raise InputError(f"{name} has shape {tuple(cells.shape)} but input_ids has {tuple(shape)}.")
        return cells if self.mask is None else cells[self.mask]

    def leave(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """(N, ...) to (B, T, ...) with ``fill`` at padding, if the input came padded; packed rows stay as they are."""
        if self.mask is None:
            return rows
        padded = pad(rows, self.packing, self.packing.positions, self.mask.shape[1])
        if fill:
            padded = padded.masked_fill(~self.mask.view(*self.mask.shape, *(1,) * (rows.dim() - 1)), fill)
        return padded


def check_ids(ids: Tensor, size: int, name: str) -> None:
    """Checks that ids are whole numbers in [0, size).

    Raises:
        InputError: they are not.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} is of type {ids.dtype}; give whole numbers (torch.int64).")
    if not torch.compiler.is_compiling() and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise InputError(f"{name} holds {wrong}, outside the {size} ids from 0 to {size - 1}.")


def check_binary(labels: Tensor, name: str) -> None:
    """Checks that labels are 0 or 1.

    Raises:
        InputError: they are not.
    """
    if torch.compiler.is_compiling():
        return
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.numel():
        raise InputError(f"{name} holds {wrong[0].item():g}; give 0 or 1.")
