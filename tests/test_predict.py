"""``unbraid predict`` over files and streams: order, what is read when, progress, windows."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unbraid import cli
from unbraid.commands import inputs
from unbraid.inference import progress as bars
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForQuestionAnswering, DebertaForSequenceClassification
from unbraid.text.tokenizer import train_tokenizer

LINES = [f"{name} met {other} in {place}." for name in ("Ann", "Bob") for other in ("Eve", "Zoë") for place in "XYZ"]


def folder_of(tmp_path_factory, head) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(LINES * 9, "bpe", 275)
    torch.manual_seed(0)
    model = head(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=64, position_buckets=8, id2label={0: "no", 1: "yes"},
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, *((1.0, 0.1) if "norm" in name and "weight" in name else (0.0, 0.3)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return folder_of(tmp_path_factory, DebertaForSequenceClassification)


def ask(capsys, *arguments: object) -> list[dict]:
    cli.main(["predict", *map(str, arguments)])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def standard_input(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("chunk", [1, 60, 1 << 16])
def test_every_way_in_gives_the_same(classifier, chunk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "CHUNK", chunk)
    expected = ask(capsys, classifier, *LINES)
    assert [row["input"] for row in expected] == LINES
    assert len({row["score"] for row in expected}) > 6
    text = "".join(line + "\n" for line in LINES)
    rows = "".join(json.dumps({"no": 1, "line": line}) + "\n" for line in LINES)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.tsv").write_text("line\n" + text, encoding="utf-8")

    def same(*arguments: object) -> None:
        found = ask(capsys, classifier, *arguments)
        assert [row["input"] for row in found] == LINES
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], rel=1e-4)

    for name in ("a.txt", "a.txt.gz"):
        same("--file", tmp_path / name)
    for name in ("a.jsonl", "a.tsv"):
        same("--file", tmp_path / name, "--text-column", "line")
    standard_input(monkeypatch, text.encode())
    same()
    standard_input(monkeypatch, rows.encode())
    same("--text-column", "line")
    assert ask(capsys, classifier, "--file", tmp_path / "a.txt", "--output", tmp_path / "out.jsonl") == []
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["input"] for line in written] == LINES


def test_questions_come_with_their_contexts_in_rows(tmp_path_factory, monkeypatch, capsys):
    folder = folder_of(tmp_path_factory, DebertaForQuestionAnswering)
    contexts = [line * 9 for line in LINES]
    rows = [{"q": f"who {number}?", "c": context} for number, context in enumerate(contexts)]
    standard_input(monkeypatch, "".join(json.dumps(row) + "\n" for row in rows).encode())
    found = ask(capsys, folder, "--text-column", "q", "--pair-column", "c")
    assert [row["input"] for row in found] == [row["q"] for row in rows]
    for row, context in zip(found, contexts, strict=True):
        assert row["answer"] == context[row["start"] : row["end"]] != ""


def test_a_stream_is_answered_line_by_line(classifier):
    command = [sys.executable, "-m", "unbraid", "predict", str(classifier)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin
        assert process.stdout
        for line in LINES[:3]:  # the stream stays open, and the answer to each line is there before the next is sent
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["input"] == line
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_answers_leave_in_pieces(classifier, monkeypatch):
    """What is printed is there for a reader while later texts are still asked."""
    seen = []

    class Pipe(io.StringIO):
        def flush(self):
            seen.append(self.getvalue().count("\n"))

    monkeypatch.setattr(inputs, "CHUNK", 60)
    monkeypatch.setattr(sys, "stdout", Pipe())
    cli.main(["predict", str(classifier), *LINES])
    assert seen[0] < 5
    assert len(set(seen)) > 2
    assert seen[-1] == len(LINES)


@pytest.mark.parametrize("stream", [False, True])
def test_one_bar_counts_all_texts(classifier, stream, tmp_path, monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(inputs, "CHUNK", 60)
    monkeypatch.setattr(bars, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(bars, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    text = "".join(line + "\n" for line in LINES)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    standard_input(monkeypatch, text.encode())
    found = ask(capsys, classifier, *([] if stream else ["--file", tmp_path / "a.txt"]))
    assert len(found) == len(LINES)
    shown = screen.getvalue()
    assert ("12 of 12" in shown) == (not stream)
    assert " 12 " in shown
    assert shown.count("\x1b[?25l") == 1, "one bar, that hides the cursor once"


def test_answers_on_the_screen_have_no_bar_among_them(classifier, monkeypatch):
    screen, made = io.StringIO(), []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            assert "\x1b[?25h" in screen.getvalue(), "the bar of the call is gone"
            return super().write(text)

    def console(**_):
        made.append(Console(file=screen, force_terminal=True, width=100))
        return made[-1]

    monkeypatch.setattr(bars, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(bars, "Console", console)
    monkeypatch.setattr(sys, "stdout", Terminal())
    cli.main(["predict", str(classifier), *LINES])
    assert sys.stdout.getvalue().count("\n") == len(LINES)  # type: ignore[attr-defined], it is the one above
    assert len(made) == 2
    assert " of 12" not in screen.getvalue()


def test_another_encoding_of_the_output_still_holds_every_character(classifier, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    cli.main(["predict", str(classifier), "Zoë 😀"])
    assert json.loads(written.getvalue().decode("ascii"))["input"] == "Zoë 😀"


def test_a_long_text_has_windows_with_its_characters(classifier, tmp_path, capsys):
    text = " ".join(LINES * 10)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "second": LINES[0]}), encoding="utf-8")
    (alone,) = ask(capsys, classifier, "--file", tmp_path / "a.jsonl")
    (paired,) = ask(capsys, classifier, "--file", tmp_path / "a.jsonl", "--pair-column", "second")
    (cut,) = ask(capsys, classifier, text, "--max-length", "32")
    assert len(alone["windows"]) < len(paired["windows"]) < len(cut["windows"])
    for row in (alone, paired, cut):
        assert (row["windowed"], row["truncated"]) == ("text", False)
        assert row["windows"][0]["start"] == 0
        assert row["windows"][-1]["end"] == len(text)
        assert min(window["scores"]["yes"] for window in row["windows"]) < row["scores"]["yes"]
        assert max(window["scores"]["yes"] for window in row["windows"]) > row["scores"]["yes"]
