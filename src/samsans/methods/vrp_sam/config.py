"""Configuration and presets of VRP-SAM (arXiv 2402.17726).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class VrpSamConfig:
    """VRP-SAM: a frozen feature network, learned queries that read support and target, and a frozen SAM they prompt.

    Args:
        features: Where queries look: resnet50 (as published, ImageNet weights of the hub or a folder; see
            ``resnet``), or backbone, SAM's own embedding (our option, for backbones without such a network beside).
        resnet: Weights of the ResNet-50: a hub id or a folder.
        width: Channels that queries and both images meet in.
        queries: Learned queries; as many prompt tokens are made.
        mask_gain: Factor on the support mask where it enters as a channel.
        heads: Attention heads.
        k_test: Support pairs drawn for each image at inference; their prompts stand side by side.
    """

    features: Literal["resnet50", "backbone"] = "resnet50"
    resnet: str = "microsoft/resnet-50"
    width: int = 256
    queries: int = 50
    mask_gain: float = 10.0
    heads: int = 8
    k_test: int = 1


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "sam-vit-h", "train": "none"},
        "episodes": {"images": 2, "targets": 1},
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
        "model": {"features": "backbone", "width": 128, "queries": 16},
        "episodes": {"images": 8, "targets": 8, "volume_supports": [], "synthetic": 0.3},
        "augment": {"flip": 0.5, "rotate": 15.0, "scale": 0.1, "intensity": 0.1},
        "train": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "warmup": 50},
    },
}
