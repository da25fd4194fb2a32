"""What SAM 2 remembers beside the proxy prompt: nothing, its own bank, or the first frame's prompt (decision D-14)."""

from __future__ import annotations

from samsans import io
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.ablation import require_proxy_prompt
from samsans.experiments.answers import side_by_side

UNTOLD = "The paper does not say which mode its video table has: nothing to compare"


def memory(asked: Request) -> str:
    """Segment a run's held-out videos or volumes once for each ``model.memory_mode`` and score them alike; files as in
    ``side_by_side``.

    All modes are of the same weights, frames in order.  Writes ``memory.csv``, ``memory.json``, ``memory.md``,
    ``panels.png``, ``masks/MODE`` and ``reports/CONVENTION/MODE``.

    Raises:
        InputError: the run is not of Proxy Prompt on a SAM 2, or holds out nobody or single images alone.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    require_proxy_prompt(segmenter.config)
    if not any(segmenter.follows(view) for view in segmenter.views):
        raise InputError(f"backbone {segmenter.config.backbone.name}, which has no memory", "a run on a SAM 2")
    cases = asked.held_out(asked.find(segmenter.classes))
    if not any(case.video or case.stacked or io.suffix(case.images[0]) not in io.IMAGE_SUFFIXES for case in cases):
        raise InputError("single images, of which nothing is remembered", "frames of videos, or volumes")
    assert segmenter.own_view is not None  # it has views
    views = {view: {"view": view} for view in segmenter.views}
    own = segmenter.own_view
    return f"{side_by_side('memory', 'mode', views, own, segmenter, asked, videos=True)}\n\n{UNTOLD}"
