"""One run of ``unbraid finetune``: with one seed, on one division of the data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from unbraid.model.checkpoint import find_weights, weight_names
from unbraid.model.folder import model_folder
from unbraid.model.pretrained import Head
from unbraid.objective import Objective
from unbraid.tasks.batches import Rows, TaskBatches, fingerprint
from unbraid.tasks.class_weights import Weighted, weights_of
from unbraid.tasks.lora import add_adapters, merged, save_adapter
from unbraid.tasks.named import named_task
from unbraid.tasks.sift import Sift
from unbraid.tasks.task import Task
from unbraid.text.tokenizer import Tokenizer
from unbraid.training.loop import train

if TYPE_CHECKING:
    from unbraid.commands.finetune import Config

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        best_step: the step of the best weights.
        scores: theirs, on the dev examples and those to test on.
        answers: theirs to the dev examples, see :meth:`Task.ask`.
    """

    best_step: int | None
    scores: dict[str, dict[str, float]]
    answers: list[Any]


def finetune(config: Config, task: Task[Any, Any], tokenizer: Tokenizer, data: Mapping[str, Rows]) -> Outcome | None:
    """Fine-tunes in ``config.output``, with the seed of ``config.training``, and scores the best weights.

    Args:
        config: of the run.
        task: with the classes of the training data.
        tokenizer: of the model.
        data: encoded examples: "train", "dev", and those to test on by their names.

    Returns:
        None if the run was stopped; the same call continues.

    Raises:
        InputError: see :func:`unbraid.training.loop.train`.
    """
    output, seed = Path(config.output), config.training.seed
    torch.manual_seed(seed)
    model = load(config, task)

    def evaluate() -> dict[str, float]:
        nonlocal task
        task, scores = task.tune(model, data["dev"])
        return scores

    def save(folder: Path) -> None:
        if config.lora.rank:
            save_adapter(model, config.lora, config.model, folder / "adapter")
        (merged(model) if config.lora.rank else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task.save_settings(folder)

    described = dataclasses.asdict(config)
    result = train(
        objective_of(config, task, model, data["train"]),
        TaskBatches(data["train"], config.task.batch_size, seed),
        config.training,
        output,
        recipe={key: value for key, value in described.items() if key not in ("output", "seeds", "training")},
        data={"classes": task.labels, **{part: fingerprint(data[part]) for part in ("train", "dev")}},
        evaluate=evaluate,
        best=(config.task.best_by, "max"),
        depths=model.depths,
        save_best=save,
    )
    if not result.finished:
        return None
    best = task.head.from_pretrained(output / "best").to(next(model.parameters()).device)
    loss, answers = task.ask(best, data["dev"])
    task = task.tuned(data["dev"], answers)
    tests = [name for name in data if name not in ("train", "dev")]
    scores = {"dev": {"loss": loss, **task.score(data["dev"], answers)}}
    return Outcome(result.best_step, scores | {name: task.evaluate(best, data[name]) for name in tests}, answers)


def load(config: Config, task: Task[Any, Any]) -> Head:
    """The model to fine-tune, of the class ``task.head``: a new head, on the pooler of the model it starts from.

    What shall not be trained is frozen; adapters are in their places.
    """
    changes = task.model_fields()
    if config.dropout is not None:
        changes |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    if config.cls_dropout is not None:
        changes["cls_dropout"] = config.cls_dropout
    task_name = config.task.name
    if task_name is not None and named_task(task_name).from_mnli and not holds(config.model, "classifier"):
        log.warning(
            "The paper starts this task from a model fine-tuned on MNLI (with v3-large it does not): "
            "--model runs/mnli/best"
        )
    new = tuple(name for name in task.new if name != "pooler" or not holds(config.model, "pooler"))
    model = cast(Head, task.head.from_pretrained(config.model, new=new, **changes))
    model.deberta.encoder.gradient_checkpointing = config.gradient_checkpointing
    model.deberta.encoder.backend = config.backend
    if config.freeze != "none":
        frozen = model.deberta if config.freeze == "encoder" else model.deberta.embeddings
        frozen.requires_grad_(False)
    if config.lora.rank:
        add_adapters(model, config.lora)
    return model


def holds(model: str, module: str) -> bool:
    """Whether a model's file holds a module of its head, as those fine-tuned before do."""
    weights = find_weights(model_folder(model))
    return weights is not None and any(name.startswith(f"{module}.") for name in weight_names(weights))


def objective_of(config: Config, task: Task[Any, Any], model: Any, data: Rows) -> Objective:
    """What the model is trained for: the task, its classes weighted, with SiFT; as configured."""
    objective = task.objective(model)
    if config.task.class_weights is not None:
        objective = Weighted(objective, weights_of(config.task.class_weights, task.labels or (), data))
    return Sift(objective, config.sift) if config.sift.weight else objective
