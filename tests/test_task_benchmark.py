"""benchmarks/tasks.py: its recipes, its examples, its linear baselines, its runs and the report of them."""

from __future__ import annotations

import doctest
import gzip
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unbraid import Deberta, Tokenizer, cli
from unbraid.commands import finetune
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.tasks.config import METRICS
from unbraid.text.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_every_task_has_a_recipe_whose_metric_it_reads(benchmark):
    tasks = benchmark("task_data").TASKS
    recipes = {path.stem: path for path in (ROOT / "benchmarks/tasks").glob("*.toml")}
    assert recipes.keys() == tasks.keys()
    for name, path in recipes.items():
        options = [str(path), "--model", "m", "--output", "o", "--task.train", "a.jsonl", "--task.dev", "b.jsonl"]
        config = cli.read_config(finetune.Config, "finetune", options)
        assert tasks[name].metric in METRICS[config.task.kind]
        assert config.sift.weight == 0


@pytest.mark.parametrize("name", ["task_data", "task_runs", "task_report"])
def test_the_examples_in_the_documentation(benchmark, name):
    failed, tried = doctest.testmod(benchmark(name))
    assert (failed, tried) == (0, 1)


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


def sentiments(count: int, first: int = 0) -> list[dict]:
    return [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(first, first + count)]


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with the files of the task sentiment."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part, rows in {"train": sentiments(40), "dev": sentiments(9, 40), "test": sentiments(8, 60)}.items():
        with gzip.open(folder / f"vader_movie.{part}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def small_model(tmp_path) -> Path:
    tokenizer = train_tokenizer([row["text"] + row["label"] for row in sentiments(40)], "unigram", 28)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(1)  # not the seed of fresh weights
    Deberta(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_few_examples_are_the_first_of_many(benchmark, data):
    module = benchmark("task_data")
    task = module.TASKS["sentiment"]
    rows, again = module.draw(task, data), module.draw(task, data)
    assert rows == again
    assert sorted(row["text"] for row in rows["train"]) == sorted(row["text"] for row in sentiments(40))
    assert rows["train"] != sentiments(40), "in another order than in the file"
    assert sorted(rows["test"], key=str) == sorted(sentiments(8, 60), key=str)
    assert sorted(rows["dev"], key=str) == sorted(sentiments(9, 40), key=str)
    with pytest.raises(InputError, match=r"has no file squadshifts_\*"):
        module.draw(module.TASKS["qa"], data)


def test_dev_and_test_examples_are_few_and_none_is_learned_from(benchmark, data, monkeypatch):
    module = benchmark("task_data")
    monkeypatch.setattr(module, "DEV_EXAMPLES", 5)
    monkeypatch.setattr(module, "TEST_EXAMPLES", 4)
    rows = module.draw(module.TASKS["sentiment"], data)
    assert (len(rows["dev"]), len(rows["test"])) == (5, 4)
    assert rows["dev"] != sentiments(5, 40), "drawn, and not the first of the file"
    assert rows["test"] != sentiments(4, 60)
    own = module.Task(metric="f1", linear=max, train="*.train.*", test="vader_movie.test.jsonl.gz", dev=None, rows=30)
    rows = module.draw(own, data)
    assert (len(rows["dev"]), len(rows["train"])) == (5, 30)
    assert not {row["text"] for row in rows["dev"]} & {row["text"] for row in rows["train"]}


def test_the_sizes(benchmark):
    sizes = benchmark("task_data").sizes
    assert sizes([500, 2000, None], 8589) == [500, 2000, 8589]
    assert sizes([None, 2000], 2500) == [2000, 2500]
    assert sizes([500, 2000, None], 300) == [300]
    assert sizes([500], 8589) == [500]


def test_the_order_of_the_runs(benchmark):
    runs = benchmark("task_runs").plan({"qa": [5, 9], "ner": [5], "pos": [5, 9]}, ["a", "b"], ["b"], 2)
    assert [run.name for run in runs] == [
        *(f"{task}-5-{model}-plain-{seed}" for seed in (0, 1) for task in ("ner", "pos", "qa") for model in "ab"),
        *(f"{task}-5-b-sift-{seed}" for seed in (0, 1) for task in ("ner", "pos", "qa")),
        *(f"{task}-9-{model}-plain-{seed}" for seed in (0, 1) for task in ("pos", "qa") for model in "ab"),
        *(f"{task}-9-b-sift-{seed}" for seed in (0, 1) for task in ("pos", "qa")),
    ]


@pytest.mark.parametrize(("count", "steps"), [(500, 200), (2000, 200), (8589, 538)])
def test_few_examples_are_seen_more_often(benchmark, count, steps):
    passes = benchmark("tasks").epochs(ROOT / "benchmarks/tasks/sentiment.toml", count)
    assert round(passes * -(-count // 32)) == steps


def test_the_command_is_one_that_finetune_reads(benchmark, tmp_path):
    tasks, runs = benchmark("tasks"), benchmark("task_runs")
    asked = tasks.Benchmark(tmp_path, {"a": "folder", "b": "scratch:folder"}, ["a"], 1, {"nli": [500]}, "bfloat16")
    read = {}
    for run in runs.plan(asked.sizes, list(asked.models), asked.sift, 1):
        words = asked.command(run)
        assert words[:4] == [sys.executable, "-m", "unbraid", "finetune"]
        read[run.name] = cli.read_config(finetune.Config, "finetune", words[4:])
    plain, fresh, sift = read.values()
    assert (plain.model, fresh.model, sift.model) == ("folder", str(tmp_path / "scratch/b"), "folder")
    assert (plain.sift.weight, sift.sift.weight) == (0, 5)
    assert plain.training.precision == "bfloat16"
    assert len({config.output for config in read.values()}) == 3
    assert plain.task.train == sift.task.train == fresh.task.train == str(tmp_path / "data/nli/train-500.jsonl")
    assert plain.training.epochs == 200 / 16


def test_a_run_that_has_begun_keeps_its_precision(benchmark, tmp_path):
    tasks, runs = benchmark("tasks"), benchmark("task_runs")
    before, after = (
        tasks.Benchmark(tmp_path, {"a": "folder"}, [], 2, {"nli": [500]}, precision)
        for precision in ("float32", "bfloat16")
    )
    begun, other = runs.plan(before.sizes, ["a"], [], 2)

    def precision(words):
        return cli.read_config(finetune.Config, "finetune", words[4:]).training.precision

    before.folder(begun).mkdir(parents=True)
    recipe = {"training": {"precision": precision(before.command(begun))}}
    (before.folder(begun) / "recipe.json").write_text(json.dumps(recipe))
    assert precision(after.command(begun)) == "float32"
    assert precision(after.command(other)) == "bfloat16"


def test_fresh_weights_are_of_the_same_shape_and_always_the_same(benchmark, small_model, tmp_path):
    write_fresh = benchmark("tasks").write_fresh
    for name in ("one", "two"):
        write_fresh(str(small_model), tmp_path / name)
        torch.rand(3)
    old, one, two = (Deberta.from_pretrained(tmp_path / name) for name in ("model", "one", "two"))
    assert one.config == old.config
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
    assert not torch.equal(one.embeddings.word.weight, old.embeddings.word.weight)
    found = Tokenizer.from_pretrained(tmp_path / "one").encode("good film 1")
    assert found == Tokenizer.from_pretrained(small_model).encode("good film 1")


SCRIPT = """
import json, os, pathlib, sys, time
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("threads", os.environ["OMP_NUM_THREADS"])
(folder / "starts").open("a").write("x")
if "bad" in folder.name: sys.exit("oh no")
if "slow" in folder.name: time.sleep(60)
for name in ("best", "checkpoints"): (folder / name).mkdir(exist_ok=True)
(folder / "recipe.json").write_text(json.dumps({"training": {"precision": sys.argv[3]}}))
(folder / "results.json").write_text(json.dumps({"test": {"accuracy": 0.8 + seed / 50}}))
"""


@pytest.fixture
def tasks(benchmark, monkeypatch):
    """benchmarks/tasks.py, with a stand-in for each training."""
    module = benchmark("tasks")
    monkeypatch.setattr(
        module.Benchmark,
        "command",
        lambda self, run: [sys.executable, "-c", SCRIPT, str(self.folder(run)), str(run.seed), self.precision],
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return module


def options(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data", str(data), "--output", str(output), "--tasks", "sentiment"),
        *("--examples", "10", "full", "--jobs", "2", *more),
    ]


def test_runs_are_made_once_and_told(tasks, data, small_model, tmp_path, capsys):
    output = tmp_path / "out"
    models = ["--models", "a=anything", f"b=scratch:{small_model}", "--sift", "a"]
    tasks.main(options(data, output, *models, "--seeds", "1"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 runs, 0 of them finished"
    assert lines[1].startswith("linear baseline sentiment-10: ")
    assert sorted(line.split()[1] for line in lines[3:]) == ["1", "2", "3", "4", "5", "6"]
    assert all("of 6: sentiment-" in line and "accuracy 80.0, 0.0 minutes" in line for line in lines[3:])
    few, many = (
        (output / f"data/sentiment/train-{count}.jsonl").read_text(encoding="utf-8").splitlines() for count in (10, 40)
    )
    assert few == many[:10]
    assert Deberta.from_pretrained(output / "scratch/b").config.hidden_size == 8

    tasks.main(options(data, output, *models, "--seeds", "2", "--precision", "bfloat16"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 runs, 6 of them finished"
    assert len(lines) == 1 + 6, "baselines and finished runs are only read"
    folders = list((output / "runs").iterdir())
    assert len(folders) == 12
    for folder in folders:
        assert (folder / "starts").read_text() == "x"
        assert (folder / "log.txt").read_text().startswith("threads ")
        assert not (folder / "best").exists()
        assert not (folder / "checkpoints").exists()
    found = json.loads((output / "tasks.json").read_text(encoding="utf-8"))
    assert found["models"] == {"a": "anything", "b": f"scratch:{small_model}"}
    assert len(found["runs"]) == 12
    assert {round(run["score"], 6) for run in found["runs"]} == {80, 82}
    assert all(0 < run["minutes"] < 1 for run in found["runs"])
    assert {(run["seed"], run["precision"]) for run in found["runs"]} == {(0, "float32"), (1, "bfloat16")}
    assert (output / "tasks.png").read_bytes().startswith(b"\x89PNG")
    head, _, few_row, all_row = (output / "tasks.md").read_text(encoding="utf-8").splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *("", "metric", "examples", "a", "b", "a + SiFT", "linear", "known")
    ]
    assert few_row.count("81.0 ± 1.4 |") == all_row.count("81.0 ± 1.4 |") == 3


def test_a_failing_run_takes_no_other_with_it(tasks, data, tmp_path, capsys):
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"2 of 4 runs failed.*: sentiment-10-bad-plain-0, sentiment-40-bad-plain-0"):
        tasks.main(options(data, output, "--models", "bad=x", "good=y", "--seeds", "1"))
    assert f"failed, see {output / 'runs/sentiment-10-bad-plain-0/log.txt'}" in capsys.readouterr().out
    assert "oh no" in (output / "runs/sentiment-10-bad-plain-0/log.txt").read_text()
    runs = json.loads((output / "tasks.json").read_text(encoding="utf-8"))["runs"]
    assert [(run["model"], run["examples"]) for run in runs] == [("good", 10), ("good", 40)]
    with pytest.raises(SystemExit, match="2 of 4 runs failed"):
        tasks.main(options(data, output, "--models", "bad=x", "good=y", "--seeds", "1"))
    assert (output / "runs/sentiment-10-bad-plain-0/starts").read_text() == "xx"
    assert (output / "runs/sentiment-10-good-plain-0/starts").read_text() == "x"


def test_a_name_keeps_its_model(tasks, data, tmp_path):
    tasks.main(options(data, tmp_path / "out", "--models", "a=one", "--seeds", "1"))
    with pytest.raises(InputError, match="a is one and not two"):
        tasks.main(options(data, tmp_path / "out", "--models", "a=two", "--seeds", "1"))


def test_the_record_is_enough_to_go_on(tasks, data, tmp_path, capsys):
    tasks.main(options(data, tmp_path / "one", "--models", "a=x", "b=y", "--seeds", "2"))
    record = (tmp_path / "one/tasks.json").read_bytes()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/tasks.json").write_bytes(record)
    capsys.readouterr()
    tasks.main(options(data, tmp_path / "two", "--models", "a=x", "--seeds", "2"))
    assert capsys.readouterr().out == "4 runs, 4 of them finished\n"
    assert not (tmp_path / "two/runs").exists()
    assert (tmp_path / "two/tasks.json").read_bytes() == record, "runs that were not asked for stay in it"
    table = (tmp_path / "two/tasks.md").read_text(encoding="utf-8")
    assert table.count("81.0 ± 1.4 |") == 2, "and out of the table"
    (tmp_path / "two/tasks.json").unlink()
    (tmp_path / "one/tasks.json").unlink()
    tasks.main(options(data, tmp_path / "one", "--models", "a=x", "b=y", "--seeds", "2"))
    assert capsys.readouterr().out.startswith("8 runs, 8 of them finished\n"), "and so are the folders of the runs"


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {}, "linear": {}, "runs": [{"task": "qa"}]}'])
def test_a_damaged_record(tasks, data, tmp_path, text):
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(InputError, match="is no record of this benchmark"):
        tasks.main(options(data, tmp_path, "--models", "a=x"))
    assert (tmp_path / "tasks.json").read_text() == text


def test_an_interrupted_benchmark_ends_its_runs(benchmark, tmp_path):
    runs = benchmark("task_runs")
    folders = [tmp_path / "slow-1", tmp_path / "slow-2"]
    commands = {folder: [sys.executable, "-c", SCRIPT, str(folder), "0", "float32"] for folder in folders}
    quick = {tmp_path / "quick": [sys.executable, "-c", SCRIPT, str(tmp_path / "quick"), "0", "float32"]}
    with runs.sole(tmp_path) as lock:
        ended = runs.side_by_side(quick | commands, 3, lock)
        assert next(ended) == tmp_path / "quick"
        while not all((folder / "starts").exists() for folder in folders):
            time.sleep(0.01)
        ended.close()
    assert not any((folder / "results.json").exists() for folder in folders)
    assert all(json.loads((folder / "minutes.json").read_text()) > 0 for folder in folders)
    with runs.sole(tmp_path):
        pass  # the lock is free, so no run is left


def test_a_run_that_outlives_its_benchmark_holds_the_folder(benchmark, tmp_path):
    runs = benchmark("task_runs")
    with runs.sole(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
        with pytest.raises(InputError, match="another process is at work"), runs.sole(tmp_path):
            pass
    with pytest.raises(InputError, match="another process is at work"), runs.sole(tmp_path):
        pass
    orphan.communicate(b"\n")
    with runs.sole(tmp_path):
        pass


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--models", "a"], "give a name"),
        (["--models", "a/b=c"], "give a name"),
        (["--models", "a=b", "a=c"], "the same name"),
        (["--models", "a=b", "--sift", "c"], "c: not among --models"),
        (["--models", "a=b", "--seeds", "full"], "no number above 0"),
        (["--models", "a=b", "--jobs", "0"], "no number above 0"),
        (["--models", "a=b", "--examples", "many"], "no number above 0"),
    ],
)
def test_options_that_do_not_fit(benchmark, tmp_path, capsys, words, sentence):
    with pytest.raises(SystemExit):
        benchmark("tasks").main(["--data", str(tmp_path), "--output", str(tmp_path), *words])
    assert sentence in capsys.readouterr().err


def test_the_table(benchmark):
    report = benchmark("task_report")
    rows = [
        report.Row("score", "pearson_spearman", 500, {"a": [30.0, 32.0, 34.0], "a + SiFT": [40.0]}, 20.04),
        report.Row("score", "pearson_spearman", 8589, {"a": [41.0, 43.0], "a + SiFT": []}, 25.0, "chance 0"),
    ]
    lines = report.table(rows, ["a", "a + SiFT"], 3).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "metric", "examples", "a", "a + SiFT", "linear", "known"]
    assert cells[2] == ["score", "pearson, spearman", "500", "32.0 ± 2.0", "40.0 (1)", "20.0", ""]
    assert cells[3] == ["score", "pearson, spearman", "8,589", "42.0 ± 1.4 (2)", "", "25.0", "chance 0"]


def test_the_plot(benchmark):
    report = benchmark("task_report")
    rows = [
        report.Row(task, "f1", count, {"a": scores, "b": []}, scores[0] - 10)
        for task in ("ner", "pos", "qa", "nli", "score")
        for count, scores in ((500, [30.0, 34.0]), (2000, [40.0, 44.0]), (8000, [50.0]))
    ]
    figure = report.plot(rows, ["a", "b"])
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["ner (f1)", "pos (f1)", "qa (f1)", "nli (f1)", "score (f1)"]
    column = shown[0].containers[0]
    points, _, (bars,) = column.lines
    assert (column.get_label(), points.get_xydata().tolist()) == ("a", [[500, 32], [2000, 42], [8000, 50]])
    spans = [segment[:, 1].tolist() for segment in bars.get_segments() if len(segment)]
    assert spans == [pytest.approx([mean - 8**0.5, mean + 8**0.5]) for mean in (32, 42)], "one seed has no bar"
    (linear,) = (line for line in shown[0].lines if line.get_label() == "linear")
    assert linear.get_xydata().tolist() == [[500, 20], [2000, 30], [8000, 40]]
    assert linear.get_linestyle() == "--"
