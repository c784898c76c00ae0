"""What ``unbraid bench`` measures, and how long."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from unbraid.errors import InputError
from unbraid.model.config import PRESETS, DebertaConfig, preset
from unbraid.settings import settings

Precision = Literal["float32", "bfloat16"]
Shape = Annotated[str, Field(pattern=r"^([1-9]\d*x[1-9]\d*|ragged)$")]

RAGGED = (20, 38, 66, 107, 170, 256, 371, 512)
"""Lengths of the batch called ragged, in tokens."""

_SHAPES = {
    "attention": ("1x32", "1x128", "8x128", "1x512", "4x512", "1x2048", "ragged"),
    "inference": ("1x32", "1x128", "8x128", "1x512", "4x512", "1x2048", "ragged"),
    "training": ("8x256",),
}
_MODELS = {"attention": "deberta-v3-base", "inference": "deberta-v3-base", "training": "deberta-v3-xsmall"}
_ENCODER_VOCABULARY = 5000


@settings
class Config:
    """Measures our model beside its rivals, with the same random weights and the same inputs.

    Contestants must agree with transformers in float32 before they are timed; one that does not, or cannot run, is
    reported with the reason. They take turns, round after round; what counts are the ratios of their medians.
    Results stand in OUTPUT/WHAT.json, written after each cell of the tables: killed at any moment, the same command
    continues. "page" measures nothing: it renders all results in OUTPUT into the page of the documentation.

    The rivals, by the names that --rivals takes:
      attention: transformers, disentangled-flash, no-positions (torch's fused kernel, a floor)
      inference: transformers, transformers-compiled, onnxruntime, openvino, disentangled-flash, bert (a floor)
      training:  transformers
    """

    what: tyro.conf.Positional[Literal["attention", "inference", "training", "page"]]
    """Attention alone (forward, forward and backward, peak memory), the whole encoder, a step of masked language
    modelling (and its peak memory), or the page."""
    output: str = "benchmarks/results"
    """Folder of the results."""
    shapes: tuple[Shape, ...] | None = None
    """Sequences x tokens, or "ragged": a batch of 8 with 20 to 512 tokens. By default 1x32 1x128 8x128 1x512 4x512
    1x2048 ragged; 8x256 for training."""
    memory_shapes: tuple[Shape, ...] = ("1x1024", "1x2048", "1x4096", "1x8192")
    """Shapes whose peak memory is measured in the attention benchmark."""
    dtypes: tuple[Precision, ...] = ("float32", "bfloat16")
    """Precisions; training in bfloat16 is float32 weights under autocast."""
    rivals: tuple[str, ...] | None = None
    """Who to measure beside us; all by default."""
    model: str | None = None
    """Released size, e.g. deberta-v3-small, or path of a config.json. By default deberta-v3-base, deberta-v3-xsmall for
    training. The encoder's vocabulary is cut to 5,000, which changes nothing but the memory taken."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds that each cell has at least."""
    seconds: Annotated[float, Field(ge=0)] = 20.0
    """Time for the rounds of a cell; warming up is not counted."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of every contestant; by default as many as torch chooses."""
    page: str = "docs/benchmarks.md"
    """Page to render the results into."""

    @property
    def cell_shapes(self) -> tuple[str, ...]:
        """The shapes to time."""
        return self.shapes or _SHAPES[self.what]

    @property
    def result(self) -> Path:
        """The file of results."""
        return Path(self.output) / f"{self.what}.json"

    @property
    def model_name(self) -> str:
        """The released size or the file that is measured."""
        return self.model or _MODELS[self.what]

    def architecture(self) -> DebertaConfig:
        """The model's configuration, with weights drawn large and far distances as in transformers' port.

        At the usual standard deviation of 0.02 attention hardly sees positions, and a wrong one would not show.

        Raises:
            InputError: neither a released size nor a configuration file.
        """
        name = self.model_name
        if name not in PRESETS and not Path(name).is_file():
            raise InputError(f"{name} is neither a file nor a preset; the presets are {', '.join(PRESETS)}.")
        config = preset(name) if name in PRESETS else DebertaConfig.from_file(name)
        limit = config.vocab_size if self.what == "training" else _ENCODER_VOCABULARY
        return config.replace(vocab_size=min(config.vocab_size, limit), initializer_range=0.05, long_distance="port")

    def chosen(self, contestants: tuple[str, ...]) -> list[str]:
        """Which of a benchmark's contestants take part: ours always.

        Raises:
            InputError: a rival that the benchmark has not.
        """
        rivals = [name for name in contestants if not name.startswith("unbraid")]
        if unknown := [name for name in self.rivals or () if name not in rivals]:
            raise InputError(f"{self.what} has no rival {unknown[0]!r}; its rivals are {', '.join(rivals)}.")
        return [name for name in contestants if name not in rivals or self.rivals is None or name in self.rivals]


def lengths(shape: str) -> list[int]:
    """The length of each sequence of a shape, in tokens.

    >>> lengths("2x128")
    [128, 128]
    """
    if shape == "ragged":
        return list(RAGGED)
    batch, length = map(int, re.findall(r"\d+", shape))
    return [length] * batch
