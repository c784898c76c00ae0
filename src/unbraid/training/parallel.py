"""A model over several processes: whole in each of them (DDP), or in shards (FSDP)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal, cast

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from unbraid.objective import Objective
from unbraid.processes import num_processes


def spread(phase: Objective, sharding: Literal["none", "full"], device: torch.device) -> nn.Module:
    """Spreads a phase of an objective over the processes, all with the weights of the first.

    Args:
        phase: on the device.
        sharding: ``"none"``: every process has all of it; ``"full"``: a share of each parameter, of its gradient and of
            its optimizer state, gathered where it is used. Every child of an ``nn.ModuleList`` is then gathered by
            itself, and all else together; parameters become DTensors, in place.
        device: of the run.

    Returns:
        What to call in the place of the phase; its backward pass averages gradients over the processes.
    """
    if num_processes() == 1:
        return phase
    if sharding == "none":
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(phase, devices, forward_sync_buffers=False, gradient_as_bucket_view=True)
    for tensor in itertools.chain(phase.parameters(), phase.buffers()):
        distributed.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(device.type, (num_processes(),))
    for module in reversed(list(phase.modules())):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    root = fully_shard(phase, mesh=mesh)
    root._get_fsdp_state()._lazy_init()  # else the part of it that is called first would be taken for the root
    return phase


def without_averaging(model: nn.Module) -> contextlib.AbstractContextManager:
    """Inside, the backward passes of a spread model leave what DDP would average to a later one; shards never wait."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


@contextlib.contextmanager
def callable_in_parts(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, any module of spread models may be called by itself, without gradients; in all processes alike."""
    roots = [model for model in models if isinstance(model, FSDPModule)]
    for root in roots:
        root.unshard()
    try:
        yield
    finally:
        for root in roots:
            root.reshard()


@contextlib.contextmanager
def whole(module: nn.Module, here: bool = True) -> Iterator[None]:
    """Inside, the sharded parameters of a module are ordinary ones, in the memory of the CPU, to be saved.

    All processes must enter it.

    Args:
        module: any; one that is not sharded stays as it is.
        here: False: helps the others to gather, and sees the shards still.
    """
    places = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    gathered: dict[nn.Parameter, nn.Parameter] = {}
    for _, _, parameter in places:
        if parameter not in gathered:
            full = cast(DTensor, parameter).full_tensor().detach()
            gathered[parameter] = nn.Parameter(full.cpu(), parameter.requires_grad) if here else parameter
    try:
        for owner, name, parameter in places:
            setattr(owner, name, gathered[parameter])
        yield
    finally:
        for owner, name, parameter in places:
            setattr(owner, name, parameter)
