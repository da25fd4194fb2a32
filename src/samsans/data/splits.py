"""Who is trained on, who chooses the checkpoint, who is held out; patients never straddle."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from samsans.config import SplitConfig
from samsans.data import protocols
from samsans.data.cases import Dataset, case_of_slice
from samsans.errors import InputError
from samsans.io import atomic

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Case ids of each part, in order of the data set.

    slices: names of the only training slices to learn from; empty: all of them.
    notes: what was concluded, for people.
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def save(self, path: str | Path) -> Path:
        """Write ``{"train": [ids], "val": [ids], "test": [ids], "slices": [names], "notes": [...]}``."""
        return atomic.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path, fold: int = 0) -> Split:
        """Read what ``save`` wrote, or fold ``fold`` of nnU-Net's ``splits_final.json`` (a list of folds).

        Raises InputError where the file is something else or has no such fold.
        """
        try:
            value: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"no split at {path}", "splits_final.json or split.json") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if isinstance(value, list):
            if not 0 <= fold < len(value):
                raise InputError(f"{path} has {len(value)} folds, fold {fold} was asked for", f"0..{len(value) - 1}")
            value = value[fold]
        if not isinstance(value, Mapping) or not isinstance(value.get("train"), list):
            raise InputError(f"{path} holds no split", '{"train": [ids], "val": [ids]}, or a list of such folds')
        return cls(*(tuple(str(id) for id in value.get(part, ())) for part in (*PARTS, "slices", "notes")))


def few_slices(names: Sequence[str], share: float, seed: int = 0) -> tuple[str, ...]:
    """Few-shot by slices: ``floor(share * n)`` of the names, drawn without replacement, in their order.

    This is the "10 %" of H-SAM's and SAMed's few-shot tables: a share of the slices of *all* training patients, each of
    whom may be seen, unlike ``shots``.  Raises InputError for a share out of (0, 1] and where no slice would be left.
    """
    if not 0 < share <= 1:
        raise InputError(f"split.slice_share is {share}", "a share of the training slices, 0 < share <= 1")
    count = math.floor(Fraction(str(share)) * len(names))  # of the number as written: 0.29 of 100 is 29
    if not count:
        raise InputError(f"split.slice_share {share} of {len(names)} training slices is none", "one slice at least")
    chosen = np.random.default_rng([seed, 0x511CE]).choice(len(names), count, replace=False)
    return tuple(names[i] for i in sorted(chosen))


def make_split(dataset: Dataset, config: SplitConfig, seed: int = 0) -> Split:
    """Divide the cases by patient.

    A split file or a published split (``protocol``) wins over parts that the data set declares (folders, imagesTs, a
    CSV column), and these over shares; ``val`` is then a share of the published training patients.
    ``test_patients`` are always held out.  Shares are of the patients not yet placed and at least one patient each.
    With ``order: file`` shares are of the labelled cases, one after the other: those to learn from, those to validate,
    those to test (P2SAM's code); a patient may then straddle parts, and a note counts those who do.
    Unlabelled cases are never learned from: they are in ``test`` where declared so, else in no part.  ``shots`` keeps
    at most one training image a patient.  ``slice_share`` is drawn by training, once the slices are known, with
    ``few_slices``.

    Raises InputError where a patient would straddle parts, an id or patient is unknown, or nobody is left to train on.
    """
    rng = np.random.default_rng([seed, 0x5017])
    patients = {c.id: c.patient for c in dataset.cases}
    declared_test = {id for id, part in dataset.parts.items() if part == "test"}
    slices: tuple[str, ...] = ()
    notes: list[str] = []
    if config.protocol is not None:
        parts, slices, notes = _published(dataset, config, rng)
        declared_test = {id for id, part in parts.items() if part == "test"}
    elif config.file is not None:
        parts, slices = _from_file(dataset, config)
    else:
        parts = {id: part for id, part in dataset.parts.items() if part != "train"}
        _require_apart(parts | {id: "train" for id, p in dataset.parts.items() if p == "train"}, patients)
        declared = {patients[id]: part for id, part in parts.items()}
        placed = declared | dict.fromkeys(_known(config.test_patients, patients), "test")
        _require_apart(dict(parts) | {i: placed[p] for i, p in patients.items() if p in placed}, patients)
        fixed = {patients[id] for id, part in dataset.parts.items() if part == "train" and "val" in declared.values()}
        free = sorted({c.patient for c in dataset.labelled} - set(placed))
        drawn = [free[i] for i in rng.permutation(len(free)) if free[i] not in fixed]
        total = len(free)
        shares = {part: 0.0 if part in placed.values() else getattr(config, part) for part in ("test", "val")}
        in_order = config.order == "file"
        for part, share in shares.items() if not in_order else ():
            wanted = _count(part, share, total)
            placed |= dict.fromkeys(drawn[:wanted], part)
            drawn = drawn[wanted:]
        parts = {id: placed.get(patient, "train") for id, patient in patients.items()}
        if in_order:
            ordered = [c for c in dataset.labelled if c.patient not in placed and c.patient not in fixed]
            parts |= _by_order([c.id for c in ordered], **shares)
            parted = Counter(patient for patient, _ in {(c.patient, parts[c.id]) for c in ordered})
            astride = sum(n > 1 for n in parted.values())
            notes.append(
                f"split.order file: {astride} of {len(parted)} patients are in more than one part"
                + (", so that scores say less of patients never seen" if astride else "")
            )
    labelled = {c.id for c in dataset.labelled}
    usable = [c.id for c in dataset.cases if c.id in parts and (c.id in labelled or c.id in declared_test)]
    by_part = {part: [id for id in usable if parts[id] == part] for part in PARTS}
    train = [id for id in by_part["train"] if id in labelled]
    if not train:
        held = f"{len(by_part['val'])} for validation, {len(by_part['test'])} for test"
        raise InputError(
            f"nothing is left to train on: {len(labelled)} of {len(dataset.cases)} cases have a mask ({held})",
            "at least one labelled training patient",
            "Lower split.val and split.test, or add masks"
            if labelled
            else "`samsans check` tells which masks are missing",
        )
    if config.shots is not None:
        train = _few(train, patients, config.shots, rng)
    if config.slice_share is not None:
        people = len({patients[id] for id in train})
        notes.append(f"split.slice_share draws slices over all {people} training patients: few-shot by slices")
    kept = _slices_of(train, slices, patients)
    return Split(tuple(train), tuple(by_part["val"]), tuple(by_part["test"]), kept, tuple(notes))


def _slices_of(train: Sequence[str], slices: Sequence[str], known: Container[str]) -> tuple[str, ...]:
    """Those of the named slices that belong to the training cases."""
    cases = set(train)
    kept = tuple(name for name in slices if case_of_slice(name, known) in cases)
    if slices and not kept:
        raise InputError(
            f"none of the {len(slices)} slices of the split, such as {slices[0]!r}, is of a training case",
            "slices named by case, or case#number of a volume",
            "Mend the slices of the split file",
        )
    return kept


def _published(
    dataset: Dataset, config: SplitConfig, rng: np.random.Generator
) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Part of every case of a published split, its only slices, and notes; ``val`` is drawn from those who train."""
    assert config.protocol is not None
    others = {"split.file": config.file, "split.test": config.test, "split.test_patients": config.test_patients}
    if clash := [key for key, value in others.items() if value]:
        raise InputError(f"{' and '.join(clash)} beside split.protocol", "one of them", "A published split decides it")
    found = protocols.place(protocols.load(config.protocol), dataset)
    patients = {c.id: c.patient for c in dataset.cases}
    _require_apart(found.parts, patients)
    free = sorted({patients[id] for id, part in found.parts.items() if part == "train"})
    wanted = _count("val", config.val, len(free))
    held = {free[i] for i in rng.permutation(len(free))[:wanted]}
    parts = {id: "val" if patients[id] in held else part for id, part in found.parts.items()}
    away = [f"{wanted} of its {len(free)} training patients are held out to validate"] if wanted else []
    return parts, found.slices, [*found.notes, *away]


def _from_file(dataset: Dataset, config: SplitConfig) -> tuple[dict[str, str], tuple[str, ...]]:
    """Part of every id in ``config.file`` and its only slices; declared test cases stay test where it places none."""
    assert config.file is not None
    split = Split.load(config.file, config.fold)
    patients = {c.id: c.patient for c in dataset.cases}
    parts: dict[str, str] = {}
    for part in PARTS:
        for id in getattr(split, part):
            if id not in patients:
                raise InputError(
                    f"{config.file} names {id!r}, which is not in {dataset.root}",
                    f"ids such as {', '.join(sorted(patients)[:3])}",
                    "Use the split of this data set",
                )
            if parts.setdefault(id, part) != part:
                raise InputError(f"{config.file} puts {id!r} in {parts[id]} and {part}", "every case once")
    listed = set(parts)
    parts |= {id: "test" for id, part in dataset.parts.items() if part == "test" and id not in listed}
    held = set(_known(config.test_patients, patients))
    parts |= {id: "test" for id, patient in patients.items() if patient in held}
    if config.order == "drawn":  # a split in file order may be repeated from the file of an earlier run
        _require_apart(parts, patients)
    return parts, split.slices


def _known(names: Iterable[str], patients: Mapping[str, str]) -> list[str]:
    known = set(patients.values())
    unknown = [str(n) for n in names if str(n) not in known]
    if unknown:
        raise InputError(
            f"split.test_patients names {', '.join(unknown)}, not among the {len(known)} patients",
            f"patients such as {', '.join(sorted(known)[:3])}",
        )
    return [str(n) for n in names]


def _require_apart(parts: Mapping[str, str], patients: Mapping[str, str]) -> None:
    """InputError where the cases of one patient are in different parts."""
    seen: dict[str, str] = {}
    for id, part in parts.items():
        if seen.setdefault(patients[id], part) != part:
            raise InputError(
                f"patient {patients[id]!r} is both in {seen[patients[id]]} and in {part}",
                "all images of a patient in one part",
                "Mend the split, or name the patients with data.patient",
            )


def _count(part: str, share: float, total: int) -> int:
    """Patients of a ``share`` of ``total``: rounded, at least one where a share is asked for."""
    if not 0 <= share < 1:
        raise InputError(f"split.{part} is {share}", "a share of the patients, 0 <= share < 1")
    return max(1, round(share * total)) if share else 0


def _by_order(ids: Sequence[str], test: float, val: float) -> dict[str, str]:
    """Part of each id: the first ``1 - test - val`` of them train, the next ``val``, the last ``test``; rounded down,
    so that of 15 096 at shares of 0.2 the first 9 057 train, 3 019 validate and 3 020 test."""
    shares = [Fraction(str(share)) for share in (test, val)]
    if min(shares) < 0 or sum(shares) >= 1:
        raise InputError(f"split.test is {test} and split.val {val}", "shares that leave some cases to train on")
    first = math.floor((1 - sum(shares)) * len(ids))
    last = math.floor((1 - shares[0]) * len(ids))
    return {id: PARTS[(i >= first) + (i >= last)] for i, id in enumerate(ids)}


def _few(train: Sequence[str], patients: Mapping[str, str], shots: int, rng: np.random.Generator) -> list[str]:
    """``shots`` of the training ids, each of another patient."""
    by_patient: dict[str, list[str]] = {}
    for id in train:
        by_patient.setdefault(patients[id], []).append(id)
    if not 1 <= shots <= len(by_patient):
        raise InputError(
            f"split.shots asks for {shots} images of different patients, {len(by_patient)} training patients are there",
            f"1 to {len(by_patient)} shots",
            "Lower split.shots or hold out fewer patients",
        )
    names = sorted(by_patient)
    chosen = {
        by_patient[names[i]][rng.integers(len(by_patient[names[i]]))] for i in rng.permutation(len(names))[:shots]
    }
    return [id for id in train if id in chosen]
