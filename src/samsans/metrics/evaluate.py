"""Compare predicted label maps with references: one table, its intervals, and a report to read."""

from __future__ import annotations

import csv
import dataclasses
import io as text
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.config import SliceAxis
from samsans.errors import InputError
from samsans.io.atomic import atomic_path, write_json, write_text
from samsans.io.orientation import Orientation
from samsans.metrics import conventions, examples, matching, sampled, slicewise, statistics
from samsans.metrics.conventions import METRICS, Convention, Score
from samsans.metrics.pictures import Plate
from samsans.metrics.published import Comparison, compare
from samsans.recipes import RecipeConfig
from samsans.types import Case, ClassInfo, Progress

Illustrate = Callable[["Summary", Sequence[matching.Pair], Sequence[ClassInfo]], Sequence[Plate]]

CSV_COLUMNS = ("id", "patient", "slice", "class", "state", *METRICS, "prediction_voxels", "reference_voxels", "unit")


@dataclass(frozen=True)
class Summary:
    """What an evaluation found; the content of ``summary.json``.

    convention, convention_description: the rules of the table.  hd95: the definition used.
    n: samples (volumes, images, or slices where the convention says so).  unit: of the distances, ``mm``, ``px`` or
    ``mixed``.  nsd_tolerance: in that unit.
    mean: each metric's mean over the classes, None where undefined, and ``ci``: metric -> [low, high] or None.
    classes: by name, the same and ``n`` (samples the Dice mean is over), ``counted`` (the same for each metric),
    ``std``, ``absent`` (in both), ``missed`` (only in the reference), ``spurious`` (only in the prediction).
    cases: one row for each sample and class.  skipped: ids left out, by reason.  notes: what a reader must know.
    provenance: the manifest of the prediction folder with its cases counted, empty where there is none.
    published: the same beside the published rows of the recipe that the run was trained from; None without one.
    ambiguity: the samples against all annotators; None where there are no samples, or one annotator each.
    slicewise: by class, what means over slices hide (``slicewise.TITLES``); None where the convention has it not.
    """

    convention: str
    convention_description: str
    hd95: str
    n: int
    unit: str
    nsd_tolerance: float
    mean: Mapping[str, Any]
    classes: Mapping[str, Mapping[str, Any]]
    cases: Sequence[Mapping[str, Any]] = field(repr=False)
    skipped: Mapping[str, Sequence[str]] = field(repr=False)
    notes: Sequence[str] = ()
    predictions: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    published: Comparison | None = None
    ambiguity: sampled.Sampled | None = None
    slicewise: Mapping[str, Mapping[str, Any]] | None = None

    def text(self) -> str:
        """The table of means with its convention, for a terminal."""
        lines = [f"{self.n} scored, convention {self.convention}: {self.convention_description}", ""]
        lines.append(f"{'class':16}" + "".join(f"{metric:>10}" for metric in METRICS))
        for name, row in {**self.classes, "mean": self.mean}.items():
            cells = ("-" if row[metric] is None else f"{row[metric]:.3f}" for metric in METRICS)
            lines.append(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells))
        lines += [] if self.slicewise is None else ["", slicewise.text(self.slicewise)]
        lines += ["", self.published.text(self.mean, self.classes, self.unit), ""] if self.published is not None else []
        lines += [] if self.ambiguity is None else [self.ambiguity.text(), ""]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """As written to ``summary.json``: plain values, None for what is undefined, never NaN."""
        return dataclasses.asdict(self)


def evaluate(
    predictions: str | Path,
    reference: str | Path | Sequence[Case],
    out: str | Path,
    *,
    convention: str | Convention = "default",
    classes: Sequence[ClassInfo] | None = None,
    images: str | Path | None = None,
    nsd_tolerance_mm: float = 2.0,
    bootstrap: int = 1000,
    seed: int = 0,
    allow_missing: bool = False,
    seen: Collection[str] = (),
    recipe: RecipeConfig | None = None,
    notes: Sequence[str] = (),
    obstacles: Callable[[Collection[str]], Sequence[str]] | None = None,
    illustrate: Illustrate | None = None,
    slice_axis: SliceAxis = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Score predictions against references and write ``summary.json``, ``cases.csv`` and ``report.html`` into ``out``.

    predictions: folder of label maps as ``predict`` writes it (its ``classes.json`` names the objects), any folder of
        label maps, or one file.
    reference: folder (or one file) of label maps matched by relative path and name, or the cases of a data set; with
        several annotators the first counts, and the samples that ``predict`` wrote are compared with all of them.
    convention: ``default``, ``nnunet``, ``transunet``, ``per_slice`` or ``spd``, see ``samsans.metrics.conventions``.
    classes: the objects and their values in the reference files; without them ``classes.json`` decides, or the values
        found.
    images: folder of the images for the pictures of the report, where the reference is a folder; without it those that
        the manifest of the predictions names.
    nsd_tolerance_mm: tolerance of the surface Dice in mm; in pixels where files state no voxel size.
    bootstrap: resamples of the 95 % intervals over patients (cases, where patients are unknown); 0 for none.
    allow_missing: leave references without prediction out, and list them, instead of refusing.
    seen: ids that the model was trained on; a note tells how many of them are scored.
    recipe: what the predicting run was to repeat; its published rows are shown beside ours.
    notes: more sentences for the reader.
    obstacles: tells from the ids of the scored cases what keeps the table from being the published one of ``recipe``;
        noted, and then there is no verdict.
    illustrate: makes more pictures for the report of what was scored; they are also written into ``out``.
    slice_axis: which planes of volumes the pictures show, and the convention ``spd`` counts, as in ``DataConfig``.
    Overlaps are in [0, 1].  Nothing is written before all cases are scored; each file appears whole or not at all.
    Raises InputError where files do not match, grids differ, or references hold values but none of any class.
    """
    from samsans.metrics import ambiguity_report, report  # matplotlib and jinja2 only where a report is written

    rules = conventions.get(convention) if isinstance(convention, str) else convention
    if not nsd_tolerance_mm >= 0:
        raise InputError(f"a surface tolerance of {nsd_tolerance_mm}", "a length of at least 0")
    predictions, out = Path(predictions), Path(out)
    reference = Path(reference) if isinstance(reference, str) else reference
    matched = matching.match(predictions, reference, Path(images) if images is not None else None, allow_missing)
    named = matching.read_classes(predictions)
    manifest = matching.read_manifest(predictions)
    objects = matching.resolve_classes(classes, named, matched.pairs)

    rows: list[dict[str, Any]] = []
    strangers: dict[str, dict[int, int]] = {"reference": {}, "prediction": {}}
    volumes: dict[str, list[slicewise.Slicewise]] = {c.name: [] for c in objects}
    for done, pair in enumerate(matched.pairs, start=1):
        rows += _score_case(pair, objects, rules, nsd_tolerance_mm, slice_axis, strangers, volumes)
        if on_progress is not None:
            on_progress(Progress(done, len(matched.pairs), pair.case.id, "scored"))
    if strangers["reference"] and not any(row["reference_voxels"] for row in rows):
        raise InputError(
            f"no reference holds any of {', '.join(f'{c.name} {list(c.values)}' for c in objects)}; "
            f"they hold the values {sorted(strangers['reference'])}",
            "references in which at least one object is drawn",
            "give the classes with the values of these files",
        )
    notes = [*_notes(rows, matched, strangers), *notes]
    known = {pair.case.id for pair in matched.pairs} & set(seen)
    if known:
        notes.append(f"{len(known)} of the {len(matched.pairs)} cases were trained on: no measure of unseen images.")
    if classes and named:
        theirs, ours = ([c.name for c in side] for side in (classes, named))
        if not set(ours) <= set(theirs):
            notes.append(
                f"The reference calls its objects {', '.join(theirs)}, the predictions {', '.join(ours)}: matched by "
                "their mask values."
            )
        elif set(ours) < set(theirs):
            notes.append(f"Not predicted, and left out: {', '.join(name for name in theirs if name not in ours)}.")
    root, options = predictions if predictions.is_dir() else predictions.parent, manifest.get("options")
    several, count = None, options.get("samples") if isinstance(options, Mapping) else None
    if isinstance(count, int) and count > 0:
        answers = sampled.Folder(root, count, objects)
        several = sampled.score(
            answers,
            matched.pairs,
            level=rules.level,
            resamples=bootstrap,
            seed=seed,
            published=() if recipe is None else recipe.sets,
            on_progress=on_progress,
        )
        if several is None:
            notes.append("There are samples, but no case has several annotators to compare them with.")
    hindering = [] if obstacles is None else list(obstacles([pair.case.id for pair in matched.pairs]))
    notes += hindering
    pairs = matching.with_images(matched.pairs, manifest)
    if isinstance(manifest.get("cases"), Mapping):
        manifest["cases"] = len(manifest["cases"])  # the records stay in the manifest
    table = _tabulate(rows, objects, bootstrap, seed)
    summary = Summary(
        convention=rules.name,
        convention_description=rules.description,
        hd95=rules.hd95,
        unit=_unit(rows),
        nsd_tolerance=float(nsd_tolerance_mm),
        cases=rows,
        skipped=matched.skipped,
        notes=notes,
        predictions=str(predictions),
        provenance=manifest,
        ambiguity=several,
        slicewise={name: slicewise.block(found) for name, found in volumes.items()} if rules.slicewise else None,
        published=None if recipe is None else compare(recipe, rules.name, table["mean"], table["classes"], hindering),
        **table,
    )
    plates = list(illustrate(summary, pairs, objects)) if illustrate is not None else []
    if several is not None:
        plates.append(ambiguity_report.plate(several, answers, pairs, slice_axis=slice_axis))
    page = report.render(summary, pairs, objects, plates, slice_axis)
    for plate in plates:
        with atomic_path(out / plate.file) as temporary:
            temporary.write_bytes(plate.png)
    write_text(out / "cases.csv", _csv(rows))
    write_text(out / "report.html", page)
    write_json(out / "summary.json", summary.to_dict())
    return summary


def _score_case(
    pair: matching.Pair,
    objects: Sequence[ClassInfo],
    rules: Convention,
    tolerance: float,
    slice_axis: SliceAxis,
    strangers: dict[str, dict[int, int]],
    volumes: dict[str, list[slicewise.Slicewise]],
) -> list[dict[str, Any]]:
    """Rows of one case: one for each class, or for each slice and class; fills ``strangers`` and ``volumes``."""
    predicted, drawn = io.read_labels(pair.prediction), matching.read_reference(pair.case)
    matching.check_grid(predicted, drawn, pair.case.id)
    known = {
        "reference": {v for c in objects for v in c.values},
        "prediction": {c.label for c in objects},
    }
    for side, volume in (("reference", drawn), ("prediction", predicted)):
        for value in matching.values_of(volume.array) - known[side]:
            strangers[side][value] = strangers[side].get(value, 0) + 1
    grid = drawn if drawn.affine is not None else predicted
    made_up = grid.affine is not None and drawn.affine is None and np.array_equal(grid.affine, np.eye(4))  # of pictures
    unit = "px" if made_up or not rules.use_spacing else grid.unit
    rows: list[dict[str, Any]] = []
    step = grid.spacing
    for name, p, r in examples.masks(predicted.array, drawn.array, objects):
        if rules.slicewise:  # the slices that a model sees
            orientation = Orientation.of(grid, slice_axis)
            p, r, step = orientation.view(p), orientation.view(r), orientation.spacing
        samples: list[tuple[int | None, np.ndarray, np.ndarray, tuple[float, ...]]]
        if rules.level == "slice":
            samples = [(z, p[z], r[z], step[1:]) for z in range(len(r))]
        else:
            samples = [(None, p, r, step)]
        scores = []
        for z, p_sample, r_sample, spacing in samples:
            scores.append(conventions.score(p_sample, r_sample, spacing, rules, tolerance))
            rows.append(_row(pair.case, z, name, scores[-1], unit))
        if rules.slicewise:
            volumes[name].append(slicewise.Slicewise.of(scores, slicewise.diagonal(r.shape[1:], step[1:])))
    return rows


def _row(case: Case, z: int | None, name: str, score: Score, unit: str) -> dict[str, Any]:
    return {
        "id": case.id,
        "patient": case.patient,
        "slice": z,
        "class": name,
        "state": score.state,
        **score.values,
        "prediction_voxels": score.prediction_size,
        "reference_voxels": score.reference_size,
        "unit": unit,
    }


def _tabulate(
    rows: Sequence[Mapping[str, Any]], objects: Sequence[ClassInfo], resamples: int, seed: int
) -> dict[str, Any]:
    """``n``, ``mean`` and ``classes`` of the summary."""
    samples = list(dict.fromkeys((row["id"], row["slice"], row["patient"]) for row in rows))
    at = {(case, z): i for i, (case, z, _) in enumerate(samples)}
    column = {c.name: k for k, c in enumerate(objects)}
    table = {m: np.full((len(samples), len(objects)), np.nan) for m in METRICS}
    for row in rows:
        for m in METRICS:
            if row[m] is not None:
                table[m][at[row["id"], row["slice"]], column[row["class"]]] = row[m]
    patients = [patient for _, _, patient in samples]
    classes: dict[str, dict[str, Any]] = {c.name: {} for c in objects}
    mean: dict[str, Any] = {}
    intervals: dict[str, statistics.Intervals] = {}
    for m in METRICS:
        averages = statistics.class_means(table[m])
        intervals[m] = statistics.bootstrap(table[m], patients, resamples, seed)
        mean[m] = _number(statistics.class_means(averages[:, None])[0])
        for c, average in zip(objects, averages, strict=True):
            classes[c.name][m] = _number(average)
    mean["ci"] = {m: _interval(intervals[m].headline) for m in METRICS}
    for k, c in enumerate(objects):
        states = [row["state"] for row in rows if row["class"] == c.name]
        counted = {m: int(np.isfinite(table[m][:, k]).sum()) for m in METRICS}
        classes[c.name] |= {
            "n": counted["dice"],
            "counted": counted,
            "std": {m: float(np.nanstd(table[m][:, k], ddof=1)) if counted[m] > 1 else None for m in METRICS},
            "ci": {m: _interval(intervals[m].classes[k]) for m in METRICS},
            "absent": states.count("both_empty"),
            "missed": states.count("only_reference"),
            "spurious": states.count("only_prediction"),
        }
    return {"n": len(samples), "mean": mean, "classes": classes}


def _unit(rows: Sequence[Mapping[str, Any]]) -> str:
    units = {row["unit"] for row in rows}
    return units.pop() if len(units) == 1 else "mixed"


def _notes(
    rows: Sequence[Mapping[str, Any]], matched: matching.Matching, strangers: Mapping[str, Mapping[int, int]]
) -> list[str]:
    """Sentences a reader needs to trust the numbers."""
    notes = []
    reasons = {
        "predictions_without_reference": "prediction(s) without a reference were ignored",
        "references_without_prediction": "reference(s) without a prediction were left out of every mean",
        "unlabelled": "case(s) without a reference were left out",
    }
    notes += [f"{len(ids)} {reasons[why]}." for why, ids in matched.skipped.items() if ids]
    for side, values in strangers.items():
        listed = ", ".join(f"{value} ({n} files)" for value, n in sorted(values.items())[:8])
        if listed:
            notes.append(f"Values in {side} files that belong to no class counted as background: {listed}.")
    if any(len(pair.case.labels) > 1 for pair in matched.pairs):
        notes.append("Where several annotators drew a case, the first one is the reference.")
    if {"mm", "px"} <= {row["unit"] for row in rows}:
        notes.append("Some files state a voxel size and some do not: distances mix mm and pixels.")
    elif any(row["unit"] == "px" for row in rows):
        notes.append("Distances and the surface tolerance are in pixels (voxels), not mm.")
    return notes


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = text.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if row[k] is None else row[k] for k in CSV_COLUMNS} for row in rows)
    return buffer.getvalue()


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(low_high: np.ndarray) -> list[float] | None:
    return [float(v) for v in low_high] if np.isfinite(low_high).all() else None
