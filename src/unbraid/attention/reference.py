"""The equation for one sequence, written to be read; it defines what is right.

Shape suffixes: N queries, K keys, H heads, D head width, P slots of the relative table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unbraid.packing import Packing


def scores(
    q_NHD: Tensor,
    k_KHD: Tensor,
    pos_k_PHD: Tensor | None,
    pos_q_PHD: Tensor | None,
    pos_pos_PH: Tensor | None,
    slots_NK: Tensor,
) -> Tensor:
    """How much each query of one sequence attends to each of its keys, before the softmax.

    The bucket is an odd function of the distance, so content-to-position and position-to-content read the same
    slot. (The paper prints delta(j, i) in the third term; the released weights were trained with delta(i, j).)

    Returns:
        (H, N, K), of the inputs' dtype.

    Source: DeBERTa equations (2) and (4); microsoft/DeBERTa deberta/disentangled_attention.py at 4d7fe0b.
    """
    terms = [torch.einsum("nhd,khd->hnk", q_NHD, k_KHD)]
    if pos_k_PHD is not None:
        terms.append(torch.einsum("nhd,nkhd->hnk", q_NHD, pos_k_PHD[slots_NK]))
    if pos_q_PHD is not None:
        terms.append(torch.einsum("khd,nkhd->hnk", k_KHD, pos_q_PHD[slots_NK]))
    if pos_pos_PH is not None:
        terms.append(pos_pos_PH[slots_NK].permute(2, 0, 1))
    return sum(terms[1:], terms[0]) / math.sqrt(q_NHD.shape[-1] * len(terms))


def probabilities(
    q: Tensor,
    k: Tensor,
    pos_k: Tensor | None,
    pos_q: Tensor | None,
    pos_pos: Tensor | None,
    slots: Tensor,
    queries: Packing,
    keys: Packing,
    causal: bool = False,
) -> list[Tensor]:
    """The attention weights of every sequence, (H, queries, keys) each, before dropout.

    With ``causal`` those of later keys are zero, and all of them where a query has no other.
    """
    zero = len(slots) // 2
    starts_q, starts_k = queries.offsets.tolist(), keys.offsets.tolist()
    result = []
    for b in range(queries.batch_size):
        n, m = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        distance_NK = queries.positions[n, None] - keys.positions[None, m]
        score_HNK = scores(q[n], k[m], pos_k, pos_q, pos_pos, slots[distance_NK + zero])
        unseen_NK = (distance_NK < 0) & causal
        # A finite floor, then zeros: a query that sees no key has neither weights nor gradients.
        floored_HNK = score_HNK.masked_fill(unseen_NK, torch.finfo(score_HNK.dtype).min)
        result.append(floored_HNK.softmax(-1).masked_fill(unseen_NK, 0))
    return result


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_k: Tensor | None,
    pos_q: Tensor | None,
    pos_pos: Tensor | None,
    slots: Tensor,
    queries: Packing,
    keys: Packing,
    dropout_p: float,
    causal: bool = False,
) -> Tensor:
    """Disentangled attention, one sequence at a time. See :func:`unbraid.attention.disentangled_attention`."""
    weights = probabilities(q, k, pos_k, pos_q, pos_pos, slots, queries, keys, causal)
    values = v.split(keys.offsets.diff().tolist())
    outputs = [
        torch.einsum("hnk,khd->nhd", torch.nn.functional.dropout(w_HNK, dropout_p), v_KHD)
        for w_HNK, v_KHD in zip(weights, values, strict=True)
    ]
    return torch.cat(outputs)
