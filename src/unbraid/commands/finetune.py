"""``unbraid finetune``: teach a model a task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from unbraid.tasks.config import SiftConfig, TaskConfig
from unbraid.training.config import TrainingConfig

if TYPE_CHECKING:
    from unbraid.tasks.task import Task


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Fine-tunes a model on a task: task.kind says which, from the classes of texts to the labels of their words.

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
    sift: SiftConfig = dataclasses.field(default_factory=SiftConfig)
    """Consistency under perturbed embeddings (SiFT), if its weight is above 0."""
    training: TrainingConfig
    """The run."""


def run(config: Config) -> dict[str, dict[str, float]]:
    """Fine-tunes, scores the best weights, writes and prints the scores of dev and test."""
    import torch

    from unbraid.files import replace_text
    from unbraid.processes import is_first
    from unbraid.tasks.batches import TaskBatches
    from unbraid.tasks.kinds import read_splits
    from unbraid.tasks.sift import Sift
    from unbraid.text.tokenizer import Tokenizer
    from unbraid.training.loop import train

    output = Path(config.output)
    splits = read_splits(config.task)
    task = splits.task
    tokenizer = Tokenizer.from_pretrained(config.model)
    torch.manual_seed(config.training.seed)
    model = load(config, task)
    model.deberta.encoder.gradient_checkpointing = config.gradient_checkpointing
    model.deberta.encoder.backend = config.backend
    encoded = {
        name: task.encode(examples, tokenizer)
        for name, examples in (("train", splits.train), ("dev", splits.dev), ("test", splits.test))
        if examples is not None
    }

    def evaluate() -> dict[str, float]:
        nonlocal task
        task, scores = task.tune(model, encoded["dev"])
        return scores

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task.save_settings(folder)

    described = dataclasses.asdict(config)
    objective = task.objective(model)
    result = train(
        Sift(objective, config.sift) if config.sift.weight else objective,
        TaskBatches(encoded["train"], config.task.batch_size, config.training.seed),
        config.training,
        output,
        recipe={key: value for key, value in described.items() if key not in ("output", "training")},
        evaluate=evaluate,
        best=(config.task.best_by, "max"),
        save_best=save,
    )
    if not result.finished:
        return {}
    best = task.head.from_pretrained(output / "best").to(next(model.parameters()).device)
    task, scores = task.tune(best, encoded["dev"])
    final = {"dev": scores}
    if "test" in encoded:
        final["test"] = task.evaluate(best, encoded["test"])
    if not is_first():
        return final
    replace_text(output / "results.json", json.dumps({"best_step": result.best_step, **final}, indent=1))
    for name, metrics in final.items():
        print(f"{output / 'best'} on {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return final


def load(config: Config, task: Task[Any, Any]) -> Any:
    """The model to fine-tune, of the class ``task.head``: a new head, on the pooler of the model it starts from."""
    changes = task.model_fields()
    if config.dropout is not None:
        changes |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    if config.cls_dropout is not None:
        changes["cls_dropout"] = config.cls_dropout
    new = tuple(name for name in task.new if name != "pooler" or not has_pooler(config.model))
    return task.head.from_pretrained(config.model, new=new, **changes)


def has_pooler(model: str) -> bool:
    """Whether a model's file holds a pooler, as those fine-tuned before do."""
    from unbraid.model.checkpoint import find_weights, weight_names
    from unbraid.model.folder import model_folder

    weights = find_weights(model_folder(model))
    return weights is not None and any(name.startswith("pooler.") for name in weight_names(weights))
