import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from unbraid.training.parallel import callable_in_parts, spread, whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one, two and four processes."""
    folder = tmp_path_factory.mktemp("runs")
    script = Path(__file__).with_name("toys.py")
    done = subprocess.run(
        [sys.executable, script, "spread", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + (folder / "log").read_text()[-2000:]
    return folder


def rows(folder):
    found = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: -1 if value is None else value
            for name, value in row.items()
            if name not in ("elapsed_s", "tokens_per_s")
        }
        for row in found
    ]


@pytest.mark.parametrize(
    ("alone", "together", "rel"),
    [
        *(("mlm-1", f"mlm-{name}", 2e-6) for name in ("2", "4", "2-full", "4-full")),
        *(("rtd-1", f"rtd-{name}", 1e-5) for name in ("2", "4-full")),
        ("es-1", "es-2-full", 1e-5),
        *(("pair-1", f"pair-{name}", 2e-6) for name in ("2", "4-full", "changing")),
        ("layers-1", "layers-2-full", 2e-6),
        ("overflow-1", "overflow-2-full", 1e-3),
    ],
)
def test_any_number_of_processes_leaves_the_curve_and_the_weights_of_one(runs, alone, together, rel):
    one, many = rows(runs / alone), rows(runs / together)
    assert len(one) == len(many) == 7
    for ours, theirs in zip(one, many, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert theirs == pytest.approx(ours, rel=rel)
    for place in ("best", "model"):
        weights = [load_file(runs / name / place / "weights.safetensors") for name in (alone, together)]
        assert_close(*weights, rtol=1e-3, atol=2e-3 if "overflow" in alone else 2e-5)


def test_every_process_writes_its_share(runs):
    def sizes(name):
        folder = runs / name / "checkpoints" / "step-00000004"
        found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
        manifest = json.loads((folder / "manifest.json").read_text())
        assert sorted(manifest) == [path.relative_to(folder).as_posix() for path in found]
        files = [load_file(path) for path in found if path.suffix == ".safetensors"]
        return [sum(weight.numel() for weight in weights.values()) for weights in files]

    whole, shards = sizes("mlm-4"), sizes("mlm-4-full")
    assert (len(whole), len(shards)) == (2, 4)
    assert sum(shards) == sum(whole)
    assert max(shards) < 0.3 * sum(whole)


def test_processes_that_cannot_share_the_micro_batches_say_so(runs):
    assert "set training.micro_batches to a multiple of 3" in (runs / "log").read_text()


def test_a_disk_that_is_full_for_one_process_is_one_sentence(runs):
    told = "cannot write to {} ([Errno 28] No space left on device); there is no checkpoint yet: free space there"
    assert told.format(runs / "full-disk") in (runs / "log").read_text()
    assert list((runs / "full-disk" / "checkpoints").iterdir()) == []


def test_one_process_spreads_nothing(toys):
    toy = toys.Toy()
    assert spread(toy, "full", toy.frozen.device) is toy
    before = dict(toy.named_parameters())
    with whole(toy), callable_in_parts([toy]):
        assert all(
            isinstance(weight, nn.Parameter) and weight is before[name] for name, weight in toy.named_parameters()
        )
