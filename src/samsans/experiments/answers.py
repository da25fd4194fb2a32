"""Several answers of one run side by side: its views, or the same with and without mirroring.

The held-out cases are segmented once for each answer and scored alike, so that a column differs from the next by the
answer alone.
"""

from __future__ import annotations

import csv
import io as text
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans import io
from samsans.experiments import Request
from samsans.experiments.held_out import are_frames, by_video, score, segment
from samsans.metrics import matching, panels
from samsans.metrics.evaluate import Summary
from samsans.metrics.pictures import Plate
from samsans.types import Case

if TYPE_CHECKING:
    from samsans.inference import Segmenter

SHOWN = {"dice": ("Dice", 3), "hd95_mm": ("HD95", 2)}
TIMED = ("read", "prepare", "model", "restore")  # from the file to the label map, without writing it

Scores = Mapping[str, Mapping[str, Summary]]


def side_by_side(
    name: str,
    heading: str,
    answers: Mapping[str, Mapping[str, Any]],
    own: str,
    segmenter: Segmenter,
    asked: Request,
    *,
    videos: bool = False,
) -> str:
    """Segment a run's held-out cases once an answer, score them by the default convention and by that
    which is asked for; frames of videos also by ``video``, see ``held_out.by_video``.

    Writes ``NAME.csv``, ``NAME.json``, ``NAME.md`` and ``panels.png``; the label maps are in ``masks/ANSWER``, a
    report for each table in ``reports/CONVENTION/ANSWER``.

    Args:
        name: Of the files.
        heading: What the answers are called in them.
        answers: Options of ``Segmenter.predict_folder`` by answer, in the order of the columns.
        own: The answer that the run gives unasked; the panels are ranked by it.
        segmenter: The run, loaded.
        asked: Its seed is that of the draw of support pairs and of the intervals.
        videos: Segment frames as videos whatever the answer.

    Returns:
        The tables as text: Dice and HD95 of every class and seconds a case, one column an answer.

    Raises:
        InputError: the run holds nobody out, or a case cannot be segmented.
    """
    dataset, out = asked.find(segmenter.classes), asked.out
    cases = tuple(asked.held_out(dataset))
    rules = list(dict.fromkeys(["default", asked.convention]))
    found: dict[str, dict[str, Summary]] = {rule: {} for rule in rules}
    folders = {answer: out / "masks" / answer for answer in answers}
    seconds: dict[str, float] = {}
    for done, (answer, folder) in enumerate(folders.items(), start=1):
        options = {**answers[answer], "seed": asked.seed, "videos": videos}
        manifest = segment(segmenter, dataset, cases, folder, **options)
        made = len(list(io.find_images(folder))) if are_frames(cases) else len(cases)
        seconds[answer] = sum(manifest.seconds.get(part, 0.0) for part in TIMED) / made
        for rule in rules:
            report = out / "reports" / rule / answer
            found[rule][answer] = score(asked, segmenter, cases, folder, report, dataset.classes, rule)
        if are_frames(cases):
            found.setdefault("video", {})[answer] = by_video(found["default"][answer], cases)
        asked.tell(done, len(folders), answer)
    with io.atomic_path(out / panels.FILE) as temporary:
        temporary.write_bytes(_panels(found["default"], cases, folders, own, segmenter).png)
    rows = _rows(found, heading, seconds)
    ids = [c.id for c in cases]
    io.write_text(out / f"{name}.csv", _csv(rows))
    io.write_json(out / f"{name}.json", {"run": str(asked.run_folder), "cases": ids, "rows": rows})
    tables = (_markdown(rule, summaries, seconds) for rule, summaries in found.items())
    io.write_text(out / f"{name}.md", "\n\n".join(tables) + "\n")
    return "\n\n".join(_text(rule, summaries, seconds) for rule, summaries in found.items())


def _panels(
    found: Mapping[str, Summary], cases: Sequence[Case], folders: Mapping[str, Path], own: str, segmenter: Segmenter
) -> Plate:
    """Best, median and worst case by the run's own answer, with the label maps of all answers."""
    folder = folders[own]
    pairs = matching.match(folder, cases).pairs
    objects = matching.read_classes(folder)
    assert objects is not None  # predict_folder wrote them

    def drawn(pair: matching.Pair) -> dict[str, np.ndarray]:
        name = pair.prediction.relative_to(folder)
        return {answer: io.read_labels(other / name).array for answer, other in folders.items()}

    return panels.plate(found[own], pairs, objects, drawn, slice_axis=segmenter.config.data.slice_axis)


def _cells(summaries: Mapping[str, Summary], metric: str) -> dict[str, list[float | None]]:
    """One number an answer, for every class and the mean over them."""
    first = next(iter(summaries.values()))
    table = {name: [summary.classes[name][metric] for summary in summaries.values()] for name in first.classes}
    return table | {"mean": [summary.mean[metric] for summary in summaries.values()]}


def _rows(found: Scores, heading: str, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for every convention, answer and class; seconds a case with those of the mean."""
    rows = []
    for convention, summaries in found.items():
        for answer, summary in summaries.items():
            for name, scores in [*summary.classes.items(), ("mean", {**summary.mean, "n": summary.n})]:
                row = {"convention": convention, heading: answer, "class": name, "n": scores["n"]}
                row |= {"dice": scores["dice"], "hd95": scores["hd95_mm"], "unit": summary.unit}
                rows.append(row | {"seconds": round(seconds[answer], 4) if name == "mean" else None})
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = text.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _text(convention: str, summaries: Mapping[str, Summary], seconds: Mapping[str, float]) -> str:
    first = next(iter(summaries.values()))
    lines = [f"{first.n} scored, convention {convention}"]
    wide = max(12, *(len(answer) + 2 for answer in summaries))
    for metric, (title, digits) in SHOWN.items():
        cells = _cells(summaries, metric)
        if all(value is None for numbers in cells.values() for value in numbers):
            continue
        unit = f" [{first.unit}]" if metric == "hd95_mm" else ""
        lines += ["", f"{title + unit:16}" + "".join(f"{answer:>{wide}}" for answer in summaries)]
        for name, numbers in cells.items():
            lines.append(f"{name:16}" + "".join(f"{_number(value, digits):>{wide}}" for value in numbers))
    lines += ["", f"{'seconds a case':16}" + "".join(f"{seconds[answer]:>{wide}.2f}" for answer in summaries)]
    return "\n".join(lines)


def _markdown(convention: str, summaries: Mapping[str, Summary], seconds: Mapping[str, float]) -> str:
    first = next(iter(summaries.values()))
    heads = [f"{title} {answer}" for title, _ in SHOWN.values() for answer in summaries]
    times = ", ".join(f"{answer} {seconds[answer]:.2f}" for answer in summaries)
    lines = [f"{first.n} scored, convention `{convention}`, distances in {first.unit}; seconds a case: {times}.", ""]
    lines += ["| class | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    cells = {metric: _cells(summaries, metric) for metric in SHOWN}
    for name in cells["dice"]:
        numbers = [_number(value, digits) for metric, (_, digits) in SHOWN.items() for value in cells[metric][name]]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
