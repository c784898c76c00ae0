"""The model card of a fine-tuned model, as the hub shows it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from unbraid.tasks.config import Kind, TaskConfig
from unbraid.tasks.sources import Sources, sources_of
from unbraid.tasks.task import Task

_IN_TRANSFORMERS: Mapping[Kind, tuple[str, str]] = {
    "classification": ("text-classification", "pipeline"),
    "multi-label": ("text-classification", "pipeline"),
    "regression": ("text-classification", "pipeline"),
    "token-classification": ("token-classification", "pipeline"),
    "question-answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "multiple-choice": ("multiple-choice", "AutoModelForMultipleChoice"),
}
"""The kinds of tasks that transformers knows: the hub's name for them, and what transformers runs them with."""

_ASKED: Mapping[Kind, str] = {
    "question-answering": '"Who met Bob?" --pair "Ann met Bob."',
    "multiple-choice": '"Where?" --choices Oslo Rome',
    "span-classification": "--file examples.jsonl",
    "entity-choice": "--file examples.jsonl",
}
"""What ``unbraid predict`` is asked, where it is not a text alone."""

_HUB_METRICS = {
    **{name: name for name in ("accuracy", "f1", "precision", "recall")},
    **{"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "exact": "exact_match"},
}
"""The metrics that the hub has a name for."""


def model_card(
    base: str,
    config: TaskConfig,
    task: Task[Any, Any],
    sizes: Mapping[str, int],
    scores: Mapping[str, Mapping[str, float]],
    recipe: Mapping[str, Any],
) -> str:
    """A README.md: what the model is, what it learned from and how, what it scores, how to use it.

    Args:
        base: folder or hub name of the model that it started from.
        config: of the task.
        task: with its classes.
        sizes: how many examples there were to train, choose and test by.
        scores: on those to choose and test by.
        recipe: all settings of the run, as in its recipe.json.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("unbraid", "torch", "tokenizers"))
    metrics = list(dict.fromkeys(name for each in scores.values() for name in each))
    sources = sources_of(config)
    sections = {
        "Labels": _table(("id", "label"), enumerate(map(_code, task.labels or ()))) if task.has_classes else "",
        "Data": _table(("", "examples", "from"), _data(sources, sizes, recipe["folds"])),
        "Scores": _table(
            ("", *scores), ([name, *(_number(each.get(name)) for each in scores.values())] for name in metrics)
        ),
        "Settings": f"{_table(('', ''), _settings(recipe))}\n\n`recipe.json` has all of them. Versions: {versions}.",
        "Use": "\n\n".join(_use(config, task)),
    }
    return (
        f"---\n{_metadata(base, config.kind, sources.data.dataset, metrics)}\n---\n\n"
        f"# {Path(base).name}, fine-tuned for {config.name or config.kind}\n\n"
        f"A DeBERTa for {config.kind}, fine-tuned from `{base}` with unbraid. Of the run's weights these have the best "
        f"{config.best_by} on the dev examples.\n\n"
        + "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items() if text)
    )


def _metadata(base: str, kind: Kind, dataset: str | None, metrics: Iterable[str]) -> str:
    tag, _ = _IN_TRANSFORMERS.get(kind, (None, None))
    return ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        datasets=None if dataset is None else [dataset],
        library_name="unbraid" if tag is None else "transformers",
        metrics=[_HUB_METRICS[name] for name in metrics if name in _HUB_METRICS],
        pipeline_tag=tag,
        tags=["unbraid", "deberta"],
    ).to_yaml()


def _data(sources: Sources, sizes: Mapping[str, int], folds: int | None) -> Iterator[tuple[str, int, str]]:
    places = {"train": sources.train, "dev": sources.dev, **sources.tests}
    if folds is not None:
        places["dev"] = f"{sources.train}, one of {folds} parts that is left out of train"
    data_set = "" if sources.data.dataset is None else f"{sources.data.dataset}, "
    for part, size in sizes.items():
        yield part, size, f"{data_set}{places[part]}"


def _settings(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    training, task = recipe["training"], recipe["task"]
    optimizer = training["optimizer"]
    length = "epochs" if training["steps"] is None else "steps"
    yield length, training[length]
    yield "examples, or windows, of a step", task["batch_size"] * training["micro_batches"]
    yield "tokens of the longest", task["max_length"]
    for name in ("learning_rate", "warmup", "weight_decay", "layer_decay"):
        yield name.replace("_", " "), optimizer[name]
    yield "precision", training["precision"]
    yield "seed", training["seed"]
    if recipe["sift"]["weight"]:
        yield "weight of SiFT", recipe["sift"]["weight"]
    if recipe["lora"]["rank"]:
        yield "rank of LoRA", recipe["lora"]["rank"]
    if recipe["freeze"] != "none":
        yield "frozen", recipe["freeze"]
    if task["class_weights"] is not None:
        yield "class weights", _code(task["class_weights"])


def _use(config: TaskConfig, task: Task[Any, Any]) -> Iterator[str]:
    pair = task.data.pair is not None
    text = '"A text." --pair "Another."' if pair else '"A text."'
    yield f"```sh\nunbraid predict FOLDER {_ASKED.get(config.kind, text)}\n```"
    tag, runs = _IN_TRANSFORMERS.get(config.kind, (None, None))
    if runs == "pipeline":
        asked = '{"text": "A text.", "text_pair": "Another."}' if pair else '"A text."'
        call = f'print(pipeline("{tag}", model="FOLDER")({asked}))'
        yield f"```python\nfrom transformers import pipeline\n\n{call}\n```"
    elif runs is not None:
        yield f'```python\nfrom transformers import {runs}\n\nmodel = {runs}.from_pretrained("FOLDER")\n```'


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _code(value: object) -> str:
    """A value as JSON between ticks, which a table can hold."""
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
