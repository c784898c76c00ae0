"""The file of results: whole after each cell, continued, never mixed."""

from __future__ import annotations

import json

import pytest

from unbraid.bench.measure import Cell, Outcome
from unbraid.bench.record import Record, surroundings
from unbraid.errors import InputError

ABOUT = {"benchmark": "inference", "settings": {"rounds": 3}}


def cell(shape="1x32"):
    return Cell("encoder", shape, "float32", "ms", 32, list)


def test_each_cell_is_in_the_file_at_once_and_a_new_run_continues(tmp_path):
    path = tmp_path / "new" / "inference.json"
    record = Record(path, ABOUT)
    assert not path.exists()
    record.add(cell(), [Outcome("a", "rival", median=1.5, low=1.0, high=2.0, rounds=3)])
    written = json.loads(path.read_text())
    assert written["settings"] == {"rounds": 3}
    assert written["cells"][0]["contestants"][0]["median"] == 1.5

    again = Record(path, ABOUT)  # as after a kill
    assert again.holds(cell())
    assert not again.holds(cell("1x128"))
    again.add(cell("1x128"), [])
    assert [row["shape"] for row in json.loads(path.read_text())["cells"]] == ["1x32", "1x128"]


def test_what_was_measured_otherwise_is_not_continued(tmp_path):
    path = tmp_path / "x.json"
    Record(path, ABOUT).add(cell(), [])
    before = path.read_text()
    with pytest.raises(InputError, match="another settings"):
        Record(path, {**ABOUT, "settings": {"rounds": 4}})
    assert path.read_text() == before


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("half a li")
    with pytest.raises(InputError, match="not a file of results"):
        Record(path, ABOUT)


def test_the_surroundings_are_recorded():
    facts = surroundings(2)
    assert json.loads(json.dumps(facts)) == facts, "compared with what was read from a file"
    assert facts["threads"] == 2
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["capability"]
