"""The arithmetic of training: micro-batches to one update of the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from unbraid.errors import InputError
from unbraid.objective import Loss, Objective
from unbraid.training.config import TrainingConfig, span_steps
from unbraid.training.optimizer import schedule


class Stream(Protocol):
    """Endless micro-batches, each a function of its index alone, so that a run can continue anywhere."""

    @property
    def per_epoch(self) -> int:
        """Micro-batches of one pass over the data."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Micro-batch ``index`` >= 0, with ``input_ids`` (N,) and ``to(device)``."""
        ...


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of the weights.

    Attributes:
        step: 1 for the first of the run.
        sums: over all micro-batches of all processes: ``loss``, its parts, ``items`` and ``tokens``.
        lr: learning rate.
        grad_norm: of the mean loss, over all parameters, before clipping.
        seconds: from fetching the first micro-batch on.
        stop: a process was asked to stop.
    """

    step: int
    sums: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    stop: bool


def updates(
    objective: Objective,
    batches: Stream,
    config: TrainingConfig,
    optimizer: Optimizer,
    accelerator: Accelerator,
    done: int,
    steps: int,
    stopping: Callable[[], bool],
) -> Iterator[Update]:
    """Makes the updates after ``done`` up to ``steps``, one for each that is asked for.

    The gradient is that of the mean loss over all items of all micro-batches and processes, as if they were one
    batch. Every micro-batch begins with generators seeded by its index: nothing random depends on what went before.

    Raises:
        InputError: the loss or the gradient is not finite; the weights are those of the step before.
    """
    model = accelerator.prepare_model(_Forward(objective))
    processes = accelerator.num_processes
    per_step, share = config.micro_batches, config.micro_batches // processes
    indices = range(done * per_step + accelerator.process_index, steps * per_step, processes)
    loader = DataLoader(
        cast(Any, batches), batch_size=None, sampler=indices, num_workers=config.workers, collate_fn=_as_it_is
    )
    stream = zip(indices, loader, strict=True)
    warmup = span_steps(config.optimizer.warmup, steps)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    optimizer.zero_grad()
    for step in range(done + 1, steps + 1):
        began = time.perf_counter()
        sums: dict[str, Any] = {}
        for micro in range(share):
            index, batch = next(stream)
            batch: Any = send_to_device(batch, accelerator.device)
            set_seed(int(np.random.SeedSequence((config.seed, index)).generate_state(1)[0]))
            last = micro == share - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss: Loss = model(batch)
                loss.total.backward()
            found = {**loss.parts, "loss": loss.total.detach(), "items": loss.count, "tokens": len(batch.input_ids)}
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value
        sums["stop"] = stopping()
        sums = _over_processes(sums, accelerator)
        stop = sums.pop("stop") > 0

        # Processes average their gradients; a step without items has gradient 0.
        scale = processes / max(sums["items"], 1)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        grad_norm = float(cast(torch.Tensor, accelerator.clip_grad_norm_(parameters, config.optimizer.clip_norm)))
        _check_finite(step, sums["loss"], grad_norm)

        lr = config.optimizer.learning_rate * schedule(step, steps, warmup, config.optimizer.final_fraction)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        yield Update(step, sums, lr, grad_norm, time.perf_counter() - began, stop)


class _Forward(nn.Module):
    """What accelerate wraps and patches, so that the objective itself stays as it is."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> Loss:
        return self.objective(batch)


def _as_it_is(batch: Any) -> Any:
    return batch


def _over_processes(sums: dict[str, Any], accelerator: Accelerator) -> dict[str, float]:
    values = [torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in sums.values()]
    total = cast(torch.Tensor, accelerator.reduce(torch.stack(values), reduction="sum"))
    return dict(zip(sums, total.tolist(), strict=True))


def _check_finite(step: int, loss: float, grad_norm: float) -> None:
    if not math.isfinite(loss):
        what = f"the loss is {loss}"
    elif not math.isfinite(grad_norm):
        what = f"the loss is finite but its gradient has the norm {grad_norm}"
    else:
        return
    raise InputError(
        f"{what} at step {step}, so the run stops with its checkpoints intact: "
        "try a lower learning rate, a longer warm-up, or float32 if it is not."
    )
