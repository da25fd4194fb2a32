"""Published splits, one YAML file each: which cases and which of their slices are learned from, which cases are tested.

Cases are recognised by a key in their id, as in ``img0005``, ``case0005_slice004`` or ``case0001.npy.h5``.  Slices are
those of the ids, or of volumes numbered from 0: as stored where a file states no geometry, else in canonical order
(axial slices from feet to head, see ``samsans.io.orientation``; that published lists count so is our assumption).
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from samsans.data.cases import Dataset, case_of_slice, slice_name
from samsans.data.pairs import SLICE
from samsans.errors import InputError
from samsans.types import Case

LISTED = 5  # names that a message lists


@dataclass(frozen=True)
class Protocol:
    """A published split.

    title, source: what it is and where it was published.  key: finds a case in an id by its only group.
    train, test, unused, val: keys in the published order.  counts: slices of each training case in the published data.
    slices: the only slices to learn from, by key; empty: all.  shown: each of them shows an object, by definition.
    """

    name: str
    title: str
    source: str
    key: re.Pattern[str]
    train: tuple[str, ...]
    test: tuple[str, ...]
    unused: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    slices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shown: bool = False
    val: tuple[str, ...] = ()

    @property
    def training_slices(self) -> int:
        """How many slices are learned from in the published data."""
        return sum(map(len, self.slices.values())) if self.slices else sum(self.counts.values())

    def key_of(self, id: str) -> str | None:
        """The key in a case id, its slice number set aside; ``None`` where there is none.

        Raises InputError where the id holds several.
        """
        known = {*self.train, *self.val, *self.test, *self.unused}
        found = {hit.upper() for hit in self.key.findall(SLICE.sub("", id))} & known
        if len(found) > 1:
            raise InputError(
                f"{id!r} may be any of {', '.join(sorted(found))} of the split {self.name}", "one of them", "Rename it"
            )
        return next(iter(found), None)


@dataclass(frozen=True)
class Placement:
    """A protocol in a data set: train, val or test by case id, names of the only slices to learn from, notes."""

    parts: Mapping[str, str]
    slices: tuple[str, ...]
    notes: tuple[str, ...]


def names() -> tuple[str, ...]:
    """The published splits that are known."""
    files = importlib.resources.files(__package__).iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".yaml")))


def load(name: str) -> Protocol:
    """A published split by name; InputError where there is none, with names that are near."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, cutoff=0.3) or known
        raise InputError(f"no published split is called {name!r}", f"one of {', '.join(near)}", "Mend split.protocol")
    file = importlib.resources.files(__package__) / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Protocol(
        name,
        values["title"],
        values["source"],
        re.compile(values["key"], re.IGNORECASE),
        tuple(values["train"]),
        tuple(values["test"]),
        tuple(values.get("unused", ())),
        values.get("counts", {}),
        {key: _numbers(listed) for key, listed in values.get("slices", {}).items()},
        values.get("shown", False),
        tuple(values.get("val", ())),
    )


def _numbers(listed: Sequence[int] | str) -> tuple[int, ...]:
    """Slice numbers of a list, or of a range ``19-78`` with both ends."""
    if not isinstance(listed, str):
        return tuple(listed)
    first, last = map(int, listed.split("-"))
    return tuple(range(first, last + 1))


def place(protocol: Protocol, dataset: Dataset) -> Placement:
    """Find the cases and slices of a published split in a data set.

    Every training case must be there with its mask.  Other cases that are missing, cases that the split does not use
    and numbers of slices that differ from the published ones are told in notes.

    Raises InputError that names the training cases or slices that are missing.
    """
    by_key: dict[str | None, list[Case]] = {}
    for case in dataset.cases:
        by_key.setdefault(protocol.key_of(case.id), []).append(case)
    train = {key: [c for c in by_key.get(key, ()) if c.labels] for key in protocol.train}
    lost = [key for key, cases in train.items() if not cases]
    if lost:
        there = f"cases such as {', '.join(c.id for c in dataset.cases[:3])}"
        raise InputError(
            f"{len(lost)} of the {len(train)} training cases of {protocol.name} are not in {dataset.root} "
            f"with a mask: {', '.join(lost)}",
            f"all of them, by {protocol.key.pattern!r} in the case id; there are {there}",
            "Complete the data set, or take another split",
        )
    kept = [name for key, cases in train.items() for name in _slices(protocol, key, cases)] if protocol.slices else []
    ids = {c.id for c in dataset.cases}
    chosen = {case_of_slice(name, ids) for name in kept} or {c.id for cases in train.values() for c in cases}
    parts = dict.fromkeys((c.id for c in dataset.cases if c.id in chosen), "train")
    for part, keys in (("val", protocol.val), ("test", protocol.test)):
        parts |= {c.id: part for key in keys for c in by_key.get(key, ())}
    notes = _notes(protocol, by_key, len(kept))
    if ids.issuperset(kept):  # pictures: the cases say it all
        return Placement(parts, (), tuple(notes))
    notes.append("listed slices count from 0 along data.slice_axis: as stored, or from feet to head by geometry")
    return Placement(parts, tuple(kept), tuple(notes))


def _slices(protocol: Protocol, key: str, cases: Sequence[Case]) -> list[str]:
    """Names of the listed slices of one training case."""
    wanted = protocol.slices[key]
    numbered = {number: c.id for c in cases if (number := _number(c)) is not None}
    if not numbered and len(cases) == 1:
        return [slice_name(cases[0].id, n) for n in wanted]
    if len(numbered) < len(cases):
        raise InputError(
            f"{len(cases)} cases are {key} of {protocol.name}: {', '.join(c.id for c in cases[:LISTED])}",
            "one volume, or slices with ids that end in _slice004 and all differ",
            "Rename the files, or join them with data.volume",
        )
    lost = [n for n in wanted if n not in numbered]
    if lost:
        raise InputError(
            f"slices {', '.join(map(str, lost))} of {key} of {protocol.name} are not there with a mask",
            f"{len(wanted)} slices that are listed, of {len(numbered)} that are there",
            "Complete the data set",
        )
    return [numbered[n] for n in wanted]


def _number(case: Case) -> int | None:
    hit = SLICE.search(case.id)
    return None if hit is None or case.stacked else int(hit[1])


def _notes(protocol: Protocol, by_key: Mapping[str | None, Sequence[Case]], kept: int) -> list[str]:
    """What was concluded and what differs from the published split."""
    notes = [f"split {protocol.name}: {protocol.title}. {protocol.source}"]
    lost = [key for key in protocol.test if key not in by_key]
    if lost:
        notes.append(
            f"warning: {len(lost)} of {len(protocol.test)} test cases of {protocol.name} are missing, so that scores "
            f"are not comparable: {', '.join(lost)}"
        )
    if lost := [key for key in protocol.val if key not in by_key]:
        notes.append(f"{len(lost)} of {len(protocol.val)} validation cases of {protocol.name} are missing")
    for key, published in protocol.counts.items():
        numbered = sum(_number(c) is not None for c in by_key[key])
        if numbered not in (0, published):
            notes.append(f"warning: {key} has {numbered} slices, {published} were published")
    left = [c.id for key in (None, *protocol.unused) for c in by_key.get(key, ())]
    if left:
        listed = ", ".join(left[:LISTED]) + (", ..." if len(left) > LISTED else "")
        notes.append(f"{len(left)} cases are not used by {protocol.name}: {listed}")
    return [*notes, f"{kept} listed slices are learned from"] if kept else notes
