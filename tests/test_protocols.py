"""Published splits: what they hold, and how they are found in data sets as they lie on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_files import nifti, packed
from samsans import config as configuration
from samsans.config import DataConfig, SplitConfig
from samsans.data import protocols
from samsans.data.cases import Dataset, find_cases
from samsans.data.check import check
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split, make_split
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.training.data import read_data
from samsans.types import Case, Needs

VOLUMES = ("synapse_semi5", "acdc")  # of which no slices are listed
COUNTS = {"synapse": 2211, "synapse_fewshot": 221, "la_4": 224, "promise12_3": 58}


def dataset(ids: Iterable[str], unlabelled: tuple[str, ...] = ()) -> Dataset:
    """Cases of these ids; the patient is what stands before ``_slice``."""
    cases = [
        Case(id, id.partition("_slice")[0], (Path(f"{id}.x"),), () if id in unlabelled else ((Path(f"{id}.x"),),))
        for id in ids
    ]
    return Dataset(Path("set"), "test", tuple(cases))


def synapse(prefix: str = "img", without: str = "") -> list[str]:
    return [f"{prefix}{n:04d}" for n in (*range(1, 11), *range(21, 41)) if f"{n:04d}" != without]


def published_slices() -> list[str]:
    """Ids of TransUNet's preprocessed Synapse: 2211 training slices, 12 test volumes."""
    found = protocols.load("synapse")
    slices = [f"train_npz/case{key}_slice{i:03d}" for key, count in found.counts.items() for i in range(count)]
    return slices + [f"test_vol_h5/case{key}" for key in found.test]


def test_the_published_numbers() -> None:
    assert set(protocols.names()) == {*COUNTS, *VOLUMES}
    for name, count in COUNTS.items():
        assert protocols.load(name).training_slices == count
    sizes = {n: (len(p.train), len(p.test), len(p.unused)) for n in protocols.names() for p in [protocols.load(n)]}
    assert sizes == {
        "synapse": (18, 12, 0),
        "synapse_fewshot": (18, 12, 0),
        "synapse_semi5": (5, 12, 13),
        "la_4": (4, 20, 0),
        "promise12_3": (3, 10, 37),
        "acdc": (70, 20, 0),
    }
    heart = protocols.load("acdc")
    assert sorted([*heart.train, *heart.val, *heart.test]) == [f"{n:03d}" for n in range(1, 101)]
    assert heart.val == ("089", "090", "091", "093", "094", "096", "097", "098", "099", "100")


@pytest.mark.parametrize("name", protocols.names())
def test_parts_are_disjoint_and_slices_belong(name: str) -> None:
    found = protocols.load(name)
    keys = [*found.train, *found.val, *found.test, *found.unused]
    assert len(set(keys)) == len(keys)
    assert set(found.counts) in (set(), set(found.train))
    assert set(found.slices) in (set(), set(found.train))
    for key, numbers in found.slices.items():
        assert list(numbers) == sorted(set(numbers))
        assert numbers[0] >= 0
        assert numbers[-1] < found.counts.get(key, 1000)
    assert all(found.key.fullmatch(key) or found.key.fullmatch(f"Case{key}") for key in keys)


def test_few_shot_slices_are_a_subset_and_lists_are_those_published() -> None:
    whole, few, semi = (protocols.load(f"synapse{end}") for end in ("", "_fewshot", "_semi5"))
    assert few.train == whole.train
    assert few.test == whole.test == semi.test
    assert {key: few.counts[key] for key in few.train} == dict(whole.counts)
    assert semi.train == ("0006", "0039", "0021", "0005", "0007")
    assert set(semi.train) | set(semi.unused) == set(whole.train)
    assert few.slices["0027"] == (2, 14, 16, 21, 23, 50, 71, 82)
    assert protocols.load("la_4").slices["1D7CUD1955YZPGK8XHJX"] == tuple(range(29, 81))
    assert protocols.load("promise12_3").slices["05"] == tuple(range(7, 33))


@pytest.mark.parametrize(
    ("name", "id", "key"),
    [
        ("synapse", "img0005", "0005"),
        ("synapse", "imagesTr/label0040", "0040"),
        ("synapse", "Synapse2015/case0005_slice0004", "0005"),
        ("synapse", "0021/ct", "0021"),
        ("synapse", "case00055", None),
        ("synapse", "img0011", None),
        ("la_4", "train/06SR5RBREL16DQ6M8LWS/mri_norm2", "06SR5RBREL16DQ6M8LWS"),
        ("la_4", "la_06sr5rbrel16dq6m8lws", "06SR5RBREL16DQ6M8LWS"),
        ("acdc", "training/patient089/patient089_frame12", "089"),
        ("acdc", "patient1001_frame01", None),
        ("promise12_3", "Case05_slice0012", "05"),
        ("promise12_3", "case_29", "29"),
        ("promise12_3", "Case290", None),
    ],
)
def test_keys_in_ids(name: str, id: str, key: str | None) -> None:
    assert protocols.load(name).key_of(id) == key


def test_two_keys_in_an_id_are_refused() -> None:
    with pytest.raises(InputError, match="may be any of 0005, 0006"):
        protocols.load("synapse").key_of("img0005/part_0006")


def test_published_synapse_slices() -> None:
    found = dataset(published_slices())
    split = make_split(found, SplitConfig(protocol="synapse"))
    assert (len(split.train), len(split.val), len(split.test), split.slices) == (2211, 0, 12, ())
    assert not any("warning" in note for note in split.notes)
    few = make_split(found, SplitConfig(protocol="synapse_fewshot"))
    assert len(few.train) == 221
    assert set(few.train) < set(split.train)
    assert few.slices == ()
    assert len({id.partition("_slice")[0] for id in few.train}) == 18
    assert len(make_split(found, SplitConfig(protocol="synapse_semi5")).train) == 131 + 90 + 143 + 117 + 163


def test_volumes_of_synapse() -> None:
    found = dataset([*synapse(), "phantom"])
    split = make_split(found, SplitConfig(protocol="synapse_fewshot"))
    assert len(split.train) == 18
    assert len(split.test) == 12
    assert len(split.slices) == len(set(split.slices)) == 221
    assert "img0030#151" in split.slices
    assert any("1 cases are not used by synapse_fewshot: phantom" in note for note in split.notes)
    assert any("from feet to head" in note for note in split.notes)
    assert make_split(dataset(synapse()), SplitConfig(protocol="synapse")).slices == ()


def test_validation_is_drawn_from_the_training_patients() -> None:
    found = dataset(published_slices())
    split = make_split(found, SplitConfig(protocol="synapse_fewshot", val=0.1), 1)
    patients = [{id.partition("_slice")[0] for id in ids} for ids in (split.train, split.val, split.test)]
    assert [len(p) for p in patients] == [16, 2, 12]
    assert len(split.train) + len(split.val) == 221
    volumes = make_split(dataset(synapse()), SplitConfig(protocol="synapse_fewshot", val=0.1), 1)
    assert {name.partition("#")[0] for name in volumes.slices} == set(volumes.train)
    shots = make_split(dataset(synapse()), SplitConfig(protocol="synapse_fewshot", shots=3))
    assert {name.partition("#")[0] for name in shots.slices} == set(shots.train)
    assert len(shots.train) == 3


def test_acdc_has_patients_to_validate_with() -> None:
    ids = [f"patient{n:03d}_frame{f:02d}" for n in range(1, 101) for f in (1, 12)]
    split = make_split(dataset(ids), SplitConfig(protocol="acdc"))
    assert [len(split.train), len(split.val), len(split.test)] == [140, 20, 40]
    assert split.val[:2] == ("patient089_frame01", "patient089_frame12")
    assert not any("missing" in note or "not used" in note for note in split.notes)
    split = make_split(dataset([id for id in ids if "patient090" not in id]), SplitConfig(protocol="acdc"))
    assert "1 of 10 validation cases of acdc are missing" in split.notes


def test_missing_cases() -> None:
    with pytest.raises(InputError, match="1 of the 18 training cases of synapse are not in set with a mask: 0023"):
        make_split(dataset(synapse(without="0023")), SplitConfig(protocol="synapse"))
    with pytest.raises(InputError, match="with a mask: 0040"):
        make_split(dataset(synapse(), unlabelled=("img0040",)), SplitConfig(protocol="synapse"))
    split = make_split(dataset(synapse(without="0001")), SplitConfig(protocol="synapse"))
    assert len(split.test) == 11
    assert any("1 of 12 test cases of synapse are missing" in note for note in split.notes)


def test_missing_and_odd_slices() -> None:
    ids = [id for id in published_slices() if not id.endswith("0027_slice050")]
    with pytest.raises(InputError, match="slices 50 of 0027 of synapse_fewshot are not there"):
        make_split(dataset(ids), SplitConfig(protocol="synapse_fewshot"))
    split = make_split(dataset(ids), SplitConfig(protocol="synapse"))
    assert "warning: 0027 has 87 slices, 88 were published" in split.notes
    with pytest.raises(InputError, match="2 cases are 0005 of synapse_fewshot: img0005, z/img0005"):
        make_split(dataset([*synapse(), "z/img0005"]), SplitConfig(protocol="synapse_fewshot"))


def test_unknown_names_and_clashes_are_refused() -> None:
    with pytest.raises(InputError, match=r"called 'synapse_few'\. Expected one of synapse_fewshot"):
        make_split(dataset(synapse()), SplitConfig(protocol="synapse_few"))
    with pytest.raises(InputError, match=r"split\.file and split\.test beside split\.protocol"):
        make_split(dataset(synapse()), SplitConfig(protocol="synapse", file="split.json", test=0.2))


def volume(depth: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Slices ``(D, 6, 8)`` of noise; the label is 1 in slice 1 and 2 in slice 2."""
    label = np.zeros((depth, 6, 8), np.float32)
    label[1, 1:3, 2:5] = 1
    label[2, 2:5, 3:6] = 2
    return np.random.default_rng(seed).random(label.shape, np.float32), label


def small(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The few-shot split of Synapse, of two training cases and one test case."""
    found = dataclasses.replace(protocols.load("synapse_fewshot"), **changes)
    monkeypatch.setattr(protocols, "load", lambda name: found)


TINY = {
    "train": ("0005", "0006"),
    "test": ("0001",),
    "counts": {"0005": 4, "0006": 3},
    "slices": {"0005": (0, 2), "0006": (1,)},
}


def test_transunet_arrays_from_files_to_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, **TINY)
    for key, depth in (("0005", 4), ("0006", 3)):
        image, label = volume(depth, depth)
        for i in range(depth):
            packed(tmp_path / "train_npz" / f"case{key}_slice{i:03d}.npz", image[i], label[i])
    packed(tmp_path / "test_vol_h5" / "case0001.npy.h5", *volume(5))
    config = DataConfig(path=str(tmp_path), window=[0.0, 1.0])
    found = find_cases(config)
    assert found.layout == "TransUNet arrays"
    assert [c.name for c in found.classes] == ["class_1", "class_2"]
    assert {c.patient for c in found.cases} == {"case0005", "case0006", "case0001"}
    assert set(found.parts.values()) == {"train", "test"}
    split = make_split(found, SplitConfig(protocol="synapse_fewshot"))
    assert split.train == tuple(f"train_npz/case{n}" for n in ("0005_slice000", "0005_slice002", "0006_slice001"))
    assert split.test == ("test_vol_h5/case0001",)
    assert Split.load(split.save(tmp_path / "split.json")).notes == split.notes
    slices = SliceDataset(found, split.train, Preprocess(8, window=(0, 1)), only=split.slices or None, exclusive=True)
    assert slices.ids == split.train
    assert slices.present.tolist() == [[False, False], [False, True], [True, False]]
    assert [s.patient for s in slices] == ["case0005", "case0005", "case0006"]
    image, _ = volume(4, 4)
    restored = Preprocess(8, window=(0, 1)).image(image[2][..., None], (np.zeros(1), np.ones(1)))
    assert (slices[1].image == restored).all()
    assert make_split(found, SplitConfig()).test == ("test_vol_h5/case0001",)
    report = check(config)
    assert report.ok, report.text()
    assert (report.cases, report.labelled, report.patients) == (8, 8, 3)


@pytest.mark.parametrize("kind", ["nifti", "h5"])
def test_volumes_from_files_to_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    small(monkeypatch, **TINY)
    for key, depth in (("0005", 4), ("0006", 3), ("0001", 5)):
        image, label = volume(depth, depth)
        if kind == "h5":
            packed(tmp_path / f"case{key}.npy.h5", image, label)
        else:
            affine = np.diag([1.0, 1, 3, 1])
            nifti(tmp_path / "images" / f"img{key}.nii.gz", image, affine)
            nifti(tmp_path / "labels" / f"img{key}.nii.gz", label.astype(np.uint8), affine)
    found = find_cases(DataConfig(path=str(tmp_path)))
    split = make_split(found, SplitConfig(protocol="synapse_fewshot"))
    name = "case" if kind == "h5" else "img"
    assert split.slices == (f"{name}0005#000", f"{name}0005#002", f"{name}0006#001")
    slices = SliceDataset(found, split.train, Preprocess(8), only=split.slices)
    assert slices.ids == split.slices
    assert slices.present.tolist() == [[False, False], [False, True], [True, False]]
    shown = SliceDataset(found, split.train, Preprocess(8), only=split.slices, foreground=True)
    assert shown.ids == split.slices[1:]
    wrong = SliceDataset(found, split.train, Preprocess(8), only=[*split.slices, f"{name}0006#007"])
    with pytest.raises(InputError, match=rf"1 of the slices to keep are not in .*{name}0006#007"):
        len(wrong)


@pytest.mark.parametrize("images", [None, "*/mri_norm2.h5"])
def test_scans_of_the_left_atrium(tmp_path: Path, images: str | None) -> None:
    """One folder a scan, ``(x, y, z)``: slices lie along the last axis."""
    found = protocols.load("la_4")
    for key in (*found.train, *found.test):
        label = np.zeros((4, 3, 90), np.uint8)
        for n in found.slices.get(key, (5,)):
            label[1:3, 1, n] = 1
        packed(tmp_path / key / "mri_norm2.h5", label.astype(np.float32), label)
    config = DataConfig(path=str(tmp_path), images=images, labels="{parent}/{name}" if images else None)
    cases = find_cases(config)
    assert {c.patient for c in cases.cases} == {*found.train, *found.test}
    assert all(c.labels == (c.images,) for c in cases.cases)
    split = make_split(cases, SplitConfig(protocol="la_4"))
    assert [len(split.train), len(split.test), len(split.slices)] == [4, 20, 224]
    slices = SliceDataset(cases, split.train, Preprocess(8), slice_axis="2", only=split.slices, foreground=True)
    assert len(slices) == 224
    everything = SliceDataset(cases, split.train, Preprocess(8), slice_axis="2", foreground=True)
    assert slices.ids == everything.ids
    config = configuration.from_dict({"split.protocol": "la_4", "data.slice_axis": "2"})
    assert len(read_data(cases, split, config, Needs(), 8).train) == 224


def prostates(root: Path, shown: slice) -> tuple[Dataset, Split]:
    """PROMISE12's training cases of 60 slices, of which those of ``shown`` show the prostate."""
    for key in protocols.load("promise12_3").train:
        label = np.zeros((60, 40, 42), np.uint8)
        label[shown, 2:5, 3:40] = 1
        packed(root / f"Case{key}.h5", label.astype(np.float32), label)
    cases = find_cases(DataConfig(path=str(root)))
    return cases, make_split(cases, SplitConfig(protocol="promise12_3"))


def test_listed_slices_that_show_nothing_are_refused(tmp_path: Path) -> None:
    def train(axis: str, **options: Any) -> int:
        values = {"split.protocol": "promise12_3", "data.slice_axis": axis} | options
        return len(read_data(*found, configuration.from_dict(values), Needs(), 8).train)

    found = prostates(tmp_path, slice(2, 33))
    assert train("0") == 58
    lost = SliceDataset(found[0], found[1].train, Preprocess(2), only=found[1].slices, shown=True)
    assert len(lost) == 58, "an object that resizing loses is there"
    with pytest.raises(
        InputError, match=r"26 of the 26 listed slices of .*Case05.h5 show no object: Case05#007,.* axis"
    ):
        train("1")
    found = prostates(tmp_path, slice(2, 31))
    with pytest.raises(InputError, match=r"2 of the 26 listed slices of .*: Case05#031, Case05#032"):
        train("0")
    path = found[1].save(tmp_path / "split.json")
    assert train("0", **{"split.protocol": None, "split.file": str(path)}) == 58
