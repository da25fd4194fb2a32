"""Configuration and presets of the Probabilistic U-Net (arXiv 1806.05034).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ProbUNetConfig:
    """Probabilistic U-Net: a U-Net whose last layers see a draw of a small latent variable.

    Args:
        widths: Channels of the levels of the U-Net and of the two networks that make the latent distributions.
        latent: Width of the latent variable.
        beta: Weight of the KL divergence between posterior and prior.
        train_on_empty: Also learn from empty annotations, as the paper does.
        samples: Draws of a validation.
    """

    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 192])
    latent: int = 6
    beta: float = 10.0
    train_on_empty: bool = True
    samples: int = 16


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "backbone": {"name": "none", "input_size": 128, "statistics": "unit", "train": "none"},
        "split": {"test": 0.2, "val": 0.2},
        "train": {
            "epochs": 200,
            "validate_epochs": 10,
            "batch_size": 32,
            "foreground": 0.0,
            "optimizer": "adam",
            "lr": 1e-4,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0,
            "clip": 0.0,
        },
    },
}
PRESETS["scratch"] = PRESETS["paper"] | {
    "train": PRESETS["paper"]["train"] | {"batch_size": 16, "lr": 1e-3},
    "model": {"widths": [16, 32, 64, 96]},
}
