"""Gradient-disentangled embedding sharing (GDES): a table that reads another's and trains only its difference to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

_TABLES = ("word", "position")


class DisentangledEmbedding(nn.Module):
    """The discriminator's table: the generator's, out of reach of its gradient, plus a difference of its own.

    The generator's table is read anew in every pass, so that each of its updates arrives here at once; it is neither a
    parameter of this module nor saved with it.

    Attributes:
        delta: (rows, width), the difference.

    Source: DeBERTaV3 section 3.3; microsoft/DeBERTa apps/tasks/rtd_task.py: RTDTask.get_model at 4d7fe0b, where the
    same is done by hooks.
    """

    def __init__(self, generator: nn.Embedding, start: Tensor | None = None) -> None:
        """Takes the generator's table.

        Args:
            generator: its module.
            start: (rows, width), the sum to begin with; None: the generator's table.
        """
        super().__init__()
        self._generator = (generator,)  # in a tuple: a module among the attributes would become a child
        table = generator.weight.detach()
        self.delta = nn.Parameter(torch.zeros_like(table) if start is None else start.detach() - table)

    @property
    def num_embeddings(self) -> int:
        """The number of rows."""
        return len(self.delta)

    @property
    def weight(self) -> Tensor:
        """(rows, width), the sum, with gradient to the difference alone."""
        return self._shared() + self.delta

    def _shared(self) -> Tensor:
        table = self._generator[0].weight.detach()
        return table.full_tensor() if isinstance(table, DTensor) else table

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) ids to (N, width); only the rows that are read are ever added."""
        return functional.embedding(ids, self._shared()) + functional.embedding(ids, self.delta)


def same_tables(generator: nn.Module, discriminator: nn.Module) -> bool:
    """Whether ``"es"`` takes nothing from the discriminator; see :func:`share_embeddings`."""
    pairs = [(getattr(generator, name), getattr(discriminator, name)) for name in _TABLES]
    return all(torch.equal(own.weight, other.weight) for own, other in pairs if own is not None)


def share_embeddings(generator: nn.Module, discriminator: nn.Module, sharing: str, *, keep: bool = False) -> None:
    """Lets the input embeddings of a discriminator depend on those of its generator, in place.

    Args:
        generator: an :class:`unbraid.model.embeddings.Embeddings`.
        discriminator: another of the same size.
        sharing: ``"gdes"``, ``"es"`` (the same tables, trained by both losses) or ``"nes"`` (none).
        keep: with ``"gdes"``, start from the discriminator's tables and not from the generator's.
    """
    for name in _TABLES:
        table = getattr(generator, name)
        if table is None or sharing == "nes":
            continue
        if sharing == "gdes":
            table = DisentangledEmbedding(table, getattr(discriminator, name).weight if keep else None)
        setattr(discriminator, name, table)
