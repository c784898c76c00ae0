"""``unbraid demo``: what the shipped model can do, and what it learns in a few minutes on two cores."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from unbraid.commands import finetune, pretrain
from unbraid.pretraining.config import CorpusConfig
from unbraid.settings import settings
from unbraid.tasks.config import DataConfig, TaskConfig
from unbraid.training.config import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from unbraid.inference import Candidate
    from unbraid.report import Section
    from unbraid.tasks.examples import Example
    from unbraid.tasks.rows import Row

MODEL = "unbraid-mini-en"
SCRATCH = "from scratch"
DATA = resources.files("unbraid") / "data"
SENTENCES = (
    "The capital of [MASK] is Paris.",
    "He was born in 1879 and [MASK] in 1955.",
    "The [MASK] of the United States was elected in 1860.",
    "The river flows to the [MASK] of the town.",
    "She opened the [MASK] and read the first page.",
    "Water is made of [MASK] and oxygen.",
)
TAGGED = "The old bridge over the river was quickly rebuilt, and the city grew."

Scores = dict[str, dict[str, dict[str, float]]]
"""Run -> dev or test -> metric -> value."""


@settings
class Config:
    """Shows the model that comes with the package, unbraid-mini-en, and trains it further, with no network.

    Fills masks with it, continues its pretraining on film reviews, fine-tunes it on their sentiment and on tagging
    parts of speech, does both again from untrained weights, and writes OUTPUT/report.html.
    """

    output: str = "runs/demo"
    """Folder to write."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Steps of continued pretraining, 2,048 tokens each."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the reviews; over the far fewer tagged sentences four times as many."""


def run(config: Config) -> None:
    """Runs all of it and writes the report."""
    began = time.monotonic()
    output = Path(config.output)

    print(f"1/5 continuing the pretraining of {MODEL} on film reviews: {config.steps:,} steps", flush=True)
    pretraining = _pretraining(config)
    if not pretrain.run(pretraining).finished:
        return
    write_untrained(output / "untrained")
    sources = {MODEL: MODEL, SCRATCH: str(output / "untrained")}
    tasks = {"reviews": _reviews(config), "tagging": _tagging(config)}
    scores: dict[str, Scores] = {task: {} for task in tasks}
    plan = [(task, start) for task in tasks for start in sources]
    for number, (task, start) in enumerate(plan, 2):
        print(f"{number}/5 fine-tuning on {task}, {start}", flush=True)
        scores[task][start] = finetune.run(
            finetune.Config(
                model=sources[start],
                output=str(_folder(output, task, start)),
                dropout=0.1,
                task=tasks[task][0],
                training=tasks[task][1],
            )
        )
        if not scores[task][start]:
            return
    write(output, pretraining, scores)
    print(f"{output / 'report.html'}: the report, after {(time.monotonic() - began) / 60:.1f} minutes")


def write_untrained(folder: Path) -> None:
    """Writes the same model with fresh weights."""
    import torch

    from unbraid.model.pretrained import DebertaForMaskedLM
    from unbraid.text.tokenizer import Tokenizer

    torch.manual_seed(0)
    DebertaForMaskedLM(DebertaForMaskedLM.from_pretrained(MODEL).config).save_pretrained(folder)
    Tokenizer.from_pretrained(MODEL).save_pretrained(folder)


def write(output: Path, pretraining: pretrain.Config, scores: dict[str, Scores]) -> None:
    """Writes the report of what stands in the output folder."""
    import torch

    from unbraid.report import read_metrics, write_report

    runs = [_folder(output, task, start) for task, by_start in scores.items() for start in by_start]
    seconds = sum(read_metrics(run, "train")["elapsed_s"][-1] for run in (Path(pretraining.output), *runs))
    introduction = (
        f"{MODEL} is a DeBERTa of a few million weights that comes with the package. Everything else on this page was "
        f"learned in {seconds / 60:.1f} minutes on {os.cpu_count()} cores ({platform.machine()}, PyTorch "
        f"{torch.__version__}) by `unbraid demo`, without a network."
    )
    sections = [
        _filled(),
        _attention(),
        _continued(pretraining),
        _classified(output, scores["reviews"]),
        _tagged(output, scores["tagging"]),
    ]
    write_report(output / "report.html", "A small DeBERTa that knows English", introduction, sections)


def _folder(output: Path, task: str, start: str) -> Path:
    return output / task / start.replace(" ", "-")


def _pretraining(config: Config) -> pretrain.Config:
    return pretrain.Config(
        output=str(Path(config.output) / "pretraining"),
        tokenizer=MODEL,
        continue_from=MODEL,
        evaluation_batches=16,
        corpus=CorpusConfig(path=str(DATA / "reviews.train.jsonl.gz"), sequence_length=128, batch_tokens=2048),
        training=TrainingConfig(
            steps=config.steps,
            optimizer=OptimizerConfig(learning_rate=3e-4, beta2=0.98),
            evaluate_every=0.2,
            checkpoint_every=0.25,
        ),
    )


def _reviews(config: Config) -> tuple[TaskConfig, TrainingConfig]:
    return (
        TaskConfig(
            train=str(DATA / "reviews.train.jsonl.gz"),
            dev=str(DATA / "reviews.dev.jsonl.gz"),
            test=(str(DATA / "reviews.test.jsonl.gz"),),
            max_length=128,
        ),
        TrainingConfig(epochs=config.epochs, optimizer=OptimizerConfig(learning_rate=3e-4), evaluate_every=0.2),
    )


def _tagging(config: Config) -> tuple[TaskConfig, TrainingConfig]:
    return (
        TaskConfig(
            kind="token-classification",
            train=str(DATA / "tags.train.jsonl.gz"),
            dev=str(DATA / "tags.dev.jsonl.gz"),
            test=(str(DATA / "tags.test.jsonl.gz"),),
            data=DataConfig(words="tokens", label="tags"),
            metric="accuracy",
            batch_size=16,
            max_length=128,
        ),
        TrainingConfig(epochs=4 * config.epochs, optimizer=OptimizerConfig(learning_rate=5e-4), evaluate_every=0.2),
    )


def _filled() -> Section:
    from unbraid.inference import FillMask
    from unbraid.report import Section, table

    filled = FillMask.from_pretrained(MODEL).predict(SENTENCES)
    rows = [[text, _guesses(prediction["masks"][0])] for text, prediction in zip(SENTENCES, filled, strict=True)]
    return Section(
        "What it puts in the gap",
        "The five tokens it finds most likely at each [MASK].",
        table(["text", "guesses"], rows),
    )


def _guesses(candidates: list[Candidate]) -> str:
    words = [(guess["token"].replace("▁", " ").strip() or "(space)", guess["probability"]) for guess in candidates]
    return " · ".join(f"{word} {probability:.1%}" for word, probability in words)


def _attention() -> Section:
    import torch

    from unbraid.model.pretrained import Deberta
    from unbraid.report import Section, attention_map
    from unbraid.text.tokenizer import Tokenizer

    tokens = Tokenizer.from_pretrained(MODEL)
    encoding = tokens.encode("The old bridge over the river was built in the nineteenth century, when the city grew.")
    with torch.no_grad():
        weights = Deberta.from_pretrained(MODEL)(torch.tensor([encoding.ids]), output_attentions=True).attentions[-1]
    pieces = [tokens.token(token) for token in encoding.ids]
    return Section(
        "Where the last layer looks",
        "Attention of the last layer, the mean of its heads, as in figures 3 to 5 of the paper. Vertical stripes are "
        "tokens that all others read; beside the diagonal are the neighbours.",
        attention_map(weights[0].mean(0).numpy(), pieces),
    )


def _continued(config: pretrain.Config) -> Section:
    from unbraid.report import Section, curves, read_metrics, smooth

    run = Path(config.output)
    train, evaluation = read_metrics(run, "train"), read_metrics(run, "evaluation")
    plot = curves(
        {
            "reviews it trains on": (train["step"], smooth(train["loss"], 3)),
            "held-out reviews": (evaluation["step"], evaluation["loss"]),
        },
        "step",
        "masked loss (nats a token)",
    )
    text = (
        f"The model has read Wikipedia and novels, not film reviews. {train['elapsed_s'][-1] / 60:.1f} minutes of "
        f"pretraining on {int(train['tokens'][-1]):,} tokens of their text took the loss at hidden tokens of held-out "
        f"ones from {evaluation['loss'][0]:.2f} to {evaluation['loss'][-1]:.2f} nats."
    )
    return Section("Pretraining goes on: another kind of text", text, plot)


def _classified(output: Path, scores: Scores) -> Section:
    from unbraid.tasks.examples import read_examples

    train, test = (
        read_examples(str(DATA / f"reviews.{split}.jsonl.gz"), DataConfig(), kind="classification")
        for split in ("train", "test")
    )
    accuracy = scores[MODEL]["test"]["accuracy"]
    return _compared(
        output,
        "reviews",
        scores,
        "Fine-tuning: is the review positive?",
        "words and pairs of words, counted (TF-IDF, logistic regression)",
        _bag_of_words(train, test),
        f"{len(test):,} test sentences; one standard error of an accuracy is about "
        f"{(accuracy * (1 - accuracy) / len(test)) ** 0.5:.1%}.",
    )


def _bag_of_words(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Test accuracy of a classical baseline."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    baseline.fit([example.text for example in train], [example.label for example in train])
    return float(baseline.score([example.text for example in test], [example.label for example in test]))


def _tagged(output: Path, scores: Scores) -> Section:
    from unbraid.inference.tokens import TokenClassifier
    from unbraid.tasks.sources import read_rows

    train, test = (list(read_rows(str(DATA / f"tags.{split}.jsonl.gz"), DataConfig())) for split in ("train", "test"))
    classifier = TokenClassifier.from_pretrained(str(_folder(output, "tagging", MODEL) / "best"))
    labelled = classifier.predict([TAGGED])[0]["words"]
    return _compared(
        output,
        "tagging",
        scores,
        "Fine-tuning: which part of speech is each word?",
        "the tag that a word has most often, NOUN if it is new",
        _most_frequent_tag(train, test),
        f"Learned from {len(train):,} sentences. {MODEL} on a sentence of our own: "
        + " ".join(f"{word['text']}/{word['label']}" for word in labelled),
    )


def _most_frequent_tag(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Test accuracy of a baseline that knows words alone."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row.cells["tokens"], row.cells["tags"], strict=True):
            counts[word][tag] += 1
    known = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    pairs = [pair for row in test for pair in zip(row.cells["tokens"], row.cells["tags"], strict=True)]
    return sum(known.get(word, "NOUN") == tag for word, tag in pairs) / len(pairs)


def _compared(
    output: Path, task: str, scores: Scores, title: str, baseline: str, accuracy: float, remark: str
) -> Section:
    """The model beside untrained weights and a baseline that reads no further than words."""
    from unbraid.report import Section, curves, read_metrics, table

    runs = {start: read_metrics(_folder(output, task, start), "evaluation") for start in scores}
    plot = curves(
        {start: (rows["step"], rows["accuracy"]) for start, rows in runs.items()}, "step", "accuracy on dev examples"
    )
    rows = [[baseline, "", f"{accuracy:.1%}"]]
    rows += [
        [start, f"{found['dev']['accuracy']:.1%}", f"{found['test']['accuracy']:.1%}"]
        for start, found in scores.items()
    ]
    gained = scores[MODEL]["test"]["accuracy"] - scores[SCRATCH]["test"]["accuracy"]
    text = (
        f"The same architecture with the same settings, once from {MODEL} and once from untrained weights: "
        f"{100 * gained:+.1f} points for pretraining (one run each). {remark}"
    )
    return Section(title, text, plot + table(["", "dev", "test"], rows))
