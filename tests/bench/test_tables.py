"""Rendering and means on a small result with numbers made up, and the page against the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unbraid.bench.tables import BEGIN, END, about, geometric_mean, notes, render, tables, with_results, write_page
from unbraid.errors import InputError

ROOT = Path(__file__).parents[2]


def outcome(name, role, median=None, **other):
    spread = {"low": median and median * 0.9, "high": median and median * 1.1, "rounds": 5 if median else 0}
    return {"name": name, "role": role, "median": median, **spread, "difference": None, "reason": None, **other}


def cell(shape, tokens, ours, a, b, part="forward", dtype="float32", **other):
    contestants = [
        outcome("unbraid-native", "ours", ours, difference=1e-6),
        outcome("a", "rival", a, reason=None if a else "it is absent."),
        outcome("b", "rival", b),
        outcome("floor", "floor", 1.0),
    ]
    return {
        "part": part,
        "shape": shape,
        "dtype": dtype,
        "unit": "ms",
        "tokens": tokens,
        "contestants": contestants,
        **other,
    }


def result(benchmark, *cells):
    machine = {
        "processor": "Some Processor",
        "cores": 2,
        "memory_gib": 24.0,
        "capability": "AVX512",
        "extensions": {"avx2": True, "amx_bf16": False},
        "system": "Linux x86_64",
    }
    return {
        "benchmark": benchmark,
        "settings": {"model": "deberta-v3-base"},
        "machine": machine,
        "threads": 2,
        "versions": {"torch": "2.13.0", "openvino": None},
        "commit": "abc",
        "date": "2026-01-02",
        "cells": list(cells),
    }


ATTENTION = result(
    "attention",
    cell("1x32", 32, 1.0, 100.0, 100.0),
    cell("1x128", 128, 10.0, 20.0, 90.0),
    cell("8x128", 1024, 10.0, 80.0, 40.0),
    cell("1x512", 512, 10.0, None, 10.0),
    cell("ragged", 1540, 10.0, 70.0, 60.0),
)


def rows(table):
    return {row[0]: row[1:] for row in table.rows}


def test_geometric_means_by_hand():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    means = rows(tables(ATTENTION)[-1])
    # Without 1x32 (too small) and ragged (by itself): a 2 and 8; b 9, 4 and 1; the best 2, 4 and 1.
    assert means["a"] == ["4.00 (2 of 3)"]
    assert means["b"] == [f"{36 ** (1 / 3):.2f}"]
    assert means["the best rival of each cell"] == ["2.00"]
    assert means["floor"] == ["0.10"]
    assert means["a (ragged)"] == ["7.00"]
    assert means["the best rival of each cell (ragged)"] == ["6.00"]


def test_the_encoder_counts_small_shapes_too():
    means = rows(tables(result("inference", cell("1x32", 32, 1.0, 2.0, 9.0), cell("1x128", 128, 1.0, 8.0, 9.0)))[-1])
    assert means["a"] == ["4.00"]


def test_a_table_has_medians_spread_and_ratios():
    table = tables(ATTENTION)[0]
    assert table.head == ["", "1x32", "1x128", "8x128", "1x512", "ragged"]
    shown = rows(table)
    assert shown["unbraid-native"][1] == "10 ±10%"
    assert shown["a"][1] == "20 ±10%, 2.00x"
    assert shown["a"][3] == "-"
    assert table.markdown().count("\n| ") == 2 + 4


def test_training_shows_tokens_per_second():
    shown = rows(tables(result("training", cell("8x256", 2048, 1000.0, 4000.0, 8000.0, part="step")))[0])
    assert shown["a"][0] == "4,000 ±10%, 512 tokens/s, 4.00x"


def test_without_ours_there_is_no_ratio():
    (table,) = tables(result("inference", cell("1x32", 32, None, 2.0, 3.0)))
    assert rows(table)["a"] == ["2 ±10%"]


def test_reasons_and_differences_are_told():
    told = notes(ATTENTION)
    assert told[0] == "a not measured: it is absent. (forward 1x512 float32)"
    assert "unbraid-native float32 1.0e-06" in told[1]


def test_the_surroundings_are_told():
    line = about(ATTENTION)
    for words in ("Some Processor", "AVX512 (avx2)", "2 threads", "torch 2.13.0", "commit abc", "2026-01-02"):
        assert words in line
    assert "openvino" not in line
    assert "amx" not in line


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nAfter.\n", encoding="utf-8")
    return path


def test_the_page_keeps_what_stands_around(page, tmp_path):
    write_page(page, tmp_path)
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\nNo results yet.\n\n{END}\n\nAfter.\n"
    (tmp_path / "attention.json").write_text(json.dumps(ATTENTION), encoding="utf-8")
    for _ in range(2):
        write_page(page, tmp_path)
        assert page.read_text() == f"# Title\n\n{BEGIN}\n\n{render([ATTENTION])}\n{END}\n\nAfter.\n"


def test_a_page_without_marks_or_a_wrong_result_is_refused(page, tmp_path):
    (tmp_path / "wrong.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"wrong\.json is not a file of results"):
        write_page(page, tmp_path)
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(InputError, match="marks"):
        write_page(page, tmp_path)
    with pytest.raises(InputError, match="marks"):
        write_page(tmp_path / "absent.md", tmp_path)


def test_the_committed_page_is_the_rendering_of_the_committed_results():
    page = ROOT / "docs/benchmarks.md"
    assert page.read_text(encoding="utf-8") == with_results(page, ROOT / "benchmarks/results")
