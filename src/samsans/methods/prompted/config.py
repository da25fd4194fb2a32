"""Configuration and presets of the prompted baselines.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class PromptedConfig:
    """SAM or MedSAM prompted from the target's own true mask (section 6 of the supplement of arXiv 2502.03501).

    Or, with ``source`` points, with the points it is given: what bad prompts do to a model that trusts them.

    Args:
        source: Where prompts come from: mask (the truth), or points (those of the data set, or simulated; point shows
            all of an image, box their bounds, 10 px of 512 wider; an image without any gets an empty mask).
        prompt: box (tight rectangle), point (one random pixel inside) or everything (grid of points, the proposal that
            overlaps the truth best).
        seed: Of the random points and of the jitter; with the image's name and the object's it decides every draw.
        box_jitter: Each side of the box is moved by up to this many model pixels, evenly drawn.
        multimask: Box and point: of SAM's three candidates the one it believes in most, instead of its single mask.
        grid_points: everything: points along each side of the grid.
        point_batch: everything: points decoded together.
        min_iou: everything: proposals with less predicted IoU are dropped.
        min_stability: everything: so are those whose area changes more when the threshold moves; see stability_offset.
        stability_offset: everything: stability is the IoU of the masks cut at plus and minus this logit.
        max_overlap: everything: of two proposals whose boxes have more IoU than this, the better one stays.
    """

    source: Literal["mask", "points"] = "mask"
    prompt: Literal["box", "point", "everything"] = "box"
    seed: int = 0
    box_jitter: int = 0
    multimask: bool = False
    grid_points: int = 32
    point_batch: int = 64
    min_iou: float = 0.88
    min_stability: float = 0.95
    stability_offset: float = 1.0
    max_overlap: float = 0.7


def _preset(prompt: str, source: str = "mask", **backbone: Any) -> dict[str, Any]:
    model = {"prompt": prompt, "source": source}
    return {"backbone": {"train": "none", **backbone}, "train": {"steps": 0}, "model": model}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": _preset("box"),
    "box": _preset("box"),
    "point": _preset("point"),
    "everything": _preset("everything"),
    "medsam": _preset("box", name="medsam-vit-b"),
    "given_point": _preset("point", "points"),
    "given_box": _preset("box", "points"),
}
