"""A method of exclusive objects that can be understood: a pixel is the object whose grey level is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from samsans.inference import Segmenter
from samsans.ops.timing import Timer
from samsans.types import Batch, ClassInfo, Needs
from threshold_method import run_config

ORGANS = (ClassInfo("liver", 1, (1,)), ClassInfo("spleen", 2, (2,)))


class Nearest(nn.Module):
    """Logits ``100 (x - level 0)^2 - 100 (x - level k)^2`` of grey ``x``; ``swapped`` changes the objects' places.

    levels: of background and the N objects, 0..1.
    """

    needs = Needs(exclusive=True)
    views = ("swapped", "nothing")

    def __init__(self, levels: Sequence[float], size: int = 32) -> None:
        super().__init__()
        self.levels, self.timer = torch.tensor(levels), Timer()
        self.backbone = SimpleNamespace(input_size=size, base_hash="base")

    def predict(self, batch: Batch, support: Any = None, view: str | None = None) -> Tensor:
        away = -100 * (batch.images.mean(1, keepdim=True) - self.levels.view(1, -1, 1, 1)) ** 2
        logits = away[:, 1:] - away[:, :1]
        if view == "nothing":
            return torch.full_like(logits, -1)
        return logits.flip(1) if view == "swapped" else logits


def nearest(levels: Sequence[float], classes: Sequence[ClassInfo] = ORGANS, size: int = 32, **data: Any) -> Segmenter:
    """A segmenter of ``Nearest`` that shows grey 0..255 as 0..1."""
    config = run_config(data={"window": [0, 255]} | data)
    config.backbone.statistics = "unit"
    return Segmenter(Nearest(levels, size), config, classes, device="cpu")
