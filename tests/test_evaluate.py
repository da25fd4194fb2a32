"""The evaluation of folders: matching, classes, geometry, the numbers, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from samsans import io
from samsans.errors import InputError
from samsans.metrics import METRICS, evaluate, matching
from samsans.types import Case, ClassInfo, Progress, Volume

AFFINE = np.diag([0.5, 0.5, 3.0, 1.0])


def square(top: int, left: int, side: int, value: int = 1, size: int = 20) -> np.ndarray:
    labels = np.zeros((1, size, size), dtype=np.uint8)
    labels[0, top : top + side, left : left + side] = value
    return labels


def block(shift: int = 0, value: int = 1) -> np.ndarray:
    labels = np.zeros((4, 12, 10), dtype=np.uint8)
    labels[1:3, 3:7, 2 + shift : 6 + shift] = value
    return labels


def put(path: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return io.write_labels(path, labels, like=Volume(labels, affine) if affine is not None else None)


def name_classes(folder: Path, *classes: tuple[str, int, list[int]]) -> None:
    content = {"classes": [{"name": n, "label": v, "values": values} for n, v, values in classes]}
    (folder / "classes.json").write_text(json.dumps(content))


@pytest.fixture
def polyps(tmp_path: Path) -> Path:
    """Three 0/255 masks: hit exactly, half overlapped, missed."""
    for i, (found, drawn) in enumerate([((4, 4, 8), (4, 4, 8)), ((4, 8, 8), (4, 4, 8)), ((0, 0, 0), (4, 4, 8))]):
        put(tmp_path / "pred" / "a" / f"{i}.png", square(*found))
        put(tmp_path / "ref" / "a" / f"{i}.png", square(*drawn, value=255))
    name_classes(tmp_path / "pred", ("polyp", 1, [255]))
    return tmp_path


def test_hand_made_numbers(polyps: Path) -> None:
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "out")
    polyp = summary.classes["polyp"]
    assert summary.n == polyp["n"] == 3
    assert polyp["dice"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert polyp["iou"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert polyp["hd95_mm"] == pytest.approx((0 + 4) / 2)  # the miss has no distance and is counted
    assert polyp["counted"]["hd95_mm"] == 2
    assert (polyp["missed"], polyp["spurious"], polyp["absent"]) == (1, 0, 0)
    assert summary.unit == "px"
    assert any("pixels" in note for note in summary.notes)
    assert summary.mean["dice"] == polyp["dice"]
    low, high = polyp["ci"]["dice"]
    assert 0 <= low <= polyp["dice"] <= high <= 1


def test_files_written(polyps: Path) -> None:
    seen: list[Progress] = []
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "out", bootstrap=0, on_progress=seen.append)
    assert sorted(p.name for p in (polyps / "out").iterdir()) == ["cases.csv", "report.html", "summary.json"]
    text = (polyps / "out" / "summary.json").read_text()
    assert "NaN" not in text
    written = json.loads(text)
    assert written == json.loads(json.dumps(summary.to_dict()))
    assert written["convention"] == "default"
    assert written["convention_description"]
    assert written["mean"]["ci"]["dice"] is None
    assert written["cases"][2]["hd95_mm"] is None
    rows = list(csv.DictReader((polyps / "out" / "cases.csv").open()))
    assert [row["id"] for row in rows] == ["a/0", "a/1", "a/2"]
    assert float(rows[1]["dice"]) == 0.5
    assert rows[2]["hd95_mm"] == ""
    assert [(p.done, p.total, p.item) for p in seen] == [(1, 3, "a/0"), (2, 3, "a/1"), (3, 3, "a/2")]


def test_same_seed_same_summary(polyps: Path) -> None:
    first, again = (evaluate(polyps / "pred", polyps / "ref", polyps / n).to_dict() for n in ("x", "y"))
    assert first == again
    assert (polyps / "x" / "report.html").read_text() == (polyps / "y" / "report.html").read_text()


@pytest.mark.parametrize(("convention", "expected"), [("default", 0.0), ("nnunet", 0.0), ("transunet", 1.0)])
def test_predicted_but_absent(tmp_path: Path, convention: str, expected: float) -> None:
    put(tmp_path / "pred" / "a.png", square(2, 2, 5))
    put(tmp_path / "ref" / "a.png", square(0, 0, 0))
    put(tmp_path / "pred" / "b.png", square(2, 2, 5))
    put(tmp_path / "ref" / "b.png", square(2, 2, 5))
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention=convention)
    assert summary.cases[0]["dice"] == expected
    assert summary.mean["dice"] == (1 + expected) / 2
    assert summary.convention == convention


def test_transunet_means_are_over_volumes_then_classes(tmp_path: Path) -> None:
    """Four volumes, two classes, every odd case once: 1 of a false alarm, 0 of a miss and of correct silence."""
    hit, none = block(), np.zeros_like(block())
    cells = [(hit, hit, hit, none), (hit, hit, none, hit), (hit, hit, none, none), (none, none, hit, hit)]
    for i, (found_1, drawn_1, found_2, drawn_2) in enumerate(cells):
        put(tmp_path / "pred" / f"{i}.nii.gz", np.where(found_1 > 0, 1, 2 * np.roll(found_2, 4, axis=1)), AFFINE)
        put(tmp_path / "ref" / f"{i}.nii.gz", np.where(drawn_1 > 0, 1, 2 * np.roll(drawn_2, 4, axis=1)), AFFINE)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention="transunet", bootstrap=0)
    assert [row["dice"] for row in summary.cases] == [1, 1, 1, 0, 1, 0, 0, 1]
    assert [row["hd95_mm"] for row in summary.cases] == [0] * 8
    assert [summary.classes[name]["dice"] for name in ("class_1", "class_2")] == [0.75, 0.5]
    assert summary.mean["dice"] == 0.625


def test_volumes_in_mm(tmp_path: Path) -> None:
    put(tmp_path / "pred" / "v.nii.gz", block(shift=2), AFFINE)
    put(tmp_path / "ref" / "v.nii.gz", block(), AFFINE)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", nsd_tolerance_mm=0.6)
    assert summary.unit == "mm"
    assert summary.mean["dice"] == 0.5
    assert summary.mean["hd95_mm"] == pytest.approx(1.0)  # two voxels of 0.5 mm
    voxels = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention="transunet")
    assert voxels.unit == "px"
    assert voxels.mean["hd95_mm"] == pytest.approx(2.0)


def test_per_slice(tmp_path: Path) -> None:
    prediction = block()
    prediction[2] = 0
    put(tmp_path / "pred" / "v.nii.gz", prediction, AFFINE)
    put(tmp_path / "ref" / "v.nii.gz", block(), AFFINE)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", convention="per_slice")
    assert [row["dice"] for row in summary.cases] == [None, 1.0, 0.0, None]
    assert [row["slice"] for row in summary.cases] == [0, 1, 2, 3]
    assert summary.mean["dice"] == 0.5
    assert summary.classes["foreground"]["n"] == 2
    assert summary.classes["foreground"]["absent"] == 2
    assert summary.mean["ci"]["dice"] is None  # one volume: nothing to resample


def test_classes_without_a_list(tmp_path: Path) -> None:
    labels = block() + 2 * block(shift=4)
    put(tmp_path / "pred" / "v.nii.gz", labels, AFFINE)
    put(tmp_path / "ref" / "v.nii.gz", labels, AFFINE)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert list(summary.classes) == ["class_1", "class_2"]
    assert summary.mean["dice"] == 1


def test_both_sides_255(tmp_path: Path) -> None:
    put(tmp_path / "pred.png", square(2, 2, 6, value=255))
    put(tmp_path / "truth.png", square(2, 2, 6, value=255))
    summary = evaluate(tmp_path / "pred.png", tmp_path / "truth.png", tmp_path / "out")  # two files, any names
    assert list(summary.classes) == ["foreground"]
    assert summary.mean["dice"] == 1


@pytest.mark.parametrize(
    ("drawn", "painted", "labels", "values"),
    [
        ({255}, {1}, [1], [(255,)]),
        ({255}, {255}, [255], [(255,)]),
        ({255}, set(), [1], [(255,)]),
        ({2}, {1, 2}, [2], [(2,)]),
        ({1, 2, 4}, {1, 4}, [1, 2, 4], [(1,), (2,), (4,)]),
        ({50, 100}, {1, 2}, [1, 2], [(50,), (100,)]),
        ({1, 2}, {1, 2, 3}, [1, 2, 3], [(1,), (2,), (3,)]),
        (set(range(1, 20)) | set(range(236, 256)), {1}, [1], [tuple(range(128, 256))]),
    ],
)
def test_infer(drawn: set[int], painted: set[int], labels: list[int], values: list[tuple[int, ...]]) -> None:
    found = matching.infer(drawn, painted)
    assert [c.label for c in found] == labels
    assert [c.values for c in found] == values


def test_only_zeros(tmp_path: Path) -> None:
    put(tmp_path / "pred" / "a.png", square(0, 0, 0))
    put(tmp_path / "ref" / "a.png", square(0, 0, 0))
    with pytest.raises(InputError, match="only zeros"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")


def test_object_inside_another(tmp_path: Path) -> None:
    """A cup (2) painted over its disc (1) leaves the disc whole."""
    drawn, painted = square(2, 2, 12, value=1), square(2, 2, 12, value=1)
    drawn[0, 5:9, 5:9] = painted[0, 5:9, 5:9] = 2
    put(tmp_path / "pred" / "e.png", painted)
    put(tmp_path / "ref" / "e.png", drawn)
    name_classes(tmp_path / "pred", ("disc", 1, [1, 2]), ("cup", 2, [2]))
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert [summary.classes[c]["dice"] for c in ("disc", "cup")] == [1, 1]
    assert summary.cases[0]["reference_voxels"] == 144


def test_given_classes_meet_the_predicted_by_name(polyps: Path) -> None:
    cases = [Case("a/0", "p", (), labels=((polyps / "ref" / "a" / "0.png",),))]
    summary = evaluate(polyps / "pred", cases, polyps / "out", classes=[ClassInfo("lesion", 7, (255,))])
    assert summary.classes["polyp"]["dice"] == 1  # one object on each side, of the same value
    assert any("calls its objects lesion" in note for note in summary.notes)
    pair = matching.Pair(Path("x"), cases[0])
    theirs = [ClassInfo("cup", 1, (9,)), ClassInfo("disc", 2, (8, 9))]
    ours = [ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,))]
    resolved = matching.resolve_classes(ours, theirs, [pair])
    assert resolved == (ClassInfo("disc", 2, (1, 2)), ClassInfo("cup", 1, (2,)))
    unnamed = [ClassInfo("class_1", 1, (1,)), ClassInfo("class_2", 2, (2,))]
    assert matching.resolve_classes(unnamed, ours, [pair]) == tuple(ours)  # the values are all known
    alone = matching.resolve_classes([ClassInfo("foreground", 1, (1,))], [ClassInfo("polyp", 3, (255,))], [pair])
    assert alone == (ClassInfo("polyp", 3, (1,)),)
    with pytest.raises(InputError, match="same class names"):
        matching.resolve_classes(ours, [ClassInfo("a", 1, (1,)), ClassInfo("b", 2, (5,))], [pair])


def test_cases_stacked_with_annotators_and_patients(tmp_path: Path) -> None:
    slices = tuple(put(tmp_path / "ref" / f"s{z}.png", square(3, 3, 6, value=255)) for z in range(3))
    second = tuple(put(tmp_path / "second" / f"s{z}.png", square(0, 0, 2, value=255)) for z in range(3))
    put(tmp_path / "pred" / "s.nii.gz", np.concatenate([square(3, 3, 6)] * 3), AFFINE)
    put(tmp_path / "pred" / "t.nii.gz", np.concatenate([square(3, 6, 6)] * 3), AFFINE)
    cases = [
        Case("s", "anna", (), labels=(slices, second), stacked=True),
        Case("t", "anna", (), labels=(slices,), stacked=True),
        Case("u", "ben", ()),
    ]
    summary = evaluate(tmp_path / "pred", cases, tmp_path / "out", classes=[ClassInfo("lv", 1, (255,))])
    assert [row["dice"] for row in summary.cases] == [1.0, 0.5]
    assert summary.skipped["unlabelled"] == ["u"]
    assert any("annotators" in note for note in summary.notes)
    assert summary.mean["ci"]["dice"] is None  # one patient


def test_missing_and_extra(polyps: Path) -> None:
    put(polyps / "pred" / "more.png", square(1, 1, 3))
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "out")
    assert summary.skipped["predictions_without_reference"] == ["more"]
    assert any("1 prediction" in note for note in summary.notes)
    (polyps / "pred" / "a" / "1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 references .* a/1"):
        evaluate(polyps / "pred", polyps / "ref", polyps / "other")
    assert not (polyps / "other").exists()
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "other", allow_missing=True)
    assert summary.skipped["references_without_prediction"] == ["a/1"]
    assert summary.mean["dice"] == 0.5


def test_nothing_matches(polyps: Path) -> None:
    with pytest.raises(InputError, match=r"references 0, 1, 2"):
        evaluate(polyps / "pred", polyps / "ref" / "a", polyps / "out")


def test_geometry_mismatch(tmp_path: Path) -> None:
    put(tmp_path / "ref" / "v.nii.gz", block(), AFFINE)
    put(tmp_path / "pred" / "v.nii.gz", block()[:, :, :9], AFFINE)
    with pytest.raises(InputError, match=r"\(4, 12, 9\).*\(4, 12, 10\)"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    moved = AFFINE.copy()
    moved[0, 3] = 7.0
    put(tmp_path / "pred" / "v.nii.gz", block(), moved)
    with pytest.raises(InputError, match=r"7 mm apart"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    moved[0, 3] = 1e-3  # rounding of a header
    put(tmp_path / "pred" / "v.nii.gz", block(), moved)
    assert evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out").mean["dice"] == 1


def test_no_reference_holds_the_class(polyps: Path) -> None:
    name_classes(polyps / "pred", ("polyp", 1, [200]))
    with pytest.raises(InputError, match=r"polyp \[200\].*\[255\]"):
        evaluate(polyps / "pred", polyps / "ref", polyps / "out")


def test_healthy_references(polyps: Path) -> None:
    for path in (polyps / "ref" / "a").iterdir():
        put(path, square(0, 0, 0))
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "out")
    assert summary.mean["dice"] == 0
    assert summary.classes["polyp"]["spurious"] == 2
    assert summary.classes["polyp"]["absent"] == 1


def test_unknown_values_are_told(polyps: Path) -> None:
    put(polyps / "pred" / "a" / "0.png", np.maximum(square(4, 4, 8), square(14, 14, 2, value=5)))
    summary = evaluate(polyps / "pred", polyps / "ref", polyps / "out")
    assert any("prediction files" in note and "5 (1 files)" in note for note in summary.notes)


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": [{"label": 1}]}', '{"classes": 3}'])
def test_broken_class_list(polyps: Path, content: str) -> None:
    (polyps / "pred" / "classes.json").write_text(content)
    with pytest.raises(InputError, match=r"classes.json"):
        evaluate(polyps / "pred", polyps / "ref", polyps / "out")


def test_refuses_bad_options(polyps: Path) -> None:
    with pytest.raises(InputError, match="convention"):
        evaluate(polyps / "pred", polyps / "ref", polyps / "out", convention="dsc")
    with pytest.raises(InputError, match="tolerance"):
        evaluate(polyps / "pred", polyps / "ref", polyps / "out", nsd_tolerance_mm=float("nan"))


def test_values_of() -> None:
    array = np.zeros((2, 3, 3), np.int32)
    array[0, 0, 0], array[1, 1, 1], array[1, 2, 2] = 7, 70000, -3
    assert matching.values_of(array) == {7, 70000, -3}
    assert matching.values_of(np.ones((1, 2, 2), bool)) == {1}


def test_real_annotators_agree_as_published(shared_data: Path, tmp_path: Path) -> None:
    """The second observer of CHASE_DB1 against the first: vessels, Dice about 0.78."""
    folder = shared_data / "chase_db1"
    cases = []
    for first in sorted(folder.glob("*_1stHO.png"))[:4]:
        key = first.name.split("_1st")[0]
        second = io.read_labels(folder / f"{key}_2ndHO.png").array > 0
        put(tmp_path / "pred" / f"{key}.png", second.astype(np.uint8))
        cases.append(Case(key, key[:8], images=(folder / f"{key}.jpg",), labels=((first,),)))
    value = max(matching.values_of(io.read_labels(cases[0].labels[0][0]).array))
    summary = evaluate(tmp_path / "pred", cases, tmp_path / "out", classes=[ClassInfo("vessel", 1, (value,))])
    assert 0.7 < summary.mean["dice"] < 0.85
    assert set(METRICS) <= set(summary.mean)


def test_soft_masks_are_read_by_their_threshold(tmp_path: Path) -> None:
    soft = square(4, 4, 8).astype(np.float32)[0] * 0.9
    soft[3] = 0.4
    (tmp_path / "ref").mkdir()
    np.savez(tmp_path / "ref/a.npz", image=soft, label=soft)
    put(tmp_path / "pred/a.png", square(4, 4, 8))
    name_classes(tmp_path / "pred", ("object", 1, [1]))
    files = (tmp_path / "ref/a.npz",)
    summary = evaluate(tmp_path / "pred", [Case("a", "a", files, (files,), threshold=0.5)], tmp_path / "out")
    assert summary.mean["dice"] == 1.0
