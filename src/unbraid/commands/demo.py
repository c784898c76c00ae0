"""``unbraid demo``: the main job on real text, small enough for a few minutes on two cores."""

from __future__ import annotations

import os
import platform
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from unbraid.commands import finetune, pretrain, tokenizer
from unbraid.model.config import DebertaConfig
from unbraid.pretraining.config import CorpusConfig
from unbraid.tasks.config import TaskConfig
from unbraid.training.config import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from unbraid.inference import Candidate
    from unbraid.report import Section

SENTENCES = (
    "The city is the capital of [MASK].",
    "He was born in 1879 and [MASK] in 1955.",
    "The [MASK] of the United States was elected in 1860.",
    "It is one of [MASK] most important works.",
    "The river flows to the [MASK] of the town.",
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Trains a small DeBERTa on real text and reports what it learned.

    From text within the package: trains a tokenizer, pretrains a v3-style model with the mask decoder, fine-tunes it on
    the sentiment of film reviews, does the same without pretraining, and writes OUTPUT/report.html.
    """

    output: str = "runs/demo"
    """Folder to write."""
    vocab_size: Annotated[int, Field(ge=100)] = 6000
    """Tokens of the vocabulary."""
    steps: Annotated[int, Field(ge=1)] = 600
    """Steps of pretraining, 2,048 tokens each."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the reviews."""


def run(config: Config) -> None:
    """Runs all of it and writes the report."""
    import torch

    from unbraid.model.pretrained import DebertaForMaskedLM
    from unbraid.text.tokenizer import Tokenizer

    began = time.monotonic()
    output = Path(config.output)
    data = resources.files("unbraid") / "data"
    wikipedia = str(data / "wikipedia.txt.gz")

    print(f"1/4 training a tokenizer of {config.vocab_size:,} tokens", flush=True)
    tokenizer.run(
        tokenizer.Config(
            action="train", path=(wikipedia,), output=str(output / "tokenizer"), vocab_size=config.vocab_size
        )
    )
    print(f"2/4 pretraining: {config.steps:,} steps", flush=True)
    pretraining = pretrain.Config(
        output=str(output / "pretraining"),
        tokenizer=str(output / "tokenizer"),
        evaluation_batches=16,
        corpus=CorpusConfig(path=wikipedia, sequence_length=128, batch_tokens=2048),
        model=DebertaConfig(
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=768,
            max_position_embeddings=256,
            position_buckets=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        training=TrainingConfig(
            steps=config.steps,
            optimizer=OptimizerConfig(learning_rate=1e-3, beta2=0.98),
            checkpoint_every=0.25,
        ),
    )
    pretrain.run(pretraining)

    torch.manual_seed(0)
    untrained = DebertaForMaskedLM(DebertaForMaskedLM.from_pretrained(output / "pretraining/model").config)
    untrained.save_pretrained(output / "untrained")
    Tokenizer.from_pretrained(output / "tokenizer").save_pretrained(output / "untrained")
    scores = {}
    for number, (name, model) in enumerate({"pretrained": "pretraining/model", "from scratch": "untrained"}.items()):
        print(f"{number + 3}/4 fine-tuning on film reviews, {name}", flush=True)
        scores[name] = finetune.run(
            finetune.Config(
                model=str(output / model),
                output=str(output / name.replace(" ", "-")),
                dropout=0.1,
                task=TaskConfig(
                    train=str(data / "reviews.train.jsonl.gz"),
                    dev=str(data / "reviews.dev.jsonl.gz"),
                    test=(str(data / "reviews.test.jsonl.gz"),),
                    max_length=128,
                    batch_size=64,
                ),
                training=TrainingConfig(epochs=config.epochs, optimizer=OptimizerConfig(learning_rate=5e-4)),
            )
        )
        if not scores[name]:
            return
    minutes = (time.monotonic() - began) / 60
    write(output, pretraining, scores, minutes)
    print(f"{output / 'report.html'}: the report, after {minutes:.1f} minutes")


def write(
    output: Path, pretraining: pretrain.Config, scores: dict[str, dict[str, dict[str, float]]], minutes: float
) -> None:
    """Writes the report of what stands in the output folder."""
    import torch

    from unbraid.report import write_report

    introduction = (
        f"Everything on this page was computed in {minutes:.1f} minutes on {os.cpu_count()} cores "
        f"({platform.machine()}, PyTorch {torch.__version__}) by `unbraid demo`, from text that ships with the package."
    )
    sections = [
        _pretraining(pretraining),
        _filled(output),
        _attention(output),
        _finetuning(output, scores),
    ]
    write_report(output / "report.html", "A small DeBERTa, from raw text to a classifier", introduction, sections)


def _pretraining(config: pretrain.Config) -> Section:
    from unbraid.pretraining.corpus import prepare
    from unbraid.pretraining.mlm import MaskedBatches, frequency_loss
    from unbraid.report import Section, curves, read_metrics, smooth
    from unbraid.text.tokenizer import Tokenizer

    run = Path(config.output)
    tokens = Tokenizer.from_pretrained(config.tokenizer)
    corpus = prepare(config.corpus, tokens, run / "corpus")
    lengths = {"sequence_length": config.corpus.sequence_length, "batch_tokens": config.corpus.batch_tokens}
    held_out = MaskedBatches(corpus.held_out, tokens, config.masking, **lengths, seed=pretrain.EVALUATION_SEED)
    by_frequency = frequency_loss(corpus.train, held_out, len(tokens), config.evaluation_batches)
    train, evaluation = read_metrics(run, "train"), read_metrics(run, "evaluation")
    plot = curves(
        {
            "training text": (train["step"], smooth(train["loss"], 10)),
            "held-out text": (evaluation["step"], evaluation["loss"]),
        },
        "step",
        "masked loss (nats a token)",
        {"guessing by frequency alone": by_frequency},
    )
    text = (
        f"A v3-style model ({config.model.num_hidden_layers} layers of {config.model.hidden_size}, Enhanced Mask "
        f"Decoder) saw {int(train['tokens'][-1]):,} tokens of Wikipedia. Its loss at hidden tokens of held-out "
        f"articles was {evaluation['loss'][0]:.2f} nats after {int(evaluation['step'][0])} steps and "
        f"{evaluation['loss'][-1]:.2f} at the end; always guessing by frequency gives {by_frequency:.2f}. It names "
        f"{evaluation['accuracy'][-1]:.1%} of them exactly. Large models train for days to get below 2."
    )
    return Section("Pretraining: fill in what is hidden", text, plot)


def _filled(output: Path) -> Section:
    from unbraid.inference import FillMask
    from unbraid.report import Section, table

    filled = FillMask.from_pretrained(str(output / "pretraining/model")).predict(SENTENCES)
    rows = [[text, _guesses(prediction["masks"][0])] for text, prediction in zip(SENTENCES, filled, strict=True)]
    return Section(
        "What it puts in the gap",
        "The five tokens it finds most likely at each [MASK].",
        table(["text", "guesses"], rows),
    )


def _guesses(candidates: list[Candidate]) -> str:
    words = [(guess["token"].replace("▁", " ").strip() or "(space)", guess["probability"]) for guess in candidates]
    return " · ".join(f"{word} {probability:.1%}" for word, probability in words)


def _attention(output: Path) -> Section:
    import torch

    from unbraid.model.pretrained import Deberta
    from unbraid.report import Section, attention_map
    from unbraid.text.tokenizer import Tokenizer

    tokens = Tokenizer.from_pretrained(output / "pretraining/model")
    encoding = tokens.encode("The old bridge over the river was built in the nineteenth century, when the city grew.")
    with torch.no_grad():
        encoder = Deberta.from_pretrained(output / "pretraining/model")
        weights = encoder(torch.tensor([encoding.ids]), output_attentions=True).attentions[-1][0].mean(0)
    pieces = [tokens.token(token) for token in encoding.ids]
    return Section(
        "Where the last layer looks",
        "Attention of the last layer, the mean of its heads, as in figures 3 to 5 of the paper: there DeBERTa shows "
        "hardly a diagonal, since its decoder adds absolute positions to the query, and a stripe at [CLS].",
        attention_map(weights.numpy(), pieces),
    )


def _finetuning(output: Path, scores: dict[str, dict[str, dict[str, float]]]) -> Section:
    from unbraid.report import Section, curves, read_metrics, table

    runs = {name: read_metrics(output / name.replace(" ", "-"), "evaluation") for name in scores}
    plot = curves(
        {name: (rows["step"], rows["accuracy"]) for name, rows in runs.items()}, "step", "accuracy on dev reviews"
    )
    words, count = _bag_of_words()
    rows = [["words and pairs of words, counted (TF-IDF, logistic regression)", "", f"{words:.1%}"]]
    rows += [
        [f"DeBERTa, {name}", f"{result['dev']['accuracy']:.1%}", f"{result['test']['accuracy']:.1%}"]
        for name, result in scores.items()
    ]
    error = (words * (1 - words) / count) ** 0.5
    difference = scores["pretrained"]["test"]["accuracy"] - scores["from scratch"]["test"]["accuracy"]
    verdict = "helped" if difference > 2 * error else "hurt" if difference < -2 * error else "made no clear difference"
    text = (
        f"The same model fine-tuned on the sentiment of film reviews, with and without pretraining. Of {count} test "
        f"sentences an accuracy is uncertain by about {error:.1%} (one standard error). A few minutes of pretraining "
        f"{verdict} here ({difference:+.1%})."
    )
    return Section("Fine-tuning: is the review positive?", text, plot + table(["", "dev", "test"], rows))


def _bag_of_words() -> tuple[float, int]:
    """Test accuracy of a classical baseline, and the number of test examples."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from unbraid.tasks.config import DataConfig
    from unbraid.tasks.examples import read_examples

    data = resources.files("unbraid") / "data"
    train, test = (
        read_examples(str(data / f"reviews.{split}.jsonl.gz"), DataConfig(), kind="classification")
        for split in ("train", "test")
    )
    baseline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    baseline.fit([example.text for example in train], [example.label for example in train])
    accuracy = baseline.score([example.text for example in test], [example.label for example in test])
    return float(accuracy), len(test)
