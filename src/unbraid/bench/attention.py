"""Disentangled attention alone: from projected queries, keys and values to what the heads read."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from unbraid.attention import Backend, disentangled_attention, relative_slots, relative_span
from unbraid.bench.config import Config, lengths
from unbraid.bench.measure import DTYPES, Cell, Contestant, Outcome, Ready, Role, measure_times
from unbraid.bench.memory import peak_outcome
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.packing import Packing, pad

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative difference that counts as agreement."""

Forward = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Random inputs of one attention call.

    Attributes:
        config: of the model that it would be a part of.
        packing: of the N tokens.
        content: q, k, v and the gradient of the output, (N, H, D) each.
        position: pos_k and pos_q, (P, H, D) each.
    """

    config: DebertaConfig
    packing: Packing
    content: tuple[Tensor, ...]
    position: tuple[Tensor, ...]

    @classmethod
    def draw(cls, config: DebertaConfig, shape: str, dtype: torch.dtype) -> Problem:
        """The same numbers whenever the arguments are the same; scores have a standard deviation of about 1."""
        generator = torch.Generator().manual_seed(0)
        packing = Packing.from_lengths(lengths(shape))
        heads = config.num_attention_heads, config.head_size
        num_slots = 2 * relative_span(config.position_buckets, config.max_distance)
        sizes = [len(packing.positions)] * 4 + [num_slots] * 2
        drawn = [torch.randn(size, *heads, generator=generator).to(dtype) for size in sizes]
        return cls(config, packing, tuple(drawn[:4]), tuple(drawn[4:]))

    def float(self) -> Problem:
        """The same in float32."""
        content, position = (tuple(x.float() for x in tensors) for tensors in (self.content, self.position))
        return dataclasses.replace(self, content=content, position=position)

    @functools.cached_property
    def slots(self) -> Tensor:
        """The slot of every distance; see :func:`unbraid.attention.relative_slots`."""
        config = self.config
        return relative_slots(
            self.packing.max_length, config.position_buckets, config.max_distance, config.long_distance
        )

    @property
    def reach(self) -> slice:
        """The slots that these lengths can reach; gradients of the others are zero."""
        return slice(int(self.slots[0]), int(self.slots[-1]) + 1)

    @functools.cached_property
    def mask(self) -> Tensor:
        """(B, T) bool: the real tokens of the padded batch."""
        return self.padded(torch.ones_like(self.packing.positions)[:, None]).squeeze(-1).bool()

    def padded(self, rows: Tensor) -> Tensor:
        """(N, ...) to (B, T, C)."""
        return pad(rows.flatten(1), self.packing, self.packing.positions, self.packing.max_length)

    def unpadded(self, padded: Tensor) -> Tensor:
        """(B, T, C) to (N, H, D)."""
        return padded[self.mask].unflatten(-1, self.content[0].shape[1:])


def cells(config: Config, _folder: Path) -> list[Cell]:
    """Forward, forward and backward, and memory.

    Raises:
        InputError: the model's attention is not v2's or v3's with both position terms.
    """
    model = config.architecture()
    if model.model_type != "deberta-v2" or set(model.pos_att_type) != {"c2p", "p2c"}:
        raise InputError("the attention benchmark takes a v2 or v3 model with c2p and p2c; give another --model.")
    names = config.chosen(tuple(CONTESTANTS))
    timed, threads = functools.partial(_times, config, model, names), torch.get_num_threads()
    cells = [
        Cell(part, shape, dtype, "ms", sum(lengths(shape)), functools.partial(timed, shape, dtype, backward))
        for part, backward in (("forward", False), ("forward and backward", True))
        for dtype in config.dtypes
        for shape in config.cell_shapes
    ]
    for dtype, shape in itertools.product(config.dtypes, config.memory_shapes):
        measure = functools.partial(_memory, model, names, shape, dtype, threads)
        cells.append(Cell("memory", shape, dtype, "MiB", sum(lengths(shape)), measure))
    return cells


def _times(
    config: Config, model: DebertaConfig, names: Sequence[str], shape: str, dtype: str, backward: bool
) -> list[Outcome]:
    problem = Problem.draw(model, shape, DTYPES[dtype])

    def expected() -> Sequence[Tensor]:
        outputs = CONTESTANTS["transformers"][1](problem.float(), backward).outputs
        return outputs() if outputs is not None else ()

    contestants = [
        Contestant(name, CONTESTANTS[name][0], lambda name=name: build(name, problem, backward)) for name in names
    ]
    return measure_times(contestants, expected, TOLERANCE[dtype], rounds=config.rounds, seconds=config.seconds)


def _memory(model: DebertaConfig, names: Sequence[str], shape: str, dtype: str, threads: int) -> list[Outcome]:
    """Of forward and backward."""
    return [peak_outcome(name, CONTESTANTS[name][0], threads, _memory_run, name, model, shape, dtype) for name in names]


def _memory_run(name: str, model: DebertaConfig, shape: str, dtype: str) -> Callable[[], object]:
    small = Problem.draw(model, "1x32", DTYPES[dtype])
    build(name, small, backward=True).run()  # what it sets up once is not counted
    return build(name, Problem.draw(model, shape, DTYPES[dtype]), backward=True).run


def build(name: str, problem: Problem, backward: bool) -> Ready:
    """Makes a contestant ready for a problem."""
    return CONTESTANTS[name][1](problem, backward)


def _ours(backend: Backend, problem: Problem, backward: bool) -> Ready:
    q, k, v, out_grad = problem.content
    pos_k, pos_q = (table[problem.reach] for table in problem.position)
    slots, packing = problem.slots - problem.reach.start, problem.packing

    def forward(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor, pos_q: Tensor) -> Tensor:
        return disentangled_attention(q, k, v, pos_k, pos_q, slots, packing, packing, backend=backend)

    def same(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return outputs

    return _ready(forward, [q, k, v, pos_k, pos_q], out_grad if backward else None, same)


def _theirs(make: Callable[[Problem], Forward], problem: Problem, backward: bool) -> Ready:
    """A contestant that reads padded (B, T, C) content and (P, C) positions, and returns (B, T, C)."""
    *content, out_grad = map(problem.padded, problem.content)
    inputs = [*content, *(table.flatten(1) for table in problem.position)]

    def packed(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        rows, tables = outputs[:4], outputs[4:]
        heads = problem.position[0].shape[1:]
        return [*map(problem.unpadded, rows), *(table[problem.reach].unflatten(-1, heads) for table in tables)]

    return _ready(make(problem), inputs, out_grad if backward else None, packed)


def _ready(
    forward: Forward,
    inputs: list[Tensor],
    out_grad: Tensor | None,
    packed: Callable[[Sequence[Tensor]], Sequence[Tensor]],
) -> Ready:
    """Forward alone, or with the gradient of every input."""
    if out_grad is None:
        run = torch.inference_mode()(lambda: (forward(*inputs),))
    else:
        leaves = [x.detach().clone().requires_grad_() for x in inputs]

        def run() -> tuple[Tensor, ...]:
            out = forward(*leaves)
            return (out.detach(), *torch.autograd.grad(out, leaves, out_grad))

    return Ready(run, lambda: packed(run()))


class _Given(nn.Module):
    """In the place of a projection: gives what was projected before."""

    content = position = torch.empty(0)

    def forward(self, states: Tensor | None) -> Tensor:
        return self.content if states is None else self.position


def _transformers(problem: Problem) -> Forward:
    """The module of transformers, its projections replaced: called with states None, they give the content."""
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2 import modeling_deberta_v2 as modeling

    config = DebertaV2Config.from_dict(problem.config.to_dict())
    module = modeling.DisentangledSelfAttention(cast(Any, config)).eval()
    query, key, value = _Given(), _Given(), _Given()
    for name, given in {"query_proj": query, "key_proj": key, "value_proj": value}.items():
        setattr(module, name, given)
    module.share_att_key = True
    mask = (
        problem.mask[:, None, :, None] & problem.mask[:, None, None, :]
    )  # as its encoder makes it, once for all layers
    distances = modeling.build_relative_position(
        mask[:, 0].float(), mask[:, 0].float(), problem.config.position_buckets or -1, problem.config.max_distance
    )

    def forward(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor, pos_q: Tensor) -> Tensor:
        query.content, key.content, value.content = q, k, v
        query.position, key.position = pos_q[None], pos_k[None]
        return module(None, mask, relative_pos=distances, rel_embeddings=pos_k)[0]

    return forward


def _disentangled_flash(problem: Problem) -> Forward:
    from disentangled_flash._torch import (  # pyright: ignore[reportMissingImports], in [bench] only
        TorchPositionPlan,
        _torch_disentangled_attention,
    )
    from disentangled_flash.position import SharedPositionPlanCache  # pyright: ignore[reportMissingImports], see above

    config, (batch, length) = problem.config, problem.mask.shape
    heads, size = config.num_attention_heads, config.head_size
    cache = SharedPositionPlanCache(
        position_buckets=config.position_buckets or -1,
        max_relative_positions=config.max_distance,
        position_embedding_size=relative_span(config.position_buckets, config.max_distance),
        uses_position_bias=True,
    )
    indices = cache.dense(length, "cpu")

    def forward(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor, pos_q: Tensor) -> Tensor:
        query, key, value = (x.view(batch, length, heads, size).transpose(1, 2) for x in (q, k, v))
        pos_key, pos_query = (
            x[indices.active_slots].view(1, -1, heads, size).transpose(1, 2)[0] for x in (pos_k, pos_q)
        )
        local = indices.pair_to_local
        plan = TorchPositionPlan(length, indices.active_slots, local, local, pos_key, pos_query)
        return _torch_disentangled_attention(
            query,
            key,
            value,
            plan,
            problem.mask,
            scale=math.sqrt(3 * size),
            num_heads=heads,
            all_head_size=heads * size,
            assume_unpadded=bool(problem.mask.all()),
        )

    return forward


def _no_positions(problem: Problem, backward: bool) -> Ready:
    heads = problem.content[0].shape[1:]
    mask = None if problem.mask.all() else problem.mask[:, None, None, :]
    *inputs, out_grad = map(problem.padded, problem.content)

    def forward(*content: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, heads).transpose(1, 2) for x in content)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    return Ready(_ready(forward, inputs, out_grad if backward else None, tuple).run, None)


CONTESTANTS: dict[str, tuple[Role, Callable[[Problem, bool], Ready]]] = {
    "unbraid-native": ("ours", functools.partial(_ours, "native")),
    "unbraid-sdpa": ("ours", functools.partial(_ours, "sdpa")),
    "transformers": ("rival", functools.partial(_theirs, _transformers)),
    "disentangled-flash": ("rival", functools.partial(_theirs, _disentangled_flash)),
    "no-positions": ("floor", _no_positions),
}
"""Role, and how each is made ready for a problem, with its backward pass or without."""
