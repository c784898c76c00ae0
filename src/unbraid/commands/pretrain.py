"""``unbraid pretrain``: from text to a DeBERTa, by any of the papers' objectives."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from unbraid.model.config import DebertaConfig
from unbraid.pretraining.config import CorpusConfig, MaskingConfig, RtdConfig
from unbraid.settings import settings
from unbraid.training.config import TrainingConfig

if TYPE_CHECKING:
    from unbraid.pretraining.corpus import Documents
    from unbraid.pretraining.evaluation import Batches
    from unbraid.pretraining.mlm import MaskedLanguageModeling
    from unbraid.pretraining.rtd import ReplacedTokenDetection
    from unbraid.text.tokenizer import Tokenizer
    from unbraid.training.loop import Result

EVALUATION_SEED = 0
"""Of the tokens hidden in held-out text: the same for every run, so that losses compare."""

_UNREAD = {"mlm": ("rtd",), "rtd": (), "causal": ("masking", "rtd"), "joint": ("rtd",)}
"""The tables of options that an objective does not read."""


@settings
class Config:
    """Pretrains a model: masked tokens with the Enhanced Mask Decoder, replaced tokens, next tokens.

    Killed at any moment, the same command continues exactly. The trained model stands in OUTPUT/model, the one with
    the lowest held-out loss in OUTPUT/best, the curve in OUTPUT/metrics.jsonl. A discriminator's generator stands in
    a folder within. Many processes: torchrun --nproc-per-node 8 -m unbraid pretrain ...
    """

    output: str
    """Folder of the run."""
    tokenizer: str
    """Folder or hub name of the tokenizer; the model's vocab_size follows from it."""
    preset: str | None = None
    """Released size to start from, e.g. deberta-v3-small; the model options override it."""
    continue_from: str | None = None
    """Folder or hub name of a pretrained model to continue from; the model options are then not read."""
    objective: Literal["mlm", "rtd", "causal", "joint"] = "mlm"
    """Masked tokens, replaced tokens (v3), the next token, or masked and next tokens in turn."""
    cache: str | None = None
    """Folder for the tokenised text; by default OUTPUT/corpus."""
    evaluation_batches: Annotated[int, Field(ge=1)] = 32
    """Held-out micro-batches to measure on."""
    backend: Literal["auto", "native", "reference", "sdpa"] = "auto"
    """How attention is computed; unbraid info says what auto takes. The others are for comparison."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: slower, but the activations of one layer at a time in memory."""
    corpus: CorpusConfig
    """The text."""
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    """What to hide."""
    rtd: RtdConfig = dataclasses.field(default_factory=RtdConfig)
    """Replaced token detection, if that is the objective."""
    model: DebertaConfig = dataclasses.field(default_factory=DebertaConfig)
    """The model; for replaced token detection the discriminator."""
    training: TrainingConfig
    """The run."""

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Config:
        changed = [
            f"{part}.{field.name}"
            for part in _UNREAD[self.objective]
            for field in dataclasses.fields(getattr(self, part))
            if getattr(getattr(self, part), field.name) != field.default
        ]
        if changed:
            raise ValueError(f"the objective is {self.objective}, so {changed[0]} does nothing: leave it out.")
        return self


def run(config: Config) -> Result:
    """Pretrains, and writes the model with its tokenizer."""
    import torch

    from unbraid.pretraining.corpus import prepare
    from unbraid.pretraining.mlm import evaluate_mlm
    from unbraid.pretraining.rtd import GENERATOR_FOLDER, ReplacedTokenDetection, evaluate_rtd
    from unbraid.pretraining.streams import training_stream
    from unbraid.processes import is_first
    from unbraid.text.tokenizer import Tokenizer
    from unbraid.training.loop import train

    output = Path(config.output)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    corpus = prepare(config.corpus, tokenizer, config.cache or output / "corpus")
    torch.manual_seed(config.training.seed)
    objective = make_objective(config, tokenizer)

    def run_length(per_epoch: int) -> int:
        return config.training.num_steps(per_epoch) * config.training.micro_batches

    batches = training_stream(corpus, config.corpus, functools.partial(make_batches, config, tokenizer), run_length)
    held_out = None
    if len(corpus.held_out):
        held_out = make_batches(
            config, tokenizer, corpus.held_out, config.corpus.sequence_length, EVALUATION_SEED, True
        )
    elif config.corpus.held_out:
        _say(
            "no document fell into the held-out part, so nothing is evaluated; "
            "--corpus.document line makes each line of a text file a document."
        )

    def evaluate() -> dict[str, float]:
        if held_out is None:
            return {}
        if isinstance(objective, ReplacedTokenDetection):
            return evaluate_rtd(objective, held_out, config.evaluation_batches)
        return evaluate_mlm(objective, held_out, config.evaluation_batches)

    def save(folder: Path) -> None:
        objective.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if isinstance(objective, ReplacedTokenDetection):
            tokenizer.save_pretrained(folder / GENERATOR_FOLDER)

    described = dataclasses.asdict(config)
    result = train(
        objective,
        batches,
        config.training,
        output,
        recipe={key: value for key, value in described.items() if key not in ("output", "cache", "training")},
        data=corpus.fingerprint,
        evaluate=evaluate if held_out else None,
        evaluate_first=config.continue_from is not None,
        best=("loss", "min") if held_out else None,
        save_best=save,
        save_last=save,
    )
    if result.finished and is_first():
        scores = ", ".join(f"{name} {value:.4g}" for name, value in result.evaluation.items())
        print(f"{output / 'model'}: {result.steps:,} steps in {result.elapsed_s / 60:.1f} minutes; held out: {scores}")
    return result


def make_batches(
    config: Config,
    tokenizer: Tokenizer,
    documents: Documents,
    sequence_length: int,
    seed: int,
    held_out: bool = False,
) -> Batches:
    """Micro-batches of some documents, for the objective; held-out text of a joint run is for the next token alone."""
    from unbraid.pretraining.causal import CausalBatches, JointBatches
    from unbraid.pretraining.mlm import MaskedBatches

    batch_tokens = config.corpus.batch_tokens
    masked = MaskedBatches(
        documents, tokenizer, config.masking, sequence_length=sequence_length, batch_tokens=batch_tokens, seed=seed
    )
    if config.objective == "causal" or (config.objective == "joint" and held_out):
        return CausalBatches(masked)
    if config.objective == "joint":
        return JointBatches(masked, CausalBatches(masked))
    return masked


def make_objective(config: Config, tokenizer: Tokenizer) -> MaskedLanguageModeling | ReplacedTokenDetection:
    """What is trained: new models, or those to continue from.

    Raises:
        InputError: nothing to continue from, or a vocabulary smaller than the tokenizer's.
    """
    from unbraid.errors import InputError
    from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
    from unbraid.pretraining.continuing import continued_mlm, continued_rtd
    from unbraid.pretraining.mlm import MaskedLanguageModeling
    from unbraid.pretraining.rtd import ReplacedTokenDetection
    from unbraid.pretraining.sharing import same_tables

    shape, source, notes = config.model.replace(vocab_size=len(tokenizer)), config.continue_from, []
    if config.objective == "rtd":
        if source is None:
            layers = config.rtd.generator_layers or max(2, shape.num_hidden_layers // 2)
            generator = DebertaForMaskedLM(shape.replace(num_hidden_layers=layers))
            discriminator = DebertaForReplacedTokenDetection(shape)
        else:
            generator, discriminator, notes = continued_rtd(source, config.rtd.generator_layers)
            tables = generator.deberta.embeddings, discriminator.deberta.embeddings
            if config.rtd.sharing == "es" and not same_tables(*tables):
                notes.append(f"{source} has embeddings other than its generator's: they give way to these (es).")
        models = [generator, discriminator]
        objective = ReplacedTokenDetection(
            generator, discriminator, config.rtd, config.masking, tokenizer, keep_embeddings=source is not None
        )
    else:
        model, notes = (DebertaForMaskedLM(shape), []) if source is None else continued_mlm(source)
        models = [model]
        objective = MaskedLanguageModeling(model, config.masking.hide_kept_tokens)
    for note in notes:
        _say(note)
    for model in models:
        if model.config.vocab_size < len(tokenizer):
            raise InputError(
                f"{config.tokenizer} has {len(tokenizer):,} tokens but {source} only {model.config.vocab_size:,}; "
                "give the tokenizer that it was pretrained with."
            )
        model.deberta.encoder.gradient_checkpointing = config.gradient_checkpointing
        model.deberta.encoder.backend = config.backend
    return objective


def _say(sentence: str) -> None:
    """Prints a remark, in the first process alone."""
    from unbraid.processes import is_first

    if is_first():
        print(sentence, file=sys.stderr)
