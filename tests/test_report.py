"""The report: numbers read back as written, text escaped, a page that is whole."""

from __future__ import annotations

import base64
import json
import re

import numpy as np

from unbraid.report import (
    Section,
    attention_map,
    attention_maps,
    comparison,
    curves,
    read_metrics,
    smooth,
    table,
    write_report,
)


def test_metrics_are_columns_with_nan_where_a_number_is_missing(tmp_path):
    rows = [
        {"step": 1, "kind": "train", "loss": 3.0},
        {"step": 1, "kind": "evaluation", "loss": 2.0},
        {"step": 2, "kind": "train", "loss": None, "lr": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    train = read_metrics(tmp_path, "train")
    np.testing.assert_array_equal(train["step"], [1, 2])
    np.testing.assert_array_equal(train["loss"], [3.0, np.nan])
    np.testing.assert_array_equal(train["lr"], [np.nan, 0.5])


def test_smoothing_is_the_mean_of_what_came_before():
    values = np.arange(7.0)
    expected = [values[max(0, i - 2) : i + 1].mean() for i in range(7)]
    np.testing.assert_allclose(smooth(values, 3), expected)


def test_plots_are_images():
    x = np.arange(3)
    images = [curves({"a": (x, x), "b": (x, -x)}, "x", "y", {"level": 1.0}), attention_map(np.eye(2), ["a", "<b>"])]
    for image in images:
        encoded = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="">', image)
        assert base64.b64decode(encoded[1]).startswith(b"\x89PNG")


def test_a_comparison_shows_every_variant_however_many_or_few():
    steps = np.arange(3)
    for count in (1, 13):
        names = [f"variant {i}" for i in range(count)]
        lines = {name: (steps, np.ones((2, 3)) * i) for i, name in enumerate(names)}
        dots = {name: (float(i), None if i % 2 else 0.5) for i, name in enumerate(names)}
        some = {name: dot for name, dot in dots.items() if name != "variant 3"}
        for panels in ({}, {"here": {"task": dots, "other": some}, "there": {"task": some}}):
            picture = comparison(lines, "step", "loss", panels)
            assert picture.startswith(b"\x89PNG")
            width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
            assert width > 800
            assert height > 500
    assert len({comparison({"a": (steps, np.ones((1, 3)) * i)}, "step", "loss", {}) for i in (1, 2)}) == 2


def test_maps_of_several_models_stand_side_by_side():
    def size(picture: bytes) -> list[int]:
        assert picture.startswith(b"\x89PNG")
        return [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)]

    short, long = ["[CLS]", "$a_{$", "[SEP]"], ["[CLS]", "\N{CJK UNIFIED IDEOGRAPH-6F22}", "b", "$$", "[SEP]"]

    def of(number: int, texts: list[list[str]]) -> dict[str, list]:
        return {f"variant {i}": [(np.eye(len(text)), text) for text in texts] for i in range(number)}

    one, more, two_rows = (size(attention_maps(of(*case))) for case in ((1, [short]), (3, [short]), (3, [short, long])))
    assert more[0] > 2 * one[0]
    assert more[1] == one[1]
    assert two_rows[0] == more[0]
    assert two_rows[1] > 1.7 * more[1]
    turned = {"a": [(np.eye(3), short)], "b": [(np.fliplr(np.eye(3)), short)]}
    assert attention_maps(turned) != attention_maps(dict(zip("ab", reversed(turned.values()), strict=True)))


def test_text_is_escaped_and_the_page_is_whole(tmp_path):
    cells = table(["<head>"], [["a & b"], [3]])
    assert "&lt;head&gt;" in cells
    assert "a &amp; b" in cells
    write_report(tmp_path / "report.html", "<title>", "an & introduction", [Section("1 < 2", "text > text", cells)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>&lt;title&gt;</h1>" in page
    assert "<h2>1 &lt; 2</h2>" in page
    assert "text &gt; text" in page
    assert page.rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
