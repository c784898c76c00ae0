"""``unbraid ablate``: the papers' ablations at any size."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from unbraid.commands import finetune, pretrain
from unbraid.errors import InputError
from unbraid.files import read_toml
from unbraid.model.config import DebertaConfig, explain
from unbraid.pretraining.ablation import VARIANTS, Group, Name, Outcome, chosen, differences, rows_of, summary
from unbraid.pretraining.config import CorpusConfig, MaskingConfig, RtdConfig
from unbraid.training.config import TrainingConfig

PRETRAINING = "pretraining"
"""The folder of a pretraining, beside those of the tasks."""

NOTE = """
Masked loss: nats per hidden token of held-out text, the same tokens for all; where replaced tokens are detected it is
the loss of the generator, a smaller model. ±: the standard deviation over the seeds. Parameters: those that fine-tuning
starts from. The paper's columns are its own results, in percent, of models of 12 layers pretrained on 16 GB of text:
compare directions with them, not values.
"""


def _base() -> DebertaConfig:
    return DebertaConfig(position_buckets=None, share_att_key=False, norm_rel_ebd="none")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Pretrains the variants of the papers' tables alike, fine-tunes each, and compares them.

    Every variant reads the same text in the same order with the same tokens hidden. Killed at any moment, the same
    command continues. The table stands in OUTPUT/ablation.md (and .json), the curves in OUTPUT/ablation.png, the runs
    in OUTPUT/VARIANT/seed-SEED.
    """

    output: str
    """Folder of the ablation."""
    tokenizer: str
    """Folder or hub name of the tokenizer; the models' vocab_size follows from it."""
    variants: Annotated[tuple[Name | Group, ...], Field(min_length=1)] = ("table-4",)
    """Variants, or tables of the papers, to run; the differences are taken to the first of them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """One run of every variant for each seed, of the weights, dropout, the order of the text and what is hidden."""
    tasks: tuple[str, ...] = ()
    """Recipes of unbraid finetune, their data in them, to fine-tune every pretrained model with."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop with a checkpoint after this many minutes; the same command continues."""
    cache: str | None = None
    """Folder for the tokenised text; by default OUTPUT/corpus."""
    evaluation_batches: int = 32
    """Held-out micro-batches to measure on."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass of pretraining."""
    corpus: CorpusConfig
    """The text; its seed is that of the run."""
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    """What to hide."""
    rtd: RtdConfig = dataclasses.field(default_factory=RtdConfig)
    """Replaced token detection; sharing and decoupled are the variant's."""
    model: DebertaConfig = dataclasses.field(default_factory=_base)
    """What the variants start from: v1's attention, whose position projections are its own and which has no buckets."""
    training: TrainingConfig
    """The pretraining of each; its seed is that of the run."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> Config:
        if not self.corpus.held_out:
            raise ValueError("the variants are compared on held-out text: corpus.held_out must be more than 0.")
        if len({Path(task).stem for task in self.tasks}) < len(self.tasks):
            raise ValueError("two of the tasks have recipes of the same name: rename one.")
        if PRETRAINING in (Path(task).stem for task in self.tasks):
            raise ValueError(f"the recipe of a task cannot be called {PRETRAINING}: rename it.")
        seen: dict[str, str] = {}
        for name in self.names:
            variant = pretraining(self, name, 0)
            same = seen.setdefault(f"{variant.model} {variant.objective} {variant.rtd}", name)
            if same != name:
                raise ValueError(f"{same} and {name} are the same model here: leave one out, or change the base.")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The variants to run."""
        return chosen(self.variants)


def run(config: Config) -> None:
    """Runs what is left to run, and writes and prints the comparison of what is finished."""
    from accelerate import PartialState

    output, tasks = Path(config.output), read_tasks(config)
    speaks = PartialState(cpu=config.training.device == "cpu").is_main_process
    _check_same(config, tasks, record=speaks)
    ends = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    plan = [(seed, name) for seed in config.seeds for name in config.names]
    table, said = "", f"{output}: ablation.md, ablation.json, ablation.png"
    for number, (seed, name) in enumerate(plan, 1):
        if is_finished(config, tasks, name, seed):
            continue
        if speaks:
            print(f"{number} of {len(plan)}: {name}, seed {seed}", flush=True)
        if not train(config, tasks, name, seed, ends):
            said = f"{output}: stopped in run {number} of {len(plan)}; run the same again to continue."
            break
        table = compare(config, tasks) if speaks else ""
    if speaks:
        print(table or compare(config, tasks))
        print(said)


def pretraining(config: Config, name: str, seed: int) -> pretrain.Config:
    """The pretraining of one variant."""
    variant = VARIANTS[name]
    return pretrain.Config(
        output=str(_folder(config, name, seed) / PRETRAINING),
        tokenizer=config.tokenizer,
        objective=variant.objective,
        cache=config.cache or str(Path(config.output) / "corpus"),
        evaluation_batches=config.evaluation_batches,
        gradient_checkpointing=config.gradient_checkpointing,
        corpus=dataclasses.replace(config.corpus, seed=seed),
        masking=config.masking,
        rtd=dataclasses.replace(config.rtd, **variant.rtd),
        model=config.model.replace(**variant.model),
        training=dataclasses.replace(config.training, seed=seed),
    )


def finetuning(config: Config, recipe: finetune.Config, task: str, name: str, seed: int) -> finetune.Config:
    """The fine-tuning of one variant on one task."""
    folder = _folder(config, name, seed)
    return dataclasses.replace(
        recipe,
        model=str(folder / PRETRAINING / "model"),
        output=str(folder / task),
        training=dataclasses.replace(recipe.training, seed=seed),
    )


def read_tasks(config: Config) -> dict[str, finetune.Config]:
    """The recipes of the tasks by their names, with data that can be read.

    Raises:
        InputError: a recipe is missing, is not TOML, has an unknown or no needed field, or its data is faulty.
    """
    from unbraid.tasks.kinds import read_splits

    tasks = {}
    for path in map(Path, config.tasks):
        recipe = read_toml(path)
        try:
            task = TypeAdapter(finetune.Config).validate_python({**recipe, "model": "", "output": ""})
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from error
        if task.seeds is not None or task.folds is not None:
            raise InputError(f"{path}: an ablation makes one run for each of its own seeds; leave seeds and folds out.")
        read_splits(task.task)
        tasks[path.stem] = task
    return tasks


def train(
    config: Config, tasks: Mapping[str, finetune.Config], name: str, seed: int, ends: float | None = None
) -> bool:
    """Pretrains and fine-tunes one variant from where it stands; whether that is finished.

    Args:
        config: of the ablation.
        tasks: see :func:`read_tasks`.
        name: of the variant.
        seed: of the run.
        ends: when to stop with a checkpoint, by time.monotonic().

    Raises:
        InputError: what is wrong with the data or a folder; or no text fell into the held-out part.
    """

    def timed(training: TrainingConfig) -> TrainingConfig:
        if ends is None:
            return training
        return dataclasses.replace(training, max_minutes=max((ends - time.monotonic()) / 60, 1e-9))

    pretrained = pretraining(config, name, seed)
    if not is_pretrained(Path(pretrained.output)):
        result = pretrain.run(dataclasses.replace(pretrained, training=timed(pretrained.training)))
        if not result.finished:
            return False
        if not result.evaluation:
            raise InputError("no document fell into the held-out part: give more text, or more of corpus.held_out.")
    for task, recipe in tasks.items():
        tuned = finetuning(config, recipe, task, name, seed)
        if is_finetuned(Path(tuned.output)):
            continue
        if not finetune.run(dataclasses.replace(tuned, training=timed(tuned.training))):
            return False
    return True


def outcome(config: Config, tasks: Mapping[str, finetune.Config], name: str, seed: int) -> Outcome:
    """Reads a finished run from its folder."""
    import torch

    from unbraid.model.pretrained import Deberta
    from unbraid.report import read_metrics

    folder = _folder(config, name, seed)
    pretrained, tuned = folder / PRETRAINING, [folder / task for task in tasks]
    rows = read_metrics(pretrained, "evaluation")
    scores = {}
    for task, recipe in tasks.items():
        results = json.loads((folder / task / "results.json").read_text(encoding="utf-8"))
        scores[task] = 100 * results[_split(recipe)][recipe.task.best_by]
    with torch.device("meta"):
        encoder = Deberta(DebertaConfig.from_file(pretrained / "model" / "config.json"))
    return Outcome(
        steps=rows["step"].tolist(),
        losses=rows.get("generator_loss", rows["loss"]).tolist(),
        scores=scores,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        minutes=sum(read_metrics(run, "train")["elapsed_s"][-1] for run in (pretrained, *tuned)) / 60,
    )


def compare(config: Config, tasks: Mapping[str, finetune.Config]) -> str:
    """Writes ablation.json, ablation.md and ablation.png from the runs that are finished, if any; returns the table."""
    import numpy as np

    from unbraid.files import replace_bytes, replace_text
    from unbraid.report import comparison, markdown_table

    output = Path(config.output)
    found: dict[str, dict[int, Outcome]] = {}
    for name in config.names:
        seeds = [seed for seed in config.seeds if is_finished(config, tasks, name, seed)]
        if seeds:
            found[name] = {seed: outcome(config, tasks, name, seed) for seed in seeds}
    if not found:
        return ""
    table = markdown_table(
        *rows_of(found, {task: f"{task}, {_split(recipe)} {recipe.task.best_by}" for task, recipe in tasks.items()})
    )
    curves = {name: [run.losses for run in runs.values()] for name, runs in found.items()}
    steps = {name: next(iter(runs.values())).steps for name, runs in found.items()}
    lines = {name: (np.array(steps[name]), np.array(losses)) for name, losses in curves.items()}
    replace_text(output / "ablation.json", json.dumps(summary(found), indent=1))
    replace_text(output / "ablation.md", table + NOTE)
    plot = comparison(lines, "step", "masked loss on held-out text (nats)", differences(found))
    replace_bytes(output / "ablation.png", plot)
    return table


def is_pretrained(run: Path) -> bool:
    """Whether a pretraining is finished."""
    return (run / "model").is_dir()


def is_finetuned(run: Path) -> bool:
    """Whether a fine-tuning is finished."""
    return (run / "results.json").is_file()


def is_finished(config: Config, tasks: Iterable[str], name: str, seed: int) -> bool:
    """Whether a variant is pretrained, and fine-tuned on every task."""
    folder = _folder(config, name, seed)
    return is_pretrained(folder / PRETRAINING) and all(is_finetuned(folder / task) for task in tasks)


def _folder(config: Config, name: str, seed: int) -> Path:
    return Path(config.output) / name / f"seed-{seed}"


def _split(recipe: finetune.Config) -> str:
    """The examples that the score of a task is of."""
    return "test" if len(recipe.task.test) == 1 else "dev"


def _check_same(config: Config, tasks: Mapping[str, finetune.Config], *, record: bool) -> None:
    """Compares what decides the results with what it was when the folder's first run began; tasks may come later.

    Args:
        config: of the ablation.
        tasks: see :func:`read_tasks`.
        record: write it down for the next time.

    Raises:
        InputError: something else than before.
    """
    from unbraid.files import replace_text
    from unbraid.training.loop import FREE_FIELDS

    free = {*FREE_FIELDS, "output", "cache", "seed", "seeds", "variants", "tasks"}

    def settled(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        inner = (settled(entry, f"{name}.{key}") for key, entry in value.items() if key not in free)
        return {key: entry for part in inner for key, entry in part.items()}

    parts = {"ablation": config, **{f"tasks.{name}": recipe for name, recipe in tasks.items()}}
    now = {name: settled(dataclasses.asdict(part), name) for name, part in parts.items()}
    now = json.loads(json.dumps(now))
    path = Path(config.output) / "recipe.json"
    former = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in now.keys() & former.keys():
        for name in sorted(now[part].keys() | former[part].keys()):
            value, earlier = now[part].get(name), former[part].get(name)
            if value != earlier:
                raise InputError(
                    f"{config.output} holds an ablation where {name} was {earlier!r}, and here it is {value!r}: "
                    "give another folder, or the same values to continue."
                )
    if record:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(former | now, indent=1))
