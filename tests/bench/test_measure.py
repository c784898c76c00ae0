"""Who is timed, in which order, and who is not; never how fast."""

from __future__ import annotations

import math
import time

import pytest
import torch

from unbraid.bench.measure import Contestant, Ready, interleave, largest_difference, measure_times, sentence

TRUTH = [torch.tensor([1.0, -2.0, 4.0])]


def contestant(name, outputs, calls=None, role="rival") -> Contestant:
    def run():
        if calls is not None:
            calls.append(name)

    return Contestant(name, role, lambda: Ready(run, None if outputs is None else lambda: outputs))


def measure(*contestants, tolerance=1e-3, rounds=3):
    outcomes = measure_times(contestants, lambda: TRUTH, tolerance, rounds=rounds, seconds=0)
    assert [outcome.name for outcome in outcomes] == [one.name for one in contestants]
    return outcomes


def test_who_agrees_is_timed():
    calls: list[str] = []
    (outcome,) = measure(contestant("close", [TRUTH[0] + 0.002], calls))
    assert outcome.reason is None
    assert outcome.rounds == 3
    assert outcome.low <= outcome.median <= outcome.high
    assert outcome.difference == pytest.approx(0.002 / 4, rel=1e-3)
    assert calls


@pytest.mark.parametrize("wrong", [0.02, -0.02, math.nan, math.inf])
def test_who_does_not_agree_is_reported_and_never_timed(wrong):
    calls: list[str] = []
    off = TRUTH[0].clone()
    off[1] += wrong
    good, bad = measure(contestant("good", TRUTH), contestant("bad", [off], calls))
    assert good.median is not None
    assert (bad.median, bad.rounds) == (None, 0)
    assert "differ" in bad.reason
    assert bad.difference is None or bad.difference > 1e-3
    assert not calls


def test_one_wrong_tensor_of_several_is_seen():
    assert largest_difference([TRUTH[0], torch.zeros(2)], [TRUTH[0], torch.tensor([0.0, 3.0])]) == 1
    assert math.isnan(largest_difference([torch.tensor([math.nan]), TRUTH[0]], [torch.ones(1), TRUTH[0]]))
    with pytest.raises(ValueError, match="zip"):
        largest_difference(TRUTH, [*TRUTH, *TRUTH])


def test_a_floor_is_timed_without_agreeing():
    (outcome,) = measure(contestant("floor", None, role="floor"))
    assert outcome.median is not None
    assert outcome.difference is None


def test_who_is_not_installed_or_fails_is_reported():
    def missing():
        import a_package_that_nobody_has  # noqa: F401, the import itself is the test

    def failing():
        raise RuntimeError("out of luck.\nand a long trace")

    outcomes = measure(
        Contestant("absent", "rival", missing),
        Contestant("unlucky", "rival", failing),
        Contestant("late", "rival", lambda: Ready(failing, lambda: TRUTH)),
        contestant("good", TRUTH),
    )
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons == [
        "a_package_that_nobody_has is not installed: run pip install 'unbraid[bench]'.",
        "out of luck.",
        "out of luck.",
        None,
    ]


def test_an_error_without_words_has_its_name():
    assert sentence(KeyError()) == "KeyError"


def test_rounds_interleave_and_every_second_goes_backwards():
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(runs, rounds=3, seconds=0, turn_s=0)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"  # the first warms up
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)


def test_a_quick_one_is_called_several_times_in_its_turn():
    calls: list[str] = []
    interleave({"quick": lambda: calls.append("q")}, rounds=1, seconds=0, turn_s=0.001)
    assert len(calls) > 2


def test_rounds_go_on_until_the_time_is_used_up():
    times = interleave({"slow": lambda: time.sleep(0.005)}, rounds=1, seconds=0.05, turn_s=0)
    assert len(times["slow"]) > 1


def test_nobody_left_ends_at_once():
    assert interleave({}, rounds=3, seconds=60) == {}
