import json
import sys
import types

import pytest

from unbraid.errors import InputError
from unbraid.training.monitor import Monitor

ROW = {"loss": 2.5, "lr": 1e-4, "tokens_per_s": 1234.5}


def rows(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_plain_lines(tmp_path, capsys):
    with Monitor(tmp_path, 0, 20) as monitor:
        monitor.advance(10, 2.5, 1e-4, 1234.5)
        monitor.write(10, "train", ROW)
        monitor.write(10, "evaluation", {"loss": 2.0, "perplexity": float("inf")})
        assert len(rows(tmp_path)) == 2  # already written: a kill loses nothing
    assert rows(tmp_path) == [
        {"step": 10, "kind": "train", **ROW},
        {"step": 10, "kind": "evaluation", "loss": 2.0, "perplexity": None},
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 10/20  loss 2.5000  lr 1.00e-04  1,234 tokens/s  0:00:00 left",
        "step 10/20  evaluation: loss 2, perplexity inf",
    ]


def test_a_terminal_has_a_bar_with_a_smoothed_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Monitor(tmp_path, 0, 20) as monitor:
        monitor.advance(1, 4.0, 1e-4, 10.0)
        monitor.advance(2, 2.0, 1e-4, 10.0)
        monitor.write(2, "train", ROW)
    err = capsys.readouterr().err
    assert "loss 3.9000" in err
    assert "2/20" in err
    assert "loss 2.5000" not in err


def test_rows_after_the_step_to_continue_from_are_cut(tmp_path):
    with Monitor(tmp_path, 0, 20) as monitor:
        for step in (5, 10, 15):
            monitor.write(step, "train", ROW)
            monitor.write(step, "evaluation", {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ki')
    with Monitor(tmp_path, 10, 20) as monitor:
        monitor.write(15, "train", ROW)
    assert [(row["step"], row["kind"]) for row in rows(tmp_path)] == [
        (5, "train"),
        (5, "evaluation"),
        (10, "train"),
        (10, "evaluation"),
        (15, "train"),
    ]


def test_an_inactive_one_writes_and_says_nothing(tmp_path, capsys):
    with Monitor(tmp_path, 0, 20, tensorboard=True, active=False) as monitor:
        monitor.advance(1, 2.5, 1e-4, 10.0)
        monitor.write(1, "train", ROW)
        monitor.say("hello")
        monitor.sync()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_tensorboard_has_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Monitor(tmp_path, 0, 20, tensorboard=True) as monitor:
        monitor.write(10, "train", ROW)
        monitor.write(10, "evaluation", {"accuracy": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "train/loss": [(10, 2.5)],
        "train/lr": [(10, pytest.approx(1e-4))],
        "train/tokens_per_s": [(10, 1234.5)],
        "evaluation/accuracy": [(10, 0.5)],
    }


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(InputError, match=r"tensorboard is not installed: run `pip install tensorboard`"):
        Monitor(tmp_path, 0, 20, tensorboard=True)


def test_weights_and_biases_has_the_same_numbers_offline_unless_asked_otherwise(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    fake = types.ModuleType("wandb")
    fake.Settings = dict
    fake.init = lambda **options: calls.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with Monitor(tmp_path, 0, 20, wandb=True) as monitor:
        monitor.write(10, "train", ROW)
        monitor.write(10, "evaluation", {"accuracy": 0.5})
    options, *rest = calls
    assert (options["mode"], options["dir"], options["name"]) == ("offline", str(tmp_path), tmp_path.name)
    assert rest == [
        (10, {"train/loss": 2.5, "train/lr": 1e-4, "train/tokens_per_s": 1234.5}),
        (10, {"evaluation/accuracy": 0.5}),
        "finished",
    ]
    calls.clear()
    monkeypatch.setenv("WANDB_MODE", "online")
    with Monitor(tmp_path, 0, 20, wandb=True):
        assert calls[0]["mode"] == "online"


def test_weights_and_biases_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is not installed: run `pip install wandb`"):
        Monitor(tmp_path, 0, 20, wandb=True)
