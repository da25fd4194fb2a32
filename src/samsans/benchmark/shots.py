"""Learning curves: every method at every number of training images, from two or more backbones, on the same test set.

Each number is a split of its own in ``splits``, each a subset of the next larger one.  Each backbone and number is a
benchmark of its own in ``BACKBONE/NUMBER``: ``runs``, ``masks``, ``scores`` and ``reports``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samsans.benchmark import curves, ranking
from samsans.benchmark.contestants import CONTESTANTS, EXTERNAL
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import UNUSABLE, Course, tested, train
from samsans.config import SplitConfig
from samsans.data.cases import Dataset, case_of_slice, find_cases
from samsans.data.splits import Split, make_split
from samsans.errors import InputError, OtherRunError
from samsans.metrics import statistics
from samsans.metrics.conventions import METRICS

SCORE = "dice"
HEADLINE = "Dice from the first backbone less that from the second, at the most training images"
ALL, NO_BACKBONE = "mean of the methods", "none"
KEPT = (*METRICS, "ci", "n", "cases", *ranking.COSTS)  # of a point of a curve
OWN = ("shots", "test", "val", "test_patients", "file", "fold", "protocol")  # options of the split that the study sets

Points = dict[str, dict[int, dict[str, Any]]]  # by backbone and number of images


def run(plan: Plan, course: Course) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train, predict and compare: the content of ``summary.json``, and pictures by file name."""
    cases = find_cases(plan.data)
    whole = _whole(plan, cases)
    dataset, notes = tested(cases, whole)
    for line in notes:
        course.note(line)
    plan = _within(plan, len(whole.train), course)
    _write_splits(plan, cases, whole)
    if whole.val:
        course.note(f"Beside the training images {len(whole.val)} others choose the best weights.")
    built = {name: course.attempt(name, _backbones, plan, name) or [] for name in plan.names}
    found: dict[str, Points] = {}
    for name, backbones in built.items():
        points = {b: learned for b in backbones if (learned := _curve(plan, name, b, dataset, course))}
        if points:
            found[name] = points
    if not found:
        raise InputError("; ".join(course.notes), "at least one method that suits the data")
    shared = replace(variant(plan, plan.backbones[0], plan.shots[-1]), names=tuple(found)).notes()
    summary = summarise(plan, found, dataset, [*shared, *course.notes])
    return summary, {curves.FILE: curves.draw(summary)}


def nested(train: Sequence[str], patients: Mapping[str, str], counts: Sequence[int], seed: int) -> dict[int, list[str]]:
    """So many training ids for each count, in their order: the first of one random sequence, so that each set holds the
    smaller ones.

    One image a patient as long as there are patients, then a second of each, and so on (our decision).
    """
    rng = np.random.default_rng([seed, 0x5407])
    groups: dict[str, list[str]] = {}
    for id in sorted(train):
        groups.setdefault(patients[id], []).append(id)
    queues = [[group[i] for i in rng.permutation(len(group))] for group in groups.values()]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    longest = max(map(len, queues))
    sequence = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    chosen = {count: set(sequence[:count]) for count in counts}
    return {count: [id for id in train if id in ids] for count, ids in chosen.items()}


def variant(plan: Plan, backbone: str, count: int) -> Plan:
    """The benchmark of one backbone and number of images."""
    sam2 = curves.family(backbone) == "sam2"
    return replace(
        plan,
        out=plan.out / _folder(backbone) / str(count),
        split=replace(plan.split, **_unset(), file=str((plan.out / "splits" / f"{count}.json").absolute())),
        shots=(),
        backbones=(),
        backbone=None if sam2 else plan.backbones[0] if backbone == NO_BACKBONE else backbone,
        sam2=backbone if sam2 else None,
    )


def _unset() -> dict[str, Any]:
    plain = SplitConfig()
    return {key: getattr(plain, key) for key in OWN if key != "file"}


def _folder(backbone: str) -> str:
    return re.sub(r"[^\w.-]+", "_", backbone).strip("_")


def _whole(plan: Plan, cases: Dataset) -> Split:
    """Who may be learned from, and who is held out."""
    if plan.split.shots is not None or plan.split.slice_share is not None:
        raise InputError("--shots with split.shots or split.slice_share", "--shots alone")
    if len({_folder(backbone) for backbone in plan.backbones}) < len(plan.backbones):
        raise InputError(f"backbones {', '.join(plan.backbones)}", "names that differ")
    split = make_split(cases, plan.split, plan.seed)
    if not (split.test or split.val):
        raise InputError("nobody is held out", "--split.test 0.2, say")
    return split if split.test else replace(split, test=split.val, val=())


def _within(plan: Plan, there: int, course: Course) -> Plan:
    """The plan with no more images than there are."""
    over = [count for count in plan.shots if count > there]
    if over:
        asked = ", ".join(map(str, over))
        course.note(f"{asked} training images were asked for, and {there} are there: all are taken.")
    return replace(plan, shots=tuple(sorted({min(count, there) for count in plan.shots})))


def _write_splits(plan: Plan, cases: Dataset, whole: Split) -> None:
    patients = {case.id: case.patient for case in cases.cases}
    for count, ids in nested(whole.train, patients, plan.shots, plan.seed).items():
        slices = tuple(name for name in whole.slices if case_of_slice(name, patients) in ids)
        split, file = Split(tuple(ids), whole.val, whole.test, slices), plan.out / "splits" / f"{count}.json"
        if file.is_file() and split != Split.load(file):
            raise InputError(
                f"{file} divides the cases in another way than the data and the options now do",
                "the data and the split that these learning curves began with",
                "Name another folder with -o",
            )
        split.save(file)


def _backbones(plan: Plan, name: str) -> list[str]:
    """Those that a contestant can be built on; it has one curve if it has no SAM inside.

    InputError where it can be built on none, or does not learn from the images given.
    """
    contestant = CONTESTANTS[name]
    if name == EXTERNAL or (contestant.frozen and not contestant.supports):
        raise InputError(f"{name} in learning curves", "methods that learn from the images given")
    if contestant.family == "none":
        return [NO_BACKBONE]
    fitting = [backbone for backbone in plan.backbones if curves.family(backbone) == contestant.family]
    if not fitting:
        raise InputError(f"{name} on {', '.join(plan.backbones)}", f"backbones of family {contestant.family}")
    return fitting


def _curve(plan: Plan, name: str, backbone: str, dataset: Dataset, course: Course) -> dict[int, dict[str, Any]]:
    """The scores of a contestant on one backbone by number of images, largest first.

    Where it cannot learn from the most images, it does not suit the data; where it can from these and not from fewer,
    there is a note instead of a point.
    """
    points: dict[int, dict[str, Any]] = {}
    for count in sorted(plan.shots, reverse=True):
        one = replace(variant(plan, backbone, count), names=(name,))
        course.say(f"{name}, {count} image{'s' * (count > 1)}, {backbone}")
        if reason := one.unsuited(name):
            course.note(f"{name} on {backbone} is left out: {reason}.")
            return {}
        try:
            train(one, one.trained[0], course.on_progress)
            points[count] = ranking.ask(one, name, dataset, course.on_progress)
        except OtherRunError:
            raise
        except UNUSABLE as error:
            if not points:
                course.refused(f"{name} on {backbone}", error)
                return {}
            course.note(f"{name} cannot learn from {count} image{'s' * (count > 1)}: {error}")
    return points


# -- what comes of it -------------------------------------------------------------------------------------------------


def summarise(plan: Plan, found: Mapping[str, Points], dataset: Dataset, notes: Sequence[str]) -> dict[str, Any]:
    """The content of ``summary.json``: of each method its curves by backbone and number of images, and differences.

    ``difference`` of all: of the mean over the automatic methods that learned from the most images on both backbones.
    """
    first, *others = plan.backbones
    methods: dict[str, Any] = {}
    pooled: dict[str, list[np.ndarray]] = {other: [] for other in others}
    for name, points in found.items():
        row: dict[str, Any] = {
            "about": CONTESTANTS[name].about,
            "truth": any(point["truth"] for learned in points.values() for point in learned.values()),
            "curves": {
                backbone: {str(count): _shown(learned[count]) for count in sorted(learned)}
                for backbone, learned in points.items()
            },
            "difference": {},
        }
        for other in others:
            common = points.get(first, {}).keys() & points.get(other, {}).keys()
            if common:
                count = max(common)
                values = _paired(points[first][count], points[other][count], dataset)
                row["difference"][other] = {"shots": count} | difference(values, dataset, plan.seed)
                if count == max(plan.shots) and not row["truth"]:
                    pooled[other].append(values)
        methods[name] = row
    return {
        "kind": "shots",
        "score": SCORE,
        "convention": plan.convention,
        "shots": list(plan.shots),
        "backbones": list(plan.backbones),
        "input_size": plan.input_size,
        "cases": [case.id for case in dataset.cases],
        "methods": methods,
        "difference": {
            other: {"shots": max(plan.shots), "methods": len(values)} | difference(_mean(values), dataset, plan.seed)
            for other, values in pooled.items()
            if values
        },
        "notes": list(dict.fromkeys(notes)),
    }


def _shown(point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: point[key] for key in KEPT} | {"classes": point["classes"]}


def _paired(ours: Mapping[str, Any], theirs: Mapping[str, Any], dataset: Dataset) -> np.ndarray:
    """Differences of Dice ``(cases, objects)``, NaN where one of the two has none."""
    scores = [
        [
            [np.nan if (v := part.get(case.id)) is None else v for part in one["class_cases"].values()]
            for one in (ours, theirs)
        ]
        for case in dataset.cases
    ]
    table = np.array(scores, np.float64)  # (cases, 2, objects)
    return table[:, 0] - table[:, 1]


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over methods of ``(cases, objects)``, of those that are defined."""
    return statistics.class_means(np.stack([one.ravel() for one in values])).reshape(values[0].shape)


def difference(values: np.ndarray, dataset: Dataset, seed: int) -> dict[str, Any]:
    """What paired differences ``(cases, objects)`` of Dice say: their mean over the cases, then over the objects.

    ``ci``: 95 % bootstrap interval over patients; ``outside``: whether it excludes 0.  ``n``: cases that count.
    """
    interval = statistics.bootstrap(values, [case.patient for case in dataset.cases], seed=seed).headline
    dice = float(statistics.class_means(statistics.class_means(values)[:, None])[0])
    known = bool(np.isfinite(interval).all())
    return {
        SCORE: dice if np.isfinite(dice) else None,
        "ci": [float(v) for v in interval] if known else None,
        "outside": bool(interval[0] > 0 or interval[1] < 0) if known else None,
        "n": int(np.isfinite(values).any(1).sum()),
    }


def headlines(summary: Mapping[str, Any]) -> dict[str, tuple[float | None, list[float] | None]]:
    """The one number of every method, with its interval; and of their mean."""
    first = {name: next(iter(row["difference"].values()), None) for name, row in summary["methods"].items()}
    found = {ALL: next(iter(summary["difference"].values()), None)} | first
    return {name: (None, None) if one is None else (one[SCORE], one["ci"]) for name, one in found.items()}


def text(summary: Mapping[str, Any]) -> str:
    """The table for a terminal: Dice by method, backbone and number of images, and the differences."""
    counts = [str(count) for count in summary["shots"]]
    lines = [f"{len(summary['cases'])} cases, convention {summary['convention']}; Dice by training images", ""]
    lines.append(f"{'':38}" + "".join(f"{count:>8}" for count in counts) + f"{'difference':>12}  95 % interval")
    for name, row in summary["methods"].items():
        for backbone, points in row["curves"].items():
            values = [points.get(count, {}).get(SCORE) for count in counts]
            line = f"{name + '*' * row['truth']:20}{backbone:18}"
            line += "".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in values)
            lines.append(line + _told(row["difference"].get(backbone)))
    for backbone, found in summary["difference"].items():
        lines.append(f"{ALL:20}{backbone:18}{'':{8 * len(counts)}}{_told(found)}")
    return "\n".join([*lines, *ranking.footnotes(summary)])


def _told(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference[SCORE] is None:
        return ""
    interval = difference["ci"]
    return f"{difference[SCORE]:>+12.3f}  " + ("" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}")


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as rows: a method, backbone, number of images and class each, and the mean over the classes."""
    table = []
    for name, row in summary["methods"].items():
        for backbone, points in row["curves"].items():
            for count, point in points.items():
                for part, scores in {"mean": point, **point["classes"]}.items():
                    low, high = scores["ci"][SCORE] or (None, None)
                    cells = {"method": name, "prompted_from_truth": row["truth"], "backbone": backbone}
                    cells |= {"images": int(count), "class": part, "n": scores["n"]}
                    cells |= {metric: scores[metric] for metric in METRICS} | {"dice_low": low, "dice_high": high}
                    table.append(cells | {key: point[key] for key in ranking.COSTS})
    return table
