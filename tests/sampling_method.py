"""A method with several answers that can be understood: an object is what is brighter than a level that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samsans.inference import Segmenter
from samsans.inference.samples import seed_of
from samsans.types import Batch, ClassInfo, Needs
from threshold_method import run_config

LESION = (ClassInfo("lesion", 3, (1,)),)


class Levels(nn.Module):
    """The object is what is brighter than a level: half for the mean, half and a draw for a sample."""

    needs = Needs(samples=True)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(input_size=size, base_hash="base")
        self.batches: list[tuple[str, ...]] = []
        self.views = ("other",)

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        return 20 * (batch.images.mean(1, keepdim=True) - 0.5)

    def sample(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
        self.batches.append(batch.ids)
        noise = [torch.randn(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        levels = 0.5 + 0.2 * torch.stack(noise)[..., None, None, None]
        return 20 * (batch.images.mean(1)[:, None, None] - levels)


def segmenter(size: int = 24, classes: Sequence[ClassInfo] = LESION, **data: Any) -> Segmenter:
    config = run_config(data={"window": [0, 255]} | data)
    config.backbone.statistics = "unit"
    return Segmenter(Levels(size), config, classes, device="cpu")


def slope(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Grey that rises from left to right, and noise: ``(H, W)`` uint8."""
    noise = np.random.default_rng(seed).integers(0, 40, (height, width))
    return (np.linspace(0, 210, width)[None] + noise).astype(np.uint8)


def levels(name: str, count: int, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    return 0.5 + 0.2 * torch.randn(count, generator=generator).numpy()
