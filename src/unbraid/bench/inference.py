"""The whole encoder, from token ids to hidden states."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.attention import Backend
from unbraid.bench.config import Config, lengths
from unbraid.bench.measure import DTYPES, Cell, Contestant, Outcome, Ready, Role, measure_times
from unbraid.model.pretrained import Deberta

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative difference that counts as agreement."""

Call = Callable[[Tensor, Tensor], Any]


class Task:
    """A padded batch for the model of a folder.

    Attributes:
        folder: of the model, as transformers reads it; holds its exports too.
        dtype: of the computation.
        ids: (B, T) int64, zeros at padding.
        mask: (B, T) int64, 1 = real.
    """

    def __init__(self, folder: Path, shape: str, dtype: str, vocab_size: int):
        counts = torch.tensor(lengths(shape))
        generator = torch.Generator().manual_seed(0)
        self.folder = folder
        self.dtype = dtype
        self.mask = (torch.arange(int(counts.max())) < counts[:, None]).long()
        self.ids = torch.randint(5, vocab_size, self.mask.shape, generator=generator) * self.mask


def cells(config: Config, folder: Path) -> list[Cell]:
    """One for each precision and shape; the model and its exports are written to ``folder``."""
    names = config.chosen(tuple(CONTESTANTS))
    model = config.architecture()
    torch.manual_seed(0)
    Deberta(model).save_pretrained(folder)
    timed = functools.partial(_times, config, names, folder, model.vocab_size)
    return [
        Cell("encoder", shape, dtype, "ms", sum(lengths(shape)), functools.partial(timed, shape, dtype))
        for dtype in config.dtypes
        for shape in config.cell_shapes
    ]


def _times(
    config: Config, names: Sequence[str], folder: Path, vocab_size: int, shape: str, dtype: str
) -> list[Outcome]:
    task = Task(folder, shape, dtype, vocab_size)

    def expected() -> list[Tensor]:
        return [_transformers(Task(folder, shape, "float32", vocab_size))(task.ids, task.mask)[task.mask.bool()]]

    contestants = [Contestant(name, CONTESTANTS[name][0], lambda name=name: build(name, task)) for name in names]
    return measure_times(contestants, expected, TOLERANCE[dtype], rounds=config.rounds, seconds=config.seconds)


def build(name: str, task: Task) -> Ready:
    """Makes a contestant ready for a task."""
    role, make = CONTESTANTS[name]
    call = torch.inference_mode()(make(task))

    def outputs() -> list[Tensor]:
        states = call(task.ids, task.mask)
        return [torch.as_tensor(states)[task.mask.bool()]]

    return Ready(lambda: call(task.ids, task.mask), None if role == "floor" else outputs)


def _ours(backend: Backend, task: Task) -> Call:
    model = Deberta.from_pretrained(task.folder).eval().to(DTYPES[task.dtype])
    model.encoder.backend = backend
    return lambda ids, mask: model(ids, mask).last_hidden_state


def _model(task: Task) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(task.folder).eval().to(DTYPES[task.dtype])


def _call(model: Any) -> Call:
    return lambda ids, mask: model(ids, attention_mask=mask).last_hidden_state


def _transformers(task: Task) -> Call:
    return torch.inference_mode()(_call(_model(task)))


def _compiled(task: Task) -> Call:
    torch.compiler.reset()  # each shape is compiled for itself
    return _call(torch.compile(_model(task), dynamic=False))


def _disentangled_flash(task: Task) -> Call:
    from disentangled_flash import enable_deberta_inference  # pyright: ignore[reportMissingImports], in [bench] only

    model = _model(task)
    whole = bool(task.mask.all())
    enable_deberta_inference(model, backend="torch", sequence_lengths=[task.ids.shape[1]], assume_unpadded=whole)
    return _call(model)


def _bert(task: Task) -> Call:
    from transformers import AutoConfig, BertConfig, BertModel

    config = AutoConfig.from_pretrained(task.folder)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes: dict[str, Any] = {name: getattr(config, name) for name in names}
    sizes |= {"max_position_embeddings": max(512, task.ids.shape[1]), "attn_implementation": "sdpa"}
    bert: Any = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    return _call(bert.eval().to(DTYPES[task.dtype]))


class _Exported(nn.Module):
    """transformers' encoder from two tensors to one.

    Padding is masked as a key only: OpenVINO in bfloat16 makes the lowest float32 an infinity, and a query without a
    single key NaN. Real tokens are the same.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.model.embeddings(input_ids=input_ids, mask=attention_mask)
        keys = attention_mask[:, None, :].expand(-1, input_ids.shape[1], -1)
        return self.model.encoder(embedded, keys, output_hidden_states=False)[0]


def _export(task: Task) -> Path:
    """The model as ONNX, batch and length free; made once."""
    path = task.folder / "model.onnx"
    if not path.exists():
        model = _Exported(_model(Task(task.folder, "2x48", "float32", 100))).eval()
        free = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("length", min=1, max=8192)}
        example = (
            torch.ones(2, 48, dtype=torch.int64),
            torch.ones(2, 48, dtype=torch.int64),
        )  # one tensor twice = one input
        with warnings.catch_warnings(action="ignore"):  # of the exporter about itself
            torch.onnx.export(
                model,
                example,
                str(path),
                dynamo=True,
                dynamic_shapes=(free, free),
                input_names=["input_ids", "attention_mask"],
                output_names=["states"],
                verbose=False,
            )
    return path


def _arrays(ids: Tensor, mask: Tensor) -> dict[str, np.ndarray]:
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def _onnxruntime(task: Task) -> Call:
    import onnxruntime  # pyright: ignore[reportMissingImports], in [bench] only

    if task.dtype != "float32":
        raise NotImplementedError(f"ONNX Runtime multiplies no matrices in {task.dtype} on the CPU.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_export(task), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, _arrays(ids, mask))[0]


def _openvino(task: Task) -> Call:
    import openvino  # pyright: ignore[reportMissingImports], in [bench] only

    model = openvino.convert_model(str(_export(task)))
    model.reshape({name: list(task.ids.shape) for name in ("input_ids", "attention_mask")})
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[task.dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda ids, mask: compiled(_arrays(ids, mask))[0]


CONTESTANTS: dict[str, tuple[Role, Callable[[Task], Call]]] = {
    "unbraid-native": ("ours", functools.partial(_ours, "native")),
    "unbraid-sdpa": ("ours", functools.partial(_ours, "sdpa")),
    "transformers": ("rival", lambda task: _call(_model(task))),
    "transformers-compiled": ("rival", _compiled),
    "onnxruntime": ("rival", _onnxruntime),
    "openvino": ("rival", _openvino),
    "disentangled-flash": ("rival", _disentangled_flash),
    "bert": ("floor", _bert),
}
"""Role, and how each is made from a task: what it returns takes ids and mask to states."""
