"""The variants that the papers compare: what each changes, what the paper measured with it, and how ours compare."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

Name = Literal[
    "roberta", "deberta", "-EMD", "-C2P", "-P2C", "-(EMD+C2P)", "-(EMD+P2C)", "+ShareProjection", "+Conv",
    "mlm", "rtd-es", "rtd-nes", "rtd-gdes",
]  # fmt: skip
Group = Literal["table-4", "table-13", "v3"]

BENCHMARKS = ("MNLI-m/mm", "SQuAD 1.1 F1/EM", "SQuAD 2.0 F1/EM", "RACE")
"""What the papers measured, in percent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of an ablation.

    Attributes:
        model: fields of :class:`unbraid.model.config.DebertaConfig` that differ from the base of the ablation, a
            DeBERTa with its mask decoder and both position terms.
        sharing: of the embeddings in replaced token detection; None: masked language modelling.
        paper: benchmark -> the paper's scores, for a base model on Wikipedia and books.
    """

    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sharing: Literal["gdes", "es", "nes"] | None = None
    paper: Mapping[str, tuple[float, ...]]

    @property
    def objective(self) -> Literal["mlm", "rtd"]:
        """What it trains for."""
        return "mlm" if self.sharing is None else "rtd"

    @property
    def rtd(self) -> dict[str, Any]:
        """The fields of :class:`unbraid.pretraining.config.RtdConfig` that it decides.

        One shared table (ES) is trained by both losses at once; without that the two models take turns.
        """
        return {} if self.sharing is None else {"sharing": self.sharing, "decoupled": self.sharing != "es"}


def _paper(*scores: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    # The later tables leave the last benchmarks out.
    return {name: values for name, values in zip(BENCHMARKS, scores, strict=False) if values}


VARIANTS: dict[str, Variant] = {
    "roberta": Variant(
        model={"relative_attention": False, "pos_att_type": (), "position_biased_input": True},
        paper=_paper((84.9, 85.1), (91.1, 84.8), (79.5, 76.0), (66.8,)),
    ),
    "deberta": Variant(paper=_paper((86.3, 86.2), (92.1, 86.1), (82.5, 79.3), (71.7,))),
    "-EMD": Variant(
        model={"mask_decoder_passes": 0},
        paper=_paper((86.1, 86.1), (91.8, 85.8), (81.3, 78.0), (70.3,)),
    ),
    "-C2P": Variant(
        model={"pos_att_type": ("p2c",)},
        paper=_paper((85.9, 85.7), (91.6, 85.8), (81.3, 78.3), (69.3,)),
    ),
    "-P2C": Variant(
        model={"pos_att_type": ("c2p",)},
        paper=_paper((86.0, 85.8), (91.7, 85.7), (80.8, 77.6), (69.6,)),
    ),
    "-(EMD+C2P)": Variant(
        model={"mask_decoder_passes": 0, "pos_att_type": ("p2c",)},
        paper=_paper((85.8, 85.9), (91.5, 85.3), (80.3, 77.2), (68.1,)),
    ),
    "-(EMD+P2C)": Variant(
        model={"mask_decoder_passes": 0, "pos_att_type": ("c2p",)},
        paper=_paper((85.8, 85.8), (91.3, 85.1), (80.2, 77.1), (68.5,)),
    ),
    "+ShareProjection": Variant(
        model={"share_att_key": True},
        paper=_paper((86.3, 86.3), (92.2, 86.2), (82.3, 79.5)),
    ),
    "+Conv": Variant(
        model={"share_att_key": True, "conv_kernel_size": 3},
        paper=_paper((86.3, 86.5), (92.5, 86.4), (82.5, 79.7)),
    ),
    "mlm": Variant(paper=_paper((86.3, 86.2), (), (82.5, 79.3))),
    "rtd-es": Variant(sharing="es", paper=_paper((88.8, 88.4), (), (86.3, 83.5))),
    "rtd-nes": Variant(sharing="nes", paper=_paper((88.3, 87.9), (), (85.3, 82.7))),
    "rtd-gdes": Variant(sharing="gdes", paper=_paper((89.3, 89.0), (), (87.2, 84.5))),
}
"""Every variant; roberta is the paper's own RoBERTa (RoBERTa-ReImp), and + adds to the row before it.

Source: DeBERTa, tables 4 and 13; DeBERTaV3, the table of MLM, ES, NES and GDES.
"""

GROUPS: dict[str, tuple[str, ...]] = {
    "table-4": ("roberta", "deberta", "-EMD", "-C2P", "-P2C", "-(EMD+C2P)", "-(EMD+P2C)"),
    "table-13": ("roberta", "deberta", "+ShareProjection", "+Conv"),
    "v3": ("mlm", "rtd-es", "rtd-nes", "rtd-gdes"),
}
"""The variants of each of the papers' tables."""


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The variants that some names stand for, each once, in the order of :data:`VARIANTS`.

    >>> chosen(["+Conv", "table-4"])[-2:]
    ('-(EMD+P2C)', '+Conv')
    """
    named = {name for entry in names for name in GROUPS.get(entry, (entry,))}
    return tuple(name for name in VARIANTS if name in named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of a variant came to.

    Attributes:
        steps: (S,) at which held-out text was measured.
        losses: (S,) its masked loss, in nats per hidden token.
        scores: task -> its score, in percent.
        attention: where the pretrained model looks: share -> 0 to 1; see
            :func:`unbraid.pretraining.attention_maps.shares`.
        parameters: of the encoder that fine-tuning starts from.
        minutes: of pretraining and fine-tuning.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    scores: Mapping[str, float]
    attention: Mapping[str, float]
    parameters: int
    minutes: float


Found = Mapping[str, Mapping[int, Outcome]]
"""The outcomes: variant -> seed -> its run."""

Spread = tuple[float, float | None]
"""A mean, and where there are several values their standard deviation or the mean's standard error."""


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation, None of a single value.

    >>> spread([1.0, 3.0]), spread([2.0])
    ((2.0, 1.4142135623730951), (2.0, None))
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def baseline(found: Found) -> str:
    """The variant that the others are compared with: deberta, or the first where that is not among them."""
    return "deberta" if "deberta" in found else next(iter(found))


def paired(found: Found, value: Callable[[Outcome], float]) -> dict[str, Spread]:
    """How far each variant is above the baseline, seed by seed, so that what a seed does to both drops out.

    Args:
        found: the outcomes.
        value: what to compare.

    Returns:
        Variant -> the mean difference and its standard error, of the seeds that both have; the baseline too. A variant
        that shares no seed with it is left out.
    """
    base = found[baseline(found)]
    result = {}
    for name, runs in found.items():
        if gaps := [value(runs[seed]) - value(base[seed]) for seed in runs if seed in base]:
            mean, deviation = spread(gaps)
            result[name] = mean, None if deviation is None else deviation / math.sqrt(len(gaps))
    return result


def rows_of(found: Found, tasks: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """The table of an ablation: its head and a row for each variant, the paper's figures at the end.

    Args:
        found: the outcomes.
        tasks: task -> the head of its column.
    """
    rows = []
    for name, runs in found.items():
        outcomes, paper = list(runs.values()), VARIANTS[name].paper
        rows.append(
            [
                name,
                _shown(spread([run.losses[-1] for run in outcomes]), ".3f"),
                *(_shown(spread([run.scores[task] for run in outcomes]), ".1f") for task in tasks),
                str(len(outcomes)),
                f"{outcomes[0].parameters / 1e6:.3g} M",
                f"{statistics.fmean(run.minutes for run in outcomes):.1f}",
                *("/".join(map(str, paper.get(benchmark, ()))) for benchmark in BENCHMARKS),
            ]
        )
    papers = (f"paper: {benchmark}" for benchmark in BENCHMARKS)
    return ["", "masked loss", *tasks.values(), "seeds", "parameters", "minutes", *papers], rows


def difference_rows(found: Found, tasks: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """The table of the differences to the baseline: its head, and a row for each other variant that can be paired.

    Args:
        found: the outcomes.
        tasks: task -> the head of its column.
    """
    base = baseline(found)
    losses = paired(found, lambda run: run.losses[-1])
    scores = {task: paired(found, lambda run, task=task: run.scores[task]) for task in tasks}
    rows = []
    for name, loss in losses.items():
        if name == base:
            continue
        ours, theirs = VARIANTS[name].paper, VARIANTS[base].paper
        papers = [zip(ours.get(benchmark, ()), theirs.get(benchmark, ()), strict=False) for benchmark in BENCHMARKS]
        rows.append(
            [
                name,
                _shown(loss, "+.3f"),
                *(_shown(scores[task][name], "+.1f") for task in tasks),
                str(len(found[name].keys() & found[base].keys())),
                *("/".join(f"{mine - other:+.1f}" for mine, other in pairs) for pairs in papers),
            ]
        )
    papers = (f"paper: {benchmark}" for benchmark in BENCHMARKS)
    return [f"minus {base}", "masked loss", *tasks.values(), "seeds", *papers], rows


def attention_rows(found: Found, even: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """The table of where the last layers look, in percent of the attention: its head, and a row for each variant.

    Args:
        found: the outcomes.
        even: the shares of a model that would look everywhere alike, for the last row.
    """
    rows = [
        [
            name,
            *(_shown(spread([100 * run.attention[share] for run in runs.values()]), ".1f") for share in even),
            str(len(runs)),
        ]
        for name, runs in found.items()
    ]
    return ["", *even, "seeds"], [*rows, ["everywhere alike", *(f"{100 * share:.1f}" for share in even.values()), ""]]


def _shown(values: Spread, style: str) -> str:
    mean, deviation = values
    return f"{mean:{style}}" + ("" if deviation is None else f" ± {deviation:{style.removeprefix('+')}}")


def summary(found: Found) -> dict[str, Any]:
    """The same numbers, and those of every run, as JSON can hold them."""

    def described(name: str, value: Callable[[Outcome], float]) -> dict[str, Any]:
        gap = paired(found, value).get(name, (None, None))
        return {
            **dict(zip(("mean", "deviation"), spread([value(run) for run in found[name].values()]), strict=True)),
            "difference": dict(zip(("mean", "standard_error"), gap, strict=True)),
        }

    any_run = next(iter(next(iter(found.values())).values()))
    return {
        name: {
            "masked_loss": described(name, lambda run: run.losses[-1]),
            "scores": {task: described(name, lambda run, task=task: run.scores[task]) for task in any_run.scores},
            "attention": {
                goal: described(name, lambda run, goal=goal: run.attention[goal]) for goal in any_run.attention
            },
            "runs": {str(seed): dataclasses.asdict(run) for seed, run in runs.items()},
            "paper": dict(VARIANTS[name].paper),
        }
        for name, runs in found.items()
    }


def differences(found: Found) -> dict[str, dict[str, dict[str, Spread]]]:
    """How far each variant is above the baseline: here, seed by seed, and in the paper.

    Returns:
        Title -> task -> variant -> points of percent and their standard error over the seeds.
    """
    base = baseline(found)
    tasks = next(iter(found[base].values())).scores
    here = {task: paired(found, lambda run, task=task: run.scores[task]) for task in tasks}
    paper: dict[str, dict[str, Spread]] = {
        benchmark.split("/")[0]: {
            name: (VARIANTS[name].paper[benchmark][0] - score, None)
            for name in found
            if benchmark in VARIANTS[name].paper
        }
        for benchmark, (score, *_) in VARIANTS[base].paper.items()
    }
    panels = {f"here: points above {base}": here, f"the paper, at its size: points above {base}": paper}
    return {title: series for title, series in panels.items() if series}
