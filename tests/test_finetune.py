"""Every kind of task from files to predictions, through the command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from unbraid import cli
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Deberta
from unbraid.tasks import kinds
from unbraid.tasks.config import DataConfig
from unbraid.tasks.folds import split
from unbraid.text.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
NAMES, PLACES = ["Ann", "Bob", "Eve"], ["Oslo", "New York", "Rome"]
LINES = [f"{name} lives in {place}, where is it? no." for name in NAMES for place in PLACES]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model that was never trained, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(LINES * 9, "unigram", 32)
    torch.manual_seed(0)
    Deberta(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=32, position_buckets=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def people() -> list[tuple[str, str]]:
    return [(name, place) for name in NAMES for place in PLACES]


def tokens() -> list[dict]:
    rows = []
    for name, place in people():
        words = [name, "lives", "in", *place.split(), "."]
        labels = ["B-PER", "O", "O", "B-LOC", *["I-LOC"] * (len(words) - 5), "O"]
        rows.append({"tokens": words, "ner": labels})
    return rows


def stretches() -> list[dict]:
    rows = []
    for name, place in people():
        text = f"{name} lives in {place}."
        at = text.index(place)
        spans = [{"start": 0, "end": 3, "label": "PER"}, {"start": at, "end": at + len(place), "label": "LOC"}]
        rows.append({"text": text, "label": spans})
    return rows


def several() -> list[dict]:
    """The labels are the marks that the text has."""
    marks = [[mark for place, mark in enumerate(".?,") if number & 1 << place] for number in range(9)]
    return [{"text": "no" + "".join(each), "label": each} for each in marks]


def questions() -> list[dict]:
    rows = []
    for name, place in people():
        context = f"{name} lives in {place}."
        answers = {
            "who": [{"text": name, "answer_start": 0}],
            "where": [{"text": place, "answer_start": len(context) - 1 - len(place)}],
        }
        asked = "who" if len(rows) % 2 else "where"
        rows.append({"question": f"{asked}?", "context": context, "answers": answers[asked]})
    return rows


def unanswered() -> list[dict]:
    rows = questions()
    rows[::3] = [{**row, "question": "is it?", "answers": []} for row in rows[::3]]
    return rows


def choices() -> list[dict]:
    """The right choice is Oslo, whatever is asked."""
    rows = []
    for number, (name, place) in enumerate(people()):
        texts = ["Rome", "New York"][: 1 + number % 2]
        at = number % (len(texts) + 1)
        texts.insert(at, "Oslo")
        rows.append({"context": f"{name} lives in {place}.", "question": "where?", "choices": texts, "label": at})
    return rows


def pairs_of_stretches() -> list[dict]:
    """The class says what the second stretch is, a name or a place."""
    rows = []
    for number, (name, place) in enumerate(people()):
        text, pair = f"{name} lives in {place}.", f"in {place} lives {name}."
        word = name if number % 2 else place
        spans = {"span1": [0, len(name)], "span2": [pair.index(word), pair.index(word) + len(word)]}
        rows.append({"one": text, "other": pair, "label": ["place", "name"][number % 2], **spans})
    return rows


def clozes() -> list[dict]:
    rows = []
    for number, (name, place) in enumerate(people()):
        context = f"{name} lives in {place}."
        entities = [[0, len(name)], [len(context) - 1 - len(place), len(context) - 1]]
        question, answer = ("where? in @placeholder", place) if number % 2 else ("@placeholder lives", name)
        rows.append({"question": question, "context": context, "entities": entities, "answers": [answer]})
    return rows


class Case(NamedTuple):
    """One kind of task over one form of data."""

    kind: str
    rows: Callable[[], list[dict]]
    columns: list[str]
    metric: str


KINDS = {
    "words": Case("token-classification", tokens, ["words=tokens", "label=ner"], "f1"),
    "text": Case("token-classification", stretches, [], "f1"),
    "several": Case("multi-label", several, [], "f1"),
    "squad": Case("question-answering", questions, [], "f1"),
    "choices": Case("multiple-choice", choices, [], "accuracy"),
    "spans": Case("span-classification", pairs_of_stretches, ["text=one", "pair=other"], "accuracy"),
    "entities": Case("entity-choice", clozes, [], "f1"),
    "squad2": Case("question-answering", unanswered, ["unanswerable"], "f1"),
}


def run(capsys, *arguments: object) -> list[dict]:
    cli.main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def options(prefix: str, columns: list[str]) -> list[str]:
    return [part for column in columns for part in f"--{prefix}{column}".split("=")]


@pytest.fixture(scope="module")
def finetuned(model, tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """The folder of the run of a case, and its data."""

    @functools.cache
    def finetune(name: str) -> tuple[Path, Path]:
        kind, rows, columns, _ = KINDS[name]
        folder = tmp_path_factory.mktemp(name)
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows() * 2), encoding="utf-8")
        recipe = ROOT / f"recipes/finetune-{kind}.toml"
        files = ["--task.train", data, "--task.dev", data, "--task.test", data, "--task.batch-size", "6"]
        quick = [
            "--task.max-length",
            "64",
            "--training.epochs",
            "30" if kind in ("question-answering", "multi-label") else "12",
            "--training.optimizer.learning-rate",
            "1e-2",
        ]
        arguments = ["finetune", recipe, "--model", model, "--output", folder / "run", *files, *quick]
        cli.main([str(argument) for argument in (*arguments, *options("task.data.", columns))])
        return folder / "run", data

    return finetune


@pytest.mark.parametrize("name", KINDS)
def test_finetune_and_evaluate(name, finetuned, capsys):
    folder, data = finetuned(name)
    scores = json.loads((folder / "results.json").read_text())
    assert scores["test"] == scores["dev"]
    assert scores["dev"][KINDS[name].metric] > 0.8
    capsys.readouterr()
    columns = options("data.", KINDS[name].columns)
    (again,) = run(capsys, "evaluate", folder / "best", data, "--max-length", "64", *columns)
    assert again.pop("examples") == 18
    assert again.pop("truncated") == 0
    assert again == pytest.approx(scores["dev"], rel=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_folds_never_part_a_group(name, tmp_path):
    kind, rows, columns, _ = KINDS[name]
    authors = [f"author {number % 4}" for number in range(9)]
    table = [{**row, "author": author} for row, author in zip(rows(), authors, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    named = dict(column.split("=") for column in columns if "=" in column)
    data = DataConfig(group="author", unanswerable="unanswerable" in columns, **named)
    examples = kinds.KINDS[kind](data=data).read(str(tmp_path / "data.jsonl"))
    assert [example.group for example in examples] == authors
    for train, dev in split(examples, 3, seed=0):
        assert not {authors[index] for index in train} & {authors[index] for index in dev}


@pytest.mark.parametrize("name", ["words", "text"])
def test_predict_tokens(name, finetuned, capsys):
    folder, data = finetuned(name)
    capsys.readouterr()
    column = ["--words-column", "tokens"] if name == "words" else []
    rows = run(capsys, "predict", folder / "best", "--file", data, *column)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["input"] for row in rows] == [each.get("tokens") or each["text"] for each in inputs]
    for row, (person, place) in zip(rows, people() * 2, strict=True):
        found = [(each["label"], each["text"]) for each in row["entities"]]
        assert found == [("PER", person), ("LOC", place)]
    long = " ".join(["Ann lives in New York."] * 50)
    (row,) = run(capsys, "predict", folder / "best", long)
    assert [long[each["start"] : each["end"]] for each in row["entities"]].count("New York") > 40


@pytest.mark.parametrize("name", ["squad", "squad2"])
def test_predict_answers(name, finetuned, capsys):
    folder, data = finetuned(name)
    capsys.readouterr()
    rows = run(capsys, "predict", folder / "best", "--file", data)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["input"] for row in rows] == [each["question"] for each in inputs]
    right = 0
    for row, each in zip(rows, inputs, strict=True):
        right += row["answer"] == (each["answers"][0]["text"] if each["answers"] else "")
        if row["answer"]:
            assert each["context"][row["start"] : row["end"]] == row["answer"]
    assert right >= 16
    context = "it is. " * 30 + "Bob lives in Rome." + " no." * 30
    (row,) = run(capsys, "predict", folder / "best", "where?", "--pair", context)
    assert context[row["start"] : row["end"]] == row["answer"]


def test_questions_need_contexts(finetuned, capsys):
    folder, _ = finetuned("squad")
    with pytest.raises(SystemExit):
        cli.main(["predict", str(folder / "best"), "where?"])
    assert "1 questions but 0 contexts" in capsys.readouterr().err


def test_unanswerable_questions_without_the_flag(finetuned, capsys):
    folder, data = finetuned("squad2")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(folder / "best"), str(data)])
    assert "line 1: the question has no answer; drop it, or set data.unanswerable" in capsys.readouterr().err


def test_predict_choices(finetuned, capsys):
    folder, data = finetuned("choices")
    capsys.readouterr()
    rows = run(capsys, "predict", folder / "best", "--file", data)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    assert sum(row["index"] == each["label"] for row, each in zip(rows, inputs, strict=True)) >= 17
    assert [len(row["scores"]) for row in rows] == [len(each["choices"]) for each in inputs]
    given = ["where is it?", "--pair", "Ann lives in Rome.", "--choices", "Oslo", "Rome"]
    (row,) = run(capsys, "predict", folder / "best", *given)
    assert row["choice"] == ["Oslo", "Rome"][row["index"]]
    for wrong, message in ((given[:3], "two or more"), ([*given[:-1], " "], "none of them empty")):
        with pytest.raises(SystemExit):
            cli.main(["predict", str(folder / "best"), *wrong])
        assert message in capsys.readouterr().err


def test_predict_several_labels(finetuned, capsys):
    folder, data = finetuned("several")
    capsys.readouterr()
    rows = run(capsys, "predict", folder / "best", "--file", data)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    right = sum(set(row["labels"]) == set(each["label"]) for row, each in zip(rows, inputs, strict=True))
    scores = json.loads((folder / "results.json").read_text())
    assert right / len(rows) == pytest.approx(scores["dev"]["accuracy"])


def test_predict_classes_of_stretches(finetuned, capsys):
    folder, data = finetuned("spans")
    capsys.readouterr()
    columns = ["--text-column", "one", "--pair-column", "other"]
    rows = run(capsys, "predict", folder / "best", "--file", data, *columns)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["input"] for row in rows] == [each["one"] for each in inputs]
    assert sum(row["label"] == each["label"] for row, each in zip(rows, inputs, strict=True)) >= 16
    unlabelled = data.with_name("new.jsonl")
    unlabelled.write_text(json.dumps({"one": "a", "other": "b", "first": [0, 1], "second": [0, 1]}))
    columns += ["--spans-columns", "first", "second"]
    (row,) = run(capsys, "predict", folder / "best", "--file", unlabelled, *columns)
    assert set(row["scores"]) == {"name", "place"}


def test_predict_entities(finetuned, capsys):
    folder, data = finetuned("entities")
    capsys.readouterr()
    rows = run(capsys, "predict", folder / "best", "--file", data)
    inputs = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["input"] for row in rows] == [each["question"] for each in inputs]
    assert sum([row["entity"]] == each["answers"] for row, each in zip(rows, inputs, strict=True)) >= 16
    for row, each in zip(rows, inputs, strict=True):
        assert each["context"][row["start"] : row["end"]] == row["entity"]
        assert len(row["scores"]) == 2
    long = {"q": "@placeholder lives", "c": "it is. " * 60 + "Bob lives in Rome.", "marked": [[420, 423], [433, 437]]}
    unlabelled = data.with_name("new.jsonl")
    unlabelled.write_text(json.dumps(long))
    columns = ["--text-column", "q", "--pair-column", "c", "--entities-column", "marked"]
    (row,) = run(capsys, "predict", folder / "best", "--file", unlabelled, *columns)
    assert set(row["scores"]) == {"Bob", "Rome"}


@pytest.mark.parametrize("name", ["spans", "entities"])
def test_stretches_come_from_a_table(name, finetuned, capsys):
    folder, _ = finetuned(name)
    with pytest.raises(SystemExit):
        cli.main(["predict", str(folder / "best"), "Ann lives", "--pair", "in Rome"])
    assert "read them from a table" in capsys.readouterr().err
