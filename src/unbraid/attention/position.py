"""Token distance -> log bucket -> slot of the relative table.

Source: DeBERTa equation (3); microsoft/DeBERTa deberta/da_utils.py (make_log_bucket_position,
build_relative_position) and deberta/disentangled_attention.py at 4d7fe0b.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

LongDistance = Literal["clamp", "port"]


def log_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Distances near zero keep their own bucket, farther ones share logarithmically wider ones.

    An odd, monotone function: up to ``num_buckets // 2`` the identity, beyond it
    ``ceil(ln(|d| / mid) / ln((max_distance - 1) / mid) * (mid - 1)) + mid`` with the sign of d.

    Args:
        distance: int64, any shape; query position minus key position, in tokens.
        num_buckets: even, at least 2; a distance of ``max_distance - 1`` falls into bucket ``num_buckets - 1``.
        max_distance: above ``num_buckets // 2 + 1``.

    Returns:
        int64, the shape of ``distance``.

    >>> log_bucket(torch.tensor([-511, -200, -3, 0, 128, 129, 150, 256, 511]), 256, 512).tolist()
    [-255, -169, -3, 0, 128, 129, 143, 192, 255]
    """
    mid = num_buckets // 2
    size = distance.abs().double().clamp(min=mid)
    far = torch.ceil(torch.log(size / mid) / math.log((max_distance - 1) / mid) * (mid - 1)).long() + mid
    return torch.where(distance.abs() <= mid, distance, distance.sign() * far)


def relative_span(position_buckets: int | None, max_relative_positions: int) -> int:
    """k: half the number of slots of the relative table."""
    return position_buckets or max_relative_positions


def relative_slots(
    max_length: int,
    position_buckets: int | None,
    max_relative_positions: int,
    long_distance: LongDistance = "clamp",
    device: torch.device | str | None = None,
) -> Tensor:
    """The slot of the relative table for every distance that sequences of ``max_length`` can hold.

    Args:
        max_length: T, in tokens.
        position_buckets: number of log buckets, None for one slot a distance.
        max_relative_positions: M, the distance from which all are alike.
        long_distance: what becomes of a distance beyond M with buckets. ``"clamp"``: it counts as M - 1, as in
            the original. ``"port"``: its bucket is computed and then clamped, as in transformers, which reads
            row 0 for far negative distances, a row that was never trained.
        device: of the result.

    Returns:
        (2 * max_length - 1,) int64; the slot of distance d (query minus key) stands at ``d + max_length - 1``.

    >>> relative_slots(4, None, 3).tolist()
    [0, 1, 2, 3, 4, 5, 5]
    """
    distance = torch.arange(1 - max_length, max_length, device=device)
    if position_buckets:
        if long_distance == "clamp":
            distance = distance.clamp(1 - max_relative_positions, max_relative_positions - 1)
        distance = log_bucket(distance, position_buckets, max_relative_positions)
    span = relative_span(position_buckets, max_relative_positions)
    return (distance + span).clamp(0, 2 * span - 1)
