"""Where point prompts come from: given with an image, found in files beside it, or simulated from its true mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from samsans import io
from samsans.config import PromptConfig
from samsans.data.cases import Dataset, require_same_grid
from samsans.data.classes import class_masks
from samsans.data.point_files import with_points as with_files
from samsans.data.points import by_slice, of_volume, to_model, to_slices
from samsans.data.prompt_noise import LEVELS, simulate
from samsans.data.prompt_statistics import statistics
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.inference.points import PointJob, prompted
from samsans.inference.slices import SliceJob
from samsans.io.points import inside_image
from samsans.types import Case, ClassInfo, Points, Volume

log = logging.getLogger(__name__)

FORMS = "(K, 3) voxels z, y, x; (K, 2) pixels x, y of a 2D image; a file of points; or Points"

PointRows = list[np.ndarray]  # of each canonical slice (K, 3) float64: x, y in model pixels, label


@dataclass(frozen=True)
class Prompting:
    """How the points of a folder of cases are come by.

    source: ``files``, or ``noise``, simulated from the masks with the severity ``level``, off-target points of ``mode``
    and the random numbers of ``draw``.  keep: at most so many points a slice.
    """

    source: Literal["files", "noise"]
    level: str = ""
    mode: str = ""
    draw: int = 0
    keep: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What of it decides the points, for the manifest."""
        shared = {"source": self.source, "keep": self.keep}
        return shared | ({"level": self.level, "mode": self.mode, "draw": self.draw} if self.source == "noise" else {})

    def files(self, case: Case) -> tuple[Path, ...]:
        """The files beside its images that decide the points of a case."""
        some = case.points[:1] if self.source == "files" else ()
        masks = case.labels[:1] if self.source == "noise" else ()
        return (*(path for files in some for path in files.paths), *(path for files in masks for path in files))

    def prompt(
        self,
        dataset: Dataset,
        case: Case,
        job: SliceJob,
        preprocess: Preprocess,
        classes: Sequence[ClassInfo],
        hashed: bool,
    ) -> PointJob:
        """The job of a case with its points; ``hashed``: what is made of it may be kept on disk."""
        places = case.positions if len(case.positions) == job.depth else ()  # else cut along another axis
        if self.source == "files":
            rows = placed(dataset.read_points(case, job.volume), job, preprocess, self.keep)
            return prompted(job, rows, hashed, places=places, prompts=self.options | {"points": sum(map(len, rows))})
        if not case.labels:
            raise _no_masks(case.id)
        truth = dataset.read_labels(case)
        require_same_grid(case, job.volume, truth)
        labels = preprocess.sample(job.orientation.to_slices(truth.array))
        mask = np.stack([class_masks(values, classes).any(0) for values in labels])
        rows = self._simulated(job, mask, preprocess)
        told = self.options | asdict(statistics(of_volume(rows), mask))
        return prompted(job, rows, hashed, places=places, prompts=told, mask=mask)

    def _simulated(self, job: SliceJob, mask: np.ndarray, preprocess: Preprocess) -> PointRows:
        """Noisy points of the mask ``(T, h, w)`` as the method would see it; training simulates from that as well."""
        noise = replace(LEVELS[self.level], mode=self.mode)  # type: ignore[arg-type]
        image = None
        if noise.mode == "hard":
            h, w = mask.shape[1:]
            pictures = (preprocess.image(picture, job.levels)[:, :h, :w] for picture in job.slices)
            image = np.stack([picture.float().mean(0).numpy() for picture in pictures])
        drawn = simulate(mask, noise, volume=job.id, draw=self.draw, image=image)
        return [rows[: self.keep] for rows in by_slice(drawn, len(mask))]


def choose(
    config: PromptConfig,
    dataset: Dataset,
    template: str | None,
    noise: str | None,
    mode: str | None,
    draw: int | None,
) -> tuple[Prompting, Dataset]:
    """How the points of ``dataset`` are come by, and the data set with their files.

    As told by ``template`` (files) or ``noise`` (a level), else as the run's ``prompts`` have it: of files where there
    are any, else simulated.  ``mode``, ``draw``: the run's where ``None``.

    Raises InputError where there are no such points, or nothing to simulate them from.
    """
    if template is not None and noise is not None:
        raise InputError(f"points at {template!r} and prompt noise {noise}", "one of the two")
    if noise is not None and noise not in LEVELS:
        raise InputError(f"prompt noise {noise!r}", f"one of {', '.join(LEVELS)}")
    modes = get_args(Literal["hard", "uniform"])
    if mode is not None and mode not in modes:
        raise InputError(f"prompt mode {mode!r}", " or ".join(modes))
    there = any(case.points for case in dataset.cases)
    if template is not None or not (there or noise):
        dataset = replace(dataset, cases=with_files(dataset.cases, dataset.root, template)[0])
        there = any(case.points for case in dataset.cases)
    source = "files" if template is not None else "noise" if noise is not None else config.source
    if source == "auto":
        source = "files" if there else "noise"
    if source == "files":
        if not there:
            raise InputError(
                f"no point prompts in {dataset.root}",
                "files of points, in a folder points or beside the images",
                "Name them with a template such as points/{stem}.mrk.json, or have them simulated from masks",
            )
        if mode is not None:
            raise InputError(f"prompt mode {mode!r} with points of files", "no mode: it is of simulated points")
        return Prompting("files", keep=config.keep), dataset
    lacking = next((case.id for case in dataset.cases if not case.labels), None)
    if lacking is not None:
        raise _no_masks(lacking)
    chosen = Prompting(
        "noise",
        noise or config.level,
        mode or config.mode,
        config.draw if draw is None else draw,
        config.keep,
    )
    if noise is None and config.source == "auto":
        log.warning("No point prompts in %s: they are simulated from its masks (%s)", dataset.root, chosen.level)
    return chosen, dataset


def placed(points: Points, job: SliceJob, preprocess: Preprocess, keep: int | None = None) -> PointRows:
    """Points in voxels of a job's volume by slice, in model pixels; ``keep``: of each slice the first so many."""
    size = job.slices.shape[1], job.slices.shape[2]
    native = to_slices(points, job.orientation, job.volume.shape)
    return [to_model(rows[:keep], size, preprocess) for rows in native]


def as_points(given: Any, volume: Volume, labels: Any = None) -> Points:
    """Points in any form on the grid of ``volume``; ``labels``: of an array, 1 inside (all by default), 0 outside.

    Raises InputError where they are not understood or lie outside the image.
    """
    if labels is not None and isinstance(given, (str, Path, Points)):
        raise InputError("point labels beside points that have their own", "labels of an array of points")
    if isinstance(given, (str, Path)):
        points, notes = io.read_points(given, volume)
        for note in notes:
            log.warning("%s", note)
        return points
    points = given if isinstance(given, Points) else _of_array(given, volume, labels)
    if not np.isfinite(points.positions).all() or not set(np.unique(points.labels)) <= {0, 1}:
        raise InputError("points that are no numbers, or labels other than 0 and 1", FORMS)
    outside = points.positions[~inside_image(points.positions, volume.shape)]
    if len(outside):
        at = ", ".join(f"{v:g}" for v in outside[0])
        raise InputError(
            f"{len(outside)} of {len(points)} points lie outside the image, such as z, y, x = {at}",
            f"voxels of {' x '.join(map(str, volume.shape))} slices, rows, columns",
        )
    return points


def _of_array(given: Any, volume: Volume, labels: Any) -> Points:
    try:
        array = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"points given as {type(given).__name__}", FORMS) from error
    if array.size == 0:
        array = array.reshape(0, 3)
    if array.ndim == 2 and array.shape[1] == 2 and volume.shape[0] == 1:
        array = np.column_stack([np.zeros(len(array)), array[:, 1], array[:, 0]])
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"points of shape {array.shape} for an image of {volume.shape}", FORMS)
    chosen = np.ones(len(array)) if labels is None else np.asarray(labels, np.float64)
    if chosen.shape != (len(array),) or not np.isin(chosen, (0, 1)).all():
        raise InputError(f"labels of shape {chosen.shape} for {len(array)} points", "one 0 or 1 each")
    return Points(array, chosen.astype(np.int64))


def _no_masks(id: str) -> InputError:
    return InputError(
        f"{id} has neither points nor a mask to simulate them from",
        "points of the image, or a data set with masks",
        "Give files of points, e.g. with the template points/{stem}.mrk.json",
    )
