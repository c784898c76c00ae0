"""Disentangled attention: one function, several backends, one meaning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unbraid.attention import native, reference, sdpa
from unbraid.attention.choice import choose
from unbraid.attention.position import relative_slots, relative_span
from unbraid.packing import Packing

Backend = Literal["auto", "native", "reference", "sdpa"]

__all__ = ["Backend", "attention_probabilities", "disentangled_attention", "relative_slots", "relative_span"]


def disentangled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_k: Tensor | None,
    pos_q: Tensor | None,
    slots: Tensor,
    queries: Packing,
    keys: Packing,
    *,
    pos_pos: Tensor | None = None,
    dropout_p: float = 0.0,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Attention in which content and relative position are two vectors, over packed sequences.

    With s = slots[position_i - position_j], and as many terms as are not None::

        score_ij = (q_i . k_j + q_i . pos_k[s] + k_j . pos_q[s] + pos_pos[s]) / sqrt(D * terms)
        out_i    = sum_j dropout(softmax_j(score_ij)) v_j

    j runs over the keys of the query's own sequence, or with ``causal`` over those with position_j <= position_i.

    Args:
        q: (Nq, H, D) content queries.
        k: (Nk, H, D) content keys.
        v: (Nk, H, D) values.
        pos_k: (P, H, D) keys of the relative table, or None to leave content-to-position out.
        pos_q: (P, H, D) queries of the relative table, or None to leave position-to-content out.
        slots: (2 * max_length - 1,) int64, the slot of every distance that can occur, from the farthest negative
            one; see :func:`relative_slots`.
        queries: packing of the rows of q.
        keys: packing of the rows of k and v; usually the same, the mask decoder asks with fewer rows.
        pos_pos: (P, H) position-to-position scores, or None to leave that term out.
        dropout_p: probability of dropping an attention weight.
        causal: whether a query sees no key at a later position than its own.
        backend: ``"reference"`` (the equation, slow), ``"sdpa"`` (torch's fused kernel), ``"native"`` (C++ for the
            CPU) or ``"auto"`` (native where it can, else sdpa). A backend asked for by name either serves or raises.

    Returns:
        (Nq, H, D). A query that sees no key gets zeros from the reference and native, something finite from sdpa.

    Raises:
        ValueError: an unknown backend, or one that cannot serve this call.

    Source: DeBERTa equations (2) to (4) and Algorithm 1.
    """
    if backend == "auto":
        backend, _ = choose(q, queries, keys)
    if backend == "reference":
        if keys.mask is not None:
            raise ValueError("backend='reference' reads packed rows only; a padded batch kept whole needs 'sdpa'.")
        return reference.attention(q, k, v, pos_k, pos_q, pos_pos, slots, queries, keys, dropout_p, causal)
    if backend == "native":
        return native.attention(q, k, v, pos_k, pos_q, pos_pos, slots, queries, keys, dropout_p, causal)
    if backend == "sdpa":
        return sdpa.attention(q, k, v, pos_k, pos_q, pos_pos, slots, queries, keys, dropout_p, causal)
    raise ValueError(f"backend={backend!r} is unknown; choose 'auto', 'native', 'reference' or 'sdpa'.")


attention_probabilities = sdpa.probabilities
