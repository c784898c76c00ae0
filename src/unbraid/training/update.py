"""The arithmetic of training: micro-batches to one update of the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from unbraid.errors import InputError
from unbraid.objective import Loss, Objective
from unbraid.processes import add_up, num_processes, process_index
from unbraid.training.config import TrainingConfig, span_steps
from unbraid.training.optimizer import schedule
from unbraid.training.parallel import spread, without_averaging
from unbraid.training.precision import LOWEST_SCALE, autocast, loss_scaler


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
class Phase:
    """One phase of an objective, ready to be trained.

    Attributes:
        model: answers the loss of a batch; spread over the processes.
        scaler: of the loss.
    """

    model: nn.Module
    scaler: GradScaler


def prepare(
    objective: Objective, config: TrainingConfig, device: torch.device, scales: Sequence[float]
) -> tuple[Phase, ...]:
    """Spreads the phases of an objective over the processes, each by itself.

    Args:
        objective: on the device.
        config: sharding and precision.
        device: of the run.
        scales: of each phase's loss to begin with.

    Raises:
        InputError: the processes cannot share the micro-batches of a step evenly.
    """
    processes = num_processes()
    if config.micro_batches % processes:
        raise InputError(
            f"the {config.micro_batches} micro-batches of a step cannot be shared evenly by {processes} processes: "
            f"set training.micro_batches to a multiple of {processes}."
        )
    return tuple(
        Phase(spread(phase, config.sharding, device), loss_scaler(config.precision, device, scale))
        for phase, scale in zip(objective.phases, scales, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Update:
    """One step: an update of the weights of every phase.

    Attributes:
        step: 1 for the first of the run.
        sums: for every phase, over all micro-batches of all processes: ``loss``, its parts, ``items``.
        grad_norms: for every phase, of its mean loss, over its parameters, before clipping.
        tokens: of the micro-batches of all processes.
        skipped: phases whose update was passed over, because its gradient overflowed float16.
        lr: learning rate, of the head where ``layer_decay`` gives the layers their own.
        seconds: from fetching the first micro-batch on.
        stop: a process was asked to stop.
    """

    step: int
    sums: tuple[dict[str, float], ...]
    grad_norms: tuple[float, ...]
    tokens: int
    skipped: int
    lr: float
    seconds: float
    stop: bool

    @property
    def loss(self) -> float:
        """The sum of the phases' mean losses."""
        return sum(sums["loss"] / max(sums["items"], 1) for sums in self.sums)


def updates(
    phases: Sequence[Phase],
    batches: Stream,
    config: TrainingConfig,
    optimizer: Optimizer,
    device: torch.device,
    done: int,
    steps: int,
    stopping: Callable[[], bool],
) -> Iterator[Update]:
    """Makes the steps after ``done`` up to ``steps``, one for each that is asked for.

    The gradient of a phase is that of its mean loss over all items of all micro-batches and processes, as if they were
    one batch. A phase sees the weights that the phases before it have just updated. Every pass of a phase over a
    micro-batch begins with generators seeded by the index of both: nothing random depends on what went before, or on
    the number of processes.

    Raises:
        InputError: the loss or the gradient of a phase is not finite; its weights are those of the step before.
    """
    share = config.micro_batches // num_processes()
    arriving = _arriving(batches, config, device, done, steps)
    warmup = span_steps(config.optimizer.warmup, steps)
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    owned = [[parameter for parameter in phase.model.parameters() if parameter in trained] for phase in phases]

    optimizer.zero_grad()
    for step in range(done + 1, steps + 1):
        began = time.perf_counter()
        lr = config.optimizer.learning_rate * schedule(step, steps, warmup, config.optimizer.final_fraction)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        inputs: Iterable[_Input] = itertools.islice(arriving, share)
        tokens, stop, skipped, found, grad_norms = 0, False, 0, [], []
        for number, (phase, own) in enumerate(zip(phases, owned, strict=True)):
            sums, inputs = _backward(phase, number, inputs, share, config, device)
            sums = add_up({**sums, "stop": stopping()}, device)
            stop |= sums.pop("stop") > 0
            tokens += int(sums.pop("tokens"))
            found.append(sums)

            for parameter in trained.difference(own):
                parameter.grad = None
            scale = phase.scaler.get_scale()
            phase.scaler.unscale_(optimizer)
            grad_norm = _average_and_clip(own, num_processes() / max(sums["items"], 1), config.optimizer.clip_norm)
            phase.scaler.update()
            if phase.scaler.get_scale() < scale:
                _check_scale(step, scale)
                skipped += 1
            else:
                _check_finite(step, sums["loss"], grad_norm)
                optimizer.step()
            optimizer.zero_grad()
            grad_norms.append(grad_norm)
        seconds = time.perf_counter() - began
        yield Update(step, tuple(found), tuple(grad_norms), tokens, skipped, lr, seconds, stop)


_Input = tuple[int, Any, int]
"""The index of a micro-batch, what a phase reads of it, and how many tokens arrive with it."""


def _arriving(batches: Stream, config: TrainingConfig, device: torch.device, done: int, steps: int) -> Iterator[_Input]:
    """This process's micro-batches of the steps after ``done``, on its device."""
    first, end = done * config.micro_batches, steps * config.micro_batches
    indices = range(first + process_index(), end, num_processes())
    loader = DataLoader(
        cast(Any, batches), batch_size=None, sampler=indices, num_workers=config.workers, collate_fn=_as_it_is
    )
    for index, batch in zip(indices, loader, strict=True):
        yield index, send_to_device(batch, device), len(batch.input_ids)


def _as_it_is(batch: Any) -> Any:
    return batch


def _backward(
    phase: Phase, number: int, inputs: Iterable[_Input], share: int, config: TrainingConfig, device: torch.device
) -> tuple[dict[str, Any], list[_Input]]:
    """Runs a phase over this process's micro-batches of a step, forward and backward.

    Returns:
        The sums over them of the loss, its parts, items and tokens; and what the next phase reads.
    """
    sums: dict[str, Any] = {}
    handed: list[_Input] = []
    for micro, (index, batch, tokens) in enumerate(inputs, start=1):
        set_seed(int(np.random.SeedSequence((config.seed, index, number)).generate_state(1)[0]))
        with contextlib.nullcontext() if micro == share else without_averaging(phase.model):
            with autocast(config.precision, device):
                loss: Loss = phase.model(batch)
            cast(torch.Tensor, phase.scaler.scale(loss.total)).backward()
        found = {**loss.parts, "loss": loss.total.detach(), "items": loss.count, "tokens": tokens}
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + value
        handed.append((index, loss.handed, 0))
    return sums, handed


def _average_and_clip(parameters: Sequence[nn.Parameter], scale: float, longest: float) -> float:
    """Multiplies gradients with a scale, then clips them; returns their norm between the two."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        gradient.mul_(scale)
    norm = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return float(norm)


def _check_scale(step: int, scale: float) -> None:
    if scale < LOWEST_SCALE:
        raise InputError(
            f"at step {step} the loss or its gradient overflows float16 however small the loss is scaled, so the run "
            "stops with its checkpoints intact: set precision to bfloat16 or float32, or lower the learning rate."
        )


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
