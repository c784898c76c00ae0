"""Mean and deviation of several runs, by hand."""

from rich.console import Console

from unbraid.tasks.summary import deviation, mean, table

RUNS = [{"dev": {"f1": 0.1, "loss": 1.0}}, {"dev": {"f1": 0.3, "loss": 1.0}}, {"dev": {"f1": 0.8, "loss": 4.0}}]


def test_mean_and_deviation():
    assert {name: round(value, 12) for name, value in mean(RUNS)["dev"].items()} == {"f1": 0.4, "loss": 2.0}
    spread = deviation(RUNS)["dev"]
    assert round(spread["f1"] ** 2, 12) == 0.13  # (0.09 + 0.01 + 0.16) / 2
    assert round(spread["loss"] ** 2, 12) == 3.0


def test_what_a_run_lacks_has_no_mean():
    assert mean([{"dev": {"f1": 1.0, "loss": 2.0}}, {"dev": {"f1": 0.0, "exact": 1.0}}]) == {"dev": {"f1": 0.5}}


def test_the_table_has_every_row(capsys):
    Console(width=60).print(table({"seed-1": {"f1": 0.5, "loss": 2.0}, "out_of_fold": {"loss": 1.5}}, "on dev"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seed-1", "0.5000", "2.0000"] in lines
    assert ["out_of_fold", "1.5000"] in lines
