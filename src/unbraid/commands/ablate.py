"""``unbraid ablate``: the papers' ablations at any size."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from filelock import FileLock
from pydantic import Field, model_validator

from unbraid.commands import finetune, pretrain
from unbraid.errors import InputError
from unbraid.files import read_toml, replace_bytes, replace_text, writing
from unbraid.model.config import DebertaConfig
from unbraid.pretraining.ablation import (
    VARIANTS,
    Found,
    Group,
    Name,
    Outcome,
    attention_rows,
    chosen,
    difference_rows,
    differences,
    rows_of,
    summary,
)
from unbraid.pretraining.config import CorpusConfig, MaskingConfig, RtdConfig
from unbraid.settings import read_settings, settings
from unbraid.training.config import TrainingConfig

if TYPE_CHECKING:
    from unbraid.pretraining.attention_maps import Attention
    from unbraid.pretraining.corpus import Corpus, Documents

PRETRAINING = "pretraining"
"""The folder of a pretraining, beside those of the tasks."""

ATTENTION = "attention.json"
"""Where a pretrained model looks, beside it."""

NOTE = """
Masked loss: nats per hidden token of held-out text, the same tokens for all; where replaced tokens are detected it is
the loss of the generator, a smaller model. ±: the standard deviation over the seeds. Parameters: those that fine-tuning
starts from. The paper's columns are its own results, in percent, of models of 12 layers pretrained on 16 GB of text:
compare directions with them, not values.
"""

DIFFERENCE_NOTE = """
Differences within a seed, their mean over the seeds, ± its standard error; points for scores, nats for the loss, where
less is better. Noise alone exceeds 12.7, 4.3, 3.2, 2.8 standard errors once in twenty times with 2, 3, 4, 5 seeds
(Student's t), and the more differences a table has, the likelier one of them is to.
"""

ATTENTION_NOTE = """
Of the attention that ordinary tokens (all but [CLS] and [SEP]) give away in the last layer, in percent: what stays with
the token itself (the diagonal of a map), goes to other ordinary tokens at distance 1 or 2 (near), to [CLS], to [SEP],
and to other ordinary tokens that are among the 20 most frequent pieces of the text (frequent, the vertical stripes; a
part of it is near as well). Means over heads and tokens of up to 64 held-out rows of up to 128 tokens, the same for
all, nothing hidden; ±: the standard deviation over the seeds. The layer is the encoder's own, as fine-tuning meets it.
"""


def _base() -> DebertaConfig:
    return DebertaConfig(position_buckets=None, share_att_key=False, norm_rel_ebd="none")


@settings
class Config:
    """Pretrains the variants of the papers' tables alike, fine-tunes each, and compares them.

    Every variant reads the same text in the same order with the same tokens hidden. Killed at any moment, the same
    command continues. The tables stand in OUTPUT/ablation.md (and .json), the curves in OUTPUT/ablation.png, maps of
    the last layer's attention in OUTPUT/attention.png, the runs in OUTPUT/VARIANT/seed-SEED.
    """

    output: str
    """Folder of the ablation."""
    tokenizer: str
    """Folder or hub name of the tokenizer; the models' vocab_size follows from it."""
    variants: Annotated[tuple[Name | Group, ...], Field(min_length=1)] = ("table-4",)
    """Variants, or tables of the papers, to run; differences are taken to deberta, else to the first."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """One run of every variant for each seed, of the weights, dropout, the order of the text and what is hidden."""
    tasks: tuple[str, ...] = ()
    """Recipes of unbraid finetune, their data in them, to fine-tune every pretrained model with."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop with a checkpoint after this many minutes; the same command continues."""
    cache: str | None = None
    """Folder for the tokenised text; by default OUTPUT/corpus."""
    evaluation_batches: Annotated[int, Field(ge=1)] = 32
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
        if self.training.patience is not None:
            raise ValueError("the variants are compared step by step: leave training.patience out.")
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
    import torch
    from accelerate import PartialState

    output, tasks = Path(config.output), read_tasks(config)
    processes = PartialState(cpu=config.training.device == "cpu" or not torch.accelerator.is_available())
    check_shared(config, tasks, processes.num_processes)
    speaks = processes.is_main_process
    corpus = read_corpus(config)
    _check_same(config, tasks, corpus.fingerprint, record=speaks)
    ends = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    plan = [(seed, name) for seed in config.seeds for name in config.names]
    text, said = "", f"{output}: ablation.md, ablation.json, ablation.png, attention.png"
    for number, (seed, name) in enumerate(plan, 1):
        if is_finished(config, tasks, name, seed):
            continue
        if speaks:
            print(f"{number} of {len(plan)}: {name}, seed {seed}{_left(config, tasks, plan)}", flush=True)
        if not train(config, tasks, name, seed, corpus.held_out, ends):
            said = f"{output}: stopped in run {number} of {len(plan)}; run the same again to continue."
            break
        text = compare(config, tasks) if speaks else ""
    if speaks:
        print(text or compare(config, tasks))
        print(said)


def pretraining(config: Config, name: str, seed: int) -> pretrain.Config:
    """The pretraining of one variant."""
    variant = VARIANTS[name]
    return pretrain.Config(
        output=str(_folder(config, name, seed) / PRETRAINING),
        tokenizer=config.tokenizer,
        objective=variant.objective,
        cache=_cache(config),
        evaluation_batches=config.evaluation_batches,
        gradient_checkpointing=config.gradient_checkpointing,
        corpus=dataclasses.replace(config.corpus, seed=seed),
        masking=config.masking,
        rtd=dataclasses.replace(config.rtd, **variant.rtd) if variant.objective == "rtd" else RtdConfig(),
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
        task = read_settings(finetune.Config, {**recipe, "model": "", "output": ""}, str(path))
        if task.seeds is not None or task.folds is not None:
            raise InputError(f"{path}: an ablation makes one run for each of its own seeds; leave seeds and folds out.")
        read_splits(task.task)
        tasks[path.stem] = task
    return tasks


def check_shared(config: Config, tasks: Mapping[str, finetune.Config], processes: int) -> None:
    """Checks at once what would end the ablation when the first fine-tuning begins.

    Raises:
        InputError: the processes cannot share the micro-batches of a step evenly.
    """
    for name, training in {"": config.training, **{f"{name}: ": tasks[name].training for name in tasks}}.items():
        if training.micro_batches % processes:
            raise InputError(
                f"{name}training.micro_batches is {training.micro_batches}, which {processes} processes cannot share "
                f"evenly: make it a multiple of {processes}."
            )


def read_corpus(config: Config) -> Corpus:
    """The text, tokenised if it is not yet.

    Raises:
        InputError: no text fell into the held-out part, or see :func:`unbraid.pretraining.corpus.prepare`.
    """
    from unbraid.pretraining.corpus import prepare
    from unbraid.text.tokenizer import Tokenizer

    corpus = prepare(config.corpus, Tokenizer.from_pretrained(config.tokenizer), _cache(config))
    if not len(corpus.held_out):
        raise InputError(
            "no document fell into the held-out part: give more text, or more of corpus.held_out; "
            "--corpus.document line makes each line of a text file a document."
        )
    return corpus


def train(
    config: Config,
    tasks: Mapping[str, finetune.Config],
    name: str,
    seed: int,
    held_out: Documents,
    ends: float | None = None,
) -> bool:
    """Pretrains, measures and fine-tunes one variant from where it stands; whether that is finished.

    Args:
        config: of the ablation.
        tasks: see :func:`read_tasks`.
        name: of the variant.
        seed: of the run.
        held_out: text to measure the attention on.
        ends: when to stop with a checkpoint, by time.monotonic().

    Raises:
        InputError: what is wrong with the data or a folder.
    """
    from unbraid.processes import is_first

    def timed(training: TrainingConfig) -> TrainingConfig:
        if ends is None:
            return training
        return dataclasses.replace(training, max_minutes=max((ends - time.monotonic()) / 60, 1e-9))

    pretrained = pretraining(config, name, seed)
    if not is_pretrained(Path(pretrained.output)):
        result = pretrain.run(dataclasses.replace(pretrained, training=timed(pretrained.training)))
        if not result.finished:
            return False
    if is_first() and not is_measured(Path(pretrained.output)):
        measure_attention(Path(pretrained.output), held_out, config.corpus.sequence_length)
    for task, recipe in tasks.items():
        tuned = finetuning(config, recipe, task, name, seed)
        if is_finetuned(Path(tuned.output)):
            continue
        if not finetune.run(dataclasses.replace(tuned, training=timed(tuned.training))):
            return False
    return True


def measure_attention(run: Path, held_out: Documents, longest: int) -> None:
    """Writes where the model of a finished pretraining looks in held-out text, in rows of up to ``longest`` tokens.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    from unbraid.model.pretrained import Deberta
    from unbraid.pretraining.attention_maps import measure
    from unbraid.text.tokenizer import Tokenizer

    model = run / "model"
    found = measure(Deberta.from_pretrained(model), Tokenizer.from_pretrained(model), held_out, longest)
    with writing(run):
        replace_text(run / ATTENTION, json.dumps(dataclasses.asdict(found)))


def read_attention(run: Path) -> Attention:
    """What :func:`measure_attention` wrote."""
    from unbraid.pretraining.attention_maps import Attention

    return Attention.from_json(json.loads((run / ATTENTION).read_text(encoding="utf-8")))


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
        attention=read_attention(pretrained).shares,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        minutes=sum(read_metrics(run, "train")["elapsed_s"][-1] for run in (pretrained, *tuned)) / 60,
    )


def finished(config: Config, tasks: Mapping[str, finetune.Config]) -> Found:
    """The outcomes of the runs that are finished, by variant and seed."""
    found = {
        name: {
            seed: outcome(config, tasks, name, seed) for seed in config.seeds if is_finished(config, tasks, name, seed)
        }
        for name in config.names
    }
    return {name: runs for name, runs in found.items() if runs}


def compare(config: Config, tasks: Mapping[str, finetune.Config]) -> str:
    """Writes ablation.json, .md and .png and attention.png from the runs that are finished, if any.

    Returns:
        What stands in ablation.md.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    import numpy as np

    from unbraid.report import attention_maps, comparison, markdown_table

    output = Path(config.output)
    with _alone(output):
        found = finished(config, tasks)
        if not found:
            return ""
        scores = {task: f"{task}, {_split(recipe)} {recipe.task.best_by}" for task, recipe in tasks.items()}
        looks = {
            name: read_attention(_folder(config, name, next(iter(runs))) / PRETRAINING) for name, runs in found.items()
        }
        even = next(iter(looks.values())).even
        parts = [markdown_table(*rows_of(found, scores)) + NOTE]
        head, differing = difference_rows(found, scores)
        if differing:
            parts.append(markdown_table(head, differing) + DIFFERENCE_NOTE)
        parts.append(markdown_table(*attention_rows(found, even)) + ATTENTION_NOTE)
        text = "\n".join(parts)
        lines = {
            name: (np.array(next(iter(runs.values())).steps), np.array([run.losses for run in runs.values()]))
            for name, runs in found.items()
        }
        maps = {name: [(np.array(each.weights), each.tokens) for each in look.maps] for name, look in looks.items()}
        plot = comparison(lines, "step", "masked loss on held-out text (nats)", differences(found))
        with writing(output):
            replace_text(output / "ablation.json", json.dumps(summary(found), indent=1))
            replace_text(output / "ablation.md", text)
            replace_bytes(output / "ablation.png", plot)
            replace_bytes(output / "attention.png", attention_maps(maps))
        return text


def is_pretrained(run: Path) -> bool:
    """Whether a pretraining is finished."""
    return (run / "model").is_dir()


def is_measured(run: Path) -> bool:
    """Whether the attention of a pretrained model is measured."""
    return (run / ATTENTION).is_file()


def is_finetuned(run: Path) -> bool:
    """Whether a fine-tuning is finished."""
    return (run / "results.json").is_file()


def is_finished(config: Config, tasks: Iterable[str], name: str, seed: int) -> bool:
    """Whether a variant is pretrained, measured, and fine-tuned on every task."""
    folder = _folder(config, name, seed)
    pretrained = folder / PRETRAINING
    return is_pretrained(pretrained) and is_measured(pretrained) and all(is_finetuned(folder / task) for task in tasks)


def _alone(output: Path) -> FileLock:
    """Held while the files of all runs together are read and written: other processes may make runs beside this one."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    return FileLock(output / ".lock")


def _folder(config: Config, name: str, seed: int) -> Path:
    return Path(config.output) / name / f"seed-{seed}"


def _cache(config: Config) -> str:
    return config.cache or str(Path(config.output) / "corpus")


def _left(config: Config, tasks: Mapping[str, finetune.Config], plan: Sequence[tuple[int, str]]) -> str:
    """How long the runs that are left will take, if they take as long as those before."""
    minutes = [run.minutes for runs in finished(config, tasks).values() for run in runs.values()]
    if not minutes:
        return ""
    left = 60 * sum(minutes) / len(minutes) * (len(plan) - len(minutes))
    return f"; about {datetime.timedelta(seconds=round(left))} left"


def _split(recipe: finetune.Config) -> str:
    """The examples that the score of a task is of."""
    return "test" if len(recipe.task.test) == 1 else "dev"


def _check_same(config: Config, tasks: Mapping[str, finetune.Config], text: Mapping[str, Any], *, record: bool) -> None:
    """Compares what decides the results with what it was when the folder's first run began; tasks may come later.

    Args:
        config: of the ablation.
        tasks: see :func:`read_tasks`.
        text: see :attr:`Corpus.fingerprint`.
        record: write it down for the next time.

    Raises:
        InputError: something else than before, or the folder cannot be written.
    """
    from unbraid.training.loop import FREE_FIELDS

    free = {*FREE_FIELDS, "output", "cache", "seed", "seeds", "variants", "tasks"}

    def settled(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        inner = (settled(entry, f"{name}.{key}") for key, entry in value.items() if key not in free)
        return {key: entry for part in inner for key, entry in part.items()}

    parts = {"ablation": config, **{f"tasks.{name}": recipe for name, recipe in tasks.items()}}
    now = {name: settled(dataclasses.asdict(part), name) for name, part in parts.items()}
    now = json.loads(json.dumps({**now, "text": settled(text, "text")}))
    path = Path(config.output) / "recipe.json"
    with _alone(path.parent):
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
            with writing(path.parent):
                replace_text(path, json.dumps(former | now, indent=1))
