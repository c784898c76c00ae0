"""benchmarks/tasks.py: its recipes, its linear baselines, and the report of what they give."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from unbraid import cli
from unbraid.commands import finetune
from unbraid.tasks.config import METRICS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_every_task_has_a_recipe_whose_metric_it_reads(benchmark):
    tasks = benchmark("tasks").TASKS
    recipes = {path.stem: path for path in (ROOT / "benchmarks/tasks").glob("*.toml")}
    assert recipes.keys() == tasks.keys()
    for name, path in recipes.items():
        options = [str(path), "--model", "m", "--output", "o", "--task.train", "a.jsonl", "--task.dev", "b.jsonl"]
        config = cli.read_config(finetune.Config, "finetune", options)
        assert tasks[name].metric in METRICS[config.task.kind]
        assert config.sift.weight == 0


def test_texts(benchmark):
    baselines = benchmark("baselines")
    train = [
        {"text": f"{word} film {i}", "label": word, "score": len(word)} for i in range(9) for word in ("good", "bad")
    ]
    assert (
        baselines.classified(train, [{"text": "a good one", "label": "good"}, {"text": "bad", "label": "good"}], "text")
        == 0.5
    )
    test = [{"text": "good film", "score": 4}, {"text": "bad film", "score": 3}]
    assert baselines.scored(train, test, "text", "score") == pytest.approx(1.0)


def test_words(benchmark):
    rows = [{"tokens": ["Ann", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]}] * 9
    assert benchmark("baselines").tagged(rows, rows[:1], "tokens", "tags")["f1"] == 1.0
    wrong = [{"tokens": ["Ann", "met"], "tags": ["O", "B-PER"]}]
    assert benchmark("baselines").tagged(rows, wrong, "tokens", "tags")["f1"] == 0.0


def test_choices(benchmark):
    rows = [
        {
            "context": f"the {thing} is red",
            "question": "what is red?",
            "choices": ["an owl", f"the {thing}"],
            "label": 1,
        }
        for thing in ("house", "roof", "car")
    ]
    assert benchmark("baselines").chosen(rows, rows) == 1.0


def test_questions(benchmark):
    rows = [
        {
            "context": "Ann lives in Oslo. Bob plays chess",
            "question": "Who plays chess?",
            "answers": {"text": ["Bob plays chess"]},
        }
    ]
    assert benchmark("baselines").answered(rows, rows) == 1.0


def test_the_report(benchmark, tmp_path):
    tasks = benchmark("tasks")
    found = {"ner": tasks.Found(10, 20.0, [30.0, 32.0, 34.0]), "qa": tasks.Found(4000, 18.0)}
    tasks.report(found, tmp_path)
    lines = (tmp_path / "tasks.md").read_text(encoding="utf-8").splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")][:6] == ["ner", "f1", "10", "32.0 ± 2.0", "", "3"]
    assert json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))["ner"]["plain"] == [30.0, 32.0, 34.0]
    assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")
