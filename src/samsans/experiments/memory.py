"""What a method on SAM 2 remembers, side by side: of Proxy Prompt nothing, SAM 2's own bank, or the prompt of the first
frame (decision D-14); of Medical SAM 2 its banks."""

from __future__ import annotations

from samsans import io
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.answers import side_by_side

UNTOLD = "The paper does not say which mode its video table has: nothing to compare"


def memory(asked: Request) -> str:
    """Segment a run's held-out videos or volumes once for each view (of Proxy Prompt ``model.memory_mode``, of Medical
    SAM 2 ``model.bank``) and score them alike; files as in ``side_by_side``.

    All views are of the same weights, frames in order.  Writes ``memory.csv``, ``memory.json``, ``memory.md``,
    ``panels.png``, ``masks/MODE`` and ``reports/CONVENTION/MODE``.

    Raises:
        InputError: no view of the method remembers frames, or the run holds out nobody or single images alone.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    if not any(segmenter.follows(view) for view in segmenter.views):
        config = segmenter.config
        found = f"{config.method} on the backbone {config.backbone.name}, of which no view remembers frames"
        raise InputError(found, "a run of proxy_prompt or medical_sam2 on a SAM 2")
    cases = asked.held_out(asked.find(segmenter.classes))
    if not any(case.video or case.stacked or io.suffix(case.images[0]) not in io.IMAGE_SUFFIXES for case in cases):
        raise InputError("single images, of which nothing is remembered", "frames of videos, or volumes")
    assert segmenter.own_view is not None  # it has views
    views = {view: {"view": view} for view in segmenter.views}
    own = segmenter.own_view
    text = side_by_side("memory", "mode", views, own, segmenter, asked, videos=True)
    return f"{text}\n\n{UNTOLD}" if segmenter.config.method == "proxy_prompt" else text
