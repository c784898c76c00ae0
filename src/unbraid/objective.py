"""Objective: the one protocol of everything that is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

IGNORED = -100
"""The label of what is not predicted."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """Sums over the counted items of one batch (predicted tokens, or examples).

    Sums, not means, so that gradient accumulation and many processes weigh every item alike.

    Attributes:
        total: () float32, the sum of the losses, with its gradient.
        parts: name -> () float32, other sums over the same items, without gradient (e.g. how many were right).
        count: the number of items.
        handed: what the objective's next phase reads instead of the batch; None after the last.
    """

    total: Tensor
    parts: dict[str, Tensor]
    count: int
    handed: Any = None


class Objective(nn.Module):
    """A model and what it is trained for; called with a batch, it answers a :class:`Loss`."""

    @property
    def phases(self) -> tuple[Objective, ...]:
        """What is trained one after the other on the same micro-batches, each with an update of its own parameters."""
        return (self,)

    def loss(self, batch: Any) -> Loss:
        """The loss of one batch."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Loss:
        """The loss of one batch, where torch's wrappers (DDP, FSDP) can see it."""
        return self.loss(batch)
