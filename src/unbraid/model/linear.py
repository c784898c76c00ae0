"""Linear layers for inference on the CPU: several of one input as one product, of weights packed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from unbraid.model.activations import ACTIVATIONS
from unbraid.model.frozen import Frozen, weights_stand_still
from unbraid.model.int8 import Int8Linear
from unbraid.native.build import unavailable
from unbraid.native.linear import linear, pack_linear

Product = Callable[[Tensor, bool], Tensor]
"""Of an input, (N, in) to (N, out), and its GELU if so wished."""


class Linears:
    """Linear layers that read the same input, as one product where nothing is trained.

    The layers stay what they are. While their weights stand still this keeps a packed copy of them; for training, on a
    GPU, for quantised or adapted weights, and under a compiler or exporter it calls the layers.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None):
        """Prepares for layers.

        Args:
            activation: what to make of their outputs.
        """
        self.activation = activation
        self._product: Frozen[Product] = Frozen()

    def __call__(self, x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
        """What each layer makes of x (N, in): (N, out) each, which may be columns of one tensor."""
        if not (weights_stand_still() and _served(x, layers)):
            self._product.forget()
            outputs = [layer(x) for layer in layers]
            return outputs if self.activation is None else [self.activation(output) for output in outputs]
        plain = cast(Sequence[nn.Linear], layers)
        weights = [tensor for layer in plain for tensor in (layer.weight, layer.bias) if tensor is not None]
        product = self._product(weights, lambda: _pack(plain))
        fused = self.activation is ACTIVATIONS["gelu"]
        output = product(x, fused)
        if self.activation is not None and not fused:
            output = self.activation(output)
        return output.split([layer.out_features for layer in plain], dim=-1)


def _served(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and all(is_plain(layer) and layer.weight.dtype == x.dtype for layer in layers)
        and (_takes_onednn(x.dtype) or unavailable() is None)
    )


def is_plain(layer: nn.Module) -> bool:
    """Whether what a layer does follows from its weights alone: no adapter, parametrisation or hook."""
    known = type(layer) is Int8Linear or (type(layer) is nn.Linear and type(layer.weight) is nn.Parameter)
    return known and not (layer._forward_hooks or layer._forward_pre_hooks)


@functools.cache
def _takes_onednn(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies bfloat16 itself, which oneDNN makes the most of."""
    facts = torch.cpu.get_capabilities()
    return dtype == torch.bfloat16 and any(map(facts.get, ("amx_bf16", "avx512_bf16", "sve_bf16")))


def _pack(layers: Sequence[nn.Linear]) -> Product:
    weight = torch.cat([layer.weight for layer in layers])
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    bias = torch.cat(biases)
    if _takes_onednn(weight.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        names = {False: ("none", ""), True: ("gelu", "none")}  # of the activation, and of how to compute it
        return lambda x, gelu: torch.ops.mkldnn._linear_pointwise(x, packed, bias, names[gelu][0], [], names[gelu][1])
    packed = pack_linear(weight)
    return lambda x, gelu: linear(x, packed, bias, gelu)
