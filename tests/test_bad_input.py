"""What people feed a model: answered where it can be, else refused in one sentence with the exit code 2."""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unbraid import cli
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import (
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from unbraid.text.tokenizer import train_tokenizer

NAMES = ["ann", "bob", "zoë"]
LINES = [f"{name} met {other} in oslo, where? fire" for name in NAMES for other in NAMES]
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "classes": (DebertaForSequenceClassification, {"id2label": {0: "no", 1: "yes"}}),
    "several": (
        DebertaForSequenceClassification,
        {"id2label": {0: "a", 1: "b"}, "problem_type": "multi_label_classification"},
    ),
    "score": (DebertaForSequenceClassification, {"id2label": {0: "score"}}),
    "words": (DebertaForTokenClassification, {"id2label": dict(enumerate(BIO))}),
    "answers": (DebertaForQuestionAnswering, {}),
    "choices": (DebertaForMultipleChoice, {}),
    "masks": (DebertaForMaskedLM, {}),
}

STRANGE = {
    "empty": "",
    "white space": " \t\u00a0\u3000 ",
    "special tokens": "[CLS][SEP] [PAD] [UNK][SEP]",
    "a NUL": "ann\0met\0",
    "only a NUL": "\0",
    "other controls": "\x01\x1b[31m\x7f\x85",
    "zero width": "an\u200bn\u200d \u2060\ufeff",
    "only zero width": "\u200b\u200c\u200d",
    "right to left": "שלום עולם، مرحبا بالعالم \u202eoslo\u202c",
    "emoji": "👩‍👩‍👧‍👦 ann 🇳🇴 ❤️👍🏽",
    "line separators": "ann\u2028met\u2029bob\x0bin\x0coslo",
    "carriage returns": "ann\rmet\r\nbob",
    "unassigned": "\U0010ffff\ue000\u0378",
    "ligatures": "ﬁre in oﬃce ½ ™ ㎏",
    "dotted capital": "İstanbul İİ",
    "full width": "Ａｎｎ　ｍｅｔ．",
    "combining": "zoe\u0308 a\u0300\u0301\u0302\u0303 \u0301",
    "hangul": "\u1112\u1161\u11ab 한",
    "one word": "a" * 3000,
    "many accents": "e" + "\u0301" * 1000,
    "long": "ann met bob in oslo, " * 200,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Callable[[str, str], Path]:
    """The folder of a model that was never trained, by what it does and the kind of its tokenizer."""

    @functools.cache
    def make(name: str, tokens: str = "unigram") -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = train_tokenizer(LINES * 9, tokens, 26 if tokens == "unigram" else 275)
        head, fields = MODELS[name]
        torch.manual_seed(0)
        built = head(
            DebertaConfig(
                vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=24, max_position_embeddings=64, position_buckets=8, **fields,
            )
        )  # fmt: skip
        for each, weight in built.named_parameters():
            torch.nn.init.normal_(weight, *((1.0, 0.1) if "norm" in each and "weight" in each else (0.0, 0.3)))
        built.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def strict(line: str) -> dict[str, Any]:
    """A JSON object without NaN."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def ask(capsys, *arguments: object) -> list[dict[str, Any]]:
    cli.main(["predict", *map(str, arguments)])
    return [strict(line) for line in capsys.readouterr().out.split("\n")[:-1]]


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.startswith("unbraid: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("tokens", ["unigram", "bpe"])
@pytest.mark.parametrize("name", ["classes", "several", "score"])
def test_strange_texts_are_classified(name, tokens, model, tmp_path, capsys):
    texts = list(STRANGE.values())
    rows = [{"text": first, "pair": second} for first, second in zip(texts, texts[::-1], strict=True)]
    file = write(tmp_path / "a.jsonl", rows)
    for more in ([], ["--pair-column", "pair"]):
        found = ask(capsys, model(name, tokens), "--file", file, *more)
        assert [each["input"] for each in found] == [row["text"] for row in rows]
        for row in found:
            assert all(map(math.isfinite, numbers(row)))
            if name == "classes":
                assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
            for before, after in itertools.pairwise(row.get("windows", [])):
                assert before["start"] <= after["start"] <= before["end"] <= after["end"]


@pytest.mark.parametrize("tokens", ["unigram", "bpe"])
def test_strange_texts_are_labelled_in_the_untouched_text(tokens, model, tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", [{"text": text} for text in STRANGE.values()])
    for text, row in zip(STRANGE.values(), ask(capsys, model("words", tokens), "--file", file), strict=True):
        assert row["input"] == text
        for each in (*row["words"], *row["entities"]):
            assert text[each["start"] : each["end"]] == each["text"]
        ends = [place for word in row["words"] for place in (word["start"], word["end"])]
        assert ends == sorted(ends)
        assert "".join(word["text"] for word in row["words"]) == "".join(text.split()), "no character is left out"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ﬁre in oﬃce", ["ﬁre", "in", "oﬃce"]),
        ("İstanbul İİ", ["İstanbul", "İİ"]),
        ("Ａｎｎ　ｍｅｔ．", ["Ａｎｎ", "ｍｅｔ", "．"]),
        ("zoe\u0308 met", ["zoe\u0308", "met"]),
        ("½ ™ ㎏ x", ["½", "™", "㎏", "x"]),
        ("ann\u200bmet", ["ann", "\u200b", "met"]),
    ],
)
@pytest.mark.parametrize("tokens", ["unigram", "bpe"])
def test_words_whose_length_changes_when_normalised(text, words, tokens, model, capsys):
    (row,) = ask(capsys, model("words", tokens), text)
    assert [word["text"] for word in row["words"]] == words
    assert [text[word["start"] : word["end"]] for word in row["words"]] == words


@pytest.mark.parametrize("tokens", ["unigram", "bpe"])
def test_strange_questions_and_contexts(tokens, model, tmp_path, capsys):
    texts = list(STRANGE.values())
    rows = [{"question": text, "context": f"{text} oslo"} for text in texts]
    rows += [{"question": "where?", "context": text} for text in texts]
    found = ask(capsys, model("answers", tokens), "--file", write(tmp_path / "a.jsonl", rows))
    for row, asked in zip(found, rows, strict=True):
        assert row["input"] == asked["question"]
        if row["answer"]:
            assert asked["context"][row["start"] : row["end"]] == row["answer"]
            assert row["answer"] == row["answer"].strip()
        else:
            assert "start" not in row
            assert not asked["context"].replace("\ufeff", " ").strip("\0\u200b\u200c\u200d\x01\x7f\x85 \u2060").strip()


def test_strange_choices(model, tmp_path, capsys):
    rows = [
        {"question": question, "context": text, "choices": ["oslo", text if text.strip() else "none"]}
        for text, question in zip(STRANGE.values(), [*STRANGE.values()][::-1], strict=True)
    ]
    found = ask(capsys, model("choices"), "--file", write(tmp_path / "a.jsonl", rows))
    for row, asked in zip(found, rows, strict=True):
        assert row["choice"] == asked["choices"][row["index"]]
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)
    assert found[list(STRANGE).index("long")]["truncated"]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", b"ann\r\nbob\r\n", ["ann", "bob"]),
        ("a.txt", "\ufeffann\nbob".encode(), ["ann", "bob"]),
        ("a.txt", "ann\u2028x\x85y\n\n\rbob\x0c\n".encode(), ["ann\u2028x\x85y", "", "\rbob\x0c"]),
        ("a.csv", '\ufefftext\r\n"ann, bob"\r\n'.encode(), ["ann, bob"]),
        ("a.txt", b"a" * 100_000 + b"\nbob", ["a" * 100_000, "bob"]),
        ("-", b"\xef\xbb\xbfann\r\nbob", ["ann", "bob"]),
        ("-", b"", []),
    ],
)
def test_files_of_other_systems(name, content, texts, model, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    found = ask(capsys, model("classes"), *([] if name == "-" else ["--file", tmp_path / name]))
    assert [row["input"] for row in found] == texts


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"ann\nca\xe9\n", [], "a.txt, line 2: byte 3 is not UTF-8"),
        ("a.txt", b"", [], "a.txt has no texts"),
        ("a.txt", b"ann", ["--text-column", "text"], "a line of text has no columns"),
        ("a.txt", b"ann", ["--pair-column", "pair"], "a line of text has no columns"),
        ("a.txt", b"ann", ["--pair", "bob"], "0 texts but 1 second texts"),
        ("a.csv", b"text,x,text\na,b,c\n", [], "a.csv, line 1: there are several columns 'text'"),
        ("a.tsv", b"text\ttext\na\tb\n", [], "a.tsv, line 1: there are several columns 'text'"),
        ("a.csv", b"text\n", [], "a.csv has no examples"),
        ("a.csv", b"text\n" + b"a\n" * 50 + b"a,b\n", [], "a.csv, line 52: there are 2 cells but 1 columns"),
        ("a.jsonl", b'{"text": "a\\ud83d"}', [], "line 1: column 'text' holds half of a surrogate pair"),
        ("a.xlsx", b"PK", [], "a.xlsx is none of the known kinds of file"),
        ("a.txt", b"ann", ["--choices", "a", "b"], "choices are for a model of multiple choice"),
        ("-", b"ann\n\xff\n", [], "standard input, line 2: byte 1 is not UTF-8"),
        ("-", b'{"text": "a"}\nann\n', ["--text-column", "text"], "standard input, line 2: this is not a JSON object"),
        ("-", b'{"txt": "a"}\n', ["--text-column", "text"], "standard input, line 1: there is no column 'text'"),
        ("-", b"ann\n", ["--pair-column", "pair"], "a line of text has no columns"),
    ],
)
def test_files_that_are_refused(name, content, options, message, model, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    where = [] if name == "-" else ["--file", tmp_path / name]
    assert message in fails(capsys, "predict", model("classes"), *where, *options)
    assert capsys.readouterr().out == "", "the fault of a file is told before the first answer"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("classes", ["ann\udcff"], "Text 0 holds a lone surrogate at character 3"),
        ("words", ["ann\udcff"], "Text 0 holds a lone surrogate at character 3"),
        (
            "classes",
            ["ann", "--pair", "bob", "--max-length", "4"],
            "max_length 4 leaves no room for text; give at least",
        ),
        ("answers", ["ann", "--pair", "bob", "--max-length", "4"], "max_length 4 leaves no room for a question"),
        ("words", ["ann", "--pair", "bob"], "it takes no pairs"),
        ("masks", ["[MASK]", "--pair", "bob"], "single texts, no pairs"),
        ("masks", ["ann " * 99 + "[MASK]"], "beyond the 64 tokens that the model reads"),
        ("choices", ["where?"], "give two or more"),
        ("classes", ["ann", "--file", "a.csv"], "on the command line and as a file"),
        ("classes", ["ann", "--text-column", "text"], "texts on the command line have no columns"),
    ],
)
def test_texts_that_are_refused(name, arguments, message, model, capsys):
    assert message in fails(capsys, "predict", model(name), *arguments)


def test_a_file_with_a_text_without_a_mask_is_refused_before_the_first_answer(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unbraid.inference.FillMask.predict", lambda *_, **__: pytest.fail("it was asked"))
    (tmp_path / "a.txt").write_text("ann [MASK]\n" * 9_000 + "\n")
    assert "text 9001 of" in fails(capsys, "predict", model("masks"), "--file", tmp_path / "a.txt")


def test_options_that_would_do_nothing_are_refused(model, tmp_path, capsys):
    (tmp_path / "a.TXT").write_text("ann\n")
    assert "predicts masked words" in fails(capsys, "evaluate", model("masks"), tmp_path / "a.TXT", "--task", "cola")
    (tmp_path / "a.csv").write_text("question,choice1,choice2\nwhere?,here,there\n")
    columns = ["--file", tmp_path / "a.csv", "--choices", "here"]
    assert "leave --choices out" in fails(capsys, "predict", model("choices"), *columns)


def test_an_output_that_cannot_be_written(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "a.jsonl"):
        with monkeypatch.context() as patch:
            patch.setattr("unbraid.inference.classes.Classifier.predict", refuse)  # it is told before the first answer
            assert "cannot be written" in fails(capsys, "predict", model("classes"), "ann", "--output", output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_submission_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    from unbraid.tasks import submissions

    monkeypatch.setattr("unbraid.tasks.kinds.task_of", lambda _: None)
    monkeypatch.setattr("unbraid.commands.predict.load", lambda _: None)
    monkeypatch.setattr(submissions, "spelling", lambda *_: {})
    (tmp_path / "file").write_text("")
    arguments = ["cola", "--data", tmp_path, "--model", tmp_path, "--output", tmp_path / "file"]
    assert "file cannot be written" in fails(capsys, "submit", *arguments)


def test_the_answers_before_a_fault_are_kept_beside_the_output(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ann [MASK]\n" * 20_000 + b"bob\n")))
    monkeypatch.setattr("unbraid.inference.FillMask.predict", lambda _, texts, *__, **___: refuse(texts))
    said = fails(capsys, "predict", model("masks"), "--output", tmp_path / "a.jsonl")
    assert said.endswith(f"What was answered before is in {tmp_path / '.a.jsonl.partial'}.\n")
    assert (tmp_path / ".a.jsonl.partial").read_text().count("ann [MASK]") == 17873


def test_a_text_where_the_model_belongs(capsys):
    assert "is neither a folder nor a model" in fails(capsys, "predict", "The river flows to the [MASK]. " * 9)


def test_a_fault_far_into_a_stream_says_how_far(model, monkeypatch, capsys):
    lines = b"ann [MASK]\n" * 20_000 + b"bob\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    monkeypatch.setattr("unbraid.inference.FillMask.predict", lambda _, texts, *__, **___: refuse(texts))
    assert "after 17873 others: bob at 2127" in fails(capsys, "predict", model("masks"))


def refuse(texts: list[str]) -> list[dict[str, Any]]:
    from unbraid.errors import InputError

    if "bob" in texts:
        raise InputError(f"bob at {texts.index('bob')}")
    return [{} for _ in texts]


@pytest.mark.parametrize(
    ("name", "rows", "options", "message"),
    [
        (
            "classes",
            [{"text": "a", "label": "yes"}, {"text": "b", "label": "meh"}],
            [],
            "line 2: the label 'meh' is unk",
        ),
        ("words", [{"w": ["a"], "label": ["B-ORG"]}], ["--data.words", "w"], "line 1: the label 'B-ORG' is unknown"),
        (
            "answers",
            [{"question": "a", "context": "ann met", "answers": [{"text": "bob", "answer_start": 4}]}],
            [],
            "line 1: the answer 'bob' does not stand at character 4",
        ),
        (
            "choices",
            [{"question": "a", "choices": ["b", " "], "label": 0}],
            [],
            "line 1: choice 1 (from 0) is empty",
        ),
    ],
)
def test_examples_that_are_refused(name, rows, options, message, model, tmp_path, capsys):
    assert message in fails(capsys, "evaluate", model(name), write(tmp_path / "a.jsonl", rows), *options)


@pytest.mark.parametrize(
    ("name", "windows"), [("classes", True), ("words", False), ("answers", False), ("choices", False)]
)
def test_a_long_document(name, windows, model, tmp_path, capsys):
    """A tenth of a megabyte, which the tiny models here read as about as many tokens as a real one reads of one."""
    text = "ann met bob in oslo, " * 5_000
    row = (
        {"question": "where?", "context": text, "choices": ["a", "b"]}
        if name in ("answers", "choices")
        else {"text": text}
    )
    (found,) = ask(capsys, model(name), "--file", write(tmp_path / "a.jsonl", [row]))
    assert ("windows" in found) == windows
    match name:
        case "classes":
            assert not found["truncated"]
            assert found["windows"][-1]["end"] >= len(text.rstrip())
        case "words":
            assert len(found["words"]) == 6 * 5_000
            assert all(word["score"] > 0 for word in found["words"])
        case "answers":
            assert not found["truncated"]
            assert text[found["start"] : found["end"]] == found["answer"]
        case "choices":
            assert found["truncated"]
