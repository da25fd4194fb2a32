"""The plain benchmark: every contestant predicts once, and all are ranked by one convention.

``scores/NAME/ranking.json`` keeps what a contestant scored; it is read again only if the run is the same to the last
weight, and scored on the same cases in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from samsans import io
from samsans.benchmark import external, panels
from samsans.benchmark.contestants import CONTESTANTS, EXTERNAL
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import Course, OnProgress, content, cost, held_out, identity, open_run, suited, train_all
from samsans.benchmark.scores import TIMED, foreign
from samsans.data.cases import Dataset
from samsans.errors import InputError
from samsans.inference.manifest import Manifest, hash_values
from samsans.io.orientation import Orientation
from samsans.metrics import robustness
from samsans.metrics.conventions import METRICS, mean
from samsans.metrics.evaluate import Summary, evaluate

SCORE, HEADLINE = "dice", "Dice"
COSTS = ("trained_parameters", "train_seconds", "peak_memory_bytes", "ms_per_slice")
SHOWN_TRUTH = "prompted from the truth of the image: not comparable with automatic ones"
FORMAT = 2  # of what is kept


def run(plan: Plan, course: Course) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train, predict and rank: the content of ``summary.json``, and pictures by file name."""
    plan = suited(plan, course)
    if EXTERNAL in plan.names and course.attempt(EXTERNAL, external.find, plan) is None:
        plan = plan.without(EXTERNAL)
    plan = train_all(plan, course)
    dataset, notes = held_out(plan)
    found: dict[str, dict[str, Any]] = {}
    for name in plan.names:
        course.say(f"segmenting with {name}")
        answer = course.attempt(name, ask, plan, name, dataset, course.on_progress)
        if answer is not None:
            found[name] = answer
    if not found:
        raise InputError("; ".join(course.notes), "at least one method that suits the data")
    patients = {case.id: case.patient for case in dataset.cases}
    summary = summarise(plan, found, patients, [*plan.notes(), *notes, *course.notes])
    png = panels.draw(plan, summary, dataset) if plan.panels else None
    return summary, {} if png is None else {panels.FILE: png}


def ask(plan: Plan, name: str, dataset: Dataset, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """What a trained contestant scores on the cases of ``dataset``; its report is in ``reports/NAME``."""
    file = plan.out / "scores" / name / "ranking.json"
    who = external.identity(plan) if name == EXTERNAL else identity(plan, name)
    classes = [(c.name, c.values) for c in dataset.classes]
    key = hash_values(FORMAT, who, plan.convention, plan.seed, plan.data.slice_axis, content(dataset), classes)
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return dict(kept["found"])
    if name == EXTERNAL:
        folder, taken, truth, speed = *external.ask(plan, dataset, on_progress), False, None
    else:
        manifest, truth = _predict(plan, name, dataset, on_progress)
        folder, taken, speed = manifest.folder, cost(plan.run(name)), _speed(manifest, plan)
    scored = evaluate(
        folder,
        dataset.cases,
        plan.out / "reports" / name,
        convention=plan.convention,
        classes=dataset.classes,
        seed=plan.seed,
        slice_axis=plan.data.slice_axis,
    )
    found = {
        "about": CONTESTANTS[name].about,
        "truth": truth,
        "backbone": "none" if name == EXTERNAL else plan.backbone_of(name),
        **{metric: scored.mean[metric] for metric in METRICS},
        "ci": scored.mean["ci"],
        "n": scored.n,
        "unit": scored.unit,
        "classes": {c: {key: row[key] for key in (*METRICS, "ci", "n")} for c, row in scored.classes.items()},
        "cases": by_case(scored),
        "class_cases": {c: by_case(scored, c) for c in scored.classes},
        "trained_parameters": 0 if CONTESTANTS[name].of else taken.trained_parameters,
        "train_seconds": taken.train_seconds,
        "peak_memory_bytes": taken.peak_memory_bytes,
        "ms_per_slice": speed,
    }
    io.write_json(file, {"key": key, "found": found})
    return found


def _predict(plan: Plan, name: str, dataset: Dataset, on_progress: OnProgress | None) -> tuple[Manifest, bool]:
    """The label maps, and whether true masks had a part in them."""
    segmenter, folder = open_run(plan, name), plan.masks(name)
    needs = segmenter.method.needs
    manifest = segmenter.predict_folder(
        dataset,
        folder,
        seed=0 if needs.points else plan.seed,
        overwrite=foreign(folder, segmenter.weights_hash),
        on_progress=on_progress,
    )
    if manifest.failures:
        raise InputError(f"cases that cannot be segmented: {manifest.failures}", "images that can be read")
    simulated = any(record.prompts.get("source") == "noise" for record in manifest.records.values())
    return manifest, needs.labels_at_predict or needs.first_label or simulated


def _speed(manifest: Manifest, plan: Plan) -> float:
    """Milliseconds a slice or picture, from the image to the label map."""
    slices = 0
    for path in manifest.outputs.values():
        volume = io.read_labels(path)
        slices += volume.shape[Orientation.of(volume, plan.data.slice_axis).axes[0]]
    return 1000 * sum(manifest.seconds.get(part, 0.0) for part in TIMED) / max(slices, 1)


def by_case(found: Summary, name: str | None = None) -> dict[str, float | None]:
    """Dice of every case, of one class or the mean over all (and over slices, where these are the samples)."""
    parts: dict[str, list[float | None]] = {}
    for row in found.cases:
        if name in (None, row["class"]):
            parts.setdefault(row["id"], []).append(row["dice"])
    return {case: mean(values) for case, values in parts.items()}


def summarise(
    plan: Plan, found: Mapping[str, dict[str, Any]], patients: Mapping[str, str], notes: list[str]
) -> dict[str, Any]:
    """The content of ``summary.json``: the methods by rank, each with p against the best (Wilcoxon, Holm).

    patients: of each case; they are the pairs of the test, each the mean over its cases (our decision: cases of one
    patient are not independent).

    Those whose prompts were drawn from the truth of the image at hand come last and are ranked among themselves.
    """
    methods: dict[str, Any] = {}
    for truth in (False, True):
        group = {name: row for name, row in found.items() if row["truth"] is truth}
        order = sorted(group, key=lambda name: -1.0 if group[name][SCORE] is None else group[name][SCORE], reverse=True)
        if not order:
            continue
        best = group[order[0]]["cases"]
        others = {name: numbers(group[name]["cases"], best) for name in order[1:]}
        p: Mapping[str, float | None] = robustness.compare(numbers(best, best), others, [patients[id] for id in best])
        for rank, name in enumerate(order, start=1):
            shown = {key: value for key, value in group[name].items() if key != "class_cases"}
            methods[name] = {"rank": rank} | shown | {"p": p.get(name)}
    ids = list(next(iter(found.values()))["cases"])
    about = {"kind": "ranking", **plan.networks(), "score": SCORE, "convention": plan.convention}
    return about | {"cases": ids, "methods": methods, "notes": notes}


def numbers(cases: Mapping[str, float | None], like: Mapping[str, Any]) -> np.ndarray:
    """The scores of cases in the order of ``like``, NaN where there is none."""
    return np.array([np.nan if cases[id] is None else cases[id] for id in like], np.float64)


def headlines(summary: Mapping[str, Any]) -> dict[str, tuple[float | None, list[float] | None]]:
    """The one number of every method, with its interval."""
    return {name: (row[SCORE], row["ci"][SCORE]) for name, row in summary["methods"].items()}


def footnotes(summary: Mapping[str, Any]) -> list[str]:
    """The lines below a table whose methods have a star where they were shown the truth."""
    starred = any(row["truth"] for row in summary["methods"].values())
    return [*(["", f"* {SHOWN_TRUTH}"] if starred else []), *(f"note: {note}" for note in summary["notes"])]


def text(summary: Mapping[str, Any]) -> str:
    """The ranked table for a terminal."""
    methods = summary["methods"]
    lines = [f"{len(summary['cases'])} cases, convention {summary['convention']}", ""]
    heads = (*METRICS, "95 % of dice", "p", "train s", "ms/slice")
    lines.append(f"{'':21}" + "".join(f"{head:>14}" for head in heads))
    for truth in (False, True):
        group = {name: row for name, row in methods.items() if row["truth"] is truth}
        if truth and group:
            lines += ["", SHOWN_TRUTH]
        for name, row in group.items():
            interval = row["ci"]["dice"]
            cells = [_cell(row[metric], ".3f") for metric in METRICS]
            cells.append("-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}")
            cells += [_cell(row["p"], ".3g"), _cell(row["train_seconds"], ".0f"), _cell(row["ms_per_slice"], ".1f")]
            lines.append(f"{row['rank']:>2} {name:18}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as rows: a method and class each, and the mean over the classes."""
    table = []
    for name, row in summary["methods"].items():
        parts = {"mean": {**row, "n": row["n"]}, **row["classes"]}
        for part, scores in parts.items():
            low, high = scores["ci"]["dice"] or (None, None)
            cells = {"rank": row["rank"], "method": name, "prompted_from_truth": row["truth"], "class": part}
            cells |= {"n": scores["n"], **{metric: scores[metric] for metric in METRICS}}
            cells |= {"dice_low": low, "dice_high": high}
            table.append(cells | {key: row[key] for key in ("p", *COSTS)})
    return table
