"""Configuration and presets of Medical SAM 2 (arXiv 2408.00874).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

BANKS = ("sorted", "recent", "none")


@dataclass
class MedicalSam2Config:
    """SAM 2 with support pairs as template frames: what it remembers before the first frame of a video or image.

    Args:
        bank: Which frames before are remembered beside the templates: sorted (those it was most sure of and that are
            unlike each other, wherever they stand, read in the order of their likeness to the frame at hand), recent
            (the latest, as in SAM 2), or none (the templates alone, so that frames are independent).  Each is a view.
        size: How many frames before are remembered, at most 6.
        min_confidence: sorted: predicted IoU below which a frame is not remembered.
        k_test: Support pairs drawn for each image at inference.
        bce: Weight of pixel-wise cross-entropy beside the Dice loss (our decision).
        scores: Weight of the errors of the predicted IoU and of the object score, as SAM 2 learns them (our decision);
            0 leaves both as they are.
        gate_by_object_score: Leave an object out of the frames where its score says that it is not there.
    """

    bank: Literal["sorted", "recent", "none"] = "sorted"
    size: int = 6
    min_confidence: float = 0.5
    k_test: int = 1
    bce: float = 1.0
    scores: float = 1.0
    gate_by_object_score: bool = False


_ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "warmup": 0}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "sam2.1-hiera-small", "train": "all"},
        "episodes": {"images": 2, "targets": 1, "volume_supports": []},
        "train": _ADAM,
    },
    "scratch": {
        "backbone": {"name": "sam2-scratch", "train": "all"},
        "model": {"k_test": 8},
        "episodes": {"images": 8, "targets": 8, "volume_supports": [], "synthetic": 0.3},
        "augment": {"flip": 0.5, "rotate": 15.0, "scale": 0.1, "intensity": 0.1},
        "train": {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.01, "schedule": "cosine", "warmup": 50},
    },
}
