"""A linear layer of int8 weights, for inference on the CPU.

A weight has one scale for each output, an activation one scale and one lowest value for each row. No row's result
depends on the others, so a text is answered alike alone and among others.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

_BLOCK = 256
"""Rows multiplied at a time, so that what is between the steps stays in the cache."""


class Int8Linear(nn.Module):
    """A linear layer of int8 weights that rounds each row it reads to unsigned 8-bit levels.

    With x = low + step * levels and W = scale * weight, x W^T + b = (step * scale) * (levels weight^T) +
    low * (scale * sum of weight) + b, whose one large product is of whole numbers.

    Attributes:
        weight: (out, in) int8.
        scale: (out,) float32.
        row_sums: (out,) float32, of scale * weight.
        bias: (out,) float32.
    """

    def __init__(self, linear: nn.Linear, levels: int):
        """Rounds the weights of a layer to the nearest of 255 values for each output.

        Args:
            linear: float32.
            levels: how many levels to round activations to, at most 256; see :func:`num_levels`.
        """
        super().__init__()
        self.levels = levels
        weight = linear.weight.detach()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        scale = _positive(weight.abs().amax(1) / 127)
        self.weight: Tensor
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.row_sums: Tensor
        self.register_buffer("row_sums", self.weight.sum(1) * scale)
        self.bias: Tensor
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) float32 to (..., out)."""
        flat = rows.flatten(0, -2)
        output = rows.new_empty(len(flat), len(self.scale))
        for block, out in zip(flat.split(_BLOCK), output.split(_BLOCK), strict=True):
            low, high = block.aminmax(dim=-1, keepdim=True)
            step = _positive((high - low) / (self.levels - 1))
            levels = (block - low).div_(step).add_(0.5).to(torch.uint8)
            product = torch.ops.aten._int_mm(levels, self.weight.t())  # (rows, out) int32
            torch.addcmul(self.bias, low, self.row_sums, out=out)
            out.addcmul_(product * step, self.scale)
        return output.unflatten(0, rows.shape[:-1])


def _positive(steps: Tensor) -> Tensor:
    """Steps of rows that hold one value only are zero; any other will do for them, and can be divided by."""
    return steps.clamp_min(torch.finfo(torch.float32).tiny)


@functools.cache
def num_levels() -> int:
    """The levels that activations may have here: 256, or 128 where the product of 8-bit numbers would saturate.

    x86 processors without VNNI instructions add pairs of products in 16 bits, where 2 * 255 * 127 does not fit but
    2 * 127 * 127 does.
    """
    highest, weight = torch.full((16, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    exact = torch.ops.aten._int_mm(highest, weight.t()) == 255 * 127 * 64
    return 256 if exact.all() else 128
