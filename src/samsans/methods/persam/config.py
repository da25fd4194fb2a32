"""Configuration and presets of PerSAM and PerSAM-F (arXiv 2305.03048).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class PersamConfig:
    """PerSAM: the mean feature under the support mask finds a point inside and one outside, for SAM's decoder.

    Args:
        attention: Guide the decoder's attention to the image by the likeness of every place to the support, in the
            first pass.
        target: Add the support's mean feature to the decoder's tokens, in the first pass.
        refinements: Passes after the first, 0 to 2: with the mask found, then with mask and box.
        fine_tuned: PerSAM-F: the first pass mixes SAM's three masks instead of taking its single one, with two weights
            that are learned for each object on the support pairs alone, when these are encoded.
        steps: fine_tuned: steps of this learning.
        lr: fine_tuned: its learning rate, which falls to 0 along a cosine.
        k_test: Support pairs drawn for each image at inference; the paper has one.
    """

    attention: bool = True
    target: bool = True
    refinements: int = 2
    fine_tuned: bool = False
    steps: int = 1000
    lr: float = 1e-3
    k_test: int = 1


_BASE: dict[str, Any] = {"backbone": {"name": "sam-vit-h", "train": "none"}, "train": {"steps": 0}}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _BASE,
    "fine_tuned": _BASE | {"model": {"fine_tuned": True, "attention": False, "target": False}},
}
