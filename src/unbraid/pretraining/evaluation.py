"""Held-out text: the means of an objective's losses over some batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from unbraid.errors import InputError
from unbraid.objective import Objective
from unbraid.processes import add_up, deal


class Batches(Protocol):
    """Micro-batches, each a function of its index."""

    @property
    def per_epoch(self) -> int:
        """Micro-batches of one pass over the data."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Micro-batch ``index`` >= 0."""
        ...


@torch.no_grad()
def phase_means(
    phases: Sequence[Objective], batches: Batches, max_batches: int | None = None
) -> list[dict[str, float]]:
    """Runs the phases of an objective over the first epoch of some batches.

    Whatever is drawn depends on the batch alone, not on torch's generator or on who evaluates it.

    Args:
        phases: each reads what the one before handed on; put in evaluation mode meanwhile.
        batches: with a fixed seed.
        max_batches: stop after so many; default: all of the epoch.

    Returns:
        For each phase the mean ``loss`` and the mean of every part, over the phase's items in all processes, which
        share the work.

    Raises:
        InputError: ``max_batches`` is below 1, or there is nothing to predict.
    """
    if max_batches is not None and max_batches < 1:
        raise InputError(f"max_batches is {max_batches}; evaluate at least one batch.")
    device = next(phases[0].parameters()).device
    sums = [Counter[str]() for _ in phases]
    training = [phase.training for phase in phases]
    for phase in phases:
        phase.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for index, counts in deal(min(batches.per_epoch, max_batches or batches.per_epoch)):
                batch = batches[index].to(device)
                torch.manual_seed(index)
                for phase, total in zip(phases, sums, strict=True):
                    loss = phase(batch)
                    found = {**loss.parts, "loss": loss.total, "items": loss.count}
                    total.update({name: float(value) * counts for name, value in found.items()})
                    batch = loss.handed
    finally:
        for phase, mode in zip(phases, training, strict=True):
            phase.train(mode)
    totals = [add_up(total, device) for total in sums]
    if not all(total["items"] for total in totals):
        raise InputError("the batches hold no token to predict; check that the tokenizer covers their text.")
    return [{name: value / total["items"] for name, value in total.items()} for total in totals]


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats, infinite where it overflows.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, inf)
    """
    return math.exp(loss) if loss < 700 else math.inf
