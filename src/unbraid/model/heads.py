"""What stands on the encoder: the mask decoder, the replaced-token head, the pooler.

Everything here works on packed rows: N real tokens of all sequences, C wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbraid.model.activations import ACTIVATIONS
from unbraid.model.config import DebertaConfig
from unbraid.model.dropout import Dropout
from unbraid.model.embeddings import checked_positions
from unbraid.model.encoder import Encoder, Relative
from unbraid.packing import Packing


class VocabularyHead(nn.Module):
    """States to scores over the vocabulary, through the word embeddings.

    Source: microsoft/DeBERTa deberta/bert.py: BertLMPredictionHead at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(M, C) states and the (V, E) embedding table to (M, V) logits."""
        return nn.functional.linear(self.norm(self.activation(self.dense(states))), word_embeddings, self.bias)


class MaskDecoder(nn.Module):
    """The Enhanced Mask Decoder: absolute positions enter here, just before the softmax.

    The encoder's last layer runs again and again with its own weights; its queries start as absolute position plus
    state, its keys and values are always the states below it. So only the predicted rows are ever computed.

    Source: DeBERTa section 3.2 and appendix A.8; microsoft/DeBERTa apps/models/masked_language_model.py:
    EnhancedMaskDecoder at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.passes = config.mask_decoder_passes
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def hide(self, states: Tensor, packing: Packing, hidden: Tensor) -> Tensor:
        """Replaces some states by their absolute positions, so that they tell where a token stands but not what it is.

        Args:
            states: (N, C), what the last layer would read.
            packing: of the states.
            hidden: (N,) bool, the rows to replace.

        Returns:
            (N, C).

        Raises:
            InputError: a sequence is longer than the absolute position table.

        Source: the first version of the paper (arXiv 2006.03654v1); the released code lacks it.
        """
        rows = hidden.nonzero().squeeze(-1)
        positions = self.position(checked_positions(packing, self.position)[rows])
        return states.index_copy(0, rows, positions.to(states.dtype))

    def forward(self, encoder: Encoder, states: Tensor, relative: Relative, packing: Packing, rows: Tensor) -> Tensor:
        """Decodes some rows.

        Args:
            encoder: lends its last layer.
            states: (N, C), what the last layer reads.
            relative: as in the encoder.
            packing: of the states.
            rows: (M,) int64, increasing; the rows to predict.

        Returns:
            (M, C).

        Raises:
            InputError: a sequence is longer than the absolute position table.
        """
        queries = packing.select(rows)
        query = self.position(checked_positions(queries, self.position)) + states[rows]
        for _ in range(self.passes):
            query = encoder.layers[-1](states, relative, packing, query, queries, backend=encoder.backend)
        return query


class ReplacedTokenHead(nn.Module):
    """Was this token replaced? One logit a token, read from its state and that of [CLS].

    Source: microsoft/DeBERTa apps/models/replaced_token_detection_model.py: LMMaskPredictionHead at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, C) states to (N,) logits, positive where the token looks replaced."""
        context = states[packing.offsets[packing.sequence_ids]]  # (N, C), the state of each token's [CLS]
        return self.classifier(self.activation(self.dense(self.norm(context + states)))).squeeze(-1)


class Pooler(nn.Module):
    """One vector a sequence, from its first token.

    Source: microsoft/DeBERTa deberta/pooling.py: ContextPooler at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.dropout = Dropout(config.pooler_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.pooler_hidden_act]

    def forward(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, C) states to (B, C)."""
        first = states.new_zeros(packing.batch_size, states.shape[-1])  # (B, C), zeros for an empty sequence
        present = (packing.offsets.diff() > 0).nonzero().squeeze(-1)
        first = first.index_copy(0, present, states[packing.offsets[present]])
        return self.activation(self.dense(self.dropout(first)))
