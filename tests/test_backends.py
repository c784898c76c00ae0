"""Pretraining and fine-tuning go the same way with the native kernel as with the reference."""

from __future__ import annotations

import json
import shutil
from importlib import resources

import pytest
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid import cli

pytestmark = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")
STEPS = 8


def steps(folder, *arguments) -> list[dict[str, float]]:
    cli.main([str(argument) for argument in (*arguments, "--output", folder, "--training.steps", STEPS)])
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_losses_agree_to_rounding(verb, demo, tmp_path):
    data = resources.files("unbraid") / "data"
    model = [
        *(
            "--tokenizer",
            demo / "untrained",
            "--corpus.path",
            data / "reviews.train.jsonl.gz",
            "--cache",
            demo / "pretraining/corpus",
        ),
        *("--corpus.sequence-length", 128, "--corpus.batch-tokens", 1024, "--evaluation-batches", 1),
        *("--model.hidden-size", 48, "--model.num-hidden-layers", 2, "--model.num-attention-heads", 2),
        *("--model.intermediate-size", 96, "--model.position-buckets", 32, "--model.max-position-embeddings", 128),
        *(
            "--model.hidden-dropout-prob",
            0,
            "--model.attention-probs-dropout-prob",
            0,
            "--model.initializer-range",
            0.1,
        ),
    ]
    task = [
        *("--model", demo / "pretraining/model", "--dropout", 0),
        *("--task.train", data / "reviews.train.jsonl.gz", "--task.dev", data / "reviews.dev.jsonl.gz"),
        *("--task.batch-size", 16, "--task.max-length", 64),
    ]
    run = ["--training.optimizer.learning-rate", 1e-3, "--training.log-every", 1]
    common = [verb, *(model if verb == "pretrain" else task), *run]
    runs = [steps(tmp_path / name, *common, "--backend", name) for name in ("native", "reference")]
    native, reference = ([row["loss"] for row in run] for run in runs)
    assert len(native) == STEPS
    assert native == pytest.approx(reference, rel=2e-5)
    # The sum of a batch's losses may round alike; the norm of all gradients does not, where two backends ran.
    assert len({tuple(row["grad_norm"] for row in run) for run in runs}) == 2
