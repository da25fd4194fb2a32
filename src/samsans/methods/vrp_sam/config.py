"""Configuration and presets of VRP-SAM (arXiv 2402.17726).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class VrpSamConfig:
    """VRP-SAM: a frozen feature network, learned queries that read support and target, and a frozen SAM they prompt.

    Args:
        features: Where queries look: resnet50 (as published, with weights from ImageNet; see ``resnet``), or backbone,
            SAM's own embedding (our option, which needs no other network).
        resnet: Weights of the ResNet-50: a hub id, or a folder with its config.json and model.safetensors.
        resnet_size: Side in pixels that images are brought to for it, a multiple of 32 (our decision).
        queries: Learned queries; as many prompt tokens are made of every support pair.
        mask_gain: Factor on the mask where it enters as a channel.
        heads: Attention heads (our decision).
        direct: The support masks as the features of a target read them (the share of its look-alikes that is object)
            also enter the decoder, as SAM's mask prompt (our option).
        read: Weight of the cross-entropy of what is read so, which teaches an encoder what looks alike (our option).
        k_test: Support pairs drawn for each image at inference; their prompt tokens stand side by side.
    """

    features: Literal["resnet50", "backbone"] = "resnet50"
    resnet: str = "microsoft/resnet-50"
    resnet_size: int = 512
    queries: int = 50
    mask_gain: float = 10.0
    heads: int = 8
    direct: bool = False
    read: float = 0.0
    k_test: int = 1


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "sam-vit-h", "train": "none"},
        "episodes": {"images": 2, "targets": 1, "volume_supports": [], "object_subset": 0.0},
        "train": {
            "epochs": 50,
            "optimizer": "adamw",
            "lr": 1e-4,
            "weight_decay": 1e-6,
            "schedule": "cosine",
            "warmup": 0,
            "clip": 0.0,
        },
    },
    "scratch": {
        "backbone": {"name": "scratch", "train": "all"},
        "model": {"features": "backbone", "queries": 16, "direct": True, "read": 1.0},
        "episodes": {"images": 8, "targets": 8, "volume_supports": [], "synthetic": 0.3},
        "augment": {"flip": 0.5, "rotate": 15.0, "scale": 0.1, "intensity": 0.1},
        "train": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "warmup": 50},
    },
}
