"""``unbraid finetune``: classify or score texts and pairs of texts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from unbraid.tasks.config import TaskConfig
from unbraid.training.config import TrainingConfig

if TYPE_CHECKING:
    from unbraid.model.pretrained import DebertaForSequenceClassification
    from unbraid.tasks.examples import Splits


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Fine-tunes a model to classify or score texts, or pairs of texts.

    Killed at any moment, the same command continues exactly. The weights with the best score on the dev examples stand
    in OUTPUT/best, with the tokenizer; transformers reads that folder as well. Scores are in OUTPUT/results.json.
    """

    model: str
    """Folder or hub name of the model to start from."""
    output: str
    """Folder of the run."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of the encoder's states and attention weights; by default as in the model."""
    cls_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the classifier; by default as in the model."""
    backend: Literal["auto", "native", "reference", "sdpa"] = "auto"
    """How attention is computed; unbraid info says what auto takes. The others are for comparison."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: slower, but the activations of one layer at a time in memory."""
    task: TaskConfig
    """The examples and what is learned from them."""
    training: TrainingConfig
    """The run."""


def run(config: Config) -> dict[str, dict[str, float]]:
    """Fine-tunes, scores the best weights, writes and prints the scores of dev and test."""
    import torch

    from unbraid.files import replace_text
    from unbraid.model.pretrained import DebertaForSequenceClassification
    from unbraid.processes import is_first
    from unbraid.tasks.classification import SequenceClassification, TaskBatches, encode_examples, evaluate
    from unbraid.tasks.examples import read_splits
    from unbraid.text.tokenizer import Tokenizer
    from unbraid.training.loop import train

    output, task = Path(config.output), config.task
    splits = read_splits(task)
    tokenizer = Tokenizer.from_pretrained(config.model)
    torch.manual_seed(config.training.seed)
    model = load(config, splits)
    model.deberta.encoder.gradient_checkpointing = config.gradient_checkpointing
    model.deberta.encoder.backend = config.backend
    encoded = {
        name: encode_examples(examples, tokenizer, labels=splits.labels, max_length=task.max_length)
        for name, examples in (("train", splits.train), ("dev", splits.dev), ("test", splits.test))
        if examples is not None
    }

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    described = dataclasses.asdict(config)
    result = train(
        SequenceClassification(model),
        TaskBatches(encoded["train"], task.batch_size, config.training.seed),
        config.training,
        output,
        recipe={key: value for key, value in described.items() if key not in ("output", "training")},
        evaluate=lambda: evaluate(model, encoded["dev"], batch_size=task.batch_size),
        best=(task.best_by, "max"),
        save_best=save,
    )
    if not result.finished:
        return {}
    best = DebertaForSequenceClassification.from_pretrained(output / "best").to(next(model.parameters()).device)
    scores = {
        name: evaluate(best, data, batch_size=task.batch_size) for name, data in encoded.items() if name != "train"
    }
    if not is_first():
        return scores
    replace_text(output / "results.json", json.dumps({"best_step": result.best_step, **scores}, indent=1))
    for name, metrics in scores.items():
        print(f"{output / 'best'} on {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return scores


def load(config: Config, splits: Splits) -> DebertaForSequenceClassification:
    """The model to fine-tune: a new classifier, on the pooler of the model to start from if it has one."""
    from unbraid.model.pretrained import DebertaForSequenceClassification

    changes: dict[str, Any] = {
        "id2label": dict(enumerate(splits.labels or ("score",))),
        "problem_type": "regression" if splits.labels is None else "single_label_classification",
    }
    if config.dropout is not None:
        changes |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    if config.cls_dropout is not None:
        changes["cls_dropout"] = config.cls_dropout
    new = ("classifier",) if has_pooler(config.model) else ("pooler", "classifier")
    return DebertaForSequenceClassification.from_pretrained(config.model, new=new, **changes)


def has_pooler(model: str) -> bool:
    """Whether a model's file holds a pooler, as those fine-tuned before do."""
    from unbraid.model.checkpoint import find_weights, weight_names
    from unbraid.model.folder import model_folder

    weights = find_weights(model_folder(model))
    return weights is not None and any(name.startswith("pooler.") for name in weight_names(weights))
