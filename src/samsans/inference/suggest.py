"""Which unlabelled image to annotate next: the ones that tell most about the others, as the network sees them.

Every slice is a point, the mean of its embedding over the image.  Those that were learned from are covered already.
``coverage`` takes, one after the other, the slice that brings all others nearest to an annotated one on average (greedy
facility location); ``farthest`` the slice that is farthest from all annotated ones (k-center, Gonzalez 1985, as in
core-set selection, Sener and Savarese 2018), which finds what is rare, broken images included.  Our decision: neither
looks at what the network would answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from samsans.data.cases import Dataset, find_cases
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.inference.slices import SliceJob, autocast
from samsans.types import Case, Progress

if TYPE_CHECKING:
    from samsans.inference.segmenter import Segmenter

Rule = Literal["coverage", "farthest"]


@dataclass(frozen=True)
class Suggestion:
    """A slice worth annotating.

    id: ``case``, or ``case#012`` of a volume.  file: its first file.  distance: of its embedding to the nearest one
    that is annotated, or suggested before it.  nearest: name of that one.
    """

    id: str
    file: Path
    distance: float
    nearest: str


def suggest(
    segmenter: Segmenter,
    images: str | Path | Dataset,
    n: int = 5,
    *,
    by: Rule = "coverage",
    batch_size: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Suggestion]:
    """The ``n`` unlabelled slices to annotate next, best first; fewer where there are no more.

    Args:
        segmenter: A run whose method sees slices through an image encoder; the training images of the run must be where
            they were, or, of a method with supports, their bank in the run folder.
        images: A folder, a CSV or a data set; its cases that have a mask are left out.
        n: How many.
        by: ``coverage`` or ``farthest``, see above.
        batch_size: Slices a batch.
        on_progress: Called after every image.

    Raises:
        InputError: nothing is unlabelled, the training images are gone, or the method has no such encoder.
    """
    if by not in get_args(Rule):
        raise InputError(f"suggestions by {by!r}", " or ".join(get_args(Rule)))
    if n < 1:
        raise InputError(f"{n} suggestions", "at least 1")
    if segmenter.method.needs.volumes or not hasattr(segmenter.method.backbone, "encode"):
        raise InputError(f"{segmenter.config.method} has no encoder of slices", "a method on SAM that sees slices")
    dataset = images if isinstance(images, Dataset) else segmenter.dataset(images)
    cases = [case for case in dataset.cases if not case.labels]
    if not cases:
        raise InputError(f"no unlabelled image among the {len(dataset.cases)} of {dataset.root}", "images without mask")
    size = segmenter.batch_size(batch_size)
    known_names, known = _annotated(segmenter, size)
    names, files, points = [], [], []
    for done, case in enumerate(cases, start=1):
        for name, point in _describe(segmenter, dataset, case, size):
            names.append(name)
            files.append(case.images[0])
            points.append(point)
        if on_progress is not None:
            on_progress(Progress(done, len(cases), case.id))
    order = rank(torch.stack(points), known, n, by)
    return [
        Suggestion(names[i], files[i], distance, known_names[near] if near < len(known) else names[near - len(known)])
        for i, distance, near in order
    ]


def rank(points: Tensor, known: Tensor, n: int, by: Rule) -> list[tuple[int, float, int]]:
    """``n`` of the points ``(P, C)`` in the order to take them, given the annotated ones ``(A, C)``, A at least 1.

    Of each its number, its distance to the nearest one annotated or taken before, and who that is: a number of
    ``known``, or A and more for a number of ``points``.
    """
    apart = torch.cdist(points, points)  # (P, P)
    nearest, who = torch.cdist(points, known).min(1)
    taken: list[tuple[int, float, int]] = []
    free = torch.ones(len(points), dtype=torch.bool)
    for _ in range(min(n, len(points))):
        gain = (nearest[:, None] - apart).clamp_min(0).sum(0) if by == "coverage" else nearest.clone()
        gain[~free] = -1
        best = int(gain.argmax())
        taken.append((best, float(nearest[best]), int(who[best])))
        free[best] = False
        closer = apart[:, best] < nearest
        nearest = torch.where(closer, apart[:, best], nearest)
        who = torch.where(closer, len(known) + best, who)
    return taken


def _annotated(segmenter: Segmenter, size: int) -> tuple[list[str], Tensor]:
    """Names and points of what the run learned from; of its bank where the images are gone."""
    config, run = segmenter.config, segmenter.run
    if run is None or not (run / "split.json").is_file():
        raise InputError("a model that was not trained here", "a run folder with its split")
    if config.data.path and Path(config.data.path).exists():
        dataset = replace(find_cases(config.data), classes=segmenter.classes)
        cases = [dataset.by_id(id) for id in Split.load(run / "split.json").train]
        found = [pair for case in cases for pair in _describe(segmenter, dataset, case, size)]
        return [name for name, _ in found], torch.stack([point for _, point in found])
    if not segmenter.method.needs.supports:
        raise InputError(f"the training images are not at {config.data.path!r}", "the data set where it was")
    bank = segmenter.supports(None, None).bank.to("cpu")
    return list(bank.ids), torch.stack([k[v].mean(0) for k, v in zip(bank.keys, bank.visible, strict=True)])


def _describe(segmenter: Segmenter, dataset: Dataset, case: Case, size: int) -> list[tuple[str, Tensor]]:
    """Name and point ``(C,)`` float32 of every slice of a case."""
    job = segmenter.open(case.id, dataset.read_image(case), None, ())
    assert isinstance(job, SliceJob)
    preprocess, found = segmenter.preprocess, []
    for start in range(0, job.depth, size):
        indices = range(start, min(start + size, job.depth))
        valid = torch.tensor([preprocess.valid(*job.slices.shape[1:3])] * len(indices), dtype=torch.int64)
        shown = torch.stack([preprocess.image(job.slices[i], job.levels) for i in indices])
        images = preprocess.normalize(shown, valid).to(segmenter.device)
        with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
            features = segmenter.method.backbone.encode(images).features.float().cpu()
        rows, columns = _filled(valid[0].numpy(), preprocess.input_size, features.shape[-1])
        points = features[:, :, :rows, :columns].mean((2, 3))
        found += [(job.name(i), point) for i, point in zip(indices, points, strict=True)]
    return found


def _filled(valid: Sequence[int] | np.ndarray, side: int, grid: int) -> tuple[int, int]:
    """Rows and columns of the grid that hold any image, the rest being padding."""
    patch = side // grid
    return -(-int(valid[0]) // patch), -(-int(valid[1]) // patch)
