"""Settings that methods without episodes share when they learn slices from random weights (our decision)."""

from __future__ import annotations

from typing import Any

SLICES: dict[str, dict[str, Any]] = {
    "backbone": {"name": "scratch", "train": "all"},
    "augment": {"rotate": 15.0, "scale": 0.1, "shift": 0.05, "intensity": 0.1},
    "train": {
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup": 50,
    },
}
