"""Point files: markups, tables and scribbles, voxels and millimetres, and where they are found."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from data_files import nifti, picture, png, square
from samsans import io
from samsans.config import DataConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.check import check
from samsans.errors import InputError
from samsans.io.scribbles import thin
from samsans.types import Points, Volume

SHAPE = (5, 7, 9)


def volume(affine: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE) -> Volume:
    return Volume(np.zeros((*shape, 1), np.uint8), affine)


def oblique(order: tuple[int, int, int], signs: tuple[int, ...]) -> np.ndarray:
    """A turned grid of uneven voxels whose axes are permuted and flipped."""
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, order] * np.array(signs) * (0.7, 1.3, 4.0)
    affine[:3, 3] = (-31.5, 12.25, 101.0)
    return affine


def some() -> Points:
    positions = np.array([[0, 0, 0], [4, 6, 8], [1.25, 2.5, 3.75], [2, 5, 1]], np.float64)
    return Points(positions, np.array([1, 0, 1, 1]), ("clean", "off", "over", "background of a film"))


def same(a: Points, b: Points, tags: bool = True) -> None:
    np.testing.assert_allclose(a.positions, b.positions, atol=1e-9)
    assert a.labels.tolist() == b.labels.tolist()
    assert not tags or a.tags == b.tags


@pytest.mark.parametrize("ending", [".mrk.json", ".fcsv", ".csv"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", list(product((-1, 1), (-1, 1), (1,))))
def test_written_and_read_on_any_grid(
    tmp_path: Path, ending: str, order: tuple[int, int, int], signs: tuple[int, ...]
) -> None:
    grid = volume(oblique(order, signs))
    path = io.write_points(tmp_path / f"a{ending}", some(), grid)
    read, notes = io.read_points(path, grid)
    same(read, some())
    assert notes == ()


def markups(path: Path, **changes: object) -> Path:
    points = [
        {"label": "F-1", "position": [10.0, -20.0, 30.0], "positionStatus": "defined"},
        {"label": "F-2", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"},
        {"label": "outside-1", "description": "colon", "position": [8.0, -16.0, 30.0]},
        {"label": "F-4", "description": "negative", "position": [1e3, 0.0, 0.0]},
    ]
    markup = {"type": "Curve", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points} | changes
    path.write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    return path


def test_markups_by_hand(tmp_path: Path) -> None:
    """LPS (10, -20, 30) is RAS (-10, 20, 30): voxel x = 5, y = 5, z = 3 of this grid."""
    affine = np.diag([-2.0, 4.0, 10.0, 1.0])
    read, notes = io.read_points(markups(tmp_path / "a.mrk.json"), volume(affine))
    assert read.positions.tolist() == [[3, 5, 5], [3, 4, 4]]
    assert read.labels.tolist() == [1, 0]
    assert read.tags == ("F-1", "colon")
    assert "1 of 4 control points were never placed" in notes[0]
    assert "1 of 3 points lie outside the image" in notes[1]
    assert "a.mrk.json" in notes[1]
    ras, _ = io.read_points(markups(tmp_path / "b.mrk.json", coordinateSystem="RAS"), volume(np.diag([2, -4, 10, 1.0])))
    same(ras, read)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coordinateSystem": "XYZ"}, "coordinate system 'XYZ'"),
        ({"coordinateUnits": "m"}, "coordinates in 'm'"),
        ({"type": "Plane"}, "holds markups of type Plane"),
        ({"controlPoints": [{"label": "F-9", "position": [1, 2]}]}, r"control point F-9 is at \[1, 2\]"),
    ],
)
def test_markups_that_are_not_understood(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        io.read_points(markups(tmp_path / "a.mrk.json", **changes), volume(np.eye(4)))
    assert "a.mrk.json" in str(error.value)


@pytest.mark.parametrize(
    ("system", "position"),
    [("LPS", "10,-20,30"), ("1", "10,-20,30"), ("0", "-10,20,30"), ("RAS", "-10,20,30"), ("2", "5,5,3")],
)
def test_fcsv_systems(tmp_path: Path, system: str, position: str) -> None:
    path = tmp_path / "a.fcsv"
    path.write_text(
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        f'1,{position},0,0,0,1,1,1,0,"F, 1",,\n'
    )
    read, _ = io.read_points(path, volume(np.diag([-2.0, 4.0, 10.0, 1.0])))
    assert read.positions.tolist() == [[3, 5, 5]]
    assert read.tags == ("F, 1",)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x,y,z,label\n1,2,3,0\n", [[3, 2, 1, 0]]),
        ("k;j;i\n3;2;1\n", [[3, 2, 1, 1]]),
        ("Z_mm,Y_mm,X_mm,label\n30,8,-2,1\n", [[3, 2, 1, 1]]),
        ("# made by hand\nx\ty\tz\n\n1\t2\t3\n9\t0\t0\n", [[3, 2, 1, 1]]),
    ],
)
def test_tables(tmp_path: Path, text: str, wanted: list[list[int]]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    read, _ = io.read_points(path, volume(np.diag([-2.0, 4.0, 10.0, 1.0])))
    assert np.column_stack([read.positions, read.labels]).tolist() == wanted


def test_tables_of_pictures_and_what_is_wrong_with_tables(tmp_path: Path) -> None:
    flat = volume(None, (1, 7, 9))
    path = tmp_path / "a.csv"
    path.write_text("x,y\n8.5,6.4\n8.49,6.4\n")
    read, notes = io.read_points(path, flat)
    assert read.positions.tolist() == [[0, 6.4, 8.49]]
    assert len(notes) == 1
    wrong = {
        "a,b\n1,2\n": "has the columns a, b",
        "x,y\n1,two\n": "line 2 of .* has 'two' in the column y",
        "x,y,label\n1,2,3\n": "line 2 of .* has the label '3'",
        "x,y\n1\n": "line 2 of .* in the column y",
        "x_mm,y_mm,z_mm\n1,2,3\n": "gives millimetres",
        "x,y\nnan,1\n": "no finite numbers",
    }
    for text, said in wrong.items():
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            io.read_points(path, flat)
    path.write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="for 5 slices"):
        io.read_points(path, volume(np.eye(4)))
    with pytest.raises(InputError, match="there is no file of points"):
        io.read_points(tmp_path / "none.fcsv", flat)
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"ends in \.txt"):
        io.read_points(tmp_path / "a.txt", flat)


def test_pictures_lie_as_in_3d_slicer(tmp_path: Path) -> None:
    """Without geometry LPS millimetres are columns and rows."""
    points = [{"label": "F", "position": [4.0, 2.0, 0.0]}]
    read, _ = io.read_points(markups(tmp_path / "a.mrk.json", controlPoints=points), volume(None, (1, 7, 9)))
    assert read.positions.tolist() == [[0, 2, 4]]


def test_scribbles_are_thinned_evenly() -> None:
    line = np.zeros((20, 200), bool)
    line[9:12, 10:190] = True
    line[2:5, 100:103] = True
    chosen = thin(line, 10)
    assert len(chosen) <= 10
    assert line[tuple(chosen.T)].all()
    along = np.sort(chosen[chosen[:, 0] > 6][:, 1])
    gaps = np.diff([10 - (along[0] - 10), *along, 190 + (189 - along[-1])])
    assert gaps.max() < 2 * gaps.min()
    assert (chosen[:, 0] <= 4).sum() == 1  # the short stroke has its own
    assert set(chosen[chosen[:, 0] > 6][:, 0]) == {10}  # the middle of the stroke
    assert len(thin(np.zeros((4, 4), bool))) == 0
    assert np.array_equal(thin(line, 10), chosen)
    many = np.zeros((40, 40), bool)
    many[::4, ::4] = True
    assert len(thin(many, 16)) == 16


def test_scribble_masks(tmp_path: Path) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[2, 2:6], mask[8, 3:9] = 1, 2
    flat = volume(None, (1, 12, 16))
    read, _ = io.read_points(png(tmp_path / "a.png", mask), flat)
    assert set(read.positions[read.labels == 1][:, 1]) == {2}
    assert set(read.positions[read.labels == 0][:, 1]) == {8}
    white, _ = io.read_points(png(tmp_path / "b.png", (mask == 1).astype(np.uint8) * 255), flat)
    same(white, Points(read.positions[read.labels == 1], read.labels[read.labels == 1], white.tags))
    with pytest.raises(InputError, match="hold the values"):
        io.read_points(png(tmp_path / "c.png", mask * 2 + 1), flat)
    with pytest.raises(InputError, match=r"have the size \(1, 12, 16\)"):
        io.read_points(tmp_path / "a.png", volume(None, (1, 12, 17)))
    solid = np.zeros(SHAPE, np.uint8)
    solid[:, 3, 2:7] = 1
    affine = oblique((2, 0, 1), (1, -1, 1))
    grid = volume(affine)
    read, _ = io.read_points(nifti(tmp_path / "d.nii.gz", solid, affine), grid)
    assert len(read)
    assert solid[tuple(read.positions.astype(int).T)].all()
    several = np.zeros((3, 2, 12, 16), np.float32)
    several[1, 0, 2, 2:6], several[1, 1, 8, 3:9], several[0, 0, 0, 0] = 0.6, 1, 0.4
    np.savez(tmp_path / "e.npz", image=mask, scribbles=several)
    same(io.read_points(tmp_path / "e.npz", flat, 1)[0], io.read_points(tmp_path / "a.png", flat)[0])
    assert len(io.read_points(tmp_path / "e.npz", flat)[0]) == 0
    with pytest.raises(InputError, match="of 3 people, not of number 4"):
        io.read_points(tmp_path / "e.npz", flat, 3)


def table(path: Path, *rows: str, head: str = "x,y") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def flat(root: Path, names: tuple[str, ...] = ("a", "b")) -> None:
    for i, name in enumerate(names):
        png(root / "images" / f"{name}.png", picture(i))
        png(root / "masks" / f"{name}.png", square())


def files(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    return {
        c.id: [(p.person, p.paths[0].relative_to(dataset.root).as_posix()) for p in c.points] for c in dataset.cases
    }


def test_points_are_found(tmp_path: Path) -> None:
    flat(tmp_path, ("a", "b", "c", "d/e"))
    table(tmp_path / "points" / "A.csv", "1,2")
    table(tmp_path / "points" / "d" / "e.csv", "1,2")
    (tmp_path / "points" / "b.json").write_text("{}")  # no markups by its name
    table(tmp_path / "points_ann" / "a.csv", "1,3")
    table(tmp_path / "images" / "c_points.csv", "4,4")
    dataset = find_cases(DataConfig(path=str(tmp_path)))
    assert files(dataset) == {
        "a": [("", "points/A.csv"), ("ann", "points_ann/a.csv")],
        "b": [],
        "c": [("", "images/c_points.csv")],
        "d/e": [("", "points/d/e.csv")],
    }
    case = dataset.by_id("a")
    image = dataset.read_image(case)
    assert dataset.read_points(case, image).positions.tolist() == [[0, 2, 1]]
    assert dataset.read_points(case, image, 1).positions.tolist() == [[0, 3, 1]]
    assert len(dataset.read_points(dataset.by_id("b"), image)) == 0
    with pytest.raises(InputError, match="points of 2 people, not of number 3"):
        dataset.read_points(case, image, 2)
    assert any("point prompts with 3 of 4 cases, by ann" in note for note in dataset.notes)


def test_points_by_template(tmp_path: Path) -> None:
    flat(tmp_path)
    for person in ("r1", "r2", "r10"):
        table(tmp_path / "clicks" / person / "a.csv", "1,2")
    config = DataConfig(path=str(tmp_path), points="clicks/*/{stem}.csv")
    assert [p for p, _ in files(find_cases(config))["a"]] == ["r1", "r2", "r10"]
    config.points += "#3"
    assert files(find_cases(config))["a"] == [("r10", "clicks/r10/a.csv")]
    config.points = "{nobody}.csv"
    with pytest.raises(InputError, match="template of points"):
        find_cases(config)
    config.points = "{stem}.fcsv"
    with pytest.raises(InputError, match="no image has points at"):
        find_cases(config)


def test_scribbles_beside_images_are_no_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        png(tmp_path / f"{name}.png", picture(ord(name)))
    png(tmp_path / "points" / "a.png", square(1))
    dataset = find_cases(DataConfig(path=str(tmp_path)))
    assert files(dataset) == {"a": [("", "points/a.png")], "b": []}


def test_stacks_have_points_of_slices_or_of_the_whole(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        png(tmp_path / "images" / f"v_{number}.png", picture(number))
    table(tmp_path / "points" / "v_2.csv", "1,2")
    config = DataConfig(path=str(tmp_path), volume=r"(v)_(\d+)")
    dataset = find_cases(config)
    case = dataset.cases[0]
    assert case.points[0].slices == (1,)
    assert case.positions == (1, 2, 3)
    assert dataset.read_points(case, dataset.read_image(case)).positions.tolist() == [[1, 2, 1]]
    table(tmp_path / "points" / "v.csv", "1,2,0", "1,2,9", head="x,y,z")
    dataset = find_cases(config)
    points, notes = dataset.placed_points(dataset.cases[0], dataset.read_image(case))
    assert points.positions.tolist() == [[0, 2, 1]]
    assert len(notes) == 1


def test_check_counts_points_on_and_off_the_target(tmp_path: Path) -> None:
    flat(tmp_path)
    table(tmp_path / "points" / "a.csv", "3,3,1", "4,5,1", "0,0,1", "5,5,0", "1,1,0", "40,1,1", head="x,y,label")
    table(tmp_path / "points_ann" / "b.csv", "9,9")
    report = check(DataConfig(path=str(tmp_path)))
    nobody, ann = report.points
    assert (nobody.person, nobody.cases, nobody.inside, nobody.outside) == ("", 1, 3, 2)
    assert (nobody.judged, nobody.on, nobody.outside_judged, nobody.outside_on) == (3, 2, 2, 1)
    assert (ann.person, ann.judged, ann.on) == ("ann", 1, 0)
    assert "inside points: 2 on the target, 1 off it (66.7% on)" in report.text()
    assert [p.kind for p in report.problems] == ["points are left out"]
    (tmp_path / "points" / "a.csv").write_text("nothing\n")
    assert not check(DataConfig(path=str(tmp_path))).ok


def test_real_scribbles_of_three_people(shared_data: Path) -> None:
    config = DataConfig(
        path=str(shared_data / "medscribble_open"),
        images="*/*.npz",
        labels="{parent}/{name}",
        points="{parent}/{name}",
        patient="[^/]+$",
        threshold=0.5,
    )
    report = check(config)
    assert report.ok
    assert [count.person for count in report.points] == ["1", "2", "3"]
    for count in report.points:
        assert count.cases == report.cases == report.patients
        assert count.on / count.judged > 0.6
        assert count.outside_on / count.outside_judged < 0.1
        assert count.inside <= 16 * count.cases
