"""Linear layers for inference, of weights packed once. The mathematics is in linear.h."""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("unbraid", "FRAGMENT")
_library.define("pack_linear(Tensor weight) -> Tensor")
_library.define("linear(Tensor x, Tensor packed, Tensor bias, bool gelu) -> Tensor")


def pack_linear(weight: Tensor) -> Tensor:
    """A weight (out, in), float32 or bfloat16, in the panels that :func:`linear` reads."""
    return torch.ops.unbraid.pack_linear(weight)


def linear(x: Tensor, packed: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    """The product x W^T + b, or the GELU of it, computed in float32 and rounded to x's dtype.

    Args:
        x: (N, in).
        packed: from :func:`pack_linear`, in x's dtype.
        bias: (out,), in x's dtype.
        gelu: whether to apply GELU.

    Returns:
        (N, out).

    Raises:
        ValueError: tensors that do not fit each other.
    """
    return torch.ops.unbraid.linear(x, packed, bias, gelu)
