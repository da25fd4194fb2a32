"""The answers of a method side by side: H-SAM's first stage, its second, and the means of both (its ensembles)."""

from __future__ import annotations

from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.answers import side_by_side


def stages(asked: Request) -> str:
    """Segment a run's held-out cases once a view and score them alike; files as in ``side_by_side``.

    Writes ``stages.csv``, ``stages.json``, ``stages.md``, ``panels.png``, ``masks/VIEW`` and
    ``reports/CONVENTION/VIEW``.

    Raises:
        InputError: the method has no views, they are no stages but memories, or the run holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    if not segmenter.views:
        raise InputError(f"{segmenter.config.method} gives one answer and no views", "a method in stages, such as hsam")
    if any(segmenter.follows(view) for view in segmenter.views):
        found = f"views of {segmenter.config.method} that remember frames: {', '.join(segmenter.views)}"
        raise InputError(found, "a method in stages, such as hsam", "Compare them with the experiment `memory`")
    assert segmenter.own_view is not None  # it has views
    views = {view: {"view": view} for view in segmenter.views}
    return side_by_side("stages", "view", views, segmenter.own_view, segmenter, asked)
