"""Options of unbraid finetune: seeds, folds, patience, class weights, rates of layers, frozen parts, LoRA, cards."""

from __future__ import annotations

import errno
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from unbraid import cli
from unbraid.commands import finetune, trial
from unbraid.files import replace_bytes
from unbraid.inference.classes import Classifier
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Deberta, DebertaForSequenceClassification
from unbraid.tasks.classification import Classification
from unbraid.tasks.config import DataConfig
from unbraid.tasks.examples import read_examples
from unbraid.tasks.folds import split
from unbraid.text.tokenizer import train_tokenizer

ENDS = {"good": "great", "bad": "awful", "neither": "plain"}
ROWS = [
    {"text": f"it is number {number} and {ENDS[label]}", "label": label, "film": f"film {number // 2}"}
    for number in range(18)
    for label in [list(ENDS)[min(number % 6, 2)]]
]
RECIPE = """
[task]
kind = "classification"
max_length = 32
batch_size = 4

[training]
steps = 6
evaluate_every = 2
log_every = 1
checkpoint_every = 1

[training.optimizer]
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model of large weights, its tokenizer, examples and a recipe."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer([row["text"] for row in ROWS] * 9, "unigram", 36)
    torch.manual_seed(0)
    model = Deberta(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=32, position_buckets=8,
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm.weight" in name else 0.0, 0.1 if "norm.weight" in name else 0.3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def run(place: Path, output: Path, *options: object, dev: bool = True) -> dict:
    """The results of a run."""
    data = ["--task.train", place / "data.jsonl", *(["--task.dev", place / "data.jsonl"] if dev else [])]
    arguments = ["finetune", place / "recipe.toml", "--model", place / "model", "--output", output, *data, *options]
    cli.main([str(argument) for argument in arguments])
    return json.loads((output / "results.json").read_text())


def weights(folder: Path, part: str = "best") -> dict[str, torch.Tensor]:
    return load_file(folder / part / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def files(folder: Path) -> dict[str, bytes]:
    """All that a run left, but times."""
    timed = ("progress.json", "manifest.json", "metrics.jsonl")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in timed and "optimizer" not in path.name
    }


@pytest.fixture(scope="module")
def seeds(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "run"
    run(place, folder, "--seeds", 1, 5, "--task.test", place / "data.jsonl")
    return folder


def test_every_seed_is_a_run_of_its_own(place, seeds, tmp_path):
    alone = run(place, tmp_path / "alone", "--training.seed", 5, "--task.test", place / "data.jsonl")
    results = json.loads((seeds / "results.json").read_text())
    assert list(results) == ["runs", "mean", "std"]
    assert results["runs"]["seed-5"] == alone == json.loads((seeds / "seed-5/results.json").read_text())
    assert same(weights(seeds / "seed-5"), weights(tmp_path / "alone"))
    assert not same(weights(seeds / "seed-1"), weights(seeds / "seed-5"))
    assert json.loads((seeds / "seed-1/recipe.json").read_text())["training"]["seed"] == 1


def test_mean_and_deviation_of_every_metric(seeds):
    results = json.loads((seeds / "results.json").read_text())
    for part in ("dev", "test"):
        for name, value in results["mean"][part].items():
            both = [results["runs"][run][part][name] for run in ("seed-1", "seed-5")]
            assert value == pytest.approx(sum(both) / 2)
            assert results["std"][part][name] == pytest.approx(abs(both[0] - both[1]) / 2**0.5)


def test_data_are_encoded_once(place, tmp_path, monkeypatch):
    encoded = []
    encode = Classification.encode

    def counting(self, examples, tokenizer):
        encoded.append(len(examples))
        return encode(self, examples, tokenizer)

    monkeypatch.setattr(Classification, "encode", counting)
    run(place, tmp_path / "run", "--seeds", 1, 2, 3, "--training.steps", 1, "--task.test", place / "data.jsonl")
    assert encoded == [18, 18, 18]


def test_killed_between_two_runs_it_continues(place, seeds, tmp_path, monkeypatch, capsys):
    tune = trial.finetune

    def killed(config, *arguments):
        if config.training.seed == 5:
            raise KeyboardInterrupt
        return tune(config, *arguments)

    options = ("--seeds", 1, 5, "--task.test", place / "data.jsonl")
    monkeypatch.setattr(trial, "finetune", killed)
    with pytest.raises(SystemExit):
        run(place, tmp_path / "run", *options)
    monkeypatch.setattr(trial, "finetune", tune)
    assert not (tmp_path / "run/results.json").exists()
    capsys.readouterr()
    run(place, tmp_path / "run", *options)
    output = capsys.readouterr()
    assert f"{tmp_path / 'run/seed-1'}: this run is finished" in output.err
    table = [line.split() for line in output.out.splitlines()]
    assert [line[0] for line in table if len(line) == 6 and line[0] in ("seed-1", "seed-5", "mean", "std")] == [
        *("seed-1", "seed-5", "mean", "std"),
        *("seed-1", "seed-5", "mean", "std"),
    ]
    ours, theirs = files(tmp_path / "run"), files(seeds)
    assert ours == theirs


@pytest.mark.parametrize(
    ("trial", "name"), [("seed-1", "best/README.md"), ("seed-5", "results.json"), ("", "results.json")]
)
def test_on_a_full_disk_the_results_wait_for_the_same_command(place, seeds, tmp_path, monkeypatch, capsys, trial, name):
    where = tmp_path / "run" / trial

    def full(path: Path, content: bytes) -> None:
        if path == where / name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_bytes(path, content)

    options = ["--seeds", 1, 5, "--task.test", place / "data.jsonl"]
    with monkeypatch.context() as patched:
        patched.setattr("unbraid.files.replace_bytes", full)
        with pytest.raises(SystemExit) as stopped:
            run(place, tmp_path / "run", *options)
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"unbraid: cannot write to {where} ([Errno 28] No space left on device): ")
    assert told.endswith("run the same command again to continue.")
    run(place, tmp_path / "run", *options)
    assert files(tmp_path / "run") == files(seeds)


def test_all_runs_share_the_minutes(place, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(place, tmp_path / "run", "--seeds", 1, 2, "--training.max-minutes", "1e-9")
    assert (tmp_path / "run/seed-1/checkpoints/step-00000001").is_dir()
    assert not (tmp_path / "run/seed-2").exists()


@pytest.fixture(scope="module")
def folds(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "run"
    run(place, folder, "--folds", 3, "--task.data.group", "film", dev=False)
    return folder


def test_out_of_fold_scores_are_those_of_every_example_once(place, folds):
    results = json.loads((folds / "results.json").read_text())
    data = DataConfig(group="film")
    examples = read_examples(str(place / "data.jsonl"), data, kind="classification")
    right = 0
    for number, (train, dev) in enumerate(split(examples, 3, 0), 1):
        assert not {examples[i].group for i in train} & {examples[i].group for i in dev}
        best = Classifier.from_pretrained(folds / f"fold-{number}/best")
        found = [each["label"] for each in best.predict([examples[i].text for i in dev])]
        own = [label == examples[i].label for label, i in zip(found, dev, strict=True)]
        assert results["runs"][f"fold-{number}"]["dev"]["accuracy"] == pytest.approx(sum(own) / len(own))
        right += sum(own)
    assert results["out_of_fold"]["dev"]["accuracy"] == pytest.approx(right / 18)
    accuracies = [each["dev"]["accuracy"] for each in results["runs"].values()]
    assert results["std"]["dev"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
    assert "exact" in results["out_of_fold"]["dev"]


def test_folds_know_all_classes(folds):
    for number in (1, 2, 3):
        config = json.loads((folds / f"fold-{number}/best/config.json").read_text())
        assert config["id2label"] == {"0": "bad", "1": "good", "2": "neither"}


def test_other_folds_are_another_run(place, folds, capsys):
    with pytest.raises(SystemExit):
        run(place, folds, "--folds", 4, "--task.data.group", "film", dev=False)
    assert "(folds is 4 and was 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda rows: [{**row, "label": row["label"].replace("neither", "never")} for row in rows], ["classes"]),
        (lambda rows: [*rows[:-1], {**rows[-1], "label": "good"}], ["dev", "train"]),
        (lambda rows: [{**rows[0], "text": rows[0]["text"] + " it"}, *rows[1:]], ["dev", "train"]),
        (lambda rows: rows[:9], ["dev", "steps", "train"]),
        (lambda rows: rows + rows, ["dev", "steps", "train"]),
    ],
)
@pytest.mark.parametrize("stopped", [True, False])
def test_other_examples_are_another_run(place, tmp_path, capsys, change, names, stopped):
    data = tmp_path / "data.jsonl"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("steps = 6", "epochs = 0.75"))
    arguments = [recipe, "--model", place / "model", "--output", tmp_path / "run"]
    arguments += ["--task.train", data, "--task.dev", data]

    def finetune_on(rows, *options):
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cli.main(["finetune", *map(str, [*arguments, *options])])

    finetune_on(ROWS, *(["--training.max-minutes", 1e-9] if stopped else []))
    before = files(tmp_path / "run")
    with pytest.raises(SystemExit):
        finetune_on(change(ROWS))
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "the data have changed" in line]
    assert re.findall(r"(\w+) is ", error) == names
    assert files(tmp_path / "run") == before
    finetune_on(ROWS)
    assert "this run is finished" in capsys.readouterr().err or stopped


def test_early_stopping(place, tmp_path):
    """With hardly a learning rate no evaluation is better than the first."""
    still = ("--training.optimizer.learning-rate", "1e-12", "--training.evaluate-every", 1, "--training.patience", 2)
    assert run(place, tmp_path / "run", *still)["best_step"] == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [1, 2, 3]


def test_class_weights_from_a_recipe_and_the_command_line(place, tmp_path):
    table = '\n[task.class_weights]\ngood = 5\n"neither" = 0.25\n'
    (tmp_path / "recipe.toml").write_text(RECIPE + table)
    read = cli.read_config(
        finetune.Config,
        "finetune",
        [str(tmp_path / "recipe.toml"), "--model", "m", "--output", "o", "--task.train", "a", "--task.dev", "b"],
    )
    assert read.task.class_weights == {"good": 5, "neither": 0.25}

    def first_loss(name, *options):
        run(place, tmp_path / name, "--training.steps", 1, "--task.batch-size", 18, "--dropout", 0, *options)
        return json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    plain = first_loss("plain")
    doubled = ("--task.class-weights", "good", 2, "bad", 2, "neither", 2)
    assert first_loss("twice", *doubled) == pytest.approx(2 * plain)
    parts = [first_loss(label, "--task.class-weights", label, 4) - plain for label in ENDS]
    assert sum(parts) == pytest.approx(3 * plain)
    counts = dict(zip(ENDS, (3, 3, 12), strict=True))
    balanced = plain + sum(part / 3 * (6 / counts[label] - 1) for label, part in zip(ENDS, parts, strict=True))
    assert first_loss("balanced", "--task.class-weights", "balanced") == pytest.approx(balanced, rel=1e-5)
    evaluated = [json.loads((tmp_path / name / "results.json").read_text())["dev"]["loss"] for name in ENDS]
    assert max(evaluated) < 2 * plain, "evaluation has no weights"


def test_depths():
    fields = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 3}
    model = DebertaForSequenceClassification(DebertaConfig(vocab_size=9, conv_kernel_size=3, **fields))
    depths = model.depths()
    found = {name: depths[parameter] for name, parameter in model.named_parameters()}
    for name, depth in found.items():
        expected = 4
        if name.startswith("deberta.embeddings") or ".relative_" in name:
            expected = 0
        elif ".convolution." in name:
            expected = 1
        elif ".layers." in name:
            expected = int(name.split(".")[3]) + 1
        assert depth == expected, name
    assert {0, 1, 2, 3, 4} == set(found.values())


def test_the_lower_the_layer_the_less_it_moves(place, tmp_path):
    """The first step of AdamW is the learning rate long in every weight that has a gradient."""
    steps = ("--training.steps", 1, "--training.optimizer.warmup", 0, "--training.optimizer.weight-decay", 0)
    run(place, tmp_path / "run", *steps, "--training.optimizer.layer-decay", 0.1)
    before, after = weights(place, "model"), weights(tmp_path / "run")
    farthest = {0: 1e-5, 1: 1e-4, 2: 1e-3}
    for name, weight in before.items():
        depth = int(name.split(".")[3]) + 1 if ".layer." in name else 0
        moved = (after[name] - weight).abs().max().item()
        assert moved < 1.05 * farthest[depth], name
        if "key_proj.bias" not in name:  # a shift of all scores alike, which softmax does not see
            assert moved > 0.5 * farthest[depth], name


@pytest.mark.parametrize("part", ["embeddings", "encoder"])
def test_frozen_parts(place, tmp_path, part):
    run(place, tmp_path / "run", "--freeze", part)
    before, after = weights(place, "model"), weights(tmp_path / "run")
    still = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert still == {name for name in before if part == "encoder" or name.startswith("deberta.embeddings.")}
    with safe_open(tmp_path / "run/checkpoints/step-00000006/optimizer.safetensors", "pt") as optimizer:
        kept = {name.rpartition("/")[0] for name in optimizer.keys()}  # noqa: SIM118, it is no mapping
    prefix = "model.deberta." if part == "encoder" else "model.deberta.embeddings."
    assert kept
    assert not any(name.startswith(prefix) for name in kept)


LORA = ("--lora.rank", 2, "--lora.dropout", 0.1, "--sift.weight", 1)


def test_lora_and_sift_in_pieces_are_the_whole(place, tmp_path, monkeypatch):
    """Stopped after two steps, killed in the fifth after a checkpoint of the third."""
    run(place, tmp_path / "whole", *LORA)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            run(place, tmp_path / "pieces", *LORA, "--training.max-minutes", "1e-9")
    step, steps = torch.optim.AdamW.step, iter(range(3, 6))

    def killed(optimizer, *arguments):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(SystemExit):
        run(place, tmp_path / "pieces", *LORA, "--training.checkpoint-every", 3)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert sorted(path.name for path in (tmp_path / "pieces/checkpoints").iterdir())[-1] == "step-00000003"
    run(place, tmp_path / "pieces", *LORA)  # from the third step, past a best of the fourth
    whole, pieces = files(tmp_path / "whole"), files(tmp_path / "pieces")
    assert whole.keys() >= {"best/adapter/adapter_config.json", "best/adapter/adapter_model.safetensors"}
    assert pieces == whole


def test_the_best_model_of_lora_is_an_ordinary_one(place, tmp_path, capsys):
    results = run(place, tmp_path / "run", *LORA)
    before, after = weights(place, "model"), weights(tmp_path / "run")
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved == {
        f"deberta.encoder.layer.{layer}.attention.self.{target}_proj.weight"
        for layer in range(2)
        for target in ("query", "value")
    }
    capsys.readouterr()
    cli.main(["evaluate", str(tmp_path / "run/best"), str(place / "data.jsonl"), "--max-length", "32"])
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in results["dev"]} == pytest.approx(results["dev"], rel=1e-6)


def test_the_folder_of_the_best_weights_tells_everything(place, seeds):
    best = seeds / "seed-5/best"
    for name in ("recipe.json", "results.json"):
        assert (best / name).read_bytes() == (seeds / "seed-5" / name).read_bytes()
    card = ModelCard((best / "README.md").read_text())
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "metrics": ["accuracy", "f1", "matthews_correlation"],
        "tags": ["unbraid", "deberta"],
    }
    results = json.loads((best / "results.json").read_text())
    for line in (
        f"fine-tuned from `{place / 'model'}` with unbraid",
        '| 1 | `"good"` |',
        f"| train | 18 | {place / 'data.jsonl'} |",
        f"| accuracy | {results['dev']['accuracy']:.4f} | {results['test']['accuracy']:.4f} |",
        "| learning rate | 0.01 |",
        "| seed | 5 |",
        f"torch {torch.__version__}",
        'unbraid predict FOLDER "A text."',
    ):
        assert line in card.text
    example = card.text.split("```python\n")[1].split("```")[0]
    assert 'pipeline("text-classification", model="FOLDER")("A text.")' in example
    exec(example.replace("FOLDER", str(best)), {})  # noqa: S102, what the card says is what is tested


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", 3], "leave task.dev out"),
        (["--seeds", 1], "at least 2 items"),
        (["--seeds", 1, 2, 1], "two of the seeds are the same"),
        (["--lora.rank", 2, "--freeze", "encoder"], "leave freeze out"),
        (["--training.patience", 2, "--training.evaluate-every", "None"], "give evaluate_every"),
    ],
)
def test_options_that_do_not_go_together(place, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(place, tmp_path, *options)
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in told


def test_folds_and_seeds_exclude_each_other(place, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(place, tmp_path, "--folds", 3, "--seeds", 1, 2, dev=False)
    assert "give one of them" in " ".join(capsys.readouterr().err.replace("│", " ").split())
