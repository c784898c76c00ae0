"""A model and its folder: from_pretrained and save_pretrained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from unbraid.errors import InputError
from unbraid.files import replace_bytes
from unbraid.hub import local_folder
from unbraid.model import checkpoint
from unbraid.model.config import DebertaConfig
from unbraid.model.heads import VocabularyHead


class Pretrained(nn.Module):
    """A model that can be read from a folder or the hub, and written."""

    config: DebertaConfig
    architecture: str
    """transformers' class for this head, without its family's prefix."""

    def _checkpoint_tensors(self) -> dict[str, Tensor]:
        return dict(self.state_dict(keep_vars=True))

    def _initialise(self, modules: Iterator[nn.Module]) -> None:
        for module in modules:
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, VocabularyHead):
                nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, new: str | Sequence[str] = (), revision: str | None = None, **config_changes: Any
    ) -> Self:
        """Reads a model, strictly: every tensor of the file has its place and every weight its tensor.

        Reads config.json or model_config.json; model.safetensors or pytorch_model.bin (weights only, nothing in it is
        executed), sharded or whole; v1, v2 and v3, as Microsoft and Hugging Face name their tensors. Heads in the file
        that this model does not have are left unread.

        Args:
            source: a folder, or a name on the hub.
            new: a module or modules that start fresh, whatever the file holds, e.g. ``("pooler", "classifier")``.
            revision: branch, tag or commit on the hub.
            config_changes: fields of the configuration to change, e.g. ``hidden_dropout_prob=0.2``.

        Returns:
            The model in float32, on the CPU, in evaluation mode.

        Raises:
            InputError: nothing there, a damaged file, a missing, unknown or misshapen tensor, NaN weights, an unknown
                key of the configuration.
        """
        folder = model_folder(source, revision)
        weights = checkpoint.find_weights(folder)
        if weights is None:
            raise InputError(f"{source} holds no model.safetensors and no pytorch_model.bin.")
        tensors = checkpoint.read_weights(weights)
        config = read_config(folder, v1=any(name.endswith(".in_proj.weight") for name in tensors))
        if config_changes:
            config = config.replace(**config_changes)
        return cls.from_tensors(tensors, config, str(weights), new)

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], config: DebertaConfig, source: str, new: str | Sequence[str] = ()
    ) -> Self:
        """A model from tensors that were read already; see :meth:`from_pretrained`.

        Args:
            tensors: under their names in files.
            config: of the model.
            source: where they come from, for messages.
            new: modules that start fresh.
        """
        with torch.device("meta"):
            model = cls(config)
        new = (new,) if isinstance(new, str) else new
        if unknown := set(new) - {name for name, _ in model.named_children()}:
            raise InputError(f"{cls.__name__} has no module {', '.join(sorted(unknown))} to start fresh.")
        expected = model._checkpoint_tensors()
        starting = {
            id(tensor) for name in new for tensor in model.get_submodule(name).state_dict(keep_vars=True).values()
        }
        fresh = [name for name, tensor in expected.items() if id(tensor) in starting]
        wanted = [name for name, tensor in expected.items() if id(tensor) not in starting]
        found, missing = checkpoint.from_files(tensors, wanted, config.num_attention_heads, source, unread=fresh)
        if missing:
            raise InputError(checkpoint.missing_message(missing, source))
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape:
                raise InputError(
                    f"{source}: {name} has shape {tuple(tensor.shape)}, but the configuration asks for "
                    f"{tuple(expected[name].shape)}."
                )
        model._assign({name: tensor.to(torch.float32) for name, tensor in found.items()})
        for name in new:
            child = model.get_submodule(name)
            child.to_empty(device="cpu")
            model._initialise(child.modules())
        return model.eval()

    def _assign(self, tensors: dict[str, Tensor]) -> None:
        self.load_state_dict(tensors, strict=False, assign=True)  # what is missing was checked or starts fresh

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes config.json and model.safetensors, which transformers' ``AutoModel...`` classes read as well.

        Each file is complete before it takes its place.

        Args:
            folder: to write, made if need be.
            dtype: of the weights in the file, e.g. ``torch.float16`` for half the size; None: as they are.

        Raises:
            InputError: a weight is too large for ``dtype``, or of int8, which files do not hold.
            OSError: e.g. the disk is full; what was there stays.
        """
        folder = Path(folder)
        v1 = self.config.model_type == "deberta"
        tensors = {name: tensor.detach() for name, tensor in self._checkpoint_tensors().items()}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise InputError(
                "a model with int8 weights is for inference only: write it before set_precision, or read it again."
            )
        folder.mkdir(parents=True, exist_ok=True)
        named = checkpoint.to_files(tensors, v1, self.config.num_attention_heads)
        if dtype is not None:
            named = {name: _narrowed(name, tensor, dtype) for name, tensor in named.items()}
        checkpoint.write_weights(named, folder / "model.safetensors")
        family = "Deberta" if v1 else "DebertaV2"
        fields = self.config.to_dict() | {"architectures": [f"{family}{self.architecture}"]}
        replace_bytes(folder / "config.json", (json.dumps(fields, indent=2) + "\n").encode())


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    if not narrow.isfinite().all():
        raise InputError(f"{name} has weights beyond the range of {dtype}: write torch.bfloat16 or torch.float32.")
    return narrow


def model_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a model; of the hub's weight files only those are fetched that will be read.

    Raises:
        InputError: see :func:`unbraid.hub.local_folder`.
    """
    patterns = ["*config.json", "model*.safetensors", "model.safetensors.index.json"]
    folder = local_folder(source, patterns, revision)
    if checkpoint.find_weights(folder) is None:
        folder = local_folder(source, ["pytorch_model*.bin", "pytorch_model.bin.index.json"], revision)
    return folder


def architecture_of(source: str | Path) -> str:
    """Transformers' class of the model in a folder or on the hub, without its family's prefix: "ForMaskedLM".

    Raises:
        InputError: no such model, or no configuration in it.
    """
    folder = model_folder(source)
    try:
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder} holds no readable config.json.") from error
    return architectures[0].removeprefix("DebertaV2").removeprefix("Deberta")


def has_masked_language_model(source: str | Path) -> bool:
    """Whether a folder or hub name says that its model predicts masked tokens.

    Raises:
        InputError: see :func:`architecture_of`.
    """
    return architecture_of(source) == "ForMaskedLM"


def read_config(folder: Path, v1: bool) -> DebertaConfig:
    """The configuration in a model's folder.

    Args:
        folder: holds config.json or model_config.json.
        v1: whether its weights are packed as v1's, which a model_config.json does not tell.

    Raises:
        InputError: none there, or see :meth:`DebertaConfig.from_file`.
    """
    path = next((folder / name for name in ("config.json", "model_config.json") if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder} holds no config.json and no model_config.json.")
    config = DebertaConfig.from_file(path)
    return config.replace(model_type="deberta") if v1 and config.model_type != "deberta" else config
