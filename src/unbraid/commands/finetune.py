"""``unbraid finetune``: teach a model a task."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from unbraid.errors import InputError
from unbraid.files import replace_text, writing
from unbraid.settings import settings
from unbraid.tasks.config import LoraConfig, SiftConfig, TaskConfig
from unbraid.tasks.published import recipe
from unbraid.training.config import TrainingConfig

if TYPE_CHECKING:
    from unbraid.commands.trial import Outcome
    from unbraid.tasks.batches import Rows
    from unbraid.tasks.kinds import Splits
    from unbraid.tasks.task import Task
    from unbraid.text.tokenizer import Tokenizer


@settings
class Config:
    """Fine-tunes a model on a task: task.kind says which, from the classes of texts to the labels of their words.

    unbraid finetune TASK, or TASK/SIZE, does one of the papers' as published, e.g. cola/large with --data FOLDER.
    Killed at any moment, the same command continues exactly. The weights with the best score on the dev examples stand
    in OUTPUT/best, with the tokenizer; transformers reads that folder as well. Scores are in OUTPUT/results.json.
    Of several runs, each has its own folder, OUTPUT/seed-N or OUTPUT/fold-N.
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
    freeze: Literal["none", "embeddings", "encoder"] = "none"
    """What stays as it is: nothing; the embeddings of words, positions and types; or all but the head."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """Train low-rank adapters instead of the encoder, if their rank is above 0."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)] | None = None
    """A run for each of these seeds, in the place of training.seed; results.json then has mean and spread."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: so many runs, each of which has another part of the training examples as its dev examples."""
    training: TrainingConfig
    """The run."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.folds is not None and self.task.dev is not None:
            raise ValueError("folds take the dev examples from the training examples: leave task.dev out.")
        if self.folds is not None and self.seeds is not None:
            raise ValueError("folds and seeds are both about several runs: give one of them.")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two of the seeds are the same.")
        if self.lora.rank and self.freeze != "none":
            raise ValueError("lora freezes the encoder by itself: leave freeze out.")
        return self

    @classmethod
    def recipe(cls, word: str) -> dict[str, Any]:
        """The published settings of a task; see :func:`unbraid.tasks.published.recipe`."""
        return recipe(word)


def run(config: Config) -> dict[str, dict[str, float]]:
    """Fine-tunes, scores the best weights, writes and prints the scores.

    Returns:
        The scores on the dev examples and those to test on, means over several runs; nothing if it was stopped.
    """
    from unbraid.commands.trial import finetune
    from unbraid.tasks.kinds import read_splits
    from unbraid.tasks.sources import sources_of
    from unbraid.text.tokenizer import Tokenizer

    if config.folds is None and sources_of(config.task).dev is None:
        raise InputError("there is nothing to choose the best checkpoint by: give task.dev, or folds.")
    ends = None if config.training.max_minutes is None else time.monotonic() + 60 * config.training.max_minutes
    splits = read_splits(config.task)
    tokenizer = Tokenizer.from_pretrained(config.model)
    outcomes: dict[str, Outcome] = {}
    for trial in _trials(config, splits, tokenizer):
        left = None if ends is None else max((ends - time.monotonic()) / 60, 1e-9)
        training = dataclasses.replace(config.training, seed=trial.seed, max_minutes=left)
        own = dataclasses.replace(config, output=str(Path(config.output) / trial.name), training=training)
        outcome = finetune(own, splits.task, tokenizer, trial.data)
        if outcome is None:
            return {}
        _write(own, splits.task, trial, outcome)
        outcomes[trial.name] = outcome
    if "" in outcomes:
        return outcomes[""].scores
    return _compare(config, splits, tokenizer, outcomes)


class Trial(NamedTuple):
    """One of the runs."""

    name: str
    """Its folder within OUTPUT; "" where it is the only run."""
    seed: int
    """Of all that is random."""
    data: Mapping[str, Rows]
    """Encoded examples: train, dev, and those to test on by their names."""
    sizes: Mapping[str, int]
    """How many examples these are."""


def _trials(config: Config, splits: Splits[Any], tokenizer: Tokenizer) -> Iterator[Trial]:
    """The runs, one after the other; what they share is encoded once."""
    from unbraid.tasks.folds import split

    def encode(examples: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Rows], dict[str, int]]:
        rows = {part: splits.task.encode(each, tokenizer) for part, each in examples.items()}
        return rows, {part: len(each) for part, each in examples.items()}

    if config.folds is None:
        data, sizes = encode({"train": splits.train, "dev": splits.dev or (), **splits.tests})
        for seed in config.seeds or (config.training.seed,):
            yield Trial(f"seed-{seed}" if config.seeds else "", seed, data, sizes)
        return
    tests, test_sizes = encode(splits.tests)
    for number, (train, dev) in enumerate(split(splits.train, config.folds, config.training.seed), 1):
        parts = {"train": [splits.train[index] for index in train], "dev": [splits.train[index] for index in dev]}
        data, sizes = encode(parts)
        yield Trial(f"fold-{number}", config.training.seed, data | tests, sizes | test_sizes)


def _write(config: Config, task: Task[Any, Any], trial: Trial, outcome: Outcome) -> None:
    """Writes and prints the scores of a run, and completes the folder of its best weights."""
    from unbraid.processes import is_first
    from unbraid.tasks.card import model_card

    if not is_first():
        return
    output, best = Path(config.output), Path(config.output) / "best"
    recipe = (output / "recipe.json").read_text(encoding="utf-8")
    results = json.dumps({"best_step": outcome.best_step, **outcome.scores}, indent=1)
    card = model_card(config.model, config.task, task, trial.sizes, outcome.scores, json.loads(recipe))
    with writing(output):
        replace_text(best / "README.md", card)
        replace_text(best / "recipe.json", recipe)
        for folder in (best, output):
            replace_text(folder / "results.json", results)
    for name, metrics in outcome.scores.items():
        print(f"{best} on {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))


def _compare(
    config: Config, splits: Splits[Any], tokenizer: Tokenizer, outcomes: Mapping[str, Outcome]
) -> dict[str, dict[str, float]]:
    """Writes and prints the scores of several runs side by side; returns their means."""
    from rich.console import Console

    from unbraid.processes import is_first
    from unbraid.tasks.summary import deviation, mean, table

    runs = {name: outcome.scores for name, outcome in outcomes.items()}
    summary = {"mean": mean(list(runs.values())), "std": deviation(list(runs.values()))}
    if config.folds is not None:
        summary["out_of_fold"] = {"dev": _out_of_fold(config.folds, config.training.seed, splits, tokenizer, outcomes)}
    if is_first():
        steps = {name: {"best_step": outcome.best_step, **outcome.scores} for name, outcome in outcomes.items()}
        with writing(Path(config.output)):
            replace_text(Path(config.output) / "results.json", json.dumps({"runs": steps, **summary}, indent=1))
        console = Console(width=max(Console().width, 100))  # no number is cut
        for part in summary["mean"]:
            rows = {name: scores[part] for name, scores in (runs | summary).items() if part in scores}
            console.print(table(rows, f"{config.output} on {part}"))
    return summary["mean"]


def _out_of_fold(
    folds: int, seed: int, splits: Splits[Any], tokenizer: Tokenizer, outcomes: Mapping[str, Outcome]
) -> dict[str, float]:
    """The scores of all training examples together, each answered by the run that was not trained on it."""
    from unbraid.tasks.folds import split

    examples = [splits.train[index] for _, dev in split(splits.train, folds, seed) for index in dev]
    data = splits.task.encode(examples, tokenizer)
    answers = [answer for outcome in outcomes.values() for answer in outcome.answers]
    return splits.task.tuned(data, answers).score(data, answers)
