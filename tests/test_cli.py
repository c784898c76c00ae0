"""Every verb, its help, its errors, and recipes, on a tiny run of the demo."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from unbraid import cli
from unbraid.errors import InputError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
WORDS = [
    "the",
    "old",
    "river",
    "runs",
    "by",
    "a",
    "small",
    "town",
    "where",
    "many",
    "people",
    "speak",
    "of",
    "stone",
    "bridges",
    "and",
    "long",
    "winters",
]


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)) + f" in {1900 + i}." for i in range(60)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path) -> Path:
    path = tmp_path / "reviews.tsv"
    rows = ["sentence\tother\tlabel\tscore"]
    rows += [f"a {('good', 'bad')[i % 2]} film {i}\tyes\t{('pos', 'neg')[i % 2]}\t{i % 2 + 0.5}" for i in range(24)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def run(*arguments: object) -> None:
    cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_values_that_do_not_fit_are_told_in_one_sentence(capsys):
    said = " ".join(fails(capsys, "finetune", "--model", "x", "--output", "y").replace("│", " ").split())
    assert "Error parsing task: there is nothing to learn from: give train, or a named task" in said
    assert "pydantic" not in said


def test_no_batches_to_evaluate_on_are_told_before_anything_is_read(tmp_path, capsys):
    where = ["--corpus.path", tmp_path / "none", "--tokenizer", tmp_path / "none", "--output", tmp_path / "run"]
    said = fails(capsys, "pretrain", *where, "--training.steps", "1", "--evaluation-batches", "0")
    assert "evaluation_batches: Input should be greater than or equal to 1" in re.sub(r"[\s│]+", " ", said)


@pytest.mark.parametrize(
    ("objective", "option", "does_something"),
    [
        ("mlm", "rtd.temperature", False),
        ("joint", "rtd.temperature", False),
        ("causal", "rtd.temperature", False),
        ("rtd", "rtd.temperature", True),
        ("causal", "masking.probability", False),
        ("mlm", "masking.probability", True),
        ("joint", "masking.probability", True),
        ("rtd", "masking.probability", True),
    ],
)
def test_an_option_that_does_nothing_is_refused(objective, option, does_something, capsys):
    from unbraid.commands.pretrain import Config

    words = ["--corpus.path", "a", "--tokenizer", "b", "--output", "c", "--training.steps", "1"]
    words += ["--objective", objective, f"--{option}", "0.5"]
    with contextlib.nullcontext() if does_something else pytest.raises(SystemExit):
        cli.read_config(Config, "pretrain", words)
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert (f"the objective is {objective}, so {option} does nothing: leave it out" in said) != does_something


def test_the_demo_writes_its_report(demo):
    report = (demo / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == 4
    for words in ("unbraid-mini-en", "[MASK]", "of held-out ones", "from scratch", "TF-IDF", "the/DET"):
        assert words in report
    assert not re.search(r"https?://", report), "the page needs nothing beside it"
    assert {path.name for path in (demo / "pretraining/model").iterdir()} >= {"config.json", "model.safetensors"}


def test_the_demo_run_again_changes_nothing(demo):
    before = (demo / "pretraining/model/model.safetensors").read_bytes()
    lines = (demo / "pretraining/metrics.jsonl").read_text()
    (minutes,) = re.findall(r"learned in [\d.]+ minutes", (demo / "report.html").read_text(encoding="utf-8"))
    run("demo", "--output", demo, "--steps", "2", "--epochs", "0.02")
    assert (demo / "pretraining/model/model.safetensors").read_bytes() == before
    assert (demo / "pretraining/metrics.jsonl").read_text() == lines
    assert minutes in (demo / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "size"), [("unigram", 60), ("bpe", 270)])
def test_tokenizer(kind, size, text, tmp_path, capsys):
    run("tokenizer", "train", "--path", text, "--vocab-size", size, "--kind", kind, "--output", tmp_path / "tokens")
    assert kind in capsys.readouterr().out


def test_pretrain_continues_and_starts_from_a_model(demo, text, tmp_path, capsys):
    arguments = ["--corpus.path", text, "--corpus.held-out", "0.2", "--tokenizer", demo / "untrained"]
    small = ["--corpus.sequence-length", "32", "--corpus.batch-tokens", "256", "--training.steps", "3"]
    start = ["--continue-from", demo / "pretraining/model"]
    run("pretrain", *arguments, *small, *start, "--output", tmp_path / "run")
    assert "held out: loss" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "perplexity"} <= rows[-1].keys()
    assert "holds a run with another recipe" in fails(
        capsys, "pretrain", *arguments, *small, *start, "--output", tmp_path / "run", "--masking.max-ngram", "1"
    )
    with text.open("a", encoding="utf-8") as file:
        file.write("\n\none more")
    error = fails(capsys, "pretrain", *arguments, *small, *start, "--output", tmp_path / "run")
    assert "the data have changed since the run in" in error


TINY = [
    *("--corpus.held-out", "0.2", "--corpus.sequence-length", "32", "--corpus.batch-tokens", "256"),
    *("--training.steps", "3", "--model.hidden-size", "16", "--model.num-attention-heads", "2"),
    *("--model.num-hidden-layers", "4", "--model.intermediate-size", "24"),
]


def test_pretrain_by_replaced_tokens_and_go_on(demo, text, tmp_path, capsys):
    arguments = ["--objective", "rtd", "--corpus.path", text, "--tokenizer", demo / "untrained", *TINY]
    run("pretrain", *arguments, "--output", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"generator_loss", "detection_loss", "precision", "recall"} <= rows[-1].keys()
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["generator_loss"] + 50 * rows[-1]["detection_loss"], rel=1e-5)
    model = tmp_path / "run/model"
    assert json.loads((model / "generator/config.json").read_text())["num_hidden_layers"] == 2
    run("predict", model / "generator", "The [MASK] of the town.")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["masks"]
    run("pretrain", *arguments, "--continue-from", model, "--output", tmp_path / "more")
    more = [json.loads(line) for line in (tmp_path / "more/metrics.jsonl").read_text().splitlines()]
    assert more[0]["step"] == 0
    assert more[0]["generator_loss"] == pytest.approx(rows[-1]["generator_loss"], rel=1e-5)
    assert more[0]["detection_loss"] == pytest.approx(rows[-1]["detection_loss"], rel=1e-5)
    told = capsys.readouterr().err
    assert "starts fresh" not in told
    assert "give way" not in told
    es = ["--rtd.sharing", "es", "--rtd.no-decoupled", "--continue-from"]
    run("pretrain", *arguments, *es, model, "--output", tmp_path / "shared")
    assert f"{model} has embeddings other than its generator's: they give way to these (es)." in capsys.readouterr().err
    run("pretrain", *arguments, *es, tmp_path / "shared/model", "--output", tmp_path / "again")
    assert "give way" not in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["causal", "joint"])
def test_pretrain_by_next_tokens(objective, demo, text, tmp_path):
    arguments = ["--objective", objective, "--corpus.path", text, "--tokenizer", demo / "untrained", *TINY]
    run("pretrain", *arguments, "--output", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 1 < rows[-1]["perplexity"] < 1e5


def test_a_tokenizer_too_large_for_the_model(demo, text, tmp_path, capsys):
    run("pretrain", "--corpus.path", text, "--tokenizer", demo / "untrained", *TINY, "--output", tmp_path / "run")
    run("tokenizer", "train", "--path", text, "--vocab-size", "300", "--kind", "bpe", "--output", tmp_path / "other")
    from unbraid.text.tokenizer import Tokenizer

    sizes = [len(Tokenizer.from_pretrained(folder)) for folder in (demo / "untrained", tmp_path / "other")]
    small, large = (
        (demo / "untrained", tmp_path / "other") if sizes[0] < sizes[1] else (tmp_path / "other", demo / "untrained")
    )
    run("pretrain", "--corpus.path", text, "--tokenizer", small, *TINY, "--output", tmp_path / "small")
    where = ["--continue-from", tmp_path / "small/model", "--output", tmp_path / "more"]
    error = fails(capsys, "pretrain", "--corpus.path", text, "--tokenizer", large, *TINY, *where)
    assert "give the tokenizer that it was pretrained with" in error


def test_pretrain_says_when_nothing_is_held_out(demo, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("One document of several lines.\n" * 40, encoding="utf-8")
    small = ["--corpus.sequence-length", "32", "--corpus.batch-tokens", "256", "--training.steps", "1"]
    where = [
        "--tokenizer",
        demo / "untrained",
        "--output",
        tmp_path / "run",
        "--continue-from",
        demo / "pretraining/model",
    ]
    run("pretrain", "--corpus.path", tmp_path / "one.txt", *where, *small)
    assert "no document fell into the held-out part" in capsys.readouterr().err
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_a_preset_gives_the_model_and_options_override_it():
    from unbraid.commands.pretrain import Config

    rest = ["--output", "x", "--tokenizer", "y", "--corpus.path", "z", "--training.steps", "1"]
    options = ["--preset", "deberta-v2-xlarge", "--model.hidden-size", "48", *rest]
    config = cli.read_config(Config, "pretrain", options)
    assert config.model.conv_kernel_size == 3
    assert config.model.hidden_size == 48
    assert config.model.num_hidden_layers == 24
    for option in (["--preset", "deberta-base"], ["--preset=deberta-base"]):
        assert cli.read_config(Config, "pretrain", [*option, *rest]).model.model_type == "deberta"


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_finetune_evaluate_predict(kind, demo, reviews, tmp_path, capsys):
    label = {"classification": "label", "regression": "score"}[kind]
    columns = ["--task.data.text", "sentence", "--task.data.pair", "other", "--task.data.label", label]
    data = ["--task.train", reviews, "--task.dev", reviews, "--task.test", reviews, "--task.batch-size", "8"]
    recipe = ROOT / f"recipes/finetune-{kind}.toml"
    run("finetune", recipe, "--model", demo / "untrained", "--output", tmp_path / "run", *data, *columns)
    scores = json.loads((tmp_path / "run/results.json").read_text())
    capsys.readouterr()

    columns = ["--data.text", "sentence", "--data.pair", "other", "--data.label", label]
    run("evaluate", tmp_path / "run/best", reviews, *columns)
    again = json.loads(capsys.readouterr().out)
    assert again["examples"] == 24
    for name, value in scores["test"].items():
        assert again[name] == pytest.approx(value, rel=1e-4)

    run("predict", tmp_path / "run/best", "a good film", "a bad film", "--pair", "yes", "no")
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [prediction["input"] for prediction in predictions] == ["a good film", "a bad film"]
    assert ("label" in predictions[0]) == (kind == "classification")

    output = tmp_path / "out" / "predictions.jsonl"
    columns = ["--text-column", "sentence", "--pair-column", "other"]
    run("predict", tmp_path / "run/best", "--file", reviews, *columns, "--output", output)
    assert len(output.read_text().splitlines()) == 24

    if kind == "classification":
        captured = capsys.readouterr()
        run("predict", tmp_path / "run/best", "--file", reviews, *columns, "--precision", "int8")
        captured = capsys.readouterr()
        assert re.fullmatch(r"int8 against float32: over 24 texts .* of the answers differ, .*\n", captured.err)
        assert len(captured.out.splitlines()) == 24
        data = ["--data.text", "sentence", "--data.pair", "other"]
        for precision in ("bfloat16", "int8"):
            run("evaluate", tmp_path / "run/best", reviews, *data, "--precision", precision)
            lower = json.loads(capsys.readouterr().out)
            assert lower["loss"] == pytest.approx(scores["test"]["loss"], rel=0.02)
            assert lower["loss"] != again["loss"]

    # A pooler that was fine-tuned is kept by the next fine-tuning.
    from unbraid.commands.trial import holds

    assert holds(str(tmp_path / "run/best"), "pooler")
    assert not holds(str(demo / "untrained"), "pooler")


def test_predict_fills_masks_from_standard_input(demo):
    command = [sys.executable, "-m", "unbraid", "predict", str(demo / "pretraining/model"), "--top-k", "3"]
    lines = "The city of [MASK].\nOne [MASK] and one [MASK].\n"
    output = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    first, second = (json.loads(line) for line in output.splitlines())
    assert len(first["masks"][0]) == 3
    assert len(second["masks"]) == 2
    assert "[MASK]" not in second["text"]


def test_evaluate_measures_a_masked_language_model_on_text(demo, text, capsys):
    run("evaluate", demo / "pretraining/model", text, "--max-length", "32")
    first = json.loads(capsys.readouterr().out)
    run("evaluate", demo / "pretraining/model", text, "--max-length", "32")
    assert json.loads(capsys.readouterr().out) == first
    assert first["perplexity"] > 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_known_to_its_verb(recipe):
    verb = recipe.stem.split("-")[0]
    assert verb in cli.VERBS
    module = __import__(f"unbraid.commands.{verb}", fromlist=["Config"])
    assert cli.read_recipe(recipe, module.Config)
    comment = "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"unbraid {verb} recipes/{recipe.name}" in comment, "a recipe says how it is used"


def test_there_are_recipes():
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("options", [[], ["--training.precision", "bfloat16", "--gradient-checkpointing"]], ids=str)
def test_the_pretraining_recipe_runs(options, demo, text, tmp_path):
    recipe = ROOT / "recipes/pretrain-mini.toml"
    short = ["--training.steps", "2", "--corpus.held-out", "0.2", "--evaluation-batches", "1"]
    where = ["--corpus.path", text, "--tokenizer", demo / "untrained", "--output", tmp_path / "run"]
    run("pretrain", recipe, *short, *where, *options)
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["hidden_size"] == tomllib.loads(recipe.read_text())["model"]["hidden_size"]
    assert config["vocab_size"] == json.loads((demo / "untrained/config.json").read_text())["vocab_size"]


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in cli.VERBS)], ids=str)
def test_help(arguments, capsys):
    with contextlib.suppress(SystemExit):  # tyro exits after its help
        cli.main(arguments)
    help_text = capsys.readouterr().out
    assert "usage: unbraid" in help_text
    assert "default_factory" not in help_text


def test_wrong_input_is_one_sentence(capsys, tmp_path, demo):
    (tmp_path / "bad.toml").write_text("[training]\nstepps = 3\n")
    (tmp_path / "worse.toml").write_text("[training\n")
    (tmp_path / "texts.csv").write_text("txt\nhello\n")
    model = demo / "pretraining/model"
    cases = [
        (["praetrain"], "there is no verb 'praetrain'"),
        (["pretrain", tmp_path / "none.toml"], "there is no recipe"),
        (["pretrain", tmp_path / "bad.toml"], "unknown key 'training.stepps'; known here: checkpoint_every,"),
        (["pretrain", tmp_path / "worse.toml"], "is not a TOML file"),
        (["pretrain", "--preset", "deberta-v9"], "there is no preset 'deberta-v9'"),
        (["pretrain", "--preset=deberta-v9"], "there is no preset 'deberta-v9'"),
        (["predict", tmp_path / "nowhere", "hello"], "neither a folder nor a model"),
        (["predict", model, "no mask"], "no [MASK] to fill"),
        (["predict", model, "--file", tmp_path / "none.txt"], "cannot be read"),
        (["predict", model, "--file", tmp_path / "texts.csv"], "there is no column 'text'"),
        (["predict", model, "a [MASK]", "--pair", "b", "c"], "1 texts but 2 second texts"),
        (["evaluate", model, tmp_path / "none.txt"], "none.txt"),
    ]
    for arguments, message in cases:
        err = fails(capsys, *arguments)
        assert message in err, err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
    misspelt = ["--output", "x", "--tokenizer", "y", "--corpus.path", "z", "--training.stepps", "1"]
    assert "--training.steps" in fails(capsys, "pretrain", *misspelt)


def test_a_recipe_may_name_what_stands_without_a_name(demo, text, tmp_path, capsys):
    (tmp_path / "fill.toml").write_text(f"model = {str(demo / 'pretraining/model')!r}\ntop_k = 2\n")
    run("predict", tmp_path / "fill.toml", "The [MASK].", "A [MASK].")
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(prediction["masks"][0]) for prediction in predictions] == [2, 2]
    where = ["--path", text, "--output", tmp_path / "tokens"]
    run("tokenizer", ROOT / "recipes/tokenizer-unigram.toml", *where, "--vocab-size", "50")
    assert "50 tokens, unigram" in capsys.readouterr().out


def test_texts_after_a_recipe_are_not_taken_for_more_of_its_lists(tmp_path):
    from unbraid.commands.predict import Config

    (tmp_path / "ask.toml").write_text('model = "m"\nchoices = ["Oslo", "Rome"]\n')
    config = cli.read_config(Config, "predict", [str(tmp_path / "ask.toml"), "Where?", "When?", "--top-k", "3"])
    assert (config.model, config.texts, config.choices, config.top_k) == ("m", ("Where?", "When?"), ("Oslo", "Rome"), 3)


def test_a_recipe_table_where_a_value_belongs(tmp_path):
    from unbraid.commands.pretrain import Config

    (tmp_path / "r.toml").write_text("[output]\nx = 1\n")
    with pytest.raises(InputError, match="output takes a value, not a table"):
        cli.read_recipe(tmp_path / "r.toml", Config)


def test_results_do_not_depend_on_the_global_generator(demo, reviews, tmp_path):
    """Two fine-tunings of the same recipe give the same weights, whatever was drawn before."""
    weights = []
    for number in range(2):
        torch.manual_seed(number)
        data = ["--task.train", reviews, "--task.dev", reviews, "--task.data.text", "sentence"]
        where = ["--model", demo / "untrained", "--output", tmp_path / str(number)]
        run("finetune", *where, *data, "--training.epochs", "1")
        weights.append((tmp_path / f"{number}/best/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
