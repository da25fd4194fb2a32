"""SPD's rules for slices: golden values, empty masks, what the extras tell, and the evaluation that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from samsans import io
from samsans.errors import InputError
from samsans.metrics import surface
from samsans.metrics.conventions import get, score
from samsans.metrics.evaluate import evaluate
from samsans.metrics.slicewise import TITLES, over_slices, over_volumes, slicewise
from samsans.types import Volume


def box(rows: tuple[int, int], columns: tuple[int, int], side: int = 64) -> np.ndarray:
    """A filled rectangle, last row and column included."""
    mask = np.zeros((side, side), bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask


SQUARE = box((20, 39), (20, 39))
# prediction -> Dice, IoU, HD95, ASD of both directions together, ASD prediction to reference
GOLDEN = {
    "same": (SQUARE, 1, 1, 0, 0, 0),
    "shift x+3": (box((20, 39), (23, 42)), 0.85, 0.7391304, 3, 1.5, 1.5),
    "shift (x+4, y+3)": (box((23, 42), (24, 43)), 0.68, 0.5151515, 4.0553975, 3.231654, None),
    "grown 2 px": (box((18, 41), (18, 41)), 0.8196721, 0.6944444, 2.2360680, 2.030966, 2.056546),
    "plus a far pixel": (SQUARE | box((0, 0), (0, 0)), 0.998752, 0.997506, 0, 0.184865, 0.367328),
    "left half": (box((20, 39), (20, 29)), 2 / 3, 0.5, 10, 2.878788, 1.607143),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    prediction, *expected, directed = GOLDEN[name]
    found = slicewise(prediction[None], SQUARE[None])
    assert [found.dice[0], found.iou[0], found.hd95[0], found.asd[0]] == pytest.approx(expected, abs=1e-6)
    if directed is not None:
        assert found.asd_directed[0] == pytest.approx(directed, abs=1e-6)
    assert found.hd95_penalised[0] == found.hd95[0]


def test_max_directed_differs_where_it_should() -> None:
    """The other definition of HD95 (MONAI's) on the diagonal shift."""
    distances = surface.surface_distances(GOLDEN["shift (x+4, y+3)"][0], SQUARE, (1, 1))
    assert surface.hausdorff(distances, pooling="max_directed") == pytest.approx(4.0307765, abs=1e-6)


def test_other_direction_of_the_half() -> None:
    found = slicewise(SQUARE[None], GOLDEN["left half"][0][None])
    assert found.asd_directed[0] == pytest.approx(3.815789, abs=1e-6)


def test_surface_is_the_mask_without_its_4_neighbour_erosion() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 40)), 2) > 0.5
    inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1))
    np.testing.assert_array_equal(surface.surface(mask), mask & ~inner)


def test_four_slices() -> None:
    """Found; one pixel missed; correct silence; one pixel made up."""
    reference, predicted = np.zeros((2, 4, 10, 10), bool)
    reference[0, 2:6, 2:7] = predicted[0, 2:6, 2:7] = True
    reference[1, 5, 5] = predicted[3, 4, 4] = True
    found = slicewise(predicted, reference)
    np.testing.assert_array_equal(found.dice, [1, 0, 1, 0])
    np.testing.assert_array_equal(found.iou, [1, 0, 1, 0])
    np.testing.assert_array_equal(found.hd95, [0, math.nan, math.nan, math.nan])
    np.testing.assert_allclose(found.hd95_penalised, [0, 200**0.5, math.nan, 200**0.5])
    assert found.means() == pytest.approx(
        {
            "dice": 0.5,
            "iou": 0.5,
            "dice_present": 0.5,
            "false_positives": 0.5,
            "volumetric_dice": 40 / 42,
            "hd95": 0,
            "asd": 0,
            "asd_directed": 0,
            "coverage": 0.5,
            "hd95_penalised": 2 / 3 * 200**0.5,
        }
    )
    assert list(found.means()) == list(TITLES)


def test_nothing_anywhere_is_perfect_and_has_no_distance() -> None:
    nothing = np.zeros((3, 8, 8), bool)
    found = slicewise(nothing, nothing).means()
    assert {name for name, value in found.items() if value is None} == {
        "hd95", "asd", "asd_directed", "hd95_penalised", "dice_present", "coverage",
    }  # fmt: skip
    assert (found["dice"], found["iou"], found["volumetric_dice"], found["false_positives"]) == (1, 1, 1, 0)


def test_averages() -> None:
    """One long volume without the object, one short volume in which it is missed."""
    long, short = np.zeros((6, 8, 8), bool), np.zeros((2, 8, 8), bool)
    drawn = short.copy()
    drawn[:, 2:5, 2:5] = True
    volumes = [slicewise(long, long), slicewise(short, drawn)]
    assert over_slices(volumes)["dice"] == 6 / 8
    assert over_volumes(volumes)["dice"] == 0.5
    assert over_volumes(volumes)["volumetric_dice"] == 0.5
    assert over_volumes(volumes)["coverage"] == 0
    assert "volumetric_dice" not in over_slices(volumes)


def test_pooled_overlap_is_exact() -> None:
    rng = np.random.default_rng(1)
    predicted, reference = rng.random((2, 20, 33, 31)) > 0.7
    found = slicewise(predicted, reference)
    np.testing.assert_array_equal(found.both, (predicted & reference).sum((1, 2)))
    np.testing.assert_allclose(found.iou, found.dice / (2 - found.dice))


def test_spacing_inside_slices_is_the_unit() -> None:
    prediction = GOLDEN["shift x+3"][0][None]
    for spacing in ((9.0, 0.5, 2.0), (0.5, 2.0)):
        assert slicewise(prediction, SQUARE[None], spacing).hd95[0] == pytest.approx(6)
    missed = slicewise(np.zeros_like(prediction), SQUARE[None], (0.5, 2.0))
    assert missed.hd95_penalised[0] == pytest.approx(math.hypot(32, 128))


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="T, H, W"):
        slicewise(SQUARE, SQUARE)


def test_convention_agrees() -> None:
    empty = np.zeros_like(SQUARE)
    rules = get("spd")
    for masks in ((SQUARE, empty), (empty, SQUARE), (empty, empty)):
        one = score(*masks, (1, 1), rules)
        assert one.values["dice"] == one.values["iou"] == float(masks[0] is masks[1])
        assert one.values["hd95_mm"] is one.values["asd_mm"] is None


def test_evaluate(tmp_path: Path) -> None:
    """Coronal slices: the last axis of the files is 2 mm apart, the model and the table slice along the second."""
    reference, predicted = np.zeros((2, 16, 4, 16), np.uint8)
    reference[4:8, 1:3, 4:8] = 1
    predicted[4:8, 1, 4:8] = 1  # the second slice with the object is missed
    predicted[4:8, 3, 4:8] = 1  # and another one made up
    affine = np.diag([1.0, 5.0, 1.0, 1.0])
    for name, array in (("pred", predicted), ("ref", reference)):
        (tmp_path / name).mkdir()
        io.write_labels(tmp_path / name / "v.nii.gz", array, Volume(array=array, affine=affine))
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention="spd")
    assert [row["dice"] for row in summary.cases] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert summary.mean["dice"] == 0.5
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["slicewise"]["foreground"]
    assert (found["volumes"], found["slices"], found["present"]) == (1, 4, 2)
    assert found["over_slices"]["dice_present"] == 0.5
    assert found["over_slices"]["false_positives"] == 0.5
    assert found["over_volumes"]["volumetric_dice"] == 0.5
    assert found["over_slices"]["hd95_penalised"] == pytest.approx(2 / 3 * math.hypot(16, 16))
    for title in TITLES.values():
        assert title in summary.text()
        assert title in (tmp_path / "out" / "report.html").read_text()
    other = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "plain")
    assert other.slicewise is None
    assert "over volumes" not in other.text()
