"""The answers of a method side by side: H-SAM's first stage, its second, and the means of both (its ensembles)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samsans.config import DataConfig
from samsans.errors import InputError
from samsans.experiments.answers import side_by_side


def stages(data: DataConfig, run_folder: Path, out: Path, **options: Any) -> str:
    """Segment a run's held-out cases once a view and score them alike; ``options`` and files as in ``side_by_side``.

    Writes ``stages.csv``, ``stages.json``, ``stages.md``, ``panels.png``, ``masks/VIEW`` and
    ``reports/CONVENTION/VIEW``.

    Raises:
        InputError: the method has no views, or the run holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(run_folder)
    if not segmenter.views:
        raise InputError(f"{segmenter.config.method} gives one answer and no views", "a method in stages, such as hsam")
    assert segmenter.own_view is not None  # it has views
    views = {view: {"view": view} for view in segmenter.views}
    return side_by_side("stages", "view", views, segmenter.own_view, segmenter, data, run_folder, out, **options)
