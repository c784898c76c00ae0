"""Models in bfloat16, and with int8 weights, for inference."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from unbraid.errors import InputError
from unbraid.model.encoder import Encoder
from unbraid.model.int8 import Int8Linear, num_levels

Precision = Literal["float32", "bfloat16", "int8"]


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Changes a model in place, for inference only.

    Args:
        model: any of the models; ``"int8"`` asks for one on the CPU.
        precision: ``"float32"``; ``"bfloat16"``, all of it; or ``"int8"``, the linear layers of the encoder (the
            embeddings, the heads and the attention stay float32).

    Raises:
        InputError: an unknown precision, int8 on another device than the CPU, or another precision after int8.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision={precision!r} is unknown; choose {', '.join(map(repr, get_args(Precision)))}.")
    if precision != "int8" and any(isinstance(module, Int8Linear) for module in model.modules()):
        raise InputError(f"the model was rounded to int8; read it again for precision={precision!r}.")
    model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    if precision != "int8":
        return
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise InputError("int8 runs on the CPU; move the model there, or choose precision='bfloat16'.")
    model.requires_grad_(False)  # no gradient passes through whole numbers
    for encoder in [module for module in model.modules() if isinstance(module, Encoder)]:
        for parent in list(encoder.layers.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child, num_levels()))
