"""Held-out cases segmented and scored, frames of videos as the paper counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans.data.cases import Dataset
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.inference.manifest import Manifest
from samsans.inference.video_folders import predict_videos, sources_of
from samsans.metrics.conventions import METRICS
from samsans.metrics.evaluate import Summary, evaluate
from samsans.metrics.statistics import class_means
from samsans.types import Case, ClassInfo

if TYPE_CHECKING:
    from samsans.inference import Segmenter


def are_frames(cases: Sequence[Case]) -> bool:
    """Whether all cases are frames of videos."""
    return all(case.video for case in cases)


def segment(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    *,
    view: str | None = None,
    videos: bool = False,
    **options: Any,
) -> Manifest:
    """Segment cases of a data set into ``folder``; frames as the videos they are of where the answer depends on the
    frames before, or ``videos`` is said: then all frames of these videos that ``dataset`` has, labelled or not.

    options: of ``Segmenter.predict_folder`` and of ``predict_videos`` alike.

    Raises:
        InputError: a case cannot be segmented.
    """
    if are_frames(cases) and (videos or segmenter.follows(view)):
        own = {case.video for case in cases}
        whole = replace(dataset, cases=tuple(case for case in dataset.cases if case.video in own))
        manifest = predict_videos(segmenter, sources_of(whole), folder, view=view, overwrite=True, **options)
    else:
        part = replace(dataset, cases=tuple(cases))
        manifest = segmenter.predict_folder(part, folder, view=view, overwrite=True, **options)
    if manifest.failures:
        raise InputError(f"cases that cannot be segmented: {manifest.failures}", "images that can be read")
    return manifest


def score(
    asked: Request,
    segmenter: Segmenter,
    cases: Sequence[Case],
    folder: Path,
    report: Path,
    classes: Sequence[ClassInfo],
    convention: str | None = None,
) -> Summary:
    """Score what ``segment`` wrote, by the convention asked for or another one; the report goes to ``report``."""
    return evaluate(
        folder,
        cases,
        report,
        convention=convention or asked.convention,
        classes=classes,
        seed=asked.seed,
        slice_axis=segmenter.config.data.slice_axis,
    )


def table(rows: Sequence[Mapping[str, Any]], cases: Sequence[Case], objects: Sequence[str]) -> dict[str, np.ndarray]:
    """``dice``, ``iou`` ``(cases, N)``, NaN where undefined, and ``shown`` ``(cases, N)`` bool, from the ``cases`` of a
    ``Summary`` by volumes (or images)."""
    place = {case.id: i for i, case in enumerate(cases)}
    column = {name: n for n, name in enumerate(objects)}
    found = {name: np.full((len(cases), len(objects)), np.nan) for name in ("dice", "iou")}
    shown = np.zeros((len(cases), len(objects)), bool)
    for row in rows:
        at = place[row["id"]], column[row["class"]]
        shown[at] = row["reference_voxels"] > 0
        for name, values in found.items():
            values[at] = np.nan if row[name] is None else row[name]
    return {**found, "shown": shown}


def video_means(scores: np.ndarray, shown: np.ndarray, cases: Sequence[Case]) -> np.ndarray:
    """``(..., N)``: mean over the frames of a video that show the object, then over the videos (decision D-28).

    Args:
        scores: ``(..., cases, N)``.
        shown: ``(cases, N)`` bool, which frame shows which object.
        cases: The frames.

    Returns:
        NaN for an object that no frame shows.
    """
    videos = np.array([case.video for case in cases])
    flat = np.where(shown, scores, np.nan).reshape(-1, *shown.shape)
    means = [[class_means(one[videos == video]) for video in np.unique(videos)] for one in flat]
    return np.stack([class_means(np.stack(one)) for one in means]).reshape(*scores.shape[:-2], -1)


def by_video(summary: Summary, cases: Sequence[Case]) -> Summary:
    """The Dice and IoU of a summary by images as the paper averages those of videos, see ``video_means``; nothing else
    of it is left, and ``n`` is the number of videos."""
    names = list(summary.classes)
    found = table(summary.cases, cases, names)
    means = {metric: video_means(found[metric], found["shown"], cases) for metric in ("dice", "iou")}
    nothing: dict[str, Any] = dict.fromkeys(METRICS)
    videos = np.array([case.video for case in cases])
    classes = {
        name: nothing
        | {metric: _number(values[n]) for metric, values in means.items()}
        | {"n": len(np.unique(videos[found["shown"][:, n]]))}
        for n, name in enumerate(names)
    }
    average = nothing | {metric: _number(class_means(values[:, None])[0]) for metric, values in means.items()}
    told = "Mean over the frames that show the object, then over the videos."
    return replace(
        summary,
        convention="video",
        convention_description=told,
        n=len(np.unique(videos)),
        classes=classes,
        mean=average,
        notes=(),
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
