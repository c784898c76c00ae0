"""Arithmetic of the matrix products, and whether a model bears it."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from unbraid.errors import InputError
from unbraid.objective import Objective

Precision = Literal["float32", "bfloat16", "float16"]

LOWEST_SCALE = 2.0**-10
"""Of a loss: below it a gradient that overflows float16 is not one of too high a scale."""

_LOSS_BOUND, _LOSS_PER_ITEM, _COSINE_BOUND = 0.05, 0.01, 0.9


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, matrix products are computed in the precision; weights, norms, softmax and losses stay in float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def loss_scaler(precision: Precision, device: torch.device, scale: float) -> GradScaler:
    """Keeps the gradients of a loss within float16, beginning with a scale; in the other precisions it does nothing."""
    return GradScaler(device.type, init_scale=scale, enabled=precision == "float16")


def check_precision(objective: Objective, batch: Any, precision: Precision, device: torch.device) -> list[float]:
    """Compares a precision with float32 on one batch, without dropout, phase by phase; leaves no trace.

    The loss must be within 5 % of float32's, or 0.01 for each item, and the gradient must be finite, not zero, and have
    a cosine of at least 0.9 with float32's.

    Args:
        objective: on the device; not spread over processes yet.
        batch: on the device.
        precision: to check, not float32 itself.
        device: of the run.

    Returns:
        The scale of each phase's loss to begin with: 1 unless the precision is float16, then the highest power of two
        up to 2 ** 16 at which nothing overflows.

    Raises:
        InputError: the run would be lost: it names what differs.
    """
    modes = [(module, module.training) for module in objective.modules()]
    objective.eval()
    devices = [] if device.type in ("cpu", "mps") else [device]
    scales: list[float] = []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            for phase in objective.phases:
                scale, batch = _check_phase(phase, batch, precision, device)
                scales.append(scale)
    finally:
        for module, training in modes:
            module.training = training
    return scales


def _check_phase(phase: Objective, batch: Any, precision: Precision, device: torch.device) -> tuple[float, Any]:
    """The scale of a phase's loss, and what the next phase reads."""
    parameters = [parameter for parameter in phase.parameters() if parameter.requires_grad]
    loss = phase(batch)
    exact, items = loss.total.item(), max(loss.count, 1)
    expected = _gradient(loss.total, parameters)
    norm = nn.utils.get_total_norm(expected).item()
    if not (math.isfinite(exact) and math.isfinite(norm) and norm):
        return 1.0, loss.handed  # nothing to compare with; the first step tells what is wrong

    with autocast(precision, device):
        total = phase(batch).total
    found = total.item()
    told = f"the loss is {found / items:.4g} instead of {exact / items:.4g}"
    if not math.isfinite(found):
        raise _refusal(precision, told)
    if abs(found - exact) > max(_LOSS_BOUND * abs(exact), _LOSS_PER_ITEM * items):
        raise _refusal(precision, f"{told}, more than {_LOSS_BOUND:.0%} away")

    highest, lowest = (2.0**16, LOWEST_SCALE) if precision == "float16" else (1.0, 1.0)
    scale, gradient = highest, _gradient(total * highest, parameters, again=True)
    while not math.isfinite(length := nn.utils.get_total_norm(gradient).item()) and scale > lowest:
        scale /= 2
        gradient = _gradient(total * scale, parameters, again=True)
    if not math.isfinite(length):
        raise _refusal(precision, "the loss is finite but its gradient is not")
    if length == 0:
        raise _refusal(precision, "the gradient is zero")
    pairs = zip(gradient, expected, strict=True)
    cosine = sum(torch.dot((ours / length).flatten(), (theirs / norm).flatten()).item() for ours, theirs in pairs)
    if cosine < _COSINE_BOUND:
        raise _refusal(precision, f"the gradient's cosine with float32's is {cosine:.3f}, less than {_COSINE_BOUND}")
    return scale, loss.handed


def _refusal(precision: Precision, fault: str) -> InputError:
    others = "bfloat16 or float32" if precision == "float16" else "float32"
    return InputError(f"{precision} is refused: on the first batch {fault}; set precision to {others}.")


def _gradient(total: Tensor, parameters: list[nn.Parameter], again: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(total, parameters, retain_graph=again, materialize_grads=True))
