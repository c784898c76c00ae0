"""Disentangled attention in C++ for the CPU: blocks of queries and keys, memory linear in the length.

This file is what torch sees of it: the operators, their shapes and gradients. The mathematics is in unbraid/native.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unbraid.native import takes_backward_only
from unbraid.native.build import unavailable
from unbraid.packing import Packing

__all__ = ["attention", "unavailable", "unsuited"]

_LAYOUT = (
    "Tensor slots, Tensor query_offsets, Tensor query_positions, Tensor key_offsets, Tensor key_positions, "
    "Tensor? seed, float dropout_p, bool causal"
)
_INPUTS = f"Tensor q, Tensor k, Tensor v, Tensor? pos_k, Tensor? pos_q, Tensor? pos_pos, {_LAYOUT}"
_library = torch.library.Library("unbraid", "FRAGMENT")
_library.define(f"attention_forward({_INPUTS}) -> (Tensor, Tensor)")
_library.define(
    f"attention_backward(Tensor out_grad, Tensor out, Tensor softmax, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("unbraid::attention_forward", lib=_library)
def _forward_shapes(q, *_):
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty((*q.shape[:2], 2), dtype=torch.float32)


@torch.library.register_fake("unbraid::attention_backward", lib=_library)
def _backward_shapes(_out_grad, _out, _softmax, *inputs):
    return tuple(
        inputs[0].new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs[:6]
    )


def _save(ctx, inputs, output):
    *tensors, ctx.dropout_p, ctx.causal = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, out_grad, _softmax_grad):
    out, softmax, *tensors = ctx.saved_tensors
    gradients = torch.ops.unbraid.attention_backward(
        out_grad.contiguous(), out, softmax, *tensors, ctx.dropout_p, ctx.causal
    )
    # A gradient for each tensor input; the layout after them has none.
    wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*wanted, *[None] * 8)


def _second_backward(_ctx, *_gradients):
    raise NotImplementedError("backend='native' has no second derivative; take backend='sdpa' for it.")


torch.library.register_autograd("unbraid::attention_forward", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd("unbraid::attention_backward", _second_backward, lib=_library)


def unsuited(q: Tensor, queries: Packing, keys: Packing) -> str | None:
    """Why this call is not one for the kernel, in one sentence; None: it is."""
    if q.device.type != "cpu":
        return f"backend='native' runs on the CPU only, not on {q.device.type}."
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"backend='native' computes in float32 and bfloat16 only, not in {str(q.dtype).removeprefix('torch.')}."
    if queries.mask is not None or keys.mask is not None:
        return "backend='native' reads packed rows only; a padded batch kept whole needs 'sdpa'."
    if not takes_backward_only():
        return "backend='native' knows backward() only; forward-mode derivatives and torch.func need 'sdpa'."
    return None


def _rows(x: Tensor) -> Tensor:
    """With each row's heads side by side; the rows may stand apart, as those of a fused projection do."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


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
    """Disentangled attention. See :func:`unbraid.attention.disentangled_attention`.

    Computes in q's dtype, with scores and softmax in float32. Dropout draws one seed from torch's default generator
    and decides on each weight by a hash of the seed, the sequence, the head and the two positions.

    Raises:
        ValueError: the call cannot be served; see :func:`unsuited` and :func:`unavailable`.
    """
    reason = unsuited(q, queries, keys) or unavailable()
    if reason is not None:
        raise ValueError(reason)
    seed = torch.randint(2**62, ()) if dropout_p else None
    out, _ = torch.ops.unbraid.attention_forward(
        _rows(q),
        _rows(k.to(q.dtype)),
        _rows(v.to(q.dtype)),
        None if pos_k is None else pos_k.to(q.dtype).contiguous(),
        None if pos_q is None else pos_q.to(q.dtype).contiguous(),
        None if pos_pos is None else pos_pos.float().contiguous(),
        slots.contiguous(),
        queries.offsets.contiguous(),
        queries.positions.contiguous(),
        keys.offsets.contiguous(),
        keys.positions.contiguous(),
        seed,
        dropout_p,
        causal,
    )
    return out
