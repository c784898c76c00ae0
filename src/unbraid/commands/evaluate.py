"""``unbraid evaluate``: measure a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from unbraid.pretraining.config import CorpusConfig, MaskingConfig
from unbraid.tasks.config import DataConfig


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Measures a model: a classifier on labelled examples, a masked language model on text.

    Prints one JSON object. Of text all documents are read, always with the same tokens hidden.
    """

    model: tyro.conf.Positional[str]
    """Folder or hub name of the model."""
    examples: tyro.conf.Positional[str]
    """A file of labelled examples (or a split of data.dataset); of text for a masked language model."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """How to read labelled examples, or the column of the text."""
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    """What to hide of text."""
    max_length: Annotated[int, Field(ge=3)] = 256
    """Longest example, or row of text, in tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples, or rows of text, at a time."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the model."""
    cache: str | None = None
    """Folder for tokenised text; by default a temporary one."""


def run(config: Config) -> None:
    """Measures and prints."""
    from unbraid.model.folder import has_masked_language_model

    scores = _text(config) if has_masked_language_model(config.model) else _examples(config)
    print(json.dumps(scores))


def _examples(config: Config) -> dict[str, float]:
    from unbraid.model.precision import set_precision
    from unbraid.model.pretrained import DebertaForSequenceClassification
    from unbraid.tasks.classification import encode_examples, evaluate
    from unbraid.tasks.examples import read_examples
    from unbraid.text.tokenizer import Tokenizer

    model = DebertaForSequenceClassification.from_pretrained(config.model)
    set_precision(model, config.precision)
    regression = model.config.num_labels == 1
    labels = None if regression else [model.config.id2label[i] for i in range(model.config.num_labels)]
    kind = "regression" if regression else "classification"
    examples = read_examples(config.examples, config.data, kind=kind, labels=labels)
    tokenizer = Tokenizer.from_pretrained(config.model)
    encoded = encode_examples(examples, tokenizer, labels=labels, max_length=config.max_length)
    return {"examples": len(encoded), "truncated": encoded.num_truncated} | evaluate(
        model, encoded, batch_size=config.batch_size
    )


def _text(config: Config) -> dict[str, float]:
    import tempfile

    from unbraid.commands.pretrain import EVALUATION_SEED
    from unbraid.model.precision import set_precision
    from unbraid.model.pretrained import DebertaForMaskedLM
    from unbraid.pretraining.corpus import prepare
    from unbraid.pretraining.mlm import MaskedBatches, MaskedLanguageModeling, evaluate_mlm
    from unbraid.text.tokenizer import Tokenizer

    model = DebertaForMaskedLM.from_pretrained(config.model)
    set_precision(model, config.precision)
    tokenizer = Tokenizer.from_pretrained(config.model)
    batch_tokens = config.batch_size * config.max_length
    with tempfile.TemporaryDirectory() as temporary:
        text = CorpusConfig(
            path=config.examples,
            column=config.data.text,
            held_out=0,
            sequence_length=config.max_length,
            batch_tokens=batch_tokens,
        )
        corpus = prepare(text, tokenizer, Path(config.cache or temporary))
        batches = MaskedBatches(
            corpus.train,
            tokenizer,
            config.masking,
            sequence_length=config.max_length,
            batch_tokens=batch_tokens,
            seed=EVALUATION_SEED,
        )
        return evaluate_mlm(MaskedLanguageModeling(model, config.masking.hide_kept_tokens), batches)
