import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unbraid.errors import InputError
from unbraid.training.config import OptimizerConfig
from unbraid.training.state import Checkpoints

SCRIPT = Path(__file__).with_name("toys.py")


def script(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(toys, tmp_path_factory):
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    toys.run(folder)
    return toys.outcome(folder)


def test_it_learns(toys, tmp_path):
    toy = toys.Toy()
    fixed = toys.Stream()[0]

    class One:
        per_epoch = 1

        def __getitem__(self, index):
            return fixed

    optimizer = OptimizerConfig(learning_rate=0.05, warmup=0.1)
    result = toys.run(tmp_path, toy, One(), steps=120, optimizer=optimizer, checkpoint_every=1000)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert train[0]["loss"] > 2
    toy.eval()
    assert toy.loss(fixed).total / len(fixed.input_ids) < 0.02
    assert train[-1]["accuracy"] > 0.9
    assert result.finished


def test_rows_hold_the_means_since_the_last_row(toys, tmp_path):
    def rows(folder, **fields):
        toys.run(folder, steps=5, micro_batches=1, **fields)
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == "train"]

    single, joined = rows(tmp_path / "single", log_every=1), rows(tmp_path / "joined", log_every=3)
    assert [row["step"] for row in single] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in joined] == [3, 5]
    counts = [len(toys.Stream()[index].input_ids) for index in range(5)]
    for name in ("loss", "accuracy"):
        sums = [row[name] * count for row, count in zip(single, counts, strict=True)]
        assert joined[0][name] == pytest.approx(sum(sums[:3]) / sum(counts[:3]))
        assert joined[1][name] == pytest.approx(sum(sums[3:]) / sum(counts[3:]))
    assert [row["tokens"] for row in joined] == [sum(counts[:3]), sum(counts)]
    assert joined[1]["lr"] == single[4]["lr"]
    assert joined[1]["grad_norm"] == single[4]["grad_norm"]


def test_pieces_are_the_whole(toys, tmp_path, whole, capsys):
    results = [toys.run(tmp_path, max_minutes=1e-9) for _ in range(4)]
    assert [(result.step, result.finished) for result in results] == [(1, False), (2, False), (3, False), (4, True)]
    found = toys.outcome(tmp_path)
    recipes = [found.pop("recipe.json"), whole["recipe.json"]]
    assert recipes[0] != recipes[1]  # max_minutes
    assert found == {name: value for name, value in whole.items() if name != "recipe.json"}
    told = capsys.readouterr().err
    assert "stopped after step 1 of 4; run the same again to continue." in told
    assert "continuing after step 3 of 4." in told


def test_killed_at_any_moment_it_continues_exactly(tmp_path):
    done = script(SCRIPT, "kill", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, *together = map(int, done.stdout.split())
    assert alone > 60  # moments
    assert together == [3, 1, 2, 2, 1]


def test_a_disk_that_is_full_at_any_moment_is_one_sentence_and_spoils_nothing(toys, tmp_path, whole):
    def full(file):
        if file is not None:
            toys.halve(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    for at in itertools.count(step=3):
        folder = tmp_path / str(at)
        try:
            with toys.struck(at, full):
                toys.run(folder)
        except InputError as error:
            sentence = str(error)
        else:
            break
        assert sentence.startswith(f"cannot write to {folder} ([Errno 28] No space left on device); ")
        checkpoints = Checkpoints(folder / "checkpoints")
        latest, faults = checkpoints.latest()
        assert faults == []
        kept = "there is no checkpoint yet" if latest is None else f"the last complete checkpoint is {latest.name}"
        assert sentence.endswith(f"{kept}: free space there and run the same command again to continue.")
        toys.run(folder)
        assert toys.outcome(folder) == whole, at
    assert at > 40


@contextlib.contextmanager
def room_for(size):
    """No file can become larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_really_full(toys, tmp_path, whole):
    toys.run(tmp_path, max_minutes=1e-9)
    with (
        room_for(2000),
        pytest.raises(InputError, match=r"File too large.*last complete checkpoint is step-00000001: free space"),
    ):
        toys.run(tmp_path)
    toys.run(tmp_path)
    assert toys.outcome(tmp_path) == whole


def test_a_disk_that_is_full_when_a_row_of_metrics_is_written(toys, tmp_path):
    often = {"steps": 60, "log_every": 1, "checkpoint_every": 10, "evaluate_every": None}
    with (
        room_for(8000),
        pytest.raises(InputError, match=r"File too large.*last complete checkpoint is step-000000[1-5]0: free space"),
    ):
        toys.run(tmp_path / "full", **often)
    assert 7000 < (tmp_path / "full/metrics.jsonl").stat().st_size <= 8000
    toys.run(tmp_path / "full", **often)
    toys.run(tmp_path / "whole", **often)
    assert toys.outcome(tmp_path / "full") == toys.outcome(tmp_path / "whole")


def test_a_truncated_checkpoint_falls_back_to_the_one_before(toys, tmp_path, whole, capsys):
    toys.run(tmp_path, keep_checkpoints=2)
    path = tmp_path / "checkpoints" / "step-00000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert toys.run(tmp_path).finished
    told = capsys.readouterr().err
    assert "step-00000004 is damaged: model.safetensors has" in told
    assert "continuing after step 2 of 4" in told
    assert toys.outcome(tmp_path) == whole


def test_a_finished_run_says_so_and_brings_its_weights(toys, tmp_path, capsys):
    first = toys.Toy()
    expected = toys.run(tmp_path, first)
    before = toys.outcome(tmp_path)
    capsys.readouterr()
    again = toys.Toy()
    assert toys.run(tmp_path, again) == expected
    assert capsys.readouterr().err == f"{tmp_path}: this run is finished, all 4 steps of it.\n"
    assert toys.outcome(tmp_path) == before
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_another_recipe_is_refused_by_the_names_of_its_fields(toys, tmp_path):
    toys.run(tmp_path)
    before = toys.outcome(tmp_path)
    with pytest.raises(
        InputError, match=r"\(training.optimizer.learning_rate is 0.02 and was 0.01; training.seed is 1"
    ):
        toys.run(tmp_path, optimizer=OptimizerConfig(learning_rate=0.02), seed=1)
    assert toys.outcome(tmp_path) == before
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match=r"recipe.json is missing or unreadable"):
        toys.run(tmp_path)


def test_the_callers_recipe_counts_too(toys, tmp_path):
    def run(**recipe):
        toy = toys.Toy()
        config = toys.TrainingConfig(steps=1)
        return toys.train(toy, toys.Stream(), config, tmp_path, recipe={"data": recipe})

    assert run(path=Path("a"), rows=(1, 2), workers=1).finished
    assert run(path="a", rows=[1, 2], workers=3).finished
    with pytest.raises(InputError, match=r"\(data.path is 'b' and was 'a'\)"):
        run(path="b", rows=(1, 2))


def test_other_data_are_refused(toys, tmp_path):
    def run(per_epoch=5, **data):
        batches = toys.Stream()
        batches.per_epoch = per_epoch
        return toys.train(toys.Toy(), batches, toys.TrainingConfig(epochs=1), tmp_path, data=data)

    assert run(classes=("a", "b")).finished
    before = toys.outcome(tmp_path)
    assert json.loads((tmp_path / "data.json").read_text()) == {"steps": 5, "classes": ["a", "b"]}
    with pytest.raises(InputError, match=r"the data have changed.*\(classes is \['a', 'c'\] and was \['a', 'b'\]\)"):
        run(classes=("a", "c"))
    for more_or_less in (3, 7):
        with pytest.raises(InputError, match=rf"\(steps is {more_or_less} and was 5\): give another folder"):
            run(more_or_less, classes=("a", "b"))
    assert toys.outcome(tmp_path) == before
    assert run(classes=("a", "b"), more="noted from now on").finished
    with pytest.raises(InputError, match="more is 'other'"):
        run(classes=("a", "b"), more="other")


def test_a_run_that_began_before_its_data_were_noted_continues_but_not_beyond_its_end(toys, tmp_path):
    def run(per_epoch, **fields):
        batches = toys.Stream()
        batches.per_epoch = per_epoch
        return toys.train(toys.Toy(), batches, toys.TrainingConfig(epochs=1, **fields), tmp_path, data={"classes": 2})

    for _ in range(4):
        run(5, max_minutes=1e-9)
    (tmp_path / "data.json").unlink()
    with pytest.raises(InputError, match=r"\(it has come to step 4, and they make 3 steps\): give another folder"):
        run(3)
    assert not (tmp_path / "data.json").exists()
    assert run(5).finished
    assert (tmp_path / "data.json").exists()


def test_what_does_not_touch_the_result_may_change(toys, tmp_path, whole):
    toys.run(tmp_path, max_minutes=1e-9, checkpoint_every=1, keep_checkpoints=3)
    toys.run(tmp_path)
    assert toys.outcome(tmp_path) == whole


class Sending:
    """A stream that sends signals to its process while a micro-batch is prepared."""

    per_epoch = 5

    def __init__(self, stream, at, *signals):
        self.stream, self.at, self.signals = stream, at, signals

    def __getitem__(self, index):
        if index == self.at:
            for number in self.signals:
                signal.raise_signal(number)
        return self.stream[index]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(toys, tmp_path, whole, number, capsys):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    result = toys.run(tmp_path, batches=Sending(toys.Stream(), 5, number), checkpoint_every=4)
    assert (result.step, result.finished) == (3, False)
    assert "stopped after step 3 of 4; run the same again to continue." in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert toys.run(tmp_path).finished
    assert toys.outcome(tmp_path) == whole


def test_a_second_signal_ends_it_at_once(toys, tmp_path, whole):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    with pytest.raises(KeyboardInterrupt):
        toys.run(tmp_path, batches=Sending(toys.Stream(), 3, signal.SIGINT, signal.SIGINT))
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert toys.run(tmp_path).finished
    assert toys.outcome(tmp_path) == whole


@pytest.mark.parametrize(("direction", "pick"), [("min", min), ("max", max)])
def test_the_best_weights_are_those_of_the_best_evaluation(toys, tmp_path, direction, pick):
    toy = toys.Toy()
    result = toys.run(
        tmp_path,
        toy,
        direction=direction,
        evaluate_first=False,
        **{"steps": 6, "evaluate_every": 1, "checkpoint_every": 1, "keep_checkpoints": 6},
    )
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "evaluation"}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert result.best == pick(losses.values())
    assert losses[result.best_step] == result.best
    assert result.evaluation["loss"] == losses[6]
    saved = load_file(tmp_path / "best" / "weights.safetensors")
    checkpoint = load_file(tmp_path / "checkpoints" / f"step-{result.best_step:08}" / "model.safetensors")
    assert checkpoint.keys() == saved.keys()
    for name, value in checkpoint.items():
        assert torch.equal(saved[name], value)


@pytest.mark.parametrize(("values", "best"), [([0.5, float("nan"), 0.4, 0.4], 3), ([float("nan")] * 4, None)])
def test_a_metric_that_is_nan_is_never_the_best(toys, tmp_path, values, best):
    scores = iter(values)
    config = toys.TrainingConfig(steps=4, evaluate_every=1)
    result = toys.train(
        toys.Toy(), toys.Stream(), config, tmp_path, evaluate=lambda: {"loss": next(scores)}, best=("loss", "min")
    )
    assert result.best_step == best


def test_a_metric_to_choose_by_that_is_not_there(toys, tmp_path):
    with pytest.raises(InputError, match="cannot be chosen by f1: evaluation tells loss, accuracy"):
        toys.train(
            toys.Toy(),
            toys.Stream(),
            toys.TrainingConfig(steps=1),
            tmp_path,
            evaluate=lambda: {"loss": 1.0, "accuracy": 0.5},
            best=("f1", "max"),
        )


def test_evaluation_leaves_no_trace_in_the_training(toys, tmp_path, whole):
    toys.run(tmp_path / "often", evaluate_every=1)
    toys.run(tmp_path / "never", evaluate_every=None)
    weights = "checkpoints/step-00000004/model.safetensors"
    assert toys.outcome(tmp_path / "often")[weights] == whole[weights]
    assert toys.outcome(tmp_path / "never")[weights] == whole[weights]
    assert [row["step"] for row in toys.outcome(tmp_path / "never")["rows"] if row["kind"] == "evaluation"] == [0, 4]


def test_a_loss_that_is_not_finite_leaves_the_checkpoints(toys, tmp_path):
    class Breaking(toys.Toy):
        steps = 0

        def loss(self, batch):
            loss = super().loss(batch)
            self.steps += self.training
            return toys.Loss(loss.total * (torch.nan if self.steps == 7 else 1), loss.parts, loss.count)

    with pytest.raises(InputError, match=r"the loss is nan at step 4, so the run stops .*try a lower learning rate"):
        toys.run(tmp_path, Breaking())
    assert Checkpoints(tmp_path / "checkpoints").latest() == (tmp_path / "checkpoints" / "step-00000002", [])


def test_runs_of_both_precisions_in_one_process(toys, tmp_path):
    toy = toys.Toy()
    for precision in ("bfloat16", "float32", "bfloat16"):
        assert toys.run(tmp_path / f"{precision}", toy, precision=precision).finished
    assert "forward" not in vars(toy)


def test_spoken_of_once_when_the_metric_is_worse_than_before_the_first_step(toys, tmp_path, capsys):
    def run(folder, values, **fields):
        scores = iter(values)
        return toys.train(
            toys.Toy(),
            toys.Stream(),
            toys.TrainingConfig(steps=3, evaluate_every=1, checkpoint_every=1, **fields),
            tmp_path / folder,
            evaluate=lambda: {"loss": next(scores)},
            evaluate_first=True,
            best=("loss", "min"),
            save_best=lambda best: (best / "note").write_text("best"),
        )

    result = run("whole", [2.0, 2.5, 1.5, 2.25])
    assert (result.before, result.evaluation, result.best, result.best_step) == ({"loss": 2.0}, {"loss": 2.25}, 1.5, 2)
    told = [line for line in capsys.readouterr().err.splitlines() if "worse" in line]
    assert told == [f"loss is worse than before the first step: {now}, and was 2." for now in ("2.5", "2.25")]

    assert run("pieces", [2.0, 2.5], max_minutes=1e-9).best_step == 0
    assert (tmp_path / "pieces" / "best" / "note").exists()
    capsys.readouterr()
    run("pieces", [1.5, 2.25])
    assert "worse than before the first step: 2.25, and was 2." in capsys.readouterr().err
    assert toys.outcome(tmp_path / "pieces")["rows"] == toys.outcome(tmp_path / "whole")["rows"]
    assert [row["step"] for row in toys.outcome(tmp_path / "whole")["rows"] if row["kind"] == "evaluation"] == [
        *range(4)
    ]


def test_a_second_beginning_leaves_no_row_of_the_first(toys, tmp_path):
    class Failing(toys.Stream):
        def __getitem__(self, index):
            if index == 1:
                raise KeyError
            return super().__getitem__(index)

    with pytest.raises(KeyError):
        toys.run(tmp_path, batches=Failing(), steps=1)
    toys.run(tmp_path, steps=1)
    assert [(row["step"], row["kind"]) for row in toys.outcome(tmp_path)["rows"]] == [
        (0, "evaluation"),
        (1, "train"),
        (1, "evaluation"),
    ]


def test_the_parts_of_each_phase_are_means_over_its_own_items(toys, tmp_path):
    toys.run(tmp_path, toys.Pair(), steps=2, micro_batches=2, log_every=2)
    [row] = [row for row in toys.outcome(tmp_path)["rows"] if row["kind"] == "train"]
    counts = [len(toys.Stream()[index].input_ids) for index in range(4)]
    halves = [(count + 1) // 2 for count in counts]
    assert sum(counts) != 2 * sum(halves)
    for name, items in (("named", sum(counts)), ("judged", sum(halves))):
        assert 0 < row[name] < 1
        assert row[name] * items == pytest.approx(round(row[name] * items))
    assert row["tokens"] == sum(counts)
    assert {"grad_norm", "grad_norm_2"} < row.keys()


def test_the_last_weights_are_saved_once_the_run_is_finished(toys, tmp_path):
    toy = toys.Toy()
    toys.run(tmp_path, toy, max_minutes=1e-9)
    assert not (tmp_path / "model").exists()
    toys.run(tmp_path, toy)
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in toy.named_parameters())
    (tmp_path / "model" / "weights.safetensors").unlink()
    toys.run(tmp_path)  # as after a kill between the last checkpoint and this
    assert (tmp_path / "model" / "weights.safetensors").exists()


def test_weights_of_another_model(toys, tmp_path):
    toys.run(tmp_path)
    with pytest.raises(InputError, match=r"step-00000004 holds the weights of another model \(\w+ differs\)"):
        toys.run(tmp_path, toys.Pair())


@pytest.mark.parametrize(
    ("values", "patience", "last", "best"),
    [
        ([5, 4, 6, 4, 3, 9, 9, 9], 3, 8, 5),
        ([5, 4, 6, 4, 3, 9, 9, 9], 2, 4, 2),  # an equal one is no better
        ([5, 4, 3, 2, 1, 0, -1, -2], 1, 8, 8),
        ([5, 6, 5, 5, 5, 5, 5, 5], 1, 2, 1),
        ([5, float("nan"), 6, 1, 2, 2, 2, 2], 2, 3, 1),
        ([5, 5, 5, 5, 5, 5, 5, 4], 8, 8, 8),
    ],
)
def test_patience_by_hand(toys, tmp_path, capsys, values, patience, last, best):
    scores = iter(values)

    def run():
        return toys.train(
            toys.Toy(),
            toys.Stream(),
            toys.TrainingConfig(steps=8, evaluate_every=1, patience=patience),
            tmp_path,
            evaluate=lambda: {"loss": next(scores)},
            best=("loss", "min"),
            save_last=lambda folder: (folder / "note").write_text("last"),
        )

    result = run()
    assert (result.step, result.best_step, result.finished) == (last, best, True)
    assert (tmp_path / "model" / "note").exists()
    told = capsys.readouterr().err
    assert (f"stopped early after step {last} of 8, after {patience} evaluations without a new best" in told) == (
        last < 8
    )
    left = list(scores)
    before = toys.outcome(tmp_path)
    assert run() == result
    assert left == values[last:]
    assert toys.outcome(tmp_path) == before
    assert "this run is finished" in capsys.readouterr().err


def test_a_run_that_gives_up_in_pieces_is_the_whole(toys, tmp_path):
    """The loss of a model that learns has no new maximum."""
    fields = {"direction": "max", "steps": 9, "evaluate_every": 1, "checkpoint_every": 1, "patience": 3}
    result = toys.run(tmp_path / "whole", **fields)
    assert (result.step, result.best_step, result.gave_up) == (3, 0, True)
    pieces = [toys.run(tmp_path / "pieces", max_minutes=1e-9, **fields) for _ in range(4)]
    assert [(piece.step, piece.finished) for piece in pieces] == [(1, False), (2, False), (3, True), (3, True)]
    whole, found = (toys.outcome(tmp_path / name) for name in ("whole", "pieces"))
    assert whole.pop("recipe.json") != found.pop("recipe.json")  # max_minutes
    assert found == whole


def test_patience_needs_evaluations(toys, tmp_path):
    with pytest.raises(InputError, match="patience waits for a better evaluation, and this run has none"):
        toys.train(toys.Toy(), toys.Stream(), toys.TrainingConfig(steps=1, patience=1), tmp_path)
