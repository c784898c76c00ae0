"""Where pretraining continues from: a released or earlier model, with what it lacks made anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from unbraid.errors import InputError
from unbraid.hub import local_folder
from unbraid.model import checkpoint
from unbraid.model.config import DebertaConfig
from unbraid.model.folder import Pretrained, model_folder, read_config
from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from unbraid.pretraining.rtd import GENERATOR_FOLDER

_RELEASED_GENERATOR = "pytorch_model.generator.bin"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


_Model = TypeVar("_Model", bound=Pretrained)


def continued_mlm(source: str | Path) -> tuple[DebertaForMaskedLM, list[str]]:
    """A masked language model from any pretrained DeBERTa.

    Args:
        source: a folder or hub name; a head or an absolute position table that it lacks starts fresh.

    Returns:
        The model, and a sentence for each part that is not as it was released.

    Raises:
        InputError: see :meth:`Pretrained.from_pretrained`.
    """
    tensors, config, name = _read(source)
    return _with_new_heads(DebertaForMaskedLM, tensors, config, name)


def continued_rtd(
    source: str | Path, generator_layers: int | None
) -> tuple[DebertaForMaskedLM, DebertaForReplacedTokenDetection, list[str]]:
    """Generator and discriminator from any pretrained DeBERTa.

    The generator is the one that was saved or released beside the discriminator; without one it is made of the
    discriminator's own lower layers, tables and masked language head.

    Args:
        source: a folder or hub name, of the discriminator.
        generator_layers: of a generator to be made; None: half of the discriminator's, at least 2.

    Returns:
        Generator, discriminator, and a sentence for each part that is not as it was released.

    Raises:
        InputError: see :meth:`Pretrained.from_pretrained`; or ``generator_layers`` asks for more layers than there are,
            or for others than those of the generator that is there.
    """
    tensors, config, name = _read(source)
    discriminator, notes = _with_new_heads(DebertaForReplacedTokenDetection, tensors, config, name)
    generator = _saved_generator(source, config)
    if generator is None:
        layers = generator_layers or max(2, config.num_hidden_layers // 2)
        if layers > config.num_hidden_layers:
            raise InputError(
                f"{name} has {config.num_hidden_layers} layers, too few for a generator of {layers}: "
                "set rtd.generator_layers to less."
            )
        lower = {
            key: tensor.clone()  # a model takes float32 tensors as they are, and those are the discriminator's
            for key, tensor in tensors.items()
            if not (found := _LAYER.search(key)) or int(found[1]) < layers
        }
        generator, more = _with_new_heads(
            DebertaForMaskedLM, lower, config.replace(num_hidden_layers=layers), f"{name} up to layer {layers}"
        )
        notes += [f"{name} comes without a generator: one is made of its first {layers} layers.", *more]
    elif generator_layers not in (None, generator.config.num_hidden_layers):
        raise InputError(
            f"{source} comes with a generator of {generator.config.num_hidden_layers} layers, not {generator_layers}: "
            "leave rtd.generator_layers out."
        )
    return generator, discriminator, notes


def _read(source: str | Path) -> tuple[dict[str, Tensor], DebertaConfig, str]:
    folder = model_folder(source)
    weights = checkpoint.find_weights(folder)
    if weights is None:
        raise InputError(f"{source} holds no model.safetensors and no pytorch_model.bin.")
    tensors = checkpoint.read_weights(weights)
    return tensors, read_config(folder, v1=_is_v1(tensors)), str(weights)


def _is_v1(tensors: dict[str, Tensor]) -> bool:
    return any(name.endswith(".in_proj.weight") for name in tensors)


def _with_new_heads(
    model_class: type[_Model], tensors: dict[str, Tensor], config: DebertaConfig, source: str
) -> tuple[_Model, list[str]]:
    """A model whose heads start fresh where the tensors have none, and sentences that say which."""
    with torch.device("meta"):
        wanted = model_class(config)._checkpoint_tensors()
    _, missing = checkpoint.from_files(tensors, wanted, config.num_attention_heads, source)
    new = sorted({name.split(".")[0] for name in missing} - {"deberta"})
    return (
        model_class.from_tensors(tensors, config, source, new),
        [f"{source} has no {_HEADS[name]}: it starts fresh." for name in new],
    )


_HEADS = {
    "decoder": "absolute positions for the mask decoder",
    "vocabulary": "masked language head",
    "replaced": "head for replaced tokens",
}


def _saved_generator(source: str | Path, config: DebertaConfig) -> DebertaForMaskedLM | None:
    folder = local_folder(source, [f"{GENERATOR_FOLDER}/*", _RELEASED_GENERATOR])
    if (folder / GENERATOR_FOLDER).is_dir():
        return DebertaForMaskedLM.from_pretrained(folder / GENERATOR_FOLDER)
    path = folder / _RELEASED_GENERATOR
    if not path.is_file():
        return None
    tensors = checkpoint.read_weights(path)
    layers = 1 + max((int(found[1]) for name in tensors if (found := _LAYER.search(name))), default=0)
    return DebertaForMaskedLM.from_tensors(tensors, config.replace(num_hidden_layers=layers), str(path))
