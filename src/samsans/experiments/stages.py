"""The answers of a method side by side: H-SAM's first stage, its second, and the means of both (its ensembles).

The held-out cases are segmented once for each view of the method and scored alike, so that a column differs from the
next by the view alone.
"""

from __future__ import annotations

import csv
import io as text
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samsans import io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.errors import InputError
from samsans.experiments import held_out
from samsans.metrics import matching, panels
from samsans.metrics.evaluate import Summary, evaluate
from samsans.metrics.pictures import Plate
from samsans.types import Case, Progress

if TYPE_CHECKING:
    from samsans.inference import Segmenter

SHOWN = {"dice": ("Dice", 3), "hd95_mm": ("HD95", 2)}
COLUMNS = ("convention", "view", "class", "n", "dice", "hd95", "unit")

Scores = Mapping[str, Mapping[str, Summary]]


def stages(
    data: DataConfig,
    run_folder: Path,
    out: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    part: Literal["val", "test"] | None = None,
    convention: str = "default",
    on_progress: Callable[[Progress], None] | None = None,
) -> str:
    """Segment a run's held-out cases once a view, score them by the default convention and by ``convention``.

    Writes ``stages.csv``, ``stages.json``, ``stages.md`` and ``panels.png``; the label maps are in ``masks/VIEW``, a
    report for each table in ``reports/CONVENTION/VIEW``.

    Args:
        data: The data set the run was trained on.
        run_folder: A run of a method with views.
        out: Folder to write.
        seed: Of the draw of support pairs and of the intervals.
        limit: Evaluate at most this many held-out cases.
        part: Which held-out part; by default ``test``, or ``val`` where nobody is in it.
        convention: A further table by this convention.
        on_progress: Called after every view.

    Returns:
        The tables as text: Dice and HD95 of every class, one column a view.

    Raises:
        InputError: the method has no views, or the run holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(run_folder)
    if not segmenter.views:
        raise InputError(f"{segmenter.config.method} gives one answer and no views", "a method in stages, such as hsam")
    known = {c.name: list(c.values) for c in segmenter.classes}
    dataset = find_cases(replace(data, classes=data.classes or known))
    dataset = replace(dataset, cases=tuple(held_out(dataset, run_folder, part, limit)))
    rules = list(dict.fromkeys(["default", convention]))
    found: dict[str, dict[str, Summary]] = {name: {} for name in rules}
    folders = {view: out / "masks" / view for view in segmenter.views}
    for done, (view, folder) in enumerate(folders.items(), start=1):
        manifest = segmenter.predict_folder(dataset, folder, view=view, seed=seed, overwrite=True)
        if manifest.failures:
            raise InputError(f"cases that cannot be segmented: {manifest.failures}", "images that can be read")
        for name in rules:
            report = out / "reports" / name / view
            found[name][view] = evaluate(
                folder,
                dataset.cases,
                report,
                convention=name,
                classes=dataset.classes,
                seed=seed,
                slice_axis=segmenter.config.data.slice_axis,
            )
        if on_progress is not None:
            on_progress(Progress(done, len(folders), view))
    with io.atomic_path(out / panels.FILE) as temporary:
        temporary.write_bytes(_panels(found["default"], dataset.cases, folders, segmenter).png)
    rows = _rows(found)
    io.write_text(out / "stages.csv", _csv(rows))
    io.write_json(out / "stages.json", {"run": str(run_folder), "cases": [c.id for c in dataset.cases], "rows": rows})
    io.write_text(out / "stages.md", "\n\n".join(_markdown(name, views) for name, views in found.items()) + "\n")
    return "\n\n".join(_text(name, views) for name, views in found.items())


def _panels(
    found: Mapping[str, Summary], cases: Sequence[Case], folders: Mapping[str, Path], segmenter: Segmenter
) -> Plate:
    """Best, median and worst case by the run's own answer, with the label maps of all views."""
    own = segmenter.own_view
    assert own is not None  # stages asked for views
    folder = folders[own]
    pairs = matching.match(folder, cases).pairs
    objects = matching.read_classes(folder)
    assert objects is not None  # predict_folder wrote them

    def answers(pair: matching.Pair) -> dict[str, np.ndarray]:
        name = pair.prediction.relative_to(folder)
        return {view: io.read_labels(other / name).array for view, other in folders.items()}

    return panels.plate(found[own], pairs, objects, answers, slice_axis=segmenter.config.data.slice_axis)


def _cells(views: Mapping[str, Summary], metric: str) -> dict[str, list[float | None]]:
    """One number a view, for every class and the mean over them."""
    first = next(iter(views.values()))
    table = {name: [summary.classes[name][metric] for summary in views.values()] for name in first.classes}
    return table | {"mean": [summary.mean[metric] for summary in views.values()]}


def _rows(found: Scores) -> list[dict[str, Any]]:
    rows = []
    for convention, views in found.items():
        for view, summary in views.items():
            for name, scores in [*summary.classes.items(), ("mean", {**summary.mean, "n": summary.n})]:
                numbers = (scores["n"], scores["dice"], scores["hd95_mm"], summary.unit)
                rows.append(dict(zip(COLUMNS, (convention, view, name, *numbers), strict=True)))
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = text.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _text(convention: str, views: Mapping[str, Summary]) -> str:
    first = next(iter(views.values()))
    lines = [f"{first.n} samples, convention {convention}"]
    for metric, (title, digits) in SHOWN.items():
        unit = f" [{first.unit}]" if metric == "hd95_mm" else ""
        lines += ["", f"{title + unit:16}" + "".join(f"{view:>12}" for view in views)]
        for name, numbers in _cells(views, metric).items():
            lines.append(f"{name:16}" + "".join(f"{_number(value, digits):>12}" for value in numbers))
    return "\n".join(lines)


def _markdown(convention: str, views: Mapping[str, Summary]) -> str:
    first = next(iter(views.values()))
    heads = [f"{title} {view}" for title, _ in SHOWN.values() for view in views]
    lines = [f"{first.n} samples, convention `{convention}`, distances in {first.unit}.", ""]
    lines += ["| class | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    cells = {metric: _cells(views, metric) for metric in SHOWN}
    for name in cells["dice"]:
        numbers = [_number(value, digits) for metric, (_, digits) in SHOWN.items() for value in cells[metric][name]]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
