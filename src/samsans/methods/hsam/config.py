"""Configuration and presets of H-SAM (arXiv 2403.18271).  No torch is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from samsans.errors import InputError
from samsans.methods.from_scratch import SLICES


@dataclass
class CmattnConfig:
    """CMAttn, the class-balanced mask-guided self-attention that re-weights the image embedding before stage 2.

    Args:
        mode: paper (a gate over the positions), released (what the authors' code computes: the gate is 1 everywhere and
            the embedding is doubled) or off (ablation).
        normalise: What of the mask feature enters: softmax (over the classes, of P / sqrt(C)) or none (as it is).
        noise: Deviation of the noise on each class when training: rank (a list from the rarest to the commonest class),
            inverse_freq (variance inverse to the frequency) or off.
        dropout: Dropout on the mask feature when training.
        gate: spatial_softmax (mean over the positions is 1) or sigmoid.
    """

    mode: Literal["paper", "released", "off"] = "paper"
    normalise: Literal["softmax", "none"] = "softmax"
    noise: Literal["rank", "inverse_freq", "off"] = "rank"
    dropout: float = 0.1
    gate: Literal["spatial_softmax", "sigmoid"] = "spatial_softmax"


@dataclass
class HsamConfig:
    """H-SAM: two mask decoders in cascade, no prompt.

    The component ablation (Table 11 of the supplement) is ``mask_attention`` (learnable or off), ``pixel_decoder``
    (hierarchical or plain) and ``cmattn.mode`` (paper or off) with ``stages`` 2, and ``stages`` 1 for its first row.

    Args:
        stages: 2, or 1: the first decoder alone (SAMed's layout).
        mask_attention: The prior in stage 2's cross-attentions: learnable (it multiplies the attention), binary
            (Mask2Former's: nothing is read outside the mask) or off.
        pixel_decoder: hierarchical (stage-1 features joined, up to full size) or plain (stage 2 ends at a quarter).
        cmattn: The gate on the image embedding.
        order: Stage 1: sam (self-attention first) or cross_first (the released code).
        embed_noise: Noise on the embedding before stage 2 when training, in units of its range.
        mask_dropout: Dropout after the masked token-to-image attention.
        ensemble: The answer: mean of both stages' logits or probabilities, or one stage alone.
        ce: Weight of the cross-entropy.
        dice: Weight of the Dice loss.
        stage1_start: Weight of stage 1 in the first epoch; stage 2 has the rest.
        stage1_decay: Per epoch, the exponent of stage 2's weight is multiplied by this.
        weight_epochs: The stage weights run through this many epochs over the whole run, however long it is; null:
            the run's own epochs.
    """

    stages: int = 2
    mask_attention: Literal["learnable", "binary", "off"] = "learnable"
    pixel_decoder: Literal["hierarchical", "plain"] = "hierarchical"
    cmattn: CmattnConfig = field(default_factory=CmattnConfig)
    order: Literal["sam", "cross_first"] = "sam"
    embed_noise: float = 0.2
    mask_dropout: float = 0.2
    ensemble: Literal["logit_mean", "prob_mean", "stage1", "stage2"] = "logit_mean"
    ce: float = 0.1
    dice: float = 0.9
    stage1_start: float = 0.4
    stage1_decay: float = 0.99
    weight_epochs: int | None = None


def check(config: HsamConfig) -> None:
    """Raise ``InputError`` where a number lies outside its range."""
    numbers = {"ce": config.ce, "dice": config.dice, "embed_noise": config.embed_noise}
    shares = {
        "mask_dropout": config.mask_dropout,
        "cmattn.dropout": config.cmattn.dropout,
        "stage1_start": config.stage1_start,
    }
    epochs = config.weight_epochs
    rules: list[tuple[str, float | None, bool, str]] = []
    rules += [("stages", config.stages, config.stages in (1, 2), "1 or 2")]
    rules += [(name, value, 0 <= value < math.inf, "0 or more") for name, value in numbers.items()]
    rules += [(name, value, 0 <= value < 1, "0 or more, and less than 1") for name, value in shares.items()]
    rules += [("stage1_decay", config.stage1_decay, 0 < config.stage1_decay <= 1, "more than 0, and at most 1")]
    rules += [("weight_epochs", epochs, epochs is None or epochs >= 1, "1 or more, or null")]
    for name, value, fits, range_ in rules:
        if not fits:
            raise InputError(f"model.{name} is {value}", range_)


def _published(rank: int, model: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
    preset: dict[str, Any] = {
        "backbone": {"name": "sam-vit-b", "input_size": 512, "statistics": "unit", "resampling": "spline"},
        "lora": {"rank": rank, "alpha": float(rank), "decoder": []},
        "augment": {"policy": "hsam"},
        "train": {
            "epochs": 300,
            "batch_size": 32,
            "foreground": 0.0,
            "optimizer": "adamw",
            "lr": 2.5e-3,
            "weight_decay": 0.1,
            "schedule": "samed",
            "warmup": 250,
            "clip": 0.0,
        },
        "model": model,
    }
    for group, values in more.items():
        preset[group] |= values
    return preset


PRESETS: dict[str, dict[str, Any]] = {
    "paper": _published(4, {}),
    "released": _published(
        5,
        {"order": "cross_first", "cmattn": {"mode": "released"}},
        backbone={"via_predict": 224},
        augment={"elastic_labels": "truncated"},
        train={"batch_size": 16},
    ),
    "scratch": SLICES | {"model": {"weight_epochs": 300}},
}
