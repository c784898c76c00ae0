"""The README's commands and its Python run as they stand, on a tiny demo's models."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unbraid import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "tokenizer": ["--vocab-size", "50"],
    "pretrain": ["--training.steps", "1", "--corpus.held-out", "0.3"],
    "ablate": [
        *("--training.steps", "1", "--corpus.held-out", "0.3", "--seeds", "0"),
        *("--variants", "roberta", "deberta", "--training.evaluate-every", "1"),
    ],
    "finetune": [
        *("--training.steps", "1", "--training.epochs", "None", "--training.optimizer.warmup", "0"),
        *("--task.batch-size", "4"),
    ],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def workplace(demo, tmp_path, monkeypatch) -> Path:
    """A folder that looks like a checkout after `make demo`, with a text, labelled examples and one of the tasks."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "demo").symlink_to(demo)
    paragraphs = [f"The old river number {i} runs past the town, and the people of {i} know it." for i in range(80)]
    (runs / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    rows = "".join(f"a {('good', 'bad')[i % 2]} film\t{('pos', 'neg')[i % 2]}\n" for i in range(12))
    for name in ("train", "dev"):
        (runs / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    (runs / "CoLA").mkdir()
    judged = "".join(f"made\t{i % 2}\t\tThe river {('it', 'runs')[i % 2]}.\n" for i in range(12))
    for name, content in {"train": judged, "dev": judged, "test": "index\tsentence\n0\tThe town.\n"}.items():
        (runs / f"CoLA/{name}.tsv").write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_runs(workplace, capsys):
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 22
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102, our own README
    assert "torch.Size([1, " in capsys.readouterr().out
    assert (workplace / "runs/mine/model.safetensors").is_file()


def test_the_commands_run(workplace, capsys):
    (block,) = blocks("sh")
    commands = [shlex.split(line) for line in block.strip().splitlines()]
    assert {command[1] for command in commands} == set(cli.VERBS) - {"demo", "bench"}
    for program, verb, *rest in commands:
        assert program == "unbraid"
        cli.main([verb, *rest, *SHORT.get(verb, [])])
    assert '"label"' in capsys.readouterr().out
    assert (workplace / "runs/reviews/best").is_dir()
    assert (workplace / "runs/submission/CoLA.tsv").read_text(encoding="utf-8").startswith("index\tprediction\n0\t")


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^ +make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"(?:\]\(|src=\")([^)#\"]+)[)\"]", path.read_text(encoding="utf-8")):
        assert link.startswith("http") or (path.parent / link).exists(), f"{page}: {link}"
