"""The pickle of LIDC-IDRI crops: read without running it, and converted to files."""

from __future__ import annotations

import csv
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samsans import cli, io
from samsans.config import DataConfig, SplitConfig
from samsans.data.cases import find_cases
from samsans.data.convert import convert
from samsans.data.slices import SliceDataset
from samsans.data.splits import make_split
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.io.lidc import read_crops


def crop(seed: int, series: str = "1.2.3", dtype: Any = np.uint8, empty: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    masks = [np.asarray(rng.random((8, 6)) > 0.5, dtype) for _ in range(4 - empty)]
    masks += [np.zeros((8, 6), dtype) for _ in range(empty)]
    return {"image": rng.random((8, 6)), "masks": masks, "series_uid": series}


def save(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def numpy_1(raw: bytes) -> bytes:
    """The same pickle as numpy 1 writes it: another name of the module."""
    return raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64, ">i2"])
def test_every_protocol_and_kind_of_number_is_read(tmp_path: Path, protocol: int, dtype: Any) -> None:
    given = {"b": crop(1, dtype=dtype), "a": crop(2, "4.5", dtype)}
    given["b"]["image"] = np.asfortranarray(given["b"]["image"])
    count, crops = read_crops(save(tmp_path / "x.pickle", given, protocol))
    found = list(crops)
    assert count == 2
    assert [c.key for c in found] == ["b", "a"], "in the order of the file"
    assert [c.series for c in found] == ["1.2.3", "4.5"]
    for read in found:
        assert np.array_equal(read.image, given[read.key]["image"].astype(np.float32))
        assert np.array_equal(read.masks, np.stack(given[read.key]["masks"]).astype(bool))
        assert read.masks.any((1, 2)).tolist() == [True, True, True, False]


@pytest.mark.parametrize("protocol", [2, 3])
def test_pickles_of_numpy_1_are_read(tmp_path: Path, protocol: int) -> None:
    old = numpy_1(pickle.dumps({"a": crop(0)}, protocol=protocol))
    assert b"numpy.core" in old
    assert b"numpy._core" not in old
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    _, crops = read_crops(path)
    assert np.array_equal(next(crops).image, crop(0)["image"].astype(np.float32))


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Evil(subprocess.call, ["true"]), "subprocess.call|commands.call"),
        (Evil(eval, "1"), "builtin.*eval"),
        (Evil(getattr, "a", "upper"), "builtin.*getattr"),
        (Evil(np.load, "x"), "numpy.load"),
        (Path("x"), "PosixPath"),
        (np.array([{}], object), "a dtype|values of type object"),
        (np.zeros(2, [("a", "f4")]), "a dtype|values of type"),
        (Evil(bytes, 1 << 40), "bytes made of something"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_whatever_could_run_is_refused(tmp_path: Path, thing: Any, named: str, protocol: int) -> None:
    path = save(tmp_path / "x.pickle", {"a": crop(0) | {"more": thing}}, protocol)
    with pytest.raises(InputError, match=f"asks for .*({named}).* may run anything"):
        read_crops(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"image": np.full((8, 6), 1.5)}, "an image from 1.5 to 1.5"),
        ({"image": np.full((8, 6), np.nan)}, "an image from nan"),
        ({"image": np.zeros((8, 6, 3))}, "no image of two axes"),
        ({"image": "text"}, "no image of two axes"),
        ({"masks": []}, "no list of masks of 0 and 1 on the 8 x 6 pixels"),
        ({"masks": [np.full((8, 6), 2)]}, "no list of masks"),
        ({"masks": [np.zeros((8, 8), bool)]}, "no list of masks"),
        ({"series_uid": 3}, "names no series"),
    ],
)
def test_another_content_is_named(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    out = tmp_path / "out"
    path = save(tmp_path / "x.pickle", {"good": crop(0), "bad": crop(1) | change})
    with pytest.raises(InputError, match=f"'bad' of .* {found}"):
        convert(path, out)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pickle"], "nothing is left behind"


def test_other_files_are_refused(tmp_path: Path) -> None:
    for value, found in (([1], "holds list"), ({}, "holds dict"), ({"a": 1}, "'a' of .* these three parts")):
        with pytest.raises(InputError, match=found):
            list(read_crops(save(tmp_path / "x.pickle", value))[1])
    with pytest.raises(InputError, match="no file at"):
        read_crops(tmp_path / "absent.pickle")
    with pytest.raises(InputError, match=r"ends in .zip.*\.pickle"):
        convert(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        convert(tmp_path / "x.pickle", tmp_path / "full")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 900), flip=st.integers(0, 255), place=st.integers(0, 5000))
def test_damaged_pickles_end_in_an_error_that_names_them(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, place: int
) -> None:
    raw = bytearray(pickle.dumps({"a": crop(0)}))
    raw[place % len(raw)] ^= flip
    path = tmp_path_factory.mktemp("damaged") / "x.pickle"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        list(read_crops(path)[1])
        said = str(path)
    except InputError as error:
        said = str(error)
    assert str(path) in said


def test_converted_crops_are_a_data_set(tmp_path: Path) -> None:
    given = {f"k{9 - i}": crop(i, f"1.{i // 2}", empty=4 if i == 3 else i) for i in range(5)}
    given["k5"] = crop(5, "1.2", empty=0)
    steps: list[int] = []
    folder, notes = convert(
        save(tmp_path / "x.pickle", given), tmp_path / "out", on_progress=lambda p: steps.append(p.done)
    )
    assert steps == [1, 2, 3, 4, 5]
    assert notes == ("5 images of 3 series, 20 masks, 7 of them empty", "on 1 images no annotator drew anything")
    with open(folder / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[5] == {"image": "images/00001.png", "label": "labels_1/00001.png", "patient": "1.0", "rater": "1"}
    dataset = find_cases(DataConfig(path=str(folder)))
    assert [c.patient for c in dataset.cases] == ["1.0", "1.0", "1.1", "1.1", "1.2"]
    assert find_cases(DataConfig(path=str(folder / "cases.csv"))).cases == dataset.cases
    assert [c.id for c in dataset.cases] == [f"images/0000{i}" for i in range(5)]
    assert [(c.name, c.values) for c in dataset.classes] == [("nodule", (1,))]
    for case, expected in zip(dataset.cases, given.values(), strict=True):
        image = io.read_image(case.images[0]).array[0, ..., 0]
        assert image.dtype == np.uint8
        assert np.abs(image / 255 - expected["image"]).max() <= 0.5 / 255 + 1e-6
        drawn = [v.array[0] for v in dataset.read_annotations(case)]
        assert np.array_equal(drawn, expected["masks"])
    split = make_split(dataset, SplitConfig(val=0.2, test=0.2, order="file"))
    assert split.train == ("images/00000", "images/00001", "images/00002")
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(16), annotators=True, foreground=True)
    assert len(slices) == 4


def test_a_pickle_as_data_set_names_the_command(tmp_path: Path) -> None:
    path = save(tmp_path / "my crops.pickle", {"a": crop(0)})
    for data in (path, tmp_path):
        with pytest.raises(InputError, match=r"is a pickle.*samsans convert '.*/my crops.pickle' -o FOLDER"):
            find_cases(DataConfig(path=str(data)))
    with pytest.raises(InputError, match="is a pickle"):
        io.read_image(path)


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "x.pickle", {"a": crop(0)})
    assert cli.main(["convert", str(path), "-o", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out"
    said = capsys.readouterr().out
    assert "1 images of 1 series, 4 masks, 1 of them empty" in said
    assert f"next: samsans check {folder}" in said
    assert cli.main(["check", str(folder)]) == 0
    assert cli.main(["convert", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
