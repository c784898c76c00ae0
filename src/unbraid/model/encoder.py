"""Attention, Layer, Encoder.

Everything here works on packed rows: N real tokens of all sequences, C wide. A Packing travels beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unbraid.attention import Backend, attention_probabilities, disentangled_attention, relative_slots, relative_span
from unbraid.model.activations import ACTIVATIONS
from unbraid.model.config import DebertaConfig
from unbraid.model.convolution import Convolution
from unbraid.model.dropout import Dropout
from unbraid.model.frozen import Frozen, weights_stand_still
from unbraid.model.linear import Linears, is_plain
from unbraid.packing import Packing


@dataclasses.dataclass(frozen=True)
class Relative:
    """Relative positions as one forward pass needs them.

    Attributes:
        table: (P, C); None without relative attention.
        used: the rows of the table that the longest sequence can reach.
        slots: (2 * max_length - 1,) int64, the row of those for every distance.
        causal: whether no token sees a later one.
    """

    table: Tensor | None
    used: slice
    slots: Tensor
    causal: bool = False


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
        self.dropout = Dropout(config.hidden_dropout_prob)
        self._content, self._output, self._frozen = Linears(), Linears(), Frozen[Sequence[Tensor | None]]()

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.config.num_attention_heads, -1))

    def _position_terms(self, relative: Relative) -> Sequence[Tensor | None]:
        """pos_k (P, H, D), pos_q (P, H, D) and pos_pos (P, H), None for each term that is left out."""
        table, names = relative.table, self.config.pos_att_type
        if table is None or not names:
            return None, None, None
        key, query = self.pos_key or self.key, self.pos_query or self.query

        def terms() -> Sequence[Tensor | None]:
            rows = self.dropout(table)
            pos_k = self._heads(key(rows)) if "c2p" in names or "p2p" in names else None
            pos_q = self._heads(query(rows)) if "p2c" in names or "p2p" in names else None
            pos_pos = (pos_k * pos_q).sum(-1) if "p2p" in names and pos_k is not None and pos_q is not None else None
            return pos_k if "c2p" in names else None, pos_q if "p2c" in names else None, pos_pos

        if weights_stand_still() and not self.training and is_plain(key) and is_plain(query):
            state = (tensor for layer in (key, query) for tensor in (*layer.parameters(), *layer.buffers()))
            kept = self._frozen([table, *state], terms)
        else:
            self._frozen.forget()
            kept = terms()
        return [None if term is None else term[relative.used] for term in kept]

    def weights(self, states: Tensor, relative: Relative, packing: Packing) -> Tensor:
        """The attention weights, (B, H, T, T), zeros where there is no token."""
        q, k = self._heads(self.query(states)), self._heads(self.key(states))
        pos_k, pos_q, pos_pos = self._position_terms(relative)
        return attention_probabilities(q, k, pos_k, pos_q, pos_pos, relative.slots, packing, relative.causal)

    def forward(
        self, query: Tensor, states: Tensor, relative: Relative, queries: Packing, keys: Packing, backend: Backend
    ) -> Tensor:
        """Lets the query rows (Nq, C) read the states (Nk, C); returns (Nq, C)."""
        pos_k, pos_q, pos_pos = self._position_terms(relative)
        if query is states:
            q, k, v = self._content(states, self.query, self.key, self.value)
        else:
            q, k, v = self.query(query), self.key(states), self.value(states)
        context = disentangled_attention(
            self._heads(q),
            self._heads(k),
            self._heads(v),
            pos_k,
            pos_q,
            relative.slots,
            queries,
            keys,
            pos_pos=pos_pos,
            dropout_p=self.config.attention_probs_dropout_prob if self.training else 0.0,
            causal=relative.causal,
            backend=backend,
        )
        (output,) = self._output(context.flatten(1), self.output)
        return self.norm(query + self.dropout(output))


class Layer(nn.Module):
    """Attention, then a feed-forward layer, each with its residual and norm.

    Source: microsoft/DeBERTa deberta/bert.py: BertLayer at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        self.attention = Attention(config)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self._up, self._down = Linears(ACTIVATIONS[config.hidden_act]), Linears()

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
        (raised,) = self._up(attended, self.up)
        (lowered,) = self._down(raised, self.down)
        return self.norm(attended + self.dropout(lowered))


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
        self._frozen = Frozen[Tensor]()
        if config.relative_attention:
            span = relative_span(config.position_buckets, config.max_distance)
            self.relative_table = nn.Embedding(2 * span, config.hidden_size)
            if config.norm_rel_ebd == "layer_norm":
                self.relative_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            if not config.pos_att_type:  # checkpoints hold them all the same, but nothing reads them
                self.relative_table.requires_grad_(False)
                if self.relative_norm is not None:
                    self.relative_norm.requires_grad_(False)

    def relative(self, max_length: int, causal: bool = False) -> Relative:
        """Relative positions for sequences of up to ``max_length`` tokens."""
        config = self.config
        slots = relative_slots(max_length, config.position_buckets, config.max_distance, config.long_distance)
        if self.relative_table is None:
            return Relative(None, slice(None), slots.to(next(self.parameters()).device), causal)
        used = slice(int(slots[0]), int(slots[-1]) + 1) if max_length else slice(0, 0)
        weight, norm = self.relative_table.weight, self.relative_norm
        slots = (slots - used.start).to(weight.device)
        if not weights_stand_still():
            self._frozen.forget()
            return Relative(weight[used] if norm is None else norm(weight[used]), slice(None), slots, causal)
        if norm is None:
            return Relative(weight, used, slots, causal)
        return Relative(self._frozen([weight, *norm.parameters()], lambda: norm(weight)), used, slots, causal)

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
