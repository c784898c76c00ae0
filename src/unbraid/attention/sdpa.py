"""torch's fused attention, with the position scores as its additive mask.

The sequences are padded to the longest of the batch, so it is at its best when they are of like length.
Shape suffixes: B sequences, N queries, K keys (both padded), H heads, D head width, P slots of the relative table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from unbraid.packing import Packing, pad


def _spread(rows: Tensor, packing: Packing) -> Tensor:
    """(rows, ...) to (B, longest, ...)."""
    if packing.mask is not None:
        return rows.view(packing.batch_size, packing.longest, *rows.shape[1:])
    return pad(rows, packing, packing.ranks, packing.longest)


def _spread_scores(
    q: Tensor,
    k: Tensor,
    pos_k: Tensor | None,
    pos_q: Tensor | None,
    pos_pos: Tensor | None,
    slots: Tensor,
    queries: Packing,
    keys: Packing,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries (B, H, N, D), keys (B, H, K, D), what to add to their scaled products (B, H, N, K), and the scale."""
    q_BHND, k_BHKD = (_spread(rows, packing).transpose(1, 2) for rows, packing in ((q, queries), (k, keys)))
    real_BK = keys.mask if keys.mask is not None else _spread(torch.ones_like(keys.positions), keys).bool()
    position_BN, position_BK = _spread(queries.positions, queries), _spread(keys.positions, keys)
    distance_BNK = position_BN[:, :, None] - position_BK[:, None, :]
    slot_BNK = slots[distance_BNK + len(slots) // 2]

    # Scaled before the product: float16 has room for scores, but not for products of as many entries.
    scale = 1 / math.sqrt(q.shape[-1] * (1 + sum(term is not None for term in (pos_k, pos_q, pos_pos))))
    shape = (*q_BHND.shape[:3], k_BHKD.shape[2])
    terms = []
    if pos_k is not None:
        score_BHNP = q_BHND @ (pos_k * scale).permute(1, 2, 0)
        terms.append(score_BHNP.gather(-1, slot_BNK[:, None].expand(shape)))
    if pos_q is not None:
        score_BHKP = k_BHKD @ (pos_q * scale).permute(1, 2, 0)
        slot_BKN = slot_BNK.transpose(1, 2)[:, None]
        terms.append(score_BHKP.gather(-1, slot_BKN.expand(*shape[:2], shape[3], shape[2])).transpose(-1, -2))
    if pos_pos is not None:
        terms.append((pos_pos * scale)[slot_BNK].permute(0, 3, 1, 2))

    # A finite floor: a query that sees not a single real key then has finite outputs and gradients.
    seen_BHNK = real_BK[:, None, None, :]
    if causal:
        seen_BHNK = seen_BHNK & (distance_BNK >= 0)[:, None]
    bias_BHNK = torch.zeros_like(seen_BHNK, dtype=q.dtype).masked_fill(~seen_BHNK, torch.finfo(q.dtype).min / 2)
    for term in terms:
        bias_BHNK = bias_BHNK + term
    return q_BHND, k_BHKD, bias_BHNK, scale


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
    """Disentangled attention. See :func:`unbraid.attention.disentangled_attention`."""
    q_BHND, k_BHKD, bias_BHNK, scale = _spread_scores(q, k, pos_k, pos_q, pos_pos, slots, queries, keys, causal)
    v_BHKD = _spread(v, keys).transpose(1, 2)
    out_BHND = scaled_dot_product_attention(
        q_BHND, k_BHKD, v_BHKD, attn_mask=bias_BHNK, dropout_p=dropout_p, scale=scale
    )
    out_BNHD = out_BHND.transpose(1, 2)
    if queries.mask is not None:
        return out_BNHD.flatten(0, 1)
    return out_BNHD.flatten(0, 1)[queries.sequence_ids * queries.longest + queries.ranks]


def probabilities(
    q: Tensor,
    k: Tensor,
    pos_k: Tensor | None,
    pos_q: Tensor | None,
    pos_pos: Tensor | None,
    slots: Tensor,
    packing: Packing,
    causal: bool = False,
) -> Tensor:
    """The attention weights of sequences that read themselves, before dropout; for looking at, they are not fused.

    Returns:
        (B, H, T, T) for the T positions below ``packing.max_length``, zeros where there is no token.
    """
    mask = packing.mask
    if mask is None:
        real = torch.ones_like(packing.positions)
        q, k, real = (pad(rows, packing, packing.positions, packing.max_length) for rows in (q, k, real))
        q, k, mask = q.flatten(0, 1), k.flatten(0, 1), real.bool()
    whole = Packing.whole(mask)
    q_BHND, k_BHKD, bias_BHNK, scale = _spread_scores(q, k, pos_k, pos_q, pos_pos, slots, whole, whole, causal)
    weights_BHNK = ((q_BHND * scale) @ k_BHKD.transpose(-1, -2) + bias_BHNK).softmax(-1)
    return weights_BHNK.masked_fill(~mask[:, None, :, None], 0)
