import copy
import json
import re

import pytest
import torch

from unbraid.errors import InputError
from unbraid.training.config import OptimizerConfig
from unbraid.training.optimizer import make_optimizer
from unbraid.training.state import Checkpoints, Progress, restore


def trained(toys, steps=3):
    toy = toys.Toy()
    optimizer = make_optimizer(toy, OptimizerConfig(learning_rate=0.01))
    for step in range(steps):
        toy.loss(toys.Stream()[step]).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return toy, optimizer


def write_steps(toys, folder, steps, keep=9):
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    toy, optimizer = trained(toys)
    for step in steps:
        checkpoints.save(Progress(step=step), toy, optimizer)
    return checkpoints


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_everything_comes_back_exactly(toys, tmp_path):
    toy, optimizer = trained(toys)
    before, now, scaler = {"loss": 0.2}, {"loss": 0.1}, {"scale": 2.0**-3, "_growth_tracker": 5}
    progress = Progress(3, 40, 40, 1, 1 / 3, before, now, 0.1, 2, [{"loss": 1e-17}], [scaler])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(progress, toy, optimizer)
    expected = copy.deepcopy((toy.state_dict(), optimizer.state_dict()))

    fresh = toys.Toy()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    fresh_optimizer = make_optimizer(fresh, OptimizerConfig(learning_rate=0.01))
    path, faults = checkpoints.latest()
    assert faults == []
    assert restore(path, fresh, fresh_optimizer) == progress
    assert fresh.head.weight is fresh.table.weight
    for name, value in expected[0].items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert fresh_optimizer.state_dict()["param_groups"] == expected[1]["param_groups"]
    assert fresh_optimizer.state_dict()["state"].keys() == expected[1]["state"].keys()
    for number, parts in expected[1]["state"].items():
        for part, value in parts.items():
            assert torch.equal(fresh_optimizer.state_dict()["state"][number][part], value)

    # Training on must not write through to the checkpoint.
    fresh.loss(toys.Stream()[3]).total.backward()
    fresh_optimizer.step()
    assert checkpoints.latest() == (path, [])


def test_a_shared_table_is_written_once_and_nothing_is_pickled(toys, tmp_path):
    folder = write_steps(toys, tmp_path, [1]).folder / "step-00000001"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "progress.json",
        "manifest.json",
    }
    header = json.loads((folder / "model.safetensors").read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    assert len({"table.weight", "head.weight"} & header.keys()) == 1


def test_a_parameter_that_never_had_a_gradient_has_no_state(toys, tmp_path):
    toy = toys.Toy()
    optimizer = make_optimizer(toy, OptimizerConfig())
    Checkpoints(tmp_path).save(Progress(), toy, optimizer)
    restore(tmp_path / "step-00000000", toy, optimizer)
    assert optimizer.state_dict()["state"] == {}


def test_the_latest_are_kept(toys, tmp_path):
    checkpoints = write_steps(toys, tmp_path, [5, 10, 15, 100], keep=2)
    assert names(checkpoints) == ["step-00000015", "step-00000100"]


def truncate(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, r"optimizer.safetensors has \d+ bytes instead of \d+"),
        (flip, "the content of model.safetensors has changed"),
        (lambda folder: (folder / "progress.json").unlink(), "progress.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or unreadable"),
        (lambda folder: (folder / "manifest.json").write_text('{"model'), "manifest.json is missing or unreadable"),
    ],
)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(toys, tmp_path, damage, told):
    checkpoints = write_steps(toys, tmp_path, [1, 2, 3])
    damage(checkpoints.folder / "step-00000003")
    path, faults = checkpoints.latest()
    assert path.name == "step-00000002"
    assert len(faults) == 1
    assert re.search(told, faults[0])
    checkpoints.tidy(path)
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def test_only_damaged_checkpoints_are_an_error_that_touches_nothing(toys, tmp_path):
    checkpoints = write_steps(toys, tmp_path, [1, 2])
    truncate(checkpoints.folder / "step-00000001")
    flip(checkpoints.folder / "step-00000002")
    with pytest.raises(InputError, match=r"step-00000002 is damaged: .*no other checkpoint is complete; remove"):
        checkpoints.latest()
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() == (None, [])


def test_tidying_keeps_the_latest_complete_one_whatever_lies_after_it(toys, tmp_path):
    checkpoints = write_steps(toys, tmp_path, [1, 2, 3])
    truncate(checkpoints.folder / "step-00000003")
    (checkpoints.folder / ".step-00000004.partial").mkdir()
    checkpoints.keep = 1
    checkpoints.tidy(checkpoints.folder / "step-00000002")
    assert names(checkpoints) == ["step-00000002"]
