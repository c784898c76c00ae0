"""Checkpoints: weight names ours <-> Hugging Face <-> Microsoft, as data; reading and writing, strictly.

On disk the names are Hugging Face's (which are Microsoft's, but for the masked language model's old head); in memory
they are ours.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.files import replace_bytes

_LAYER = "deberta.encoder.layer.*"
_NAMES: dict[str, tuple[str, ...]] = {
    "deberta.embeddings.word": ("deberta.embeddings.word_embeddings",),
    "deberta.embeddings.position": ("deberta.embeddings.position_embeddings",),
    "deberta.embeddings.token_type": ("deberta.embeddings.token_type_embeddings",),
    "deberta.embeddings.project": ("deberta.embeddings.embed_proj",),
    "deberta.embeddings.norm": ("deberta.embeddings.LayerNorm",),
    "deberta.encoder.relative_table": ("deberta.encoder.rel_embeddings",),
    "deberta.encoder.relative_norm": ("deberta.encoder.LayerNorm",),
    "deberta.encoder.convolution.conv": ("deberta.encoder.conv.conv",),
    "deberta.encoder.convolution.norm": ("deberta.encoder.conv.LayerNorm",),
    "deberta.encoder.layers.*.attention.query": (f"{_LAYER}.attention.self.query_proj",),
    "deberta.encoder.layers.*.attention.key": (f"{_LAYER}.attention.self.key_proj",),
    "deberta.encoder.layers.*.attention.value": (f"{_LAYER}.attention.self.value_proj",),
    "deberta.encoder.layers.*.attention.pos_key": (f"{_LAYER}.attention.self.pos_key_proj",),
    "deberta.encoder.layers.*.attention.pos_query": (f"{_LAYER}.attention.self.pos_query_proj",),
    "deberta.encoder.layers.*.attention.output": (f"{_LAYER}.attention.output.dense",),
    "deberta.encoder.layers.*.attention.norm": (f"{_LAYER}.attention.output.LayerNorm",),
    "deberta.encoder.layers.*.up": (f"{_LAYER}.intermediate.dense",),
    "deberta.encoder.layers.*.down": (f"{_LAYER}.output.dense",),
    "deberta.encoder.layers.*.norm": (f"{_LAYER}.output.LayerNorm",),
    "decoder.position": ("deberta.embeddings.position_embeddings",),
    "vocabulary.dense": ("lm_predictions.lm_head.dense", "cls.predictions.transform.dense"),
    "vocabulary.norm": ("lm_predictions.lm_head.LayerNorm", "cls.predictions.transform.LayerNorm"),
    "vocabulary": ("lm_predictions.lm_head", "cls.predictions"),
    "replaced.norm": ("mask_predictions.LayerNorm",),
    "replaced.dense": ("mask_predictions.dense",),
    "replaced.classifier": ("mask_predictions.classifier",),
    "pooler.dense": ("pooler.dense",),
    "classifier": ("classifier",),
    "spans": ("qa_outputs",),
    "joint": ("joint",),
    "projection": ("proj",),
}
"""Module names: ours, then theirs. The first of theirs is written, each is read. A ``*`` is the layer's number."""

_V1_NAMES = {
    f"{_LAYER}.attention.self.pos_key_proj": f"{_LAYER}.attention.self.pos_proj",
    f"{_LAYER}.attention.self.pos_query_proj": f"{_LAYER}.attention.self.pos_q_proj",
}
"""Module names that v1 files spell differently."""

_TIED = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""What files may hold of transformers' older head a second time, and where it stands first."""

_FOREIGN = (
    "lm_predictions.",
    "mask_predictions.",
    "cls.",
    "pooler.",
    "classifier.",
    "qa_outputs.",
    "joint.",
    "proj.",
    "deberta.embeddings.position_embeddings.",
    "deberta.embeddings.position_ids",
)
"""Parts of released checkpoints that a model which has no use for them leaves unread."""

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def _their_names(name: str, v1: bool = False) -> list[str]:
    """The names that a tensor of ours goes by in files, the one to write first."""
    parts = name.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    module, _, leaf = ".".join("*" if part.isdigit() else part for part in parts).rpartition(".")
    theirs = _NAMES[module]
    if v1:
        theirs = tuple(_V1_NAMES.get(their, their) for their in theirs)
    return [f"{their.replace('*', number)}.{leaf}" for their in theirs]


def from_files(
    tensors: dict[str, Tensor], wanted: Iterable[str], heads: int, source: str, unread: Iterable[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under their names to tensors under ours.

    Args:
        tensors: as read; v1's packed projections included.
        wanted: our names of the tensors to find.
        heads: number of attention heads, to unpack v1's projections.
        source: where the tensors come from, for messages.
        unread: our names of those that the model has but does not read.

    Returns:
        What was found, by our names, and which of ``wanted`` were not.

    Raises:
        InputError: a tensor that the model has no place for, one that holds NaN or infinity, or a vocabulary head with
            other weights than the word embeddings'.
    """
    tensors = _with_prefix(tensors)
    v1 = any(name.endswith(".in_proj.weight") for name in tensors)
    if v1:
        tensors = dict(_unpack_v1(tensors, heads))
    found: dict[str, Tensor] = {}
    missing, read = [], set()
    for name in wanted:
        theirs = next((their for their in _their_names(name, v1) if their in tensors), None)
        if theirs is None:
            missing.append(name)
            continue
        read.add(theirs)
        found[name] = tensors[theirs]
        if not bool(torch.isfinite(found[name]).all()):
            raise InputError(f"{source}: {theirs} holds NaN or infinity; the checkpoint is damaged.")
    for second, first in _TIED.items():
        repeated = "cls.predictions.bias" in read and second in tensors and first in read
        if repeated and not torch.equal(tensors[second].float(), tensors[first].float()):
            raise InputError(
                f"{source}: {second} is not {first}, and a head with weights of its own is not supported; "
                "pass new=('vocabulary',) for a fresh one."
            )
    relative = any(name.startswith("deberta.encoder.relative_table") for name in found)
    left = {their for name in unread for their in _their_names(name, v1)}
    homeless = [
        name
        for name in tensors
        if name not in read | left
        and not name.startswith(_FOREIGN)
        and not name.endswith("._weight")  # v3's difference to the generator's table, already within .weight
        and not (name.startswith("deberta.encoder.LayerNorm.") and not relative)
    ]
    if homeless:
        raise InputError(f"{source}: {_listed(homeless)} has no place in this model; check its configuration.")
    return found, missing


def to_files(tensors: dict[str, Tensor], v1: bool, heads: int) -> dict[str, Tensor]:
    """Tensors under our names to tensors under theirs, v1's projections packed."""
    named = {_their_names(name, v1)[0]: tensor for name, tensor in tensors.items()}
    return dict(_pack_v1(named, heads)) if v1 else named


def missing_message(missing: list[str], source: str) -> str:
    """One sentence for tensors that a checkpoint lacks."""
    if missing == ["decoder.position.weight"]:
        return (
            f"{source} lacks deberta.embeddings.position_embeddings.weight, the absolute positions of the mask decoder "
            "(transformers drops them when it saves); pass mask_decoder_passes=0 to predict from the last layer."
        )
    modules = sorted({name.split(".")[0] for name in missing if not name.startswith("deberta.")})
    hint = f"; if they should start fresh, pass new={tuple(modules)!r}" if modules else ""
    return f"{source} lacks {_listed([_their_names(name)[0] for name in missing])}{hint}."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with the prefix ``deberta.``, which a bare encoder's file lacks and old files call ``bert.``."""
    if any(name.startswith("bert.") for name in tensors):
        return {f"deberta.{name[5:]}" if name.startswith("bert.") else name: t for name, t in tensors.items()}
    if any(name.startswith("deberta.") for name in tensors):
        return tensors
    bare = ("embeddings.", "encoder.")
    return {f"deberta.{name}" if name.startswith(bare) else name: tensor for name, tensor in tensors.items()}


def _unpack_v1(tensors: dict[str, Tensor], heads: int) -> Iterator[tuple[str, Tensor]]:
    """v1 packs q, k and v per head: rows of ``in_proj`` are [q_h | k_h | v_h] for each head h."""
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".self.")
        if leaf == "in_proj.weight":
            packed = tensor.view(heads, 3, -1, tensor.shape[-1])
            for index, part in enumerate(("query", "key", "value")):
                yield f"{prefix}.self.{part}_proj.weight", packed[:, index].flatten(0, 1)
        elif leaf in ("q_bias", "v_bias"):
            yield f"{prefix}.self.{'query' if leaf == 'q_bias' else 'value'}_proj.bias", tensor
        else:
            yield name, tensor


def _pack_v1(tensors: dict[str, Tensor], heads: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".self.")
        if leaf == "query_proj.weight":
            parts = [tensors[f"{prefix}.self.{part}_proj.weight"] for part in ("query", "key", "value")]
            split = [part.view(heads, -1, part.shape[-1]) for part in parts]
            yield f"{prefix}.self.in_proj.weight", torch.stack(split, 1).flatten(0, 2)
        elif leaf in ("query_proj.bias", "value_proj.bias"):
            yield f"{prefix}.self.{leaf[0]}_bias", tensor
        elif leaf not in ("key_proj.weight", "value_proj.weight"):
            yield name, tensor


def find_weights(folder: Path) -> Path | None:
    """The weight file of a folder, or the index of its shards; safetensors before ``.bin``."""
    return next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)


def weight_names(path: Path) -> list[str]:
    """The names of the tensors in a weight file, or in all shards of an index.

    Raises:
        InputError: see :func:`read_weights`.
    """
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt") as file:
                return list(file.keys())
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is damaged or no weight file; download or save it again.") from error
    return list(read_weights(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a weight file, or all shards of an index. Nothing in them is ever executed.

    Raises:
        InputError: a file is missing, truncated or of another kind.
    """
    if path.suffix != ".json":
        return _read_file(path)
    try:
        shards = sorted(set(map(Path, json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not an index of weight files.") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if shard.name != str(shard) or not (path.parent / shard).is_file():
            raise InputError(f"{path} names {shard}, which is not in its folder; download it too.")
        tensors |= _read_file(path.parent / shard)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged or no weight file; download or save it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{path} holds something else than named tensors.")
    return tensors


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file; what was at ``path`` stays whole until the new file is complete.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    replace_bytes(path, safetensors.torch.save(contiguous, metadata={"format": "pt"}))
