"""Configuration and presets of SPD (arXiv 2604.23314).  No torch is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from samsans.errors import InputError
from samsans.methods.from_scratch import SLICES

LOW_TAU = 0.25  # below it the background that the focal loss leaves at 0.1 to 0.2 passes as well


@dataclass
class SpdConfig:
    """SPD: stage I learns where the object may be, stage II decodes the points that this prior lets through.

    The ablation of the paper: ``distill`` none (SAM prompt tuning, one stage with the points as they are), local or
    context (with ``psc`` 0 and above).

    Args:
        distill: Which points SAM sees: none (as given; no prior, one stage), local (those of the slice that the
            prior of the slice lets through) or context (also those of neighbouring slices).
        tau: Saliency above which a point counts, in (0, 1).
        neighbours: n, slices on either side whose points are candidates.
        rejected_as_negative: A slice's own points that are turned down become background points instead of being
            dropped.
        cap: Most points a slice, by farthest points from the most salient one (the first, with distill none);
            null: all.
        empty: What a slice without points gets: empty (no mask), no_prompt (SAM's default prompt), saliency_peak (the
            most salient pixel, if above 0.9) or raw (its points as given).
        dice: Weight of the Dice loss in both stages.
        focal: Weight of the focal loss (gamma 2, no alpha) in both stages.
        psc: Weight of pairwise slice consistency.
        psc_direction: Which neighbour a mask is compared with: next, prev, both or none.
        psc_stop_grad: The neighbour's mask is a constant to it.
        psc_skip_empty: Leave out pairs that show no object in either slice.
        head: Channels of the two layers of the saliency head.
        head_bias: Of its last layer.
        stage2_share: Share of the run's epochs, steps or minutes that stage II takes.
        stage2_from: Stage II begins from the best weights of stage I on held-out slices, or its last.
    """

    distill: Literal["none", "local", "context"] = "context"
    tau: float = 0.5
    neighbours: int = 2
    rejected_as_negative: bool = False
    cap: int | None = 64
    empty: Literal["empty", "no_prompt", "saliency_peak", "raw"] = "empty"
    dice: float = 0.7
    focal: float = 0.3
    psc: float = 0.1
    psc_direction: Literal["next", "prev", "both", "none"] = "next"
    psc_stop_grad: bool = False
    psc_skip_empty: bool = True
    head: tuple[int, int] = (64, 32)
    head_bias: float = -2.0
    stage2_share: float = 0.5
    stage2_from: Literal["best", "last"] = "best"


def check(config: SpdConfig) -> None:
    """Raise ``InputError`` for an option that cannot be used."""
    rules = {
        "tau": (config.tau, 0 < config.tau < 1, "above 0 and below 1"),
        "neighbours": (config.neighbours, config.neighbours >= 0, "0 or more"),
        "cap": (config.cap, config.cap is None or config.cap >= 1, "1 or more, or null"),
        "head": (config.head, len(config.head) == 2 and min(config.head) >= 1, "two numbers, 1 or more"),
        "head_bias": (config.head_bias, math.isfinite(config.head_bias), "a number"),
        "stage2_share": (config.stage2_share, 0 < config.stage2_share < 1, "above 0 and below 1"),
    }
    for name in ("dice", "focal", "psc"):
        rules[name] = (getattr(config, name), 0 <= getattr(config, name) < math.inf, "0 or more")
    for name, (found, fine, expected) in rules.items():
        if not fine:
            raise InputError(f"model.{name} is {found}", expected)
    if config.distill == "none" and config.empty == "saliency_peak":
        raise InputError(
            "model.empty saliency_peak with model.distill none, which has no saliency",
            "distill local or context",
            "Set model.empty empty",
        )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "sam-vit-b", "input_size": 512, "statistics": "symmetric"},
        "data": {"levels": "positive"},
        "split": {"test": 0.2, "val": 0.1},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.1, "decoder": []},
        "augment": {"policy": "spd", "flip": 0.5, "rotate": 15.0},
        "train": {
            "epochs": 200,
            "batch_size": 4,
            "foreground": 0.0,
            "optimizer": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-5,
            "schedule": "plateau",
            "validate_epochs": 1,
            "warmup": 0,
            "clip": 1.0,
        },
    },
    "scratch": SLICES
    | {
        "augment": {"policy": "spd", "flip": 0.5, "rotate": 15.0},
        "train": SLICES["train"] | {"optimizer": "adam", "weight_decay": 1e-5, "foreground": 0.0, "batch_size": 8},
    },
}
