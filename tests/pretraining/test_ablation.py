"""The variants of the ablations: each differs from the base in what its name says and in nothing else."""

from __future__ import annotations

import typing

import pytest
import torch

from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.pretraining.ablation import BENCHMARKS, GROUPS, VARIANTS, Group, Name, chosen
from unbraid.pretraining.config import RtdConfig

BASE = DebertaConfig(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
    position_buckets=None,
    share_att_key=False,
    norm_rel_ebd="none",
)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = DebertaForMaskedLM(BASE.replace(**VARIANTS[name].model))
    return {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}


def lacks(name: str, other: str = "deberta") -> set[str]:
    """The kinds of parameters that a variant lacks beside another, which has all of its own."""
    mine, others = shapes(name), shapes(other)
    assert mine.items() <= others.items()
    return {key.split(".attention.")[-1] for key in others.keys() - mine.keys()}


def test_every_name_that_can_be_asked_for_is_there():
    assert set(typing.get_args(Name)) == set(VARIANTS)
    assert set(typing.get_args(Group)) == set(GROUPS)
    assert all(name in VARIANTS for names in GROUPS.values() for name in names)


def test_each_variant_lacks_just_what_its_name_says():
    c2p = {"pos_key.weight", "pos_key.bias"}
    p2c = {"pos_query.weight", "pos_query.bias"}
    decoder = {key for key in shapes("deberta") if "position" in key and "embeddings" not in key}
    assert len(decoder) == 1, "the table of absolute positions, before the softmax"
    assert lacks("-EMD") == decoder
    assert lacks("-C2P") == c2p
    assert lacks("-P2C") == p2c
    assert lacks("-(EMD+C2P)") == decoder | c2p
    assert lacks("-(EMD+P2C)") == decoder | p2c
    assert lacks("+ShareProjection") == c2p | p2c
    assert lacks("mlm") == set()
    convolution = lacks("+ShareProjection", "+Conv")
    assert convolution
    assert all("convolution" in key for key in convolution)


def test_the_roberta_style_baseline_knows_absolute_positions_only():
    names = set(shapes("roberta"))
    assert "deberta.embeddings.position.weight" in names
    assert not any("relative" in name or "pos_" in name or "decoder.position" in name for name in names)
    config = BASE.replace(**VARIANTS["roberta"].model)
    assert not config.enhanced_mask_decoder


def test_replaced_token_detection_shares_as_its_name_says():
    for name in ("es", "nes", "gdes"):
        variant = VARIANTS[f"rtd-{name}"]
        config = RtdConfig(**variant.rtd)
        assert variant.objective == "rtd"
        assert config.sharing == name
        assert config.decoupled == (name != "es"), "one table is trained by both losses at once"
        assert variant.model == {}
    assert VARIANTS["mlm"].objective == "mlm"


def test_groups_and_names_mix_in_the_order_of_the_tables():
    assert chosen(["table-4"]) == ("roberta", "deberta", "-EMD", "-C2P", "-P2C", "-(EMD+C2P)", "-(EMD+P2C)")
    assert chosen(["+Conv", "deberta", "table-13"]) == ("roberta", "deberta", "+ShareProjection", "+Conv")
    assert chosen(["-EMD"]) == ("-EMD",)


# Differences between rows of the papers' tables, in points, reckoned by hand.
SAID = [
    ("-EMD", "deberta", [(-0.2, -0.1), (-0.3, -0.3), (-1.2, -1.3), (-1.4,)]),
    ("-C2P", "deberta", [(-0.4, -0.5), (-0.5, -0.3), (-1.2, -1.0), (-2.4,)]),
    ("deberta", "roberta", [(1.4, 1.1), (1.0, 1.3), (3.0, 3.3), (4.9,)]),
    ("rtd-gdes", "mlm", [(3.0, 2.8), None, (4.7, 5.2), None]),
]


@pytest.mark.parametrize(("name", "other", "differences"), SAID, ids=[row[0] for row in SAID])
def test_the_papers_figures(name, other, differences):
    mine, others = VARIANTS[name].paper, VARIANTS[other].paper
    for benchmark, expected in zip(BENCHMARKS, differences, strict=True):
        if expected is None:
            assert benchmark not in mine
        else:
            found = [a - b for a, b in zip(mine[benchmark], others[benchmark], strict=True)]
            assert found == pytest.approx(expected)


def test_the_same_run_has_the_same_figures():
    for benchmark in VARIANTS["mlm"].paper:
        assert VARIANTS["mlm"].paper[benchmark] == VARIANTS["deberta"].paper[benchmark]
    for variant in VARIANTS.values():
        assert set(variant.paper) <= set(BENCHMARKS)
        assert all(50 < score < 100 for scores in variant.paper.values() for score in scores)
