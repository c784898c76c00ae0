"""benchmarks/mini_text.py and mini_ship.py: the text of unbraid-mini-en, and the folder that comes with the package."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from unbraid import DebertaForMaskedLM, cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def documents(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().removesuffix("\n\n").split("\n\n")


def test_the_text_is_parted_the_same_way_every_time(benchmark, tmp_path, capsys):
    articles = [f"Article {i}\nhas a second paragraph." for i in range(300)]
    leads = [f"Lead {i} is short." for i in range(100)]
    paragraphs = [f"Paragraph {i}." for i in range(20 * 50 + 7)]
    for name, text in {
        "enwik8": "\n\n".join(articles),
        "wiki_leads_2026": "\n".join(leads),
        "austen": "\n".join(paragraphs),
    }.items():
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(f"{text}\n".encode()))
    text = benchmark("mini_text")
    for folder in ("one", "two"):
        text.main(tmp_path, tmp_path / folder)
    kept, held_out = (documents(tmp_path / f"one/wikipedia{end}.txt.gz") for end in ("", ".heldout"))
    assert sorted(kept + held_out) == sorted(articles + leads)
    assert 1 <= len(held_out) <= 20
    novels = [documents(tmp_path / f"one/novels{end}.txt.gz") for end in ("", ".heldout")]
    assert sorted("\n".join(novels[0] + novels[1]).splitlines()) == sorted(paragraphs)
    assert {len(piece.splitlines()) for part in novels for piece in part} <= {20, 7}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert f"wikipedia: {len(kept)} documents to train on, {len(held_out)} held out" in capsys.readouterr().out


def test_a_run_becomes_a_folder_to_ship(benchmark, demo, tmp_path):
    texts = [tmp_path / "rivers.txt", tmp_path / "towns.txt"]
    for text in texts:
        text.write_text("\n\n".join(f"Number {i} of the {text.stem} is old." for i in range(60)), encoding="utf-8")
    options = {
        "corpus.held-out": 0.3,
        "corpus.sequence-length": 32,
        "corpus.batch-tokens": 128,
        "tokenizer": demo / "untrained",
        "output": tmp_path / "run",
        "training.steps": 2,
        "model.hidden-size": 12,
        "model.num-attention-heads": 2,
        "model.num-hidden-layers": 2,
        "model.intermediate-size": 16,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    cli.main(["pretrain", "--corpus.path", *map(str, texts), *words])
    benchmark("mini_ship").main(tmp_path / "run", tmp_path / "shipped")
    best = DebertaForMaskedLM.from_pretrained(tmp_path / "run/best")
    shipped = DebertaForMaskedLM.from_pretrained(tmp_path / "shipped")
    for name, weight in best.state_dict().items():
        assert torch.equal(weight.half().float(), shipped.state_dict()[name]), name
    dtypes = {tensor.dtype for tensor in safetensors.torch.load_file(tmp_path / "shipped/model.safetensors").values()}
    assert dtypes == {torch.float16}
    recipe = json.loads((tmp_path / "shipped/recipe.json").read_text())
    assert recipe["corpus"]["path"] == ["rivers.txt", "towns.txt"]
    assert recipe["tokenizer"] == "untrained"
    assert (tmp_path / "shipped/metrics.jsonl").read_text() == (tmp_path / "run/metrics.jsonl").read_text()
