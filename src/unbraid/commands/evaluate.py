"""``unbraid evaluate``: measure a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from unbraid.errors import InputError
from unbraid.pretraining.config import CorpusConfig, MaskingConfig
from unbraid.settings import settings
from unbraid.tasks.config import DataConfig

LENGTH, OVERLAP = 256, 128
"""In tokens, where neither the model nor the task says it."""


@settings
class Config:
    """Measures a model: a fine-tuned one on labelled examples, a masked language model on text.

    Prints one JSON object. Of text all documents are read, always with the same tokens hidden.
    """

    model: tyro.conf.Positional[str]
    """Folder or hub name of the model."""
    examples: tyro.conf.Positional[str]
    """A file of labelled examples (or a split of data.dataset); of text for a masked language model."""
    task: str | None = None
    """One of the papers' tasks, such as mnli, that examples is a file of as it is distributed."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """How to read labelled examples, or the column of the text."""
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    """What to hide of text."""
    max_length: Annotated[int, Field(ge=3)] | None = None
    """Longest example, or row of text, in tokens; default: what the model was fine-tuned with, as its recipe.json says,
    else what is published for the task, else 256."""
    overlap: Annotated[int, Field(ge=0)] | None = None
    """Tokens that neighbouring windows share, where longer texts are read in windows; default: what the model was
    fine-tuned with, else 128."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples, or rows of text, at a time."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the model."""
    cache: str | None = None
    """Folder for tokenised text; by default a temporary one."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.task is not None and self.data != DataConfig():
            raise ValueError("task says how its files are read: leave the options of data out.")
        return self


def run(config: Config) -> None:
    """Measures and prints."""
    from unbraid.model.folder import has_masked_language_model

    has_mlm = has_masked_language_model(config.model)
    if has_mlm and config.task is not None:
        raise InputError(f"{config.model} predicts masked words of any text; leave task out, or give another model.")
    print(json.dumps(_text(config) if has_mlm else _examples(config)))


def _examples(config: Config) -> dict[str, float]:
    from unbraid.model.precision import set_precision
    from unbraid.tasks.kinds import task_of
    from unbraid.tasks.named import named_task
    from unbraid.text.tokenizer import Tokenizer

    task = task_of(
        config.model,
        data=config.data if config.task is None else named_task(config.task).data(),
        **_lengths(config),
        batch_size=config.batch_size,
    )
    model = task.head.from_pretrained(config.model)
    set_precision(model, config.precision)
    examples = task.read(config.examples)
    encoded = task.encode(examples, Tokenizer.from_pretrained(config.model))
    return {"examples": len(examples), "truncated": encoded.num_truncated} | task.evaluate(model, encoded)


def _lengths(config: Config) -> dict[str, int]:
    """The longest example and the overlap of windows, by their names in a task."""
    from unbraid.model.folder import model_folder
    from unbraid.tasks.published import length_of

    lengths = {"max_length": LENGTH if config.task is None else length_of(config.task), "overlap": OVERLAP}
    recipe = model_folder(config.model) / "recipe.json"
    if recipe.is_file():
        try:
            learned = json.loads(recipe.read_text(encoding="utf-8"))["task"]
            lengths = {name: int(learned[name]) for name in lengths}
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{recipe} is no recipe of a fine-tuning; remove it.") from None
    given = {"max_length": config.max_length, "overlap": config.overlap}
    return lengths | {name: length for name, length in given.items() if length is not None}


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
    max_length = config.max_length or LENGTH
    batch_tokens = config.batch_size * max_length
    with tempfile.TemporaryDirectory() as temporary:
        text = CorpusConfig(
            path=config.examples,
            column=config.data.text,
            held_out=0,
            sequence_length=max_length,
            batch_tokens=batch_tokens,
        )
        corpus = prepare(text, tokenizer, Path(config.cache or temporary))
        batches = MaskedBatches(
            corpus.train,
            tokenizer,
            config.masking,
            sequence_length=max_length,
            batch_tokens=batch_tokens,
            seed=EVALUATION_SEED,
        )
        return evaluate_mlm(MaskedLanguageModeling(model, config.masking.hide_kept_tokens), batches)
