"""The plain benchmark: every contestant predicts once, and all are ranked by one convention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from samsans import io
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import OnProgress, cost, open_run
from samsans.benchmark.scores import TIMED, foreign
from samsans.data.cases import Dataset
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.metrics import robustness
from samsans.metrics.conventions import METRICS, mean
from samsans.metrics.evaluate import Summary, evaluate

SCORE = "dice"


def ask(plan: Plan, name: str, dataset: Dataset, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """What a trained contestant scores on the cases of ``dataset``; its report is in ``reports/NAME``."""
    segmenter, folder = open_run(plan, name), plan.out / "masks" / name / "once-0"
    manifest = segmenter.predict_folder(
        dataset,
        folder,
        seed=0 if segmenter.method.needs.points else plan.seed,
        overwrite=foreign(folder, segmenter.weights_hash),
        on_progress=on_progress,
    )
    if manifest.failures:
        raise InputError(f"cases that cannot be segmented: {manifest.failures}", "images that can be read")
    found = evaluate(
        folder,
        dataset.cases,
        plan.out / "reports" / name,
        convention=plan.convention,
        classes=dataset.classes,
        seed=plan.seed,
        slice_axis=plan.data.slice_axis,
    )
    slices = 0
    for path in manifest.outputs.values():
        volume = io.read_labels(path)
        slices += volume.shape[Orientation.of(volume, plan.data.slice_axis).axes[0]]
    seconds = sum(manifest.seconds.get(part, 0.0) for part in TIMED)
    told = plan.run(name) / "train.json"
    memory = json.loads(told.read_text(encoding="utf-8"))["peak_memory_bytes"] if told.is_file() else None
    taken = cost(plan.run(name))
    return {
        "about": CONTESTANTS[name].about,
        **{metric: found.mean[metric] for metric in METRICS},
        "ci": found.mean["ci"],
        "n": found.n,
        "unit": found.unit,
        "classes": {c: {key: row[key] for key in (*METRICS, "ci", "n")} for c, row in found.classes.items()},
        "cases": _by_case(found),
        "trained_parameters": 0 if CONTESTANTS[name].of else taken.trained_parameters,
        "train_seconds": taken.train_seconds,
        "peak_memory_bytes": memory,
        "ms_per_slice": 1000 * seconds / max(slices, 1),
    }


def _by_case(found: Summary) -> dict[str, float | None]:
    """Mean Dice of every case over its classes (and slices, where these are the samples)."""
    parts: dict[str, list[float | None]] = {}
    for row in found.cases:
        parts.setdefault(row["id"], []).append(row["dice"])
    return {case: mean(values) for case, values in parts.items()}


def summarise(plan: Plan, found: Mapping[str, dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """The content of ``summary.json``: the methods by rank, each with p against the best (Wilcoxon, Holm)."""
    order = sorted(found, key=lambda name: -1.0 if found[name][SCORE] is None else found[name][SCORE], reverse=True)
    best = found[order[0]]["cases"]
    others = {name: _numbers(found[name]["cases"], best) for name in order[1:]}
    p: Mapping[str, float | None] = robustness.compare(_numbers(best, best), others)
    methods = {name: {"rank": rank} | found[name] | {"p": p.get(name)} for rank, name in enumerate(order, start=1)}
    ids = list(best)
    return {"kind": "ranking", "score": SCORE, "convention": plan.convention, "cases": ids, "methods": methods,
            "notes": notes}  # fmt: skip


def _numbers(cases: Mapping[str, float | None], like: Mapping[str, Any]) -> np.ndarray:
    return np.array([np.nan if cases[id] is None else cases[id] for id in like], np.float64)


def text(summary: Mapping[str, Any]) -> str:
    """The ranked table for a terminal."""
    methods = summary["methods"]
    lines = [f"{len(summary['cases'])} cases, convention {summary['convention']}", ""]
    heads = (*METRICS, "95 % of dice", "p", "train s", "ms/slice")
    lines.append(f"{'':16}" + "".join(f"{head:>14}" for head in heads))
    for name, row in methods.items():
        interval = row["ci"]["dice"]
        cells = ["-" if row[metric] is None else f"{row[metric]:.3f}" for metric in METRICS]
        cells.append("-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}")
        cells.append("-" if row["p"] is None else f"{row['p']:.3g}")
        cells += [f"{row['train_seconds']:.0f}", f"{row['ms_per_slice']:.1f}"]
        lines.append(f"{row['rank']:>2} {name:13}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])])


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as rows: a method and class each, and the mean over the classes."""
    table = []
    for name, row in summary["methods"].items():
        parts = {"mean": {**row, "n": row["n"]}, **row["classes"]}
        for part, scores in parts.items():
            low, high = scores["ci"]["dice"] or (None, None)
            cells = {"rank": row["rank"], "method": name, "class": part, "n": scores["n"]}
            cells |= {metric: scores[metric] for metric in METRICS} | {"dice_low": low, "dice_high": high}
            keys = ("p", "trained_parameters", "train_seconds", "peak_memory_bytes", "ms_per_slice")
            table.append(cells | {key: row[key] for key in keys})
    return table
