"""The processes of a run, where work is shared among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """How many processes run together; 1 where none were launched."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that speaks, known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def process_index() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def deal(count: int) -> Iterator[tuple[int, bool]]:
    """This process's share of ``count`` pieces of work, as many for every process.

    Where a forward pass waits for the other processes, as with sharded weights, one process with a pass more than the
    others would wait for ever. So the last round is filled up with repetitions, which do not count.

    Yields:
        The index of a piece, and whether it counts.

    >>> list(deal(3))
    [(0, True), (1, True), (2, True)]
    """
    for first in range(0, count, num_processes()):
        index = first + process_index()
        yield min(index, count - 1), index < count


def add_up(sums: Mapping[str, float | Tensor], device: torch.device | str = "cpu") -> dict[str, float]:
    """Sums over the processes, in float64.

    Args:
        sums: what this process found; the same names in the same order in every process.
        device: the one that the processes compute on.

    >>> add_up({"loss": torch.tensor(1.5), "items": 2})
    {'loss': 1.5, 'items': 2.0}
    """
    if not distributed.is_initialized():
        return {name: float(value) for name, value in sums.items()}
    total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()])
    distributed.all_reduce(total)
    return dict(zip(sums, total.tolist(), strict=True))
