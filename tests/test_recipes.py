"""Recipes: each is a whole configuration of its verb, and those of the papers' runs describe the papers' models."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from unbraid import cli
from unbraid.commands import ablate, finetune, pretrain, tokenizer
from unbraid.model.pretrained import Deberta, DebertaForMaskedLM

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
PRETRAINING = ["--output", "x", "--tokenizer", "y", "--corpus.path", "some.txt", "more.txt"]
REST = {
    "pretrain": (pretrain.Config, PRETRAINING),
    "ablate": (ablate.Config, PRETRAINING),
    "finetune": (finetune.Config, ["--output", "x", "--model", "y", "--task.train", "a.tsv", "--task.dev", "b.tsv"]),
    "tokenizer": (tokenizer.Config, ["--output", "x", "--path", "some.txt"]),
}


def load(path: Path):
    """The configuration of a recipe, with what it leaves to the command line."""
    verb = path.stem.split("-")[0]
    config_class, rest = REST[verb]
    return cli.read_config(config_class, verb, [str(path), *rest])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_whole_configuration(path):
    config = load(path)
    assert isinstance(config, REST[path.stem.split("-")[0]][0])
    if isinstance(config, (pretrain.Config, ablate.Config)):
        assert config.training.num_steps(per_epoch=10**6) >= 10


# name: layers, width, heads, learning rate, sequences in a batch, steps, beta2, and the parameters of the encoder.
# Those of v3 are exact counts of the released models. Those of v1 and v2 are reckoned here by hand from the published
# sizes: the vocabulary, the relative table and its norm (v2), the layers, the norm of the input, the convolution (v2).
V1 = {"projections": 6, "biases": 4, "table": 1024, "norms": 1, "convolution": 0}
V2 = {"projections": 4, "biases": 4, "table": 512, "norms": 3, "convolution": 1}


def reckoned(vocabulary: int, layers: int, width: int, *, projections, biases, table, norms, convolution) -> int:
    layer = projections * width**2 + biases * width + 8 * width**2 + 5 * width + 4 * width
    convolved = convolution * (3 * width**2 + width)
    return (vocabulary + table) * width + layers * layer + 2 * norms * width + convolved


PUBLISHED = {
    "deberta-base": (12, 768, 12, 2e-4, 2048, 1_000_000, 0.999, reckoned(50265, 12, 768, **V1)),
    "deberta-large": (24, 1024, 16, 2e-4, 2048, 1_000_000, 0.999, reckoned(50265, 24, 1024, **V1)),
    "deberta-v2-xlarge": (24, 1536, 24, 1.5e-4, 2048, 1_000_000, 0.999, reckoned(128100, 24, 1536, **V2)),
    "deberta-v2-xxlarge": (48, 1536, 24, 1.5e-4, 2048, 1_000_000, 0.999, reckoned(128100, 48, 1536, **V2)),
    "deberta-v3-xsmall": (12, 384, 6, 6e-4, 8192, 500_000, 0.98, 70_682_112),
    "deberta-v3-small": (6, 768, 12, 6e-4, 8192, 500_000, 0.98, 141_304_320),
    "deberta-v3-base": (12, 768, 12, 6e-4, 8192, 500_000, 0.98, 183_831_552),
    "deberta-v3-large": (24, 1024, 16, 3e-4, 8192, 500_000, 0.98, 434_012_160),
    "mdeberta-v3-base": (12, 768, 12, 6e-4, 8192, 500_000, 0.98, 278_218_752),
}


def test_every_run_of_the_papers_has_its_recipe():
    names = {path.stem.removeprefix("pretrain-") for path in RECIPES}
    assert names >= {*PUBLISHED, "mini", "mini-rtd"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_runs(name):
    config = load(ROOT / f"recipes/pretrain-{name}.toml")
    layers, width, heads, learning_rate, batch, steps, beta2, parameters = PUBLISHED[name]
    model, training, optimizer = config.model, config.training, config.training.optimizer
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads) == (layers, width, heads)
    assert model.hidden_dropout_prob == model.attention_probs_dropout_prob == 0.1
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Deberta(model).parameters()) == parameters

    assert (optimizer.learning_rate, optimizer.beta2, training.steps) == (learning_rate, beta2, steps)
    assert (optimizer.beta1, optimizer.eps, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 1e-6, 0.01, 1.0)
    assert (optimizer.warmup, optimizer.final_fraction) == (10_000, 0)
    assert config.corpus.sequence_length == 512
    assert config.corpus.batch_tokens * training.micro_batches == batch * 512
    assert training.micro_batches % 64 == 0, "machines of 8 GPUs share them evenly"
    assert config.masking.probability == 0.15
    assert (config.corpus.temperature is None) == (name != "mdeberta-v3-base")
    if "v3" in name:
        assert config.objective == "rtd"
        assert (config.rtd.sharing, config.rtd.decoupled, config.rtd.detection_weight) == ("gdes", True, 50)
        assert (config.masking.max_ngram, config.masking.mask_fraction) == (1, 1)
    else:
        assert config.objective == "mlm"
        assert config.corpus.held_out == 0.05
        assert (config.masking.max_ngram, config.masking.mask_fraction, config.masking.keep_fraction) == (3, 0.8, 0.1)


def test_the_small_ones_are_of_one_size():
    """So that replaced tokens compare with masked tokens."""
    mlm, rtd = (load(ROOT / f"recipes/pretrain-{name}.toml") for name in ("mini", "mini-rtd"))
    assert (mlm.model, mlm.corpus) == (rtd.model, rtd.corpus)
    assert (mlm.objective, rtd.objective) == ("mlm", "rtd")


def test_the_small_ablation_is_table_4(monkeypatch):
    monkeypatch.chdir(ROOT)
    tasks = tuple(map(str, Path("benchmarks/ablation").glob("*.toml")))
    config = dataclasses.replace(load(ROOT / "recipes/ablate-mini.toml"), tasks=tasks)
    assert ablate.read_tasks(config).keys() == {"tags", "score"}
    ablate.check_shared(config, ablate.read_tasks(config), processes=2)
    assert len(config.names) == 7
    assert (config.model.position_buckets, config.model.share_att_key) == (None, False)


GIGA = 1e9
PAGE = (ROOT / "docs/pretraining.md").read_text(encoding="utf-8")


def rows_below(head: str) -> list[list[str]]:
    """The cells of the table of docs/pretraining.md whose head begins so."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", ["deberta-base", "deberta-large", "deberta-v2-xxlarge"])
def test_the_arithmetic_of_the_page(name):
    """The tables of docs/pretraining.md, from the formulas beside them."""
    config = load(ROOT / f"recipes/pretrain-{name}.toml")
    model, tokens = config.model, config.corpus.batch_tokens
    with torch.device("meta"):
        whole = sum(parameter.numel() for parameter in DebertaForMaskedLM(model).parameters())
        layers = sum(parameter.numel() for parameter in Deberta(model).encoder.layers.parameters())
    c, h, t, v, depth = model.hidden_size, model.num_attention_heads, 512, model.vocab_size, model.num_hidden_layers
    slots = min(2 * t - 1, 2 * (model.position_buckets or t) - 1)
    layer = 52 * c + 4 * h * slots + 2 * h * t + 8 * t
    memory = {
        "parameters": whole / 1e6,
        "18 N": 18 * whole / GIGA,
        "16 N / 8": 16 * whole / 8 / GIGA,
        "kept": depth * layer * tokens / GIGA,
        "recomputed": (4 * c * depth + layer) * tokens / GIGA,
        "logits": 2.4 * v * tokens / GIGA,
    }
    (row,) = [row for row in rows_below("| recipe | N |") if name in row[0]]
    shown = [float(re.sub(r"[ ,MGB]", "", cell)) for cell in row[1:]]
    assert shown == pytest.approx(list(memory.values()), rel=0.02, abs=0.05)

    trained = config.training.steps * config.training.micro_batches * tokens
    days = {"deberta-base": 640, "deberta-large": 1920, "deberta-v2-xxlarge": 7680}[name]
    rate = 6 * layers * trained / (days * 86400)
    (row,) = [row for row in rows_below("| recipe | n |") if name in row[0]]
    shown = [float(re.sub(r"[ ,a-zA-Z]|/s", "", cell)) for cell in row[1:]]
    expected = [layers / 1e6, trained / 1e12, 6 * layers * trained / 1e21, days, rate / 1e12, days / 8, days / 64]
    assert shown == pytest.approx(expected, rel=0.02)
