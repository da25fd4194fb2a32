"""Our numbers beside published ones: differences, the verdict, and where they are shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samsans import io
from samsans.metrics import evaluate
from samsans.metrics.published import compare
from samsans.metrics.report import signed
from samsans.recipes import Published, RecipeConfig

MEAN = {"dice": 0.79, "hd95_mm": 16.0}
CLASSES = {"liver": {"dice": 0.94}, "spleen": {"dice": 0.64}}
FIRST = Published("Table 1", "H-SAM", "transunet", 0.80, 15.5, {"liver": 0.95, "spleen": 0.65}, "one run")
OTHER = Published("Table 1", "SAMed", "transunet", 0.75)


def recipe(**values: Any) -> RecipeConfig:
    return RecipeConfig(name="mine", **{"published": [FIRST, OTHER]} | values)


def test_differences() -> None:
    found = compare(recipe(), "transunet", MEAN, CLASSES)
    assert found is not None
    first, other = found.rows
    assert first.difference == pytest.approx(-0.01)
    assert first.hd95_difference == pytest.approx(0.5)
    assert first.class_differences == pytest.approx({"liver": -0.01, "spleen": -0.01})
    assert other.difference == pytest.approx(0.04)
    assert (other.hd95_difference, other.class_differences) == (None, {})
    assert (found.repeated, found.tolerance) == (True, 0.02)
    assert found.verdict == "Mean Dice 0.0100 below the published 0.8000: within the tolerance of 0.02."
    text = found.text(MEAN, CLASSES, "px")
    assert "beside H-SAM, Table 1 (recipe mine)" in text
    assert "liver                 0.940      0.950      -0.010" in text
    assert "mean HD95 [px]        16.00      15.50       +0.50" in text
    assert "also published: SAMed 0.750" in text


@pytest.mark.parametrize(
    ("change", "convention", "mean", "repeated", "said"),
    [
        ({"tolerance": 0.005}, "transunet", MEAN, False, "outside the tolerance of 0.005"),
        ({}, "transunet", {"dice": 0.815, "hd95_mm": 1.0}, True, "0.0150 above the published"),
        ({}, "transunet", {"dice": 0.825, "hd95_mm": 1.0}, False, "0.0250 above the published"),
        ({}, "default", MEAN, None, "Re-run with --convention transunet"),
        ({}, "transunet", {"dice": None, "hd95_mm": None}, None, "No Dice"),
    ],
)
def test_verdict(change: dict[str, Any], convention: str, mean: Any, repeated: bool | None, said: str) -> None:
    found = compare(recipe(**change), convention, mean, CLASSES)
    assert found is not None
    assert found.repeated is repeated
    assert said in found.verdict
    if convention != "transunet":
        assert all(row.hd95_difference is None for row in found.rows)
        assert "mean HD95 [mm]        16.00          -           -" in found.text(mean, CLASSES, "mm")


def test_other_classes_are_no_repetition() -> None:
    found = compare(recipe(), "transunet", MEAN, {"liver": {"dice": 0.94}, "kidney": {"dice": 0.5}})
    assert found is not None
    assert found.repeated is None
    assert found.verdict.startswith("Scored without spleen and with kidney")


def test_what_hinders_is_said_instead_of_a_verdict() -> None:
    found = compare(recipe(), "transunet", MEAN, CLASSES, ["It stopped.", "Two cases are not scored."])
    assert found is not None
    assert found.repeated is None
    assert found.verdict.endswith("no verdict is given. It stopped. Two cases are not scored.")
    assert found.rows[0].difference == pytest.approx(-0.01)


def test_a_row_that_cannot_be_compared_with_has_no_verdict() -> None:
    first = dataclasses.replace(FIRST, comparable=False, note="Its mean is wrong.")
    found = compare(recipe(published=[first, OTHER]), "transunet", {"dice": 0.8, "hd95_mm": 15.5}, CLASSES)
    assert found is not None
    assert (found.repeated, found.rows[0].difference, found.rows[0].hd95_difference) == (None, None, None)
    assert found.verdict == "The published mean cannot be compared with. Its mean is wrong."
    assert found.rows[0].class_differences == pytest.approx({"liver": -0.01, "spleen": -0.01})
    assert found.rows[1].difference == pytest.approx(0.05)


def test_no_recipe_no_comparison() -> None:
    assert compare(RecipeConfig(), "default", MEAN, CLASSES) is None


def test_in_summary_report_and_text(tmp_path: Path) -> None:
    labels = np.zeros((1, 24, 24), np.uint8)
    labels[0, 4:12, 4:12], labels[0, 14:20, 4:12] = 1, 2
    io.write_labels(tmp_path / "ref" / "a.png", labels)
    io.write_labels(tmp_path / "pred" / "a.png", np.roll(labels, 1, axis=1))
    named = [{"name": "liver", "label": 1, "values": [1]}, {"name": "spleen", "label": 2, "values": [2]}]
    (tmp_path / "pred" / "classes.json").write_text(json.dumps({"classes": named}))
    options = {"recipe": recipe(), "notes": ["The run departs from its recipe."], "bootstrap": 0}
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention="transunet", **options)
    assert summary.notes[-1] == "The run departs from its recipe."
    written = json.loads((tmp_path / "out" / "summary.json").read_text())["published"]
    dice = (7 / 8 + 5 / 6) / 2
    assert written["rows"][0]["difference"] == pytest.approx(dice - 0.8)
    assert (written["recipe"], written["repeated"], len(written["rows"])) == ("mine", False, 2)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for part in ("Beside the published numbers", "<td>SAMed<small>Table 1</small></td>", "H-SAM (Table 1): one run"):
        assert part in page
    assert f"{dice - 0.8:+.3f}" in page
    assert "beside H-SAM, Table 1 (recipe mine)" in summary.text()
    assert "15.50" in page
    other = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "other", **options)
    assert other.published is not None
    assert "15.50" not in (tmp_path / "other" / "report.html").read_text(encoding="utf-8")
    asked: list[object] = []
    hindered = evaluate(
        *(tmp_path / "pred", tmp_path / "ref", tmp_path / "hindered"),
        convention="transunet",
        obstacles=lambda ids: asked.append(ids) or ["It stopped."],  # type: ignore[func-returns-value]
        **options,
    )
    assert asked == [["a"]]
    assert hindered.published is not None
    assert hindered.published.repeated is None
    assert hindered.notes[-1] == "It stopped."
    plain = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "plain", bootstrap=0)
    assert plain.published is None
    assert "Beside the published" not in (tmp_path / "plain" / "report.html").read_text(encoding="utf-8")


def test_signed() -> None:
    assert [signed(v, "dice") for v in (0.1234, -0.5, None)] == ["+0.123", "−0.500", "–"]
