"""What a slice costs: plain SAM with some points, and SPD with the same points, with and without what it keeps on disk.

One slice a batch, wall clock from the opened image to its label map on its own grid, disk reads of the image excluded
and those of what was kept included (decision D27).  The three take turns; the first turn only warms up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans.inference.points import PointJob, PointRunner, prompted
from samsans.inference.prompt_cache import PromptCache
from samsans.inference.slices import SliceJob, open_job
from samsans.types import Volume

if TYPE_CHECKING:
    from samsans.inference import Segmenter

SLICES, TURNS = 20, 4  # at most so many slices; the first turn is not counted


def latency(segmenter: Segmenter, plain: Segmenter, volumes: Sequence[tuple[PointJob, list[np.ndarray]]]) -> Any:
    """Milliseconds a slice of plain SAM, of SPD (``cold``), and of SPD with kept points (``warm``), and their ratios.

    volumes: jobs with the points of their slices; only slices with points are taken, since nothing is decoded in the
    others.  ``None`` where there are none.
    """
    chosen = _first(volumes)
    if not chosen:
        return None
    with tempfile.TemporaryDirectory() as folder:
        cache = PromptCache(Path(folder), segmenter.method)
        arms = {
            "plain": (plain, None),
            "cold": (segmenter, None),
            "warm": (segmenter, cache),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(TURNS):
            for name, (who, kept) in arms.items():
                taken = _run(who, chosen, kept)
                if turn:
                    seconds[name].append(taken)
    count = sum(len(places) for _, places, _ in chosen)
    ms = {name: 1000 * float(np.median(values)) / count for name, values in seconds.items()}
    return {
        "slices": count,
        "device": str(segmenter.device),
        "ms_per_slice": ms,
        "ratio": {name: ms[name] / ms["plain"] for name in ("cold", "warm")},
    }


def _first(volumes: Sequence[tuple[PointJob, list[np.ndarray]]]) -> list[tuple[PointJob, list[int], list[np.ndarray]]]:
    """The first ``SLICES`` slices with points: jobs, places in them, points."""
    chosen, left = [], SLICES
    for job, points in volumes:
        places = [t for t, rows in enumerate(points) if len(rows)][:left]
        if places:
            chosen.append((job, places, [points[t] for t in places]))
        left -= len(places)
    return chosen


def _run(who: Segmenter, chosen: Sequence[tuple[PointJob, list[int], list[np.ndarray]]], cache: Any) -> float:
    """Seconds to segment these slices, one a batch."""
    target = who.target(who.supports(None, None), None)
    runner = PointRunner(who.method, who.preprocess, who.device, who.precision, 1, cache, who.weights_hash)
    total = 0.0
    for job, places, points in chosen:
        part = _part(who, job, places)
        start = time.perf_counter()
        next(runner.run([prompted(part, points, cache is not None)], target))
        total += time.perf_counter() - start
    return total


def _part(who: Segmenter, job: PointJob, places: list[int]) -> SliceJob:
    """Some slices of a job as a volume of their own, shown with the grey levels of the whole."""
    part = open_job(job.id, Volume(job.slices[places]), who.preprocess, "0")
    part.levels = job.levels
    part.first = who.preprocess.image(part.slices[0], job.levels)
    return part
