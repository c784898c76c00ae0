"""Embeddings, Attention, Layer, Encoder.

Everything here works on packed rows: N real tokens of all sequences, C wide. A Packing travels beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unbraid.attention import Backend, attention_probabilities, disentangled_attention, relative_slots, relative_span
from unbraid.errors import InputError
from unbraid.model.activations import ACTIVATIONS
from unbraid.model.config import DebertaConfig
from unbraid.model.convolution import Convolution
from unbraid.packing import Packing


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
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        packing: Packing,
        token_type_ids: Tensor | None = None,
        perturbation: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Sums what is known of each token at the input and normalises it.

        Args:
            input_ids: (N,) int64.
            packing: of the N tokens.
            token_type_ids: (N,) int64; None: all of type 0.
            perturbation: acts on the (N, C) sum before its LayerNorm (SiFT).

        Returns:
            (N, C).
        """
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
        InputError: a sequence is longer than the table.
    """
    if packing.max_length > table.num_embeddings:
        raise InputError(
            f"a sequence of {packing.max_length} tokens does not fit the {table.num_embeddings} absolute positions "
            "of this model (max_position_embeddings); cut the text into shorter pieces."
        )
    return packing.positions


@dataclasses.dataclass(frozen=True)
class Relative:
    """Relative positions as one forward pass needs them.

    Attributes:
        table: (P, C), only the slots that the longest sequence can reach; None without relative attention.
        slots: (2 * max_length - 1,) int64, the row of the table for every distance.
    """

    table: Tensor | None
    slots: Tensor


class Attention(nn.Module):
    """Multi-head disentangled attention, its output projection, residual and norm.

    Source: microsoft/DeBERTa deberta/disentangled_attention.py and deberta/bert.py: BertAttention at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        width = config.hidden_size
        key_bias = config.model_type != "deberta"
        own_projections = config.relative_attention and not config.share_att_key
        self.config = config
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        reads_pos_k = {"c2p", "p2p"} & set(config.pos_att_type)
        reads_pos_q = {"p2c", "p2p"} & set(config.pos_att_type)
        self.pos_key = nn.Linear(width, width, bias=key_bias) if own_projections and reads_pos_k else None
        self.pos_query = nn.Linear(width, width) if own_projections and reads_pos_q else None
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.config.num_attention_heads, -1))

    def _position_terms(self, table: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """pos_k (P, H, D), pos_q (P, H, D) and pos_pos (P, H), None for each term that is left out."""
        terms = self.config.pos_att_type
        if table is None or not terms:
            return None, None, None
        table = self.dropout(table)
        pos_k = self._heads((self.pos_key or self.key)(table)) if "c2p" in terms or "p2p" in terms else None
        pos_q = self._heads((self.pos_query or self.query)(table)) if "p2c" in terms or "p2p" in terms else None
        pos_pos = (pos_k * pos_q).sum(-1) if "p2p" in terms and pos_k is not None and pos_q is not None else None
        return pos_k if "c2p" in terms else None, pos_q if "p2c" in terms else None, pos_pos

    def weights(self, states: Tensor, relative: Relative, packing: Packing) -> list[Tensor]:
        """The attention weights of every sequence, (H, length, length) each, by the reference."""
        q, k = self._heads(self.query(states)), self._heads(self.key(states))
        pos_k, pos_q, pos_pos = self._position_terms(relative.table)
        return attention_probabilities(q, k, pos_k, pos_q, pos_pos, relative.slots, packing, packing)

    def forward(
        self, query: Tensor, states: Tensor, relative: Relative, queries: Packing, keys: Packing, backend: Backend
    ) -> Tensor:
        """Lets the query rows (Nq, C) read the states (Nk, C); returns (Nq, C)."""
        pos_k, pos_q, pos_pos = self._position_terms(relative.table)
        context = disentangled_attention(
            self._heads(self.query(query)),
            self._heads(self.key(states)),
            self._heads(self.value(states)),
            pos_k,
            pos_q,
            relative.slots,
            queries,
            keys,
            pos_pos=pos_pos,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            backend=backend,
        )
        return self.norm(query + self.dropout(self.output(context.flatten(1))))


class Layer(nn.Module):
    """Attention, then a feed-forward layer, each with its residual and norm.

    Source: microsoft/DeBERTa deberta/bert.py: BertLayer at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.attention = Attention(config)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        states: Tensor,
        relative: Relative,
        keys: Packing,
        query: Tensor | None = None,
        queries: Packing | None = None,
        backend: Backend = "auto",
    ) -> Tensor:
        """One layer over the states (N, C), or for the query rows (Nq, C) alone, which read the states.

        Returns:
            (N, C), or (Nq, C).
        """
        if query is None or queries is None:
            query, queries = states, keys
        attended = self.attention(query, states, relative, queries, keys, backend)
        return self.norm(attended + self.dropout(self.down(self.activation(self.up(attended)))))


class Encoder(nn.Module):
    """The layers and the relative table that they share.

    Attributes:
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        backend: the attention backend of every layer.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.backend: Backend = "auto"
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.convolution = Convolution(config) if config.conv_kernel_size else None
        self.relative_table = self.relative_norm = None
        if config.relative_attention:
            span = relative_span(config.position_buckets, config.max_distance)
            self.relative_table = nn.Embedding(2 * span, config.hidden_size)
            if config.norm_rel_ebd == "layer_norm":
                self.relative_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def relative(self, max_length: int) -> Relative:
        """Relative positions for sequences of up to ``max_length`` tokens."""
        config = self.config
        slots = relative_slots(max_length, config.position_buckets, config.max_distance, config.long_distance)
        if self.relative_table is None:
            return Relative(None, slots.to(next(self.parameters()).device))
        first, last = (int(slots[0]), int(slots[-1])) if max_length else (0, -1)
        table = self.relative_table.weight[first : last + 1]
        if self.relative_norm is not None:
            table = self.relative_norm(table)
        return Relative(table, (slots - first).to(table.device))

    def forward(
        self,
        embedded: Tensor,
        packing: Packing,
        relative: Relative,
        num_layers: int | None = None,
        visit: Callable[[Layer, Tensor, Relative], None] | None = None,
    ) -> Tensor:
        """Runs the first ``num_layers`` layers, all of them by default.

        Args:
            embedded: (N, C).
            packing: of the N rows.
            relative: from :meth:`relative`, for at least ``packing.max_length`` tokens.
            num_layers: how many.
            visit: called with each layer, the states (N, C) that it is about to read, and ``relative``.

        Returns:
            (N, C).
        """
        states = embedded
        for index, layer in enumerate(self.layers[:num_layers]):
            if visit is not None:
                visit(cast(Layer, layer), states, relative)
            if self.gradient_checkpointing and self.training:
                states = checkpoint(layer, states, relative, packing, backend=self.backend, use_reentrant=False)
            else:
                states = layer(states, relative, packing, backend=self.backend)
            if index == 0 and self.convolution is not None:
                states = self.convolution(embedded, states, packing)
        return states
