"""Configuration and presets of Medical SAM Adapter (arXiv 2304.12620).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from samsans.methods.from_scratch import SLICES


@dataclass
class MedsaConfig:
    """SAM with adapters in its encoder; it is trained and used with a prompt from the true mask.

    Preset ``paper`` asks with one point, ``box`` with a box.  ``scratch`` trains a small SAM and its adapters from
    random weights: what such prompts are worth to a network of that size, without what SAM has learnt.

    Args:
        prompt: point (one random pixel inside the object, drawn anew in every step) or box (its tight rectangle).
        seed: Of the random points when predicting; with the image's name and the object's it decides every draw.
        ratio: Hidden width of an adapter over that of the encoder; a sixteenth makes 13.2 million parameters in ViT-H,
            the published 13 million.
        scale: Factor on the adapter beside the feed-forward layer.
        decoder: Whether the mask decoder is trained, too; with backbone.train all it is in any case.
        bce: Weight of pixel-wise cross-entropy.
        dice: Weight of the Dice loss.
    """

    prompt: Literal["point", "box"] = "point"
    seed: int = 0
    ratio: float = 0.0625
    scale: float = 0.5
    decoder: bool = True
    bce: float = 1.0
    dice: float = 1.0


_PAPER: dict[str, Any] = {
    "backbone": {"name": "sam-vit-h", "train": "none"},
    "split": {"slices": "foreground"},
    "train": {
        "epochs": 100,
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 2,
        "schedule": "halving",
        "warmup": 0,
        "clip": 0.0,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "box": _PAPER | {"model": {"prompt": "box"}},
    "scratch": SLICES | {"split": {"slices": "foreground"}, "model": {"ratio": 0.25}},
}
