"""The model that comes with the package: found by its name, small, and able to fill a gap."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from unbraid import Deberta, DebertaForMaskedLM, FillMask, Tokenizer
from unbraid.hub import SHIPPED, local_folder

ROOT = Path(__file__).parents[1]
NAME = "unbraid-mini-en"
FOLDER = ROOT / "src/unbraid/data" / NAME


@pytest.fixture(scope="module")
def filler() -> FillMask:
    return FillMask.from_pretrained(NAME)


def test_a_name_leads_into_the_package(monkeypatch, tmp_path):
    assert SHIPPED == (NAME,)
    assert local_folder(NAME, ["*.json"]).samefile(FOLDER)
    assert local_folder(Path(NAME), ["*.json"]).samefile(FOLDER)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert local_folder(NAME, ["*.json"]) == Path(NAME), "a folder of one's own comes first"


def test_the_weights_are_small_and_half_as_wide():
    weights = safetensors.torch.load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (FOLDER / "model.safetensors").stat().st_size < 20e6
    assert {parameter.dtype for parameter in Deberta.from_pretrained(NAME).parameters()} == {torch.float32}


def test_it_has_the_mask_decoder_and_its_tokenizer():
    model = DebertaForMaskedLM.from_pretrained(NAME)
    assert model.decoder is not None
    assert model.config.vocab_size == len(Tokenizer.from_pretrained(NAME))


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("He was born in 1879 and [MASK] in 1955.", {"died"}),
        ("The river flows to the [MASK] of the town.", {"north", "south", "east", "west"}),
        ("It is one of [MASK] most important works.", {"the", "his", "its", "her"}),
        ("She went [MASK] the room.", {"to", "into", "in", "from", "out"}),
    ],
)
def test_it_fills_gaps_sensibly(filler, text, fitting):
    (guesses,) = filler.predict([text])[0]["masks"]
    assert {guess["token"].lstrip("▁") for guess in guesses} & fitting


def test_its_recipe_is_the_one_in_recipes():
    written = tomllib.loads((ROOT / "recipes/pretrain-mini-en.toml").read_text(encoding="utf-8"))
    resolved = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))

    def holds(part: dict, whole: dict) -> bool:
        return all(
            holds(value, whole[key]) if isinstance(value, dict) else whole[key] == value for key, value in part.items()
        )

    assert holds(written, resolved)
    assert "/" not in resolved["tokenizer"] + "".join(resolved["corpus"]["path"])


def test_its_card_tells_what_its_log_tells():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["kind"] == "evaluation"][-1]
    assert f"{last['loss']:.3f} nats" in card
    assert f"step {last['step']:,}" in card
    for words in ("Licence", "GNU Free Documentation License", "CC BY-SA 4.0", "public domain"):
        assert words in card
