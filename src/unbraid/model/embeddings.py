"""What is known of each token at the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.dropout import Dropout
from unbraid.packing import Packing

Perturbation = Callable[[Tensor], Tensor] | Tensor
"""What becomes of the (N, C) sum of a batch's embeddings before its LayerNorm, or what stands in its place (SiFT)."""


class Embeddings(nn.Module):
    """Token ids to the states that the first layer reads.

    Source: microsoft/DeBERTa deberta/bert.py: BertEmbeddings at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width) if config.position_biased_input else None
        self.token_type = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.project = nn.Linear(width, config.hidden_size, bias=False) if width != config.hidden_size else None
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        packing: Packing,
        token_type_ids: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """Sums what is known of each token at the input and normalises it.

        Args:
            input_ids: (N,) int64.
            packing: of the N tokens.
            token_type_ids: (N,) int64; None: all of type 0.
            perturbation: acts on the (N, C) sum before its LayerNorm; or takes the place of the sum, which is then not
                computed.

        Returns:
            (N, C).
        """
        if isinstance(perturbation, Tensor):
            return self.dropout(self.norm(perturbation))
        total = self.word(input_ids)  # (N, E)
        if self.position is not None:
            total = total + self.position(checked_positions(packing, self.position))
        if self.token_type is not None:
            total = total + self.token_type(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if self.project is not None:
            total = self.project(total)
        if perturbation is not None:
            total = perturbation(total)
        return self.dropout(self.norm(total))


def checked_positions(packing: Packing, table: nn.Embedding) -> Tensor:
    """The absolute position of each row, all within the table.

    Raises:
        InputError: a sequence is longer than the table; how far it is padded does not matter.
    """
    positions, size = packing.positions, table.num_embeddings
    if packing.max_length > size and bool((positions >= size).any()):
        raise InputError(
            f"a sequence of {int(positions.max()) + 1} tokens does not fit the {size} absolute positions "
            "of this model (max_position_embeddings); cut the text into shorter pieces."
        )
    return positions
