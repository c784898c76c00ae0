"""The tasks of the papers from their original files to their prediction files, through the command line."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from unbraid import cli
from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Deberta, DebertaForQuestionAnswering, DebertaForSequenceClassification
from unbraid.tasks.config import DataConfig, TaskConfig
from unbraid.tasks.kinds import read_splits
from unbraid.tasks.named import TASKS, task_name
from unbraid.tasks.sources import sources_of
from unbraid.text.tokenizer import Tokenizer, train_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
TRAINED = [name for name, task in TASKS.items() if task.train is not None]
MODEL_OF = {"ax": "mnli", "ax-b": "superglue-rte", "ax-g": "superglue-rte"}
NLI = {"contradiction", "neutral", "entailment"}
ENTAILED = {"not_entailment", "entailment"}
LANGUAGES = ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model that was never trained, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    texts = [path.read_text(encoding="utf-8") for path in sorted(FIXTURES.rglob("*.tsv"))]
    tokenizer = train_tokenizer([line for text in texts for line in text.splitlines()], "unigram", 400)
    torch.manual_seed(0)
    Deberta(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=512, position_buckets=8,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finetuned(model, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of one step."""

    @functools.cache
    def finetune(name: str) -> Path:
        output = tmp_path_factory.mktemp(name) / "run"
        quick = ["--training.epochs", "0.01", "--training.optimizer.warmup", "0", "--task.batch-size", "8"]
        files = ["--model", str(model), "--data", str(FIXTURES / name), "--output", str(output)]
        cli.main(["finetune", name, *files, *quick])
        return output

    return finetune


def run(capsys, *arguments: object) -> list[str]:
    capsys.readouterr()
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


OFFICIAL = {
    "cola": {"matthews"},
    "mrpc": {"accuracy", "f1", "accuracy_f1"},
    "qqp": {"accuracy", "f1", "accuracy_f1"},
    "sts-b": {"pearson", "spearman", "pearson_spearman"},
    "cb": {"accuracy", "f1", "accuracy_f1"},
    "multirc": {"f1", "exact"},
    "record": {"f1", "exact"},
    "squad1.1": {"f1", "exact"},
    "squad2.0": {"f1", "exact", "no_answer_threshold"},
    "conll2003": {"f1", "precision", "recall"},
}
TESTS = {
    "mnli": ["dev_mismatched"],
    "race": ["middle", "high"],
    "conll2003": ["test"],
    "anli": ["R1", "R2", "R3"],
    "xnli": LANGUAGES,
}


@pytest.mark.parametrize("name", TRAINED)
def test_finetune_and_evaluate(name, finetuned, capsys):
    folder = finetuned(name)
    scores = json.loads((folder / "results.json").read_text())
    assert [key for key in scores if isinstance(scores[key], dict)] == ["dev", *TESTS.get(name, [])]
    assert OFFICIAL.get(name, {"accuracy"}) <= scores["dev"].keys()
    sources = sources_of(TaskConfig(name=name, kind=TASKS[name].kind, folder=str(FIXTURES / name)))
    (line,) = run(capsys, "evaluate", folder / "best", sources.dev, "--task", name, "--batch-size", 8)
    again = json.loads(line)
    assert again.pop("examples") > 0
    assert again.pop("truncated") == 0
    assert again == pytest.approx(scores["dev"], rel=1e-4, abs=1e-6)


def test_a_task_is_evaluated_as_its_files_are_read_by_hand(finetuned, capsys):
    model, dev = finetuned("rte") / "best", FIXTURES / "rte/dev.tsv"
    by_hand = run(capsys, "evaluate", model, dev, "--data.format", "rte", "--data.pair", "pair")
    assert run(capsys, "evaluate", model, dev, "--task", "rte") == by_hand
    error = fails(capsys, "evaluate", model, dev, "--task", "rte", "--data.pair", "pair")
    assert "leave the options of data out" in re.sub(r"[│|\s]+", " ", error)


class File(NamedTuple):
    """What a prediction file has to hold."""

    header: str | None
    ids: list
    labels: set | type


SHAPES = {
    "cola": {"CoLA.tsv": File("index\tprediction", ["0", "1"], {"0", "1"})},
    "sst-2": {"SST-2.tsv": File("index\tprediction", ["0", "1"], {"0", "1"})},
    "mrpc": {"MRPC.tsv": File("index\tprediction", ["0", "1"], {"0", "1"})},
    "sts-b": {"STS-B.tsv": File("index\tprediction", ["0", "1"], float)},
    "qqp": {"QQP.tsv": File("index\tprediction", ["0", "1"], {"0", "1"})},
    "mnli": {
        "MNLI-m.tsv": File("index\tprediction", ["0", "1", "2"], NLI),
        "MNLI-mm.tsv": File("index\tprediction", ["0", "1"], NLI),
    },
    "qnli": {"QNLI.tsv": File("index\tprediction", ["0", "1"], ENTAILED)},
    "rte": {"RTE.tsv": File("index\tprediction", ["0", "1"], ENTAILED)},
    "wnli": {"WNLI.tsv": File("index\tprediction", ["0", "1"], {"0", "1"})},
    "ax": {"AX.tsv": File("index\tprediction", ["0", "1", "2"], NLI)},
    "boolq": {"BoolQ.jsonl": File(None, [1, 2], {"false", "true"})},
    "cb": {"CB.jsonl": File(None, [0, 1], NLI)},
    "copa": {"COPA.jsonl": File(None, [1, 2], {0, 1})},
    "record": {"ReCoRD.jsonl": File(None, [0, 1], {"Ada Byron", "Cid", "Oslo"})},
    "superglue-rte": {"RTE.jsonl": File(None, [1, 2], ENTAILED)},
    "wic": {"WiC.jsonl": File(None, [1, 2], {"false", "true"})},
    "wsc": {"WSC.jsonl": File(None, [1, 2], {"False", "True"})},
    "ax-b": {"AX-b.jsonl": File(None, [0, 1], ENTAILED)},
    "ax-g": {"AX-g.jsonl": File(None, [0, 1], ENTAILED)},
    "race": {
        "RACE.tsv": File(
            "id\tlabel", ["high12.txt-0", "high12.txt-1", "middle7.txt-0", "middle7.txt-1"], {"0", "1", "2", "3"}
        )
    },
    "swag": {"SWAG.tsv": File("id\tlabel", ["0", "1"], {"0", "1", "2", "3"})},
    "anli": {"ANLI.tsv": File("id\tlabel", [f"test-r{n}-{i}" for n in (1, 2, 3) for i in (n, n + 1)], NLI)},
    "xnli": {"XNLI.tsv": File("id\tlabel", [f"{language}-{i}" for language in LANGUAGES for i in (1, 2)], NLI)},
}


def submit(name: str, finetuned, output: Path, capsys) -> list[str]:
    best = finetuned(MODEL_OF.get(name, name)) / "best"
    return run(capsys, "submit", name, "--model", best, "--data", FIXTURES / name, "--output", output)


@pytest.mark.parametrize("name", SHAPES)
def test_submit(name, finetuned, tmp_path, capsys):
    printed = submit(name, finetuned, tmp_path / "out", capsys)
    assert printed == [str(tmp_path / "out" / file) for file in SHAPES[name]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(SHAPES[name])
    for file, (header, ids, labels) in SHAPES[name].items():
        lines = (tmp_path / "out" / file).read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        if header is not None:
            assert lines.pop(0) == header
            rows = [tuple(line.split("\t")) for line in lines]
        else:
            objects = [json.loads(line) for line in lines]
            assert all(list(each) == ["idx", "label"] for each in objects)
            rows = [(each["idx"], each["label"]) for each in objects]
        assert [row[0] for row in rows] == ids
        if isinstance(labels, type):
            assert [labels(row[1]) for row in rows]
        else:
            assert {row[1] for row in rows} <= labels


def test_submit_multirc(finetuned, tmp_path, capsys):
    submit("multirc", finetuned, tmp_path, capsys)
    lines = [json.loads(line) for line in (tmp_path / "MultiRC.jsonl").read_text().splitlines()]
    labels = []

    def without_labels(value):
        if isinstance(value, dict):
            if "label" in value:
                labels.append(value["label"])
            return {key: without_labels(each) for key, each in value.items() if key != "label"}
        return [without_labels(each) for each in value] if isinstance(value, list) else value

    def answers(*ids: int) -> list[dict]:
        return [{"idx": i} for i in ids]

    first = [{"idx": 0, "answers": answers(0, 1, 2)}, {"idx": 1, "answers": answers(3, 4)}]
    second = [{"idx": 2, "answers": answers(5, 6)}]
    assert without_labels(lines) == [
        {"idx": 0, "passage": {"questions": first}},
        {"idx": 1, "passage": {"questions": second}},
    ]
    assert len(labels) == 7
    assert set(labels) <= {0, 1}


@pytest.mark.parametrize(("name", "ids"), [("squad1.1", {"5a01", "5a02"}), ("squad2.0", {"5a02", "5b01"})])
def test_submit_squad(name, ids, finetuned, tmp_path, capsys):
    submit(name, finetuned, tmp_path, capsys)
    answers = json.loads((tmp_path / "predictions.json").read_text())
    context = "Ada owns the mill. It was built in 1871 by her uncle Cid."
    assert answers.keys() == ids
    assert all(answer in context for answer in answers.values())


def test_a_submission_gives_up_the_answers_that_evaluation_does(finetuned, tmp_path, capsys):
    """A model without a threshold that is for no answer on the dev questions, and one whose threshold gives up all."""
    best = tmp_path / "best"
    shutil.copytree(finetuned("squad1.1") / "best", best)
    model = DebertaForQuestionAnswering.from_pretrained(best).eval()
    encoding = Tokenizer.from_pretrained(best).encode("Who burned it?", "Ada owns the mill. It was built in 1871.")
    with torch.no_grad():
        ids, segments = torch.tensor([encoding.ids]), torch.tensor([encoding.segments])
        states = model.deberta(ids, token_type_ids=segments).last_hidden_state[0]
        model.spans.weight.copy_((states[0] - states[1:].mean(0)).expand(2, -1))
    model.save_pretrained(best)

    def answers(name: str) -> list[str]:
        run(capsys, "submit", name, "--model", best, "--data", FIXTURES / name, "--output", tmp_path / "out")
        return list(json.loads((tmp_path / "out/predictions.json").read_text()).values())

    def unanswered(name: str) -> float:
        (line,) = run(capsys, "evaluate", best, FIXTURES / name / f"dev-v{name[5:]}.json", "--task", name)
        return json.loads(line).get("no_answer_exact", 0.0)

    asked = ["Who burned it?", "--pair", "Ada owns the mill. It was built in 1871."]
    assert json.loads(run(capsys, "predict", best, *asked)[0])["answer"]
    assert (answers("squad2.0"), unanswered("squad2.0")) == (["", ""], 1.0)
    (best / "no_answer.json").write_text('{"threshold": 1e9}')
    assert all(answers("squad2.0"))
    assert unanswered("squad2.0") == 0.0
    (best / "no_answer.json").write_text('{"threshold": -1e9}')
    assert answers("squad2.0") == ["", ""]
    assert all(answers("squad1.1"))


def test_submit_conll(finetuned, tmp_path, capsys):
    submit("conll2003", finetuned, tmp_path, capsys)
    lines = (tmp_path / "CoNLL-2003.txt").read_text().split("\n")
    theirs = (FIXTURES / "conll2003/eng.testb").read_text().replace("-DOCSTART- -X- O O\n\n", "").split("\n")
    assert [line.split(" ")[0] for line in lines[:-1]] == [line.split(" ")[0] for line in theirs]
    types = {"O"} | {f"{mark}-{name}" for mark in "BI" for name in ("PER", "LOC", "ORG", "MISC")}
    assert {line.split(" ")[1] for line in lines if line} <= types


def test_what_a_model_cannot_submit(finetuned, tmp_path, capsys):
    best = finetuned("mnli") / "best"

    def refused(name: str, folder: str = "") -> str:
        data = FIXTURES / (folder or name)
        return fails(capsys, "submit", name, "--model", best, "--data", data, "--output", tmp_path)

    assert "has the classes contradiction, neutral, entailment, but this task has not_ent" in refused("rte")
    assert "the model does classification, but this task is regression" in refused("sts-b")
    assert "there is no task 'rten'; the tasks are cola, sst-2," in refused("rten")
    assert "there is no file" in refused("mnli", "cola")
    assert not list(tmp_path.iterdir())


def test_predictions_are_the_models(finetuned, tmp_path, capsys):
    """A model that says entailment whatever it reads; its classes stand in another order and by the hub's names."""
    best = tmp_path / "best"
    shutil.copytree(finetuned("wnli") / "best", best)
    model = DebertaForSequenceClassification.from_pretrained(best, id2label={0: "entailment", 1: "not_entailment"})
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    model.save_pretrained(best)
    for name, label in (("wnli", "1"), ("rte", "entailment")):
        run(capsys, "submit", name, "--model", best, "--data", FIXTURES / name, "--output", tmp_path / "out")
        lines = (tmp_path / "out" / f"{name.upper()}.tsv").read_text().splitlines()
        assert lines[1:] == [f"0\t{label}", f"1\t{label}"]


def test_where_the_paper_starts_from_mnli(model, finetuned, tmp_path, capsys, caplog):
    from_mnli = {name for name, task in TASKS.items() if task.from_mnli}
    assert from_mnli == {"mrpc", "sts-b", "rte", "copa", "superglue-rte", "race"}
    hint = "from a model fine-tuned on MNLI"
    quick = ["--training.epochs", "0.01", "--training.optimizer.warmup", "0", "--data", FIXTURES / "rte"]
    start = finetuned("mnli") / "best"
    caplog.clear()
    run(capsys, "finetune", "rte", "--model", start, *quick, "--output", tmp_path / "kept")
    assert hint not in caplog.text
    run(capsys, "finetune", "rte", "--model", model, *quick, "--output", tmp_path / "fresh")
    assert hint in caplog.text
    pooled = DebertaForSequenceClassification.from_pretrained(tmp_path / "kept/best")
    assert pooled.config.id2label == {0: "not_entailment", 1: "entailment"}


def test_what_cannot_be_finetuned(model, tmp_path, capsys):
    rest = ["--model", model, "--output", tmp_path / "run"]
    assert "ax is a test set alone" in fails(capsys, "finetune", "ax", *rest, "--data", FIXTURES / "ax")
    assert "boolq is read from its files; give their folder with --data" in fails(capsys, "finetune", "boolq", *rest)
    assert "there is no file" in fails(capsys, "finetune", "cola", *rest, "--data", tmp_path / "gone")
    assert "the sizes are base, large" in fails(capsys, "finetune", "cola/huge", *rest)
    both = ["--data", FIXTURES / "cola", "--task.data.dataset", "x"]
    assert "give one of them" in fails(capsys, "finetune", "cola", *rest, *both)
    alone = ["--task.train", FIXTURES / "cola/train.tsv"]
    for task in ("cola", "recipes/finetune-classification.toml"):
        error = fails(capsys, "finetune", task, *rest, *alone)
        assert error == "unbraid: there is nothing to choose the best checkpoint by: give task.dev, or folds.\n"


@pytest.mark.parametrize("files", [{"name": "cola", "folder": str(FIXTURES / "cola")}, {"train": "no/such.tsv"}])
def test_a_metric_of_groups_without_groups_is_told_before_anything_is_read(files, monkeypatch):
    monkeypatch.setattr("unbraid.tasks.classification.Classification.read", None)
    with pytest.raises(InputError, match=r"give data.group, or another metric"):
        read_splits(TaskConfig(kind="classification", metric="exact", **files))
    grouped = TaskConfig(name="multirc", kind="classification", metric="exact", folder=str(FIXTURES / "multirc"))
    with pytest.raises(TypeError, match="not callable"):
        read_splits(grouped)


def test_names_are_found_in_any_spelling():
    assert [task_name(name) for name in ("CoLA", "SST2", "sts-B", "MultiRC", "AXb", "SQuAD2.0")] == [
        *("cola", "sst-2", "sts-b", "multirc", "ax-b", "squad2.0")
    ]
    with pytest.raises(InputError, match="there is no task 'glue'; the tasks are cola, sst-2"):
        task_name("glue")


def test_files_may_be_given_and_columns_changed(tmp_path):
    config = TaskConfig(
        name="squad1.1", kind="question-answering", folder=str(FIXTURES / "squad1.1"), test="other.json",
        data=DataConfig(unanswerable=True),
    )  # fmt: skip
    sources = sources_of(config)
    assert sources.data == DataConfig(format="squad", unanswerable=True)
    assert sources.tests == {"test": "other.json"}
    assert sources.dev == str(FIXTURES / "squad1.1/dev-v1.1.json")
    alone = sources_of(TaskConfig(name="boolq", train="a.jsonl", dev="b.jsonl"))
    assert (alone.train, alone.dev, alone.tests) == ("a.jsonl", "b.jsonl", {})
    assert alone.data == DataConfig(format="boolq", pair="pair")
    with pytest.raises(InputError, match="cola is classification, not regression"):
        sources_of(TaskConfig(name="cola", kind="regression", folder=str(tmp_path)))


def test_copies_that_name_their_files_otherwise(tmp_path):
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("Ann B-PER\n")
    sources = sources_of(TaskConfig(name="conll2003", kind="token-classification", folder=str(tmp_path)))
    assert [Path(each).name for each in (sources.train, sources.dev, sources.tests["test"])] == [
        *("train.txt", "valid.txt", "test.txt")
    ]


def test_without_a_folder_the_hub_has_the_data():
    sources = sources_of(TaskConfig(name="mnli"))
    assert sources.data == DataConfig(dataset="nyu-mll/glue", subset="mnli", text="premise", pair="hypothesis")
    assert (sources.dev, sources.tests) == ("validation_matched", {"dev_mismatched": "validation_mismatched"})
    assert sources.labels == ("contradiction", "neutral", "entailment")
    assert sources_of(TaskConfig(name="cola")).labels == ("unacceptable", "acceptable")


def test_scores_of_several_files_go_by_their_names():
    config = TaskConfig(train="a.tsv", dev="b.tsv", test=("x/one.tsv", "two.tsv"))
    assert sources_of(config).tests == {"one": "x/one.tsv", "two": "two.tsv"}
    with pytest.raises(InputError, match="have the same name"):
        sources_of(TaskConfig(train="a.tsv", dev="b.tsv", test=("x/one.tsv", "y/one.tsv")))
    with pytest.raises(InputError, match="is called dev"):
        sources_of(TaskConfig(train="a.tsv", dev="b.tsv", test=("one.tsv", "dev.tsv")))
    assert sources_of(TaskConfig(train="a.tsv", dev="dev.tsv", test="dev.tsv")).tests == {"test": "dev.tsv"}
