"""The variants that the papers compare: what each changes, what the paper measured with it, and how ours compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
        parameters: of the encoder that fine-tuning starts from.
        minutes: of pretraining and fine-tuning.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    scores: Mapping[str, float]
    parameters: int
    minutes: float


Found = Mapping[str, Mapping[int, Outcome]]
"""The outcomes: variant -> seed -> its run; the first variant is the one that the others are compared with."""

Spread = tuple[float, float | None]
"""A mean, and the standard deviation where there are several values."""


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation, None of a single value.

    >>> spread([1.0, 3.0]), spread([2.0])
    ((2.0, 1.4142135623730951), (2.0, None))
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rows_of(found: Found, tasks: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """The table of an ablation: its head and a row for each variant, the paper's figures at the end.

    Args:
        found: the outcomes.
        tasks: task -> the head of its column.
    """

    def shown(values: Sequence[float], digits: int) -> str:
        mean, deviation = spread(values)
        return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")

    rows = []
    for name, runs in found.items():
        outcomes, paper = list(runs.values()), VARIANTS[name].paper
        rows.append(
            [
                name,
                shown([run.losses[-1] for run in outcomes], 3),
                *(shown([run.scores[task] for run in outcomes], 1) for task in tasks),
                str(len(outcomes)),
                f"{outcomes[0].parameters / 1e6:.3g} M",
                f"{statistics.fmean(run.minutes for run in outcomes):.1f}",
                *("/".join(map(str, paper.get(benchmark, ()))) for benchmark in BENCHMARKS),
            ]
        )
    papers = (f"paper: {benchmark}" for benchmark in BENCHMARKS)
    return ["", "masked loss", *tasks.values(), "seeds", "parameters", "minutes", *papers], rows


def summary(found: Found) -> dict[str, Any]:
    """The same numbers, and those of every run, as JSON can hold them."""

    def described(values: Sequence[float]) -> dict[str, float | None]:
        return dict(zip(("mean", "deviation"), spread(values), strict=True))

    return {
        name: {
            "masked_loss": described([run.losses[-1] for run in runs.values()]),
            "scores": {
                task: described([run.scores[task] for run in runs.values()])
                for task in next(iter(runs.values())).scores
            },
            "runs": {str(seed): dataclasses.asdict(run) for seed, run in runs.items()},
            "paper": dict(VARIANTS[name].paper),
        }
        for name, runs in found.items()
    }


def differences(found: Found) -> dict[str, dict[str, dict[str, Spread]]]:
    """How far each variant is above the first one: here, seed by seed, and in the paper.

    Returns:
        Title -> task -> variant -> points of percent and their standard deviation over the seeds.
    """
    first, base = next(iter(found.items()))
    here = {
        task: {
            name: spread([runs[seed].scores[task] - base[seed].scores[task] for seed in runs if seed in base])
            for name, runs in found.items()
            if runs.keys() & base.keys()
        }
        for task in next(iter(base.values())).scores
    }
    paper: dict[str, dict[str, Spread]] = {
        benchmark.split("/")[0]: {
            name: (VARIANTS[name].paper[benchmark][0] - score, None)
            for name in found
            if benchmark in VARIANTS[name].paper
        }
        for benchmark, (score, *_) in VARIANTS[first].paper.items()
    }
    panels = {f"here: points above {first}": here, f"the paper, at its size: points above {first}": paper}
    return {title: series for title, series in panels.items() if series}
