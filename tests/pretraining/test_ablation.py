"""The variants of the ablations: each differs from the base in what its name says and in nothing else."""

from __future__ import annotations

import typing

import pytest
import torch

from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForMaskedLM
from unbraid.pretraining.ablation import (
    BENCHMARKS,
    GROUPS,
    VARIANTS,
    Group,
    Name,
    Outcome,
    attention_rows,
    baseline,
    chosen,
    difference_rows,
    differences,
    paired,
    rows_of,
    summary,
)
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


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_a_variant_is_trained(name):
    model = DebertaForMaskedLM(BASE.replace(**VARIANTS[name].model))
    ids = torch.arange(10).view(2, 5)
    model(ids, labels=ids).loss.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


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


def outcome(loss: float, score: float, itself: float = 0.25) -> Outcome:
    return Outcome(
        steps=[5, 10],
        losses=[9.0, loss],
        scores={"task": score},
        attention={"itself": itself},
        parameters=1000,
        minutes=2.0,
    )


FOUND = {
    "roberta": {0: outcome(3.0, 60.0, 0.5), 1: outcome(4.0, 70.0, 0.25), 2: outcome(5.0, 80.0, 0.75)},
    "deberta": {0: outcome(2.5, 61.0), 1: outcome(3.0, 72.0), 2: outcome(3.5, 83.0)},
    "-EMD": {2: outcome(3.75, 82.0), 7: outcome(9.0, 10.0)},
}
"""Seed by seed roberta's loss is above deberta's by 0.5, 1 and 1.5, its score below by 1, 2 and 3."""


def test_differences_are_taken_to_deberta_within_each_seed():
    losses = paired(FOUND, lambda run: run.losses[-1])
    # The standard deviation of 0.5, 1, 1.5 is 0.5; over three seeds the mean has 1 / sqrt(3) of it.
    assert losses["roberta"] == pytest.approx((1.0, 0.5 / 3**0.5))
    assert losses["deberta"] == (0.0, 0.0)
    assert losses["-EMD"] == (0.25, None), "one seed in common tells nothing of the noise"
    assert paired(FOUND, lambda run: run.scores["task"])["roberta"] == pytest.approx((-2.0, 1 / 3**0.5))
    assert "roberta" not in paired(
        {"deberta": {0: outcome(1, 1)}, "roberta": {1: outcome(1, 1)}}, lambda run: run.minutes
    )


def test_without_deberta_they_are_taken_to_the_first():
    assert baseline(FOUND) == "deberta"
    assert baseline({"mlm": {}, "rtd-es": {}}) == "mlm"


def test_the_tables_say_what_was_found_and_what_the_paper_did():
    head, rows = rows_of(FOUND, {"task": "task, test accuracy"})
    assert head[:4] == ["", "masked loss", "task, test accuracy", "seeds"]
    assert rows[0][:6] == ["roberta", "4.000 ± 1.000", "70.0 ± 10.0", "3", "0.001 M", "2.0"]
    head, rows = difference_rows(FOUND, {"task": "task, test accuracy"})
    assert head[:4] == ["minus deberta", "masked loss", "task, test accuracy", "seeds"]
    assert [row[:4] for row in rows] == [
        ["roberta", "+1.000 ± 0.289", "-2.0 ± 0.6", "3"],
        ["-EMD", "+0.250", "-1.0", "1"],
    ]
    assert head[4:] == [f"paper: {benchmark}" for benchmark in BENCHMARKS]
    assert rows[1][4:] == ["-0.2/-0.1", "-0.3/-0.3", "-1.2/-1.3", "-1.4"]
    head, rows = attention_rows(FOUND, {"itself": 0.01})
    assert head == ["", "itself", "seeds"]
    assert rows[0] == ["roberta", "50.0 ± 25.0", "3"]
    assert rows[-1] == ["everywhere alike", "1.0", ""]


def test_the_summary_and_the_plot_have_the_same_differences():
    found = summary(FOUND)
    assert found["roberta"]["masked_loss"]["difference"] == {
        "mean": pytest.approx(1.0),
        "standard_error": pytest.approx(0.5 / 3**0.5),
    }
    assert found["roberta"]["attention"]["itself"]["mean"] == 0.5
    assert found["roberta"]["attention"]["itself"]["difference"]["mean"] == 0.25
    assert found["-EMD"]["scores"]["task"] == {
        "mean": 46.0,
        "deviation": pytest.approx(36 * 2**0.5),
        "difference": {"mean": -1.0, "standard_error": None},
    }
    assert found["roberta"]["runs"]["1"]["attention"] == {"itself": 0.25}
    here, paper = differences(FOUND).items()
    assert here == ("here: points above deberta", {"task": paired(FOUND, lambda run: run.scores["task"])})
    assert paper[0] == "the paper, at its size: points above deberta"
    assert paper[1]["RACE"]["roberta"] == (pytest.approx(66.8 - 71.7), None)
    assert paper[1]["RACE"]["deberta"] == (0.0, None)
