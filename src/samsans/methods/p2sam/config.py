"""Configuration and presets of P2SAM (doi 10.1145/3664647.3680628).  No torch is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from samsans.errors import InputError
from samsans.methods.from_scratch import SLICES


@dataclass
class P2SamConfig:
    """P2SAM: a generator network turns the image into a Gaussian over prompts; each draw gives a mask.

    Stage 1 adapts SAM without prompts; stage 2 freezes it and trains the generator.  ``prompts`` and ``assembling``
    switch the two contributions of the ablation (Table 4 of the paper): with neither, the 8 masks are the samples.
    ``train.weight_decay`` is on the weights of the masks alone.

    Args:
        prompts: Train the prompt generator (stage 2) and draw prompts; off: stage 1 alone, one answer or the masks.
        assembling: Learn the weights of the masks; off: all are equal, and without prompts each mask is a sample.
        masks: Masks of the decoder.
        injection: token (a draw is one more prompt token; the paper) or dense (it is added everywhere; the code).
        dense_residual: dense: start from stage 1 exactly, the draw adding nothing at first (our addition).
        weights: affine (the mask weights sum to 1) or free.
        head_bias: Of the generator's Gaussian: constant (all logarithms of sigma start near ``log_sigma``) or normal
            (they are drawn, as the code's).
        log_sigma: constant: logarithm of the first standard deviations.
        clamp: Bounds of the logarithm of the standard deviation; null: none.
        loss: paper (binary cross-entropy, focal and Dice, means of each image) or reference (the code's).
        bce: Weight of the cross-entropy (paper).
        focal: Weight of the focal loss (paper).
        dice: Weight of the Dice loss (paper).
        train_on_empty: Also learn from empty annotations.
        stage2_share: Share of the run's epochs, steps or minutes that stage 2 takes.
        stage2_lr: Learning rate of stage 2.
        stage2_images: Stage 2 learns from the first so many training slices; null: from all.
        stage2_from: Stage 2 begins from the best weights of stage 1 on held-out slices, or its last.
        stage2_select: Keep the weights of stage 2 with the lowest energy distance (ged), or the last ones.
        snapshots: Percentages of stage 2 at which the generator is kept; samples are drawn from all of them in turn.
            Empty: from the last alone.
        posterior: Also train a generator that sees the annotation, draw from it while training, and draw the two
            together by their KL divergence (A-SAM's objective; our addition, off in the paper).
        kl: Weight of that divergence.
        set_loss: Instead of one draw against one annotation, this many draws (at least 2) against all of them, empty
            ones too, by the energy distance of soft masks (our addition, off in the paper: 0).
        cache_gb: Memory for the embeddings of stage 2, in GiB.
        samples: Draws of a validation.
    """

    prompts: bool = True
    assembling: bool = True
    masks: int = 8
    injection: Literal["token", "dense"] = "token"
    dense_residual: bool = False
    weights: Literal["affine", "free"] = "affine"
    head_bias: Literal["constant", "normal"] = "constant"
    log_sigma: float = 0.0
    clamp: list[float] | None = field(default_factory=lambda: [-10.0, 3.0])
    loss: Literal["paper", "reference"] = "paper"
    bce: float = 1.0
    focal: float = 1.0
    dice: float = 1.0
    train_on_empty: bool = False
    stage2_share: float = 0.5
    stage2_lr: float = 1e-5
    stage2_images: int | None = None
    stage2_from: Literal["best", "last"] = "best"
    stage2_select: Literal["ged", "last"] = "ged"
    snapshots: list[int] = field(default_factory=list)
    posterior: bool = False
    kl: float = 1.0
    set_loss: int = 0
    cache_gb: float = 2.0
    samples: int = 16


def check(config: P2SamConfig, lr: float) -> None:
    """Raise ``InputError`` where a number lies outside its range or two options exclude each other.

    lr: The run's learning rate, which that of stage 2 is a multiple of.
    """
    clamp = config.clamp
    rules: dict[str, tuple[object, bool, str]] = {
        "masks": (config.masks, config.masks >= 2, "2 or more"),
        "clamp": (
            clamp,
            clamp is None or (len(clamp) == 2 and clamp[0] < clamp[1]),
            "null, or two numbers, [low, high]",
        ),
        "stage2_share": (config.stage2_share, 0 < config.stage2_share <= 1, "above 0, at most 1"),
        "stage2_lr": (config.stage2_lr, 0 <= config.stage2_lr < math.inf, "0 or more"),
        "stage2_images": (config.stage2_images, config.stage2_images is None or config.stage2_images > 0, "1 or more"),
        "snapshots": (config.snapshots, all(1 <= p <= 100 for p in config.snapshots), "percentages, 1 to 100"),
        "set_loss": (config.set_loss, config.set_loss == 0 or config.set_loss >= 2, "0, or at least 2 draws"),
        "cache_gb": (config.cache_gb, 0 <= config.cache_gb < math.inf, "0 or more"),
        "samples": (config.samples, config.samples >= 1, "1 or more"),
    }
    for name in ("bce", "focal", "dice", "kl"):
        rules[name] = (getattr(config, name), 0 <= getattr(config, name) < math.inf, "0 or more")
    for name, (found, fine, expected) in rules.items():
        if not fine:
            raise InputError(f"model.{name} is {found}", expected)
    if config.dense_residual and config.injection != "dense":
        raise InputError("model.dense_residual with model.injection token", "injection dense")
    if config.posterior and config.set_loss:
        raise InputError("both model.posterior and model.set_loss", "one of them: each is an objective of its own")
    if not lr > 0:
        raise InputError(f"train.lr is {lr}", "above 0: that of stage 2 is a multiple of it")


_TRAIN: dict[str, Any] = {
    "epochs": 200,
    "validate_epochs": 10,
    "batch_size": 10,
    "foreground": 0.0,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "clip": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "sam-vit-b", "input_size": 128, "statistics": "unit"},
        "lora": {"rank": 4, "alpha": 4.0, "decoder": []},
        "split": {"test": 0.2, "val": 0.2},
        "train": _TRAIN,
    },
    "scratch": SLICES
    | {
        "backbone": SLICES["backbone"] | {"input_size": 128, "statistics": "unit"},
        "augment": {},
        "train": SLICES["train"]
        | {"optimizer": "adam", "weight_decay": 0.0, "foreground": 0.0, "schedule": "constant", "validate_epochs": 10},
        "model": {"stage2_lr": 1e-4},
    },
}
PRESETS["reference"] = PRESETS["paper"] | {
    "split": {"test": 0.2, "val": 0.2, "order": "file"},
    "train": _TRAIN | {"optimizer": "adamw", "weight_decay": 0.01},
    "model": {
        "injection": "dense",
        "head_bias": "normal",
        "clamp": None,
        "loss": "reference",
        "stage2_lr": 1e-6,
        "stage2_from": "last",
        "stage2_select": "last",
        "snapshots": [10, 50, 70, 100],
    },
}
