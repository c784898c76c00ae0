"""LoRA: thin adapters beside the weights of a frozen encoder, by peft, and what is saved of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from unbraid.errors import InputError
from unbraid.files import replace_text
from unbraid.model.checkpoint import to_files, write_weights
from unbraid.model.folder import Pretrained
from unbraid.tasks.config import LoraConfig

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

ModelT = TypeVar("ModelT", bound=Pretrained)

_NAME = "default"  # as peft calls the only adapter of a model

_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForMultipleChoice": None,
}
"""The heads that transformers has, and peft's names for them."""


def add_adapters(model: Pretrained, config: LoraConfig) -> None:
    """Puts adapters into the layers of a model; they and the head are what remains to be trained.

    Args:
        model: an encoder, ``deberta``, and a head; changed in place.
        config: which adapters.

    Raises:
        InputError: peft is not installed, or the layers have no such projection.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError("peft is not installed: run `pip install 'unbraid[lora]'`, or leave lora out.") from error
    layers = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith("deberta.encoder.layers.") and isinstance(module, nn.Linear)
    }
    if missing := set(config.targets) - set(layers.values()):
        known = ", ".join(dict.fromkeys(layers.values()))
        raise InputError(f"the layers of this model have no {min(missing)}: choose lora.targets among {known}.")
    targets = [name for name, projection in layers.items() if projection in config.targets]
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets),
        model,
        _NAME,
    )
    for name, parameter in model.named_parameters():
        if not name.startswith("deberta."):
            parameter.requires_grad_()


def merged(model: ModelT) -> ModelT:
    """An ordinary model that computes what one with adapters does; it shares all other weights with it."""
    adapted = dict(_adapted(model))
    tensors = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in adapted.items():
            tensors[f"{name}.weight"] = cast(nn.Linear, layer.get_base_layer()).weight + layer.get_delta_weight(_NAME)
    with torch.device("meta"):
        ordinary = type(model)(model.config)
    ordinary.load_state_dict(tensors, assign=True)
    return ordinary


def save_adapter(model: Pretrained, config: LoraConfig, base: str, folder: Path) -> None:
    """Writes the adapters and the head as peft does, with transformers' names, for ``peft.PeftModel.from_pretrained``.

    Nothing is written for heads that transformers does not have, nor for v1, whose files have query, key and value as
    one matrix.

    Args:
        model: with adapters.
        config: theirs.
        base: folder or hub name of the model that they were put into.
        folder: to write to.
    """
    from peft import LoraConfig as PeftConfig

    if model.architecture not in _TASK_TYPES or model.config.model_type == "deberta":
        return
    tensors: dict[str, Tensor] = {}
    targets = []
    for name, layer in _adapted(model):
        their_name = _their_name(f"{name}.weight").removesuffix(".weight")
        targets.append(their_name)
        for matrix in ("lora_A", "lora_B"):
            tensors[f"base_model.model.{their_name}.{matrix}.weight"] = getattr(layer, matrix)[_NAME].weight
    heads = {_their_name(name): weight for name, weight in model.named_parameters() if not name.startswith("deberta.")}
    tensors |= {f"base_model.model.{name}": weight for name, weight in heads.items()}
    settings = PeftConfig(
        task_type=_TASK_TYPES[model.architecture],
        base_model_name_or_path=base,
        inference_mode=True,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=sorted({name.split(".")[0] for name in heads}),
    ).to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True, default=sorted) + "\n")
    write_weights(tensors, folder / "adapter_model.safetensors")


def _adapted(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """The layers with an adapter, by our names."""
    from peft.tuners.lora import Linear

    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield name, module


def _their_name(name: str) -> str:
    return next(iter(to_files({name: torch.empty(0)}, v1=False, heads=1)))
