"""Dropout on all threads, that keeps one seed instead of a mask. The mathematics is in dropout.h."""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("unbraid", "FRAGMENT")
_library.define("dropout(Tensor x, Tensor seed, float p) -> Tensor")


@torch.library.register_fake("unbraid::dropout", lib=_library)
def _shape(x, _seed, _p):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):  # noqa: ARG001 (torch calls it by these names)
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, grad):
    return torch.ops.unbraid.dropout(grad, *ctx.saved_tensors, ctx.p), None, None


torch.library.register_autograd("unbraid::dropout", _backward, setup_context=_save, lib=_library)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zeros each value with probability p and divides the others by 1 - p.

    Draws one seed from torch's default generator; the rest is a hash of the seed and each value's place.

    Args:
        x: float32 or bfloat16, on the CPU, of any shape.
        p: in [0, 1].

    Returns:
        As x.

    Raises:
        ValueError: another dtype.
    """
    return torch.ops.unbraid.dropout(x, torch.randint(2**62, ()), p)
