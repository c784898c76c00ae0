"""Linear layers for inference on the CPU: several of one input as one product, of weights packed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from unbraid.attention.native import unavailable
from unbraid.attention.native.linear import linear, pack_linear
from unbraid.model.frozen import Frozen, weights_stand_still

FEW_ROWS = 256
"""Up to so many rows the packed product is the faster one in float32, beyond it torch's (docs/benchmarks.md)."""


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether the processor does, so that oneDNN's product is the faster one."""
    facts = torch.cpu.get_capabilities()
    return bool(facts.get("amx_bf16") or facts.get("avx512_bf16") or facts.get("sve_bf16"))


class Linears:
    """Linear layers that read the same input, as one product where nothing is trained.

    The layers stay what they are. While their weights stand still this keeps a packed copy of them; for training, on a
    GPU, for quantised or adapted weights, and under a compiler or exporter it calls the layers.
    """

    def __init__(self):
        self._product: Frozen[Callable[[Tensor], Tensor]] = Frozen()

    def __call__(self, x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
        """What each layer makes of x (N, in): (N, out) each, which may be columns of one tensor."""
        if not (weights_stand_still() and _served(x, layers)):
            return [layer(x) for layer in layers]
        plain = cast(Sequence[nn.Linear], layers)
        weights = [tensor for layer in plain for tensor in (layer.weight, layer.bias) if tensor is not None]
        product = self._product(weights, functools.partial(_pack, plain))
        return product(x).split([layer.out_features for layer in plain], dim=-1)


def _served(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    return (
        x.device.type == "cpu"
        and _has_product(len(x), x.dtype)
        and all(
            type(layer) is nn.Linear
            and type(layer.weight) is nn.Parameter
            and layer.weight.dtype == x.dtype
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            for layer in layers
        )
    )


def _has_product(rows: int, dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return rows <= FEW_ROWS and unavailable() is None
    return dtype == torch.bfloat16 and (_multiplies_bfloat16() or unavailable() is None)


def _pack(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    weight = torch.cat([layer.weight for layer in layers])
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    bias = torch.cat(biases)
    if weight.dtype == torch.bfloat16 and _multiplies_bfloat16():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    packed = pack_linear(weight)
    return lambda x: linear(x, packed, bias)
