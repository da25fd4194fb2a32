"""Configuration and presets of the two methods called AutoSAM.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from samsans.methods.from_scratch import SLICES


@dataclass
class AutosamConfig:
    """AutoSAM: SAM is frozen; what replaces the prompt is learned.

    Preset ``paper`` is the dense prompt; its 12 images a step are the published 3, accumulated 4 times.  Preset
    ``class_tokens`` brings slices to 256 pixels before S and compares there (the maps of SAM at 1024).  It keeps its
    learning rate, where Hu, Xu and Shi lower it from epoch 10 on whenever the training loss stops falling: the
    schedules here know the step alone.

    Args:
        prompt: dense (a network draws the dense prompt from the image, one for each object; arXiv 2306.06370),
            class_tokens (a decoder with tokens of its own for each class; arXiv 2306.13731) or cnn_head (a
            convolutional head on the frozen embedding; the same paper).
        width: dense: channels of the prompt network's first level; each of its four levels doubles them.
    """

    prompt: Literal["dense", "class_tokens", "cnn_head"] = "dense"
    width: int = 32


_FROZEN: dict[str, Any] = {"name": "sam-vit-b", "train": "none"}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": _FROZEN,
        "train": {"optimizer": "adam", "lr": 3e-4, "weight_decay": 1e-4, "batch_size": 12, "warmup": 0, "clip": 0.0},
        "model": {"width": 64},
    },
    "class_tokens": {
        "backbone": _FROZEN | {"statistics": "unit", "via": 256},
        "augment": {"policy": "autosam"},
        "train": {
            "epochs": 120,
            "optimizer": "adam",
            "lr": 5e-4,
            "weight_decay": 0.0,
            "batch_size": 4,
            "foreground": 0.0,
            "warmup": 0,
            "clip": 0.0,
        },
        "model": {"prompt": "class_tokens"},
    },
    "scratch": SLICES,
}
