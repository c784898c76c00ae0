"""A step of masked language modelling: forward, backward, clipping, AdamW."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.attention import Backend
from unbraid.bench.config import Config, lengths
from unbraid.bench.measure import Cell, Contestant, Outcome, Ready, Role, measure_times
from unbraid.bench.memory import peak_outcome
from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.objective import IGNORED

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative difference, of the loss and of a gradient, that counts as agreement."""

_PREDICTED = 0.15


def cells(config: Config, folder: Path) -> list[Cell]:
    """Time and peak memory of a step; the model is written to ``folder``."""
    names = config.chosen(tuple(CONTESTANTS))
    torch.manual_seed(0)
    DebertaForMaskedLM(config.architecture().replace(mask_decoder_passes=0)).save_pretrained(folder)
    threads = torch.get_num_threads()
    cells = []
    for dtype, shape in itertools.product(config.dtypes, config.cell_shapes):
        tokens = sum(lengths(shape))
        times = functools.partial(_times, config, names, folder, shape, dtype)
        peaks = functools.partial(_memory, names, folder, shape, dtype, threads)
        cells += [Cell("step", shape, dtype, "ms", tokens, times), Cell("memory", shape, dtype, "MiB", tokens, peaks)]
    return cells


def _times(config: Config, names: Sequence[str], folder: Path, shape: str, dtype: str) -> list[Outcome]:
    def expected() -> Sequence[Tensor]:
        outputs = build("transformers", folder, shape, "float32").outputs
        return outputs() if outputs is not None else ()

    contestants = [
        Contestant(name, CONTESTANTS[name][0], lambda name=name: build(name, folder, shape, dtype)) for name in names
    ]
    return measure_times(contestants, expected, TOLERANCE[dtype], rounds=config.rounds, seconds=config.seconds)


def _memory(names: Sequence[str], folder: Path, shape: str, dtype: str, threads: int) -> list[Outcome]:
    """Of two steps, from the model at rest: gradients, the optimiser's moments and all that a step holds."""
    return [
        peak_outcome(name, CONTESTANTS[name][0], threads, _memory_run, name, folder, shape, dtype) for name in names
    ]


def _memory_run(name: str, folder: Path, shape: str, dtype: str) -> Callable[[], object]:
    step = build(name, folder, shape, dtype).run
    return lambda: (step(), step())


def batch(shape: str, vocab_size: int) -> dict[str, Tensor]:
    """Random tokens, 15 % of the real ones to be predicted; labels are -100 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor(lengths(shape))
    mask = torch.arange(int(counts.max())) < counts[:, None]
    ids = torch.randint(5, vocab_size, mask.shape, generator=generator) * mask
    predicted = (torch.rand(mask.shape, generator=generator) < _PREDICTED) & mask
    predicted[0, 0] = True
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(predicted, IGNORED)}


def build(name: str, folder: Path, shape: str, dtype: str) -> Ready:
    """Makes a contestant ready: dropout is off where outputs are compared, and on where steps are timed."""
    _, make, compared = CONTESTANTS[name]
    model, weight = make(folder)
    inputs = batch(shape, model.config.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def backward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    def outputs() -> list[Tensor]:
        model.eval()
        loss = backward()
        return [loss, torch.empty(0) if weight.grad is None else weight.grad.clone()]

    def step() -> None:
        model.train()
        backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return Ready(step, outputs if compared else None)


def _ours(backend: Backend, passes: int, folder: Path) -> tuple[Any, nn.Parameter]:
    model = DebertaForMaskedLM.from_pretrained(folder, new=("decoder",) if passes else (), mask_decoder_passes=passes)
    model.deberta.encoder.backend = backend
    return model, model.get_parameter("deberta.encoder.layers.0.attention.query.weight")


def _transformers(folder: Path) -> tuple[Any, nn.Parameter]:
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForMaskedLM.from_pretrained(folder)
    return model, model.get_parameter("deberta.encoder.layer.0.attention.self.query_proj.weight")


CONTESTANTS: dict[str, tuple[Role, Callable[[Path], tuple[Any, nn.Parameter]], bool]] = {
    "unbraid-native": ("ours", functools.partial(_ours, "native", 0), True),
    "unbraid-sdpa": ("ours", functools.partial(_ours, "sdpa", 0), True),
    "unbraid-decoder": ("ours", functools.partial(_ours, "native", 2), False),
    "transformers": ("rival", _transformers, True),
}
"""Role, how each model is made from its folder (with the weight whose gradient is compared), whether it computes what
transformers computes; the Enhanced Mask Decoder does more."""
