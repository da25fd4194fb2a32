"""Who is trained on and who is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samsans.config import SplitConfig
from samsans.data.cases import Dataset
from samsans.data.splits import PARTS, Split, few_slices, make_split
from samsans.errors import InputError
from samsans.types import Case


def dataset(patients: list[str], unlabelled: tuple[int, ...] = (), parts: dict[str, str] | None = None) -> Dataset:
    """Cases c0, c1, ... of the patients."""
    cases = tuple(
        Case(f"c{i}", p, (Path(f"c{i}.png"),), () if i in unlabelled else ((Path(f"m{i}.png"),),))
        for i, p in enumerate(patients)
    )
    return Dataset(Path("set"), "test", cases, parts=parts or {})


@given(
    patients=st.lists(st.integers(0, 12), min_size=3, max_size=40),
    val=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.2, 0.4]),
    seed=st.integers(0, 99),
)
def test_patients_never_straddle(patients: list[int], val: float, test: float, seed: int) -> None:
    data = dataset([f"p{p}" for p in patients])
    count = len(set(patients))
    config = SplitConfig(val=val, test=test)
    if count <= (val > 0) + (test > 0):
        with pytest.raises(InputError, match="nothing is left to train on"):
            make_split(data, config, seed)
        return
    try:
        split = make_split(data, config, seed)
    except InputError:
        assert count <= 3
        return
    of = {c.id: c.patient for c in data.cases}
    sets = [{of[id] for id in getattr(split, part)} for part in PARTS]
    assert sets[0].isdisjoint(sets[1])
    assert sets[0].isdisjoint(sets[2])
    assert sets[1].isdisjoint(sets[2])
    assert sorted(split.train + split.val + split.test) == sorted(of)
    assert len(sets[1]) == (max(1, round(val * count)) if val else 0)
    assert len(sets[2]) == (max(1, round(test * count)) if test else 0)
    assert make_split(data, config, seed) == split


def test_seeds_differ() -> None:
    data = dataset([f"p{i}" for i in range(20)])
    assert len({make_split(data, SplitConfig(val=0.2), seed).val for seed in range(5)}) > 1


@given(patients=st.lists(st.integers(0, 8), min_size=1, max_size=30), seed=st.integers(0, 20), data=st.data())
def test_shots_are_of_different_patients(patients: list[int], seed: int, data: st.DataObject) -> None:
    found = dataset([f"p{p}" for p in patients])
    shots = data.draw(st.integers(1, len(set(patients))))
    split = make_split(found, SplitConfig(shots=shots), seed)
    of = {c.id: c.patient for c in found.cases}
    assert len(split.train) == len({of[id] for id in split.train}) == shots


def test_more_shots_than_patients_names_both_numbers() -> None:
    with pytest.raises(InputError, match="asks for 3 images of different patients, 2 training patients"):
        make_split(dataset(["a", "a", "b"]), SplitConfig(shots=3))


def test_unlabelled_cases_are_not_learned_from() -> None:
    found = dataset(["a", "b", "c", "d"], unlabelled=(1, 3), parts={"c3": "test"})
    split = make_split(found, SplitConfig())
    assert split == Split(("c0", "c2"), (), ("c3",))
    with pytest.raises(InputError, match="nothing is left to train on: 0 of 2"):
        make_split(dataset(["a", "b"], unlabelled=(0, 1)), SplitConfig())


def test_declared_parts_win_over_shares() -> None:
    found = dataset(list("abcdef"), parts={"c0": "train", "c1": "test", "c2": "val"})
    split = make_split(found, SplitConfig(val=0.4, test=0.4))
    assert split.test == ("c1",)
    assert split.val == ("c2",)
    assert set(split.train) == {"c0", "c3", "c4", "c5"}
    only_test = dataset(list("abcdef"), parts={"c1": "test"})
    assert len(make_split(only_test, SplitConfig(val=0.4)).val) == 2


def test_test_patients_are_held_out() -> None:
    split = make_split(dataset(["a", "b", "b", "c"]), SplitConfig(test_patients=["b"]))
    assert split == Split(("c0", "c3"), (), ("c1", "c2"))
    with pytest.raises(InputError, match="names z, not among the 3 patients"):
        make_split(dataset(["a", "b", "b", "c"]), SplitConfig(test_patients=["z"]))


def test_straddling_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patient 'a' is both in"):
        make_split(dataset(["a", "a", "b"], parts={"c0": "train", "c1": "test"}), SplitConfig())
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["c0", "c2"], "val": ["c1"]}))
    with pytest.raises(InputError, match="patient 'a' is both in train and in val"):
        make_split(dataset(["a", "a", "b"]), SplitConfig(file=str(path)))


def test_a_file_wins(tmp_path: Path) -> None:
    found = dataset(list("abcde"), parts={"c0": "test", "c4": "test"})
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["c1"], "val": ["c2"]}, {"train": ["c0", "c2"], "val": ["c1"]}]))
    assert make_split(found, SplitConfig(file=str(path), fold=1, val=0.5)) == Split(("c0", "c2"), ("c1",), ("c4",))
    with pytest.raises(InputError, match="has 2 folds, fold 2"):
        make_split(found, SplitConfig(file=str(path), fold=2))
    path.write_text(json.dumps({"train": ["c9"]}))
    with pytest.raises(InputError, match="names 'c9'"):
        make_split(found, SplitConfig(file=str(path)))


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = Split(("a", "b"), ("c",), ())
    assert Split.load(split.save(tmp_path / "split.json")) == split
    with pytest.raises(InputError, match="no split at"):
        Split.load(tmp_path / "none.json")
    (tmp_path / "split.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="holds no split"):
        Split.load(tmp_path / "split.json")


def test_shares_must_leave_somebody() -> None:
    with pytest.raises(InputError, match=r"split.val is 1.0"):
        make_split(dataset(list("abc")), SplitConfig(val=1.0))


@given(count=st.integers(1, 300), percent=st.integers(1, 100), seed=st.integers(0, 99))
def test_a_share_of_the_slices(count: int, percent: int, seed: int) -> None:
    names = [f"c#{i:03d}" for i in range(count)]
    wanted = percent * count // 100
    if wanted == 0:
        with pytest.raises(InputError, match=f"of {count} training slices is none"):
            few_slices(names, percent / 100, seed)
        return
    chosen = few_slices(names, percent / 100, seed)
    assert len(chosen) == len(set(chosen)) == wanted
    assert list(chosen) == sorted(chosen)
    assert set(chosen) <= set(names)
    assert few_slices(names, percent / 100, seed) == chosen


def test_shares_of_slices() -> None:
    names = [str(i) for i in range(2211)]
    assert len(few_slices(names, 0.1)) == 221
    assert few_slices(names, 0.1, 1) != few_slices(names, 0.1, 2)
    assert few_slices(names, 1.0) == tuple(names)
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(InputError, match="0 < share <= 1"):
            few_slices(names, share)
    note = make_split(dataset(list("aabc")), SplitConfig(slice_share=0.1)).notes
    assert note == ("split.slice_share draws slices over all 3 training patients: few-shot by slices",)


def test_slices_are_saved_and_kept_of_a_file(tmp_path: Path) -> None:
    split = Split(("c0", "c1"), (), ("c2",), ("c0#001", "c1#004"), ("a note",))
    path = split.save(tmp_path / "split.json")
    again = Split.load(path)
    assert again == split
    assert again.notes == ("a note",)
    path.write_text(json.dumps({"train": ["c0"]}))
    assert Split.load(path).slices == ()
    split.save(path)
    found = dataset(list("abc"))
    assert make_split(found, SplitConfig(file=str(path))).slices == split.slices
    held = make_split(found, SplitConfig(file=str(path), test_patients=["b"]))
    assert (held.train, held.slices) == (("c0",), ("c0#001",))
    Split(("c0",), slices=("c1#001",)).save(path)
    with pytest.raises(InputError, match="none of the 1 slices of the split, such as 'c1#001'"):
        make_split(found, SplitConfig(file=str(path)))


def test_file_order_divides_the_cases_one_after_the_other(tmp_path: Path) -> None:
    people = [f"s{i // 15}" for i in range(15096)]
    split = make_split(dataset(people), SplitConfig(val=0.2, test=0.2, order="file"), seed=5)
    assert (len(split.train), len(split.val), len(split.test)) == (9057, 3019, 3020)
    assert split.train + split.val + split.test == tuple(f"c{i}" for i in range(15096))
    assert split == make_split(dataset(people), SplitConfig(val=0.2, test=0.2, order="file"), seed=6)
    assert split.notes == (
        "split.order file: 2 of 1007 patients are in more than one part, so that scores say less of patients never "
        "seen",
    )
    saved = SplitConfig(file=str(split.save(tmp_path / "split.json")), order="file")
    assert make_split(dataset(people), saved).test == split.test


def test_file_order_leaves_declared_parts_where_they_are() -> None:
    data = dataset(list("aabbccdd"), unlabelled=(7,), parts={"c0": "test", "c1": "test"})
    split = make_split(data, SplitConfig(val=0.4, test=0.2, order="file"))
    assert split == Split(("c2", "c3", "c4"), ("c5", "c6"), ("c0", "c1"))
    assert split.notes == (
        "split.order file: 1 of 3 patients are in more than one part, so that scores say less of patients never seen",
    )
    apart = make_split(dataset(list("aabbccdd")), SplitConfig(val=0.25, test=0.25, order="file"))
    assert apart.notes == ("split.order file: 0 of 4 patients are in more than one part",)
    with pytest.raises(InputError, match=r"split.test is 0.5 and split.val 0.5"):
        make_split(dataset(list("ab")), SplitConfig(val=0.5, test=0.5, order="file"))
