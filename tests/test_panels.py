"""Which cases and slices are shown, and the picture of the stages."""

from __future__ import annotations

import dataclasses
import io as streams
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samsans import io
from samsans.errors import InputError
from samsans.metrics import evaluate, examples, matching, panels
from samsans.types import ClassInfo, Volume

OBJECTS = (ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,)))
AFFINE = np.diag([0.5, 1.0, 4.0, 1.0])  # stored R A S: rows and columns are turned for the reader


@pytest.mark.parametrize(
    ("count", "places"), [(1, [4]), (2, [4, 0]), (3, [4, 2, 0]), (5, [4, 3, 2, 1, 0]), (9, [4, 3, 2, 1, 0])]
)
def test_spread(count: int, places: list[int]) -> None:
    assert examples.spread(5, count) == places


def test_ranked_leaves_out_what_has_no_dice() -> None:
    rows = [{"id": "a", "dice": 0.5}, {"id": "a", "dice": 1.0}, {"id": "b", "dice": None}, {"id": "c", "dice": 0.1}]
    assert examples.ranked(rows) == [(0.1, "c"), (0.75, "a")]


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Three volumes of a disc with a cup; predictions shifted by 0, 2 and 4 rows."""
    for i in range(3):
        drawn = np.zeros((4, 24, 30), np.uint8)
        drawn[1, 5:9, 5:9], drawn[2, 4:12, 4:12], drawn[2, 6:9, 6:9] = 1, 1, 2
        image = 40.0 * drawn + 10
        for folder, array in (("ref", drawn), ("pred", np.roll(drawn, 2 * i, axis=1))):
            io.write_labels(tmp_path / folder / f"case{i}.nii.gz", array, like=Volume(array, AFFINE))
        io.write_image(tmp_path / "images" / f"case{i}.nii.gz", image, like=Volume(image[..., None], AFFINE))
    return tmp_path


def test_example_is_upright_square_and_scored(volumes: Path) -> None:
    (pair, *_) = matching.match(volumes / "pred", volumes / "ref", volumes / "images").pairs
    drawn = io.read_labels(volumes / "ref" / "case0.nii.gz").array
    half = drawn.copy()
    half[:, 8:] = 0
    shown = examples.example(pair, OBJECTS, {"whole": drawn, "half": half, "none": np.zeros_like(drawn)})
    assert (shown.where, shown.note) == ("slice 3 of 4", "")
    assert shown.truth.shape == shown.rgb.shape[:2] == (48, 30)  # rows of 1 mm, columns of 0.5 mm
    np.testing.assert_array_equal(shown.found["whole"], shown.truth)
    np.testing.assert_array_equal(shown.truth, drawn[2, ::-1, ::-1].repeat(2, axis=0))
    disc, cup = 2 * 32 / (64 + 32), 2 * 6 / (9 + 6)
    assert shown.dice == pytest.approx({"whole": 1.0, "half": (disc + cup) / 2, "none": 0.0})
    assert shown.rgb[shown.truth == 2].min() > shown.rgb[shown.truth == 0].max()


def test_other_planes(volumes: Path) -> None:
    (pair, *_) = matching.match(volumes / "pred", volumes / "ref", volumes / "images").pairs
    drawn = io.read_labels(volumes / "ref" / "case0.nii.gz").array
    shown = examples.example(pair, OBJECTS, {"same": drawn}, slice_axis="coronal")
    assert shown.where == "slice 16 of 24"  # rows 5 to 8 show most; from the front, row 8 comes first
    assert shown.truth.shape == shown.rgb.shape[:2] == (32, 30)  # four slices of 4 mm, columns of 0.5 mm
    assert shown.dice == {"same": 1.0}


def test_plate(volumes: Path) -> None:
    asked: list[str] = []

    def illustrate(summary, pairs, objects):  # type: ignore[no-untyped-def]
        def answers(pair: matching.Pair) -> dict[str, np.ndarray]:
            asked.append(pair.case.id)
            labels = io.read_labels(pair.prediction).array
            return {"stage1": labels, "stage2": labels * 0}

        return [panels.plate(summary, pairs, objects, answers, remark="A remark.")]

    evaluate(
        *(volumes / "pred", volumes / "ref", volumes / "out"),
        images=volumes / "images",
        classes=OBJECTS,
        bootstrap=0,
        illustrate=illustrate,
    )
    assert asked == ["case0", "case1", "case2"]  # best first
    png = (volumes / "out" / "panels.png").read_bytes()
    width, height = Image.open(streams.BytesIO(png)).size
    assert width == pytest.approx(panels.DPI * (4 * panels.WIDTH + 0.3), abs=2)
    assert height > width
    page = (volumes / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "A remark." in page


def test_what_cannot_be_drawn(volumes: Path) -> None:
    summary = evaluate(volumes / "pred", volumes / "ref", volumes / "out", classes=OBJECTS, bootstrap=0)
    pairs = matching.match(volumes / "pred", volumes / "ref").pairs
    with pytest.raises(InputError, match="0 cases"):
        panels.plate(summary, pairs, OBJECTS, lambda pair: {}, count=0)
    with pytest.raises(InputError, match="nothing to rank"):
        panels.plate(dataclasses.replace(summary, cases=[]), pairs, OBJECTS, lambda pair: {})
