"""Configuration and presets of SAM 2 prompted on the first frame.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class TrackedConfig:
    """SAM 2 as it was published, prompted once from a true mask (section 6 of the supplement of arXiv 2502.03501).

    Args:
        prompt: What is drawn from the true mask of the first frame: mask (itself: an upper bound), box (tight
            rectangle) or point (the pixel inside that is farthest from the border).
        gate_by_object_score: Leave an object out of the frames where its score says that it is not there, as SAM 2
            does.
        memories: most: SAM 2's own bank; none: the first frame alone is remembered (our ablation).
    """

    prompt: Literal["mask", "box", "point"] = "mask"
    gate_by_object_score: bool = True
    memories: Literal["most", "none"] = "most"


def _preset(prompt: str) -> dict[str, Any]:
    backbone = {"name": "sam2.1-hiera-large", "train": "none"}
    return {"backbone": backbone, "train": {"steps": 0}, "model": {"prompt": prompt}}


PRESETS: dict[str, dict[str, Any]] = {
    name: _preset(name.replace("paper", "mask")) for name in ("paper", "mask", "box", "point")
}
