"""Configuration and presets of SAMed (arXiv 2304.13785).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from samsans.methods.from_scratch import SLICES


@dataclass
class SamedConfig:
    """SAMed: LoRA in the encoder, SAM's decoder with one token a class, trained.

    Args:
        decoder: trained, or lora (SAMed_s: adapters on q and v of the decoder's attentions, whose base is frozen;
            tokens, hypernetworks, upscaling and the default prompt are still trained).
        layers: Two-way blocks of the decoder; those after SAM's two start from random numbers.
        ce: Weight of the cross-entropy.
        dice: Weight of the Dice loss.
    """

    decoder: Literal["trained", "lora"] = "trained"
    layers: int = 2
    ce: float = 0.2
    dice: float = 0.8


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {
            "name": "sam-vit-b",
            "input_size": 512,
            "statistics": "unit",
            "resampling": "spline",
            "via": 224,
        },
        "lora": {"rank": 4, "alpha": 4.0, "decoder": []},
        "augment": {"policy": "samed"},
        "train": {
            "epochs": 200,
            "stop_epoch": 160,
            "batch_size": 24,
            "foreground": 0.0,
            "optimizer": "adamw",
            "lr": 5e-3,
            "weight_decay": 0.1,
            "schedule": "samed",
            "warmup": 250,
            "clip": 0.0,
        },
    },
    "scratch": SLICES,
}
PRESETS["small"] = PRESETS["paper"] | {
    "lora": {"rank": 4, "alpha": 4.0, "decoder": ["q", "v"]},
    "model": {"decoder": "lora"},
}
