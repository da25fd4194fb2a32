"""A method that follows objects by their grey level, which may change from frame to frame, and tells what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.inference import Segmenter
from samsans.types import Batch, ClassInfo, Needs
from threshold_method import DISC_CUP, LevelBank, Threshold, run_config


class Trail:
    """``levels`` ``(N,)`` of the frame before, NaN of objects that are not known: an object is what is about as bright,
    and the next frame is compared with the median of what was found."""

    def __init__(self, method: Following, levels: Tensor | None, name: str = "start") -> None:
        self.method, self.levels, self.name = method, levels, name
        self.quality: Tensor | None = None

    def step(self, batch: Batch) -> Tensor:
        assert len(batch.ids) == 1
        self.method.seen.append((self.name, batch.ids[0], batch.masks is not None))
        grey = batch.images.mean(1)
        if self.levels is None:
            assert batch.masks is not None
            self.levels = medians(grey, batch.masks[0])
        logits = (10 * (0.25 - (grey - self.levels[:, None, None]).abs())).nan_to_num(-99.0)
        found = medians(grey, logits > 0)
        self.levels = torch.where(found.isnan(), self.levels, found)
        self.quality = (logits > 0).float().mean((1, 2))
        return logits[None]

    def branch(self) -> Trail:
        return Trail(self.method, self.levels, "branch")


def medians(grey: Tensor, masks: Tensor) -> Tensor:
    """``(N,)`` of grey ``(1, S, S)`` under masks ``(N, S, S)``, NaN where one is empty."""
    return grey.where(masks, torch.nan).flatten(1).nanmedian(1).values


class Following(Threshold):
    """``Trail``, from supports or from a first label; the view ``alone`` compares every frame with the supports.

    seen: of each step who made it, the frame, and whether it was shown labels.
    """

    views = ("follow", "alone")

    def __init__(self, first_label: bool = False, size: int = 32) -> None:
        super().__init__(size)
        self.needs = Needs(supports=not first_label, first_label=first_label)
        self.seen: list[tuple[str, str, bool]] = []

    def follows(self, view: str | None = None) -> bool:
        return view != "alone"

    def follow(self, objects: Sequence[str], support: LevelBank | None = None, view: str | None = None) -> Trail:
        assert self.needs.first_label == (support is None)
        return Trail(self, None if support is None else support.levels.nanmedian(0).values)

    def predict(self, batch: Batch, support: Any = None, view: str | None = None) -> Tensor:
        return super().predict(batch, support)


def following(first_label: bool = False, classes: Sequence[ClassInfo] = DISC_CUP, **values: Any) -> Segmenter:
    """A segmenter of ``Following`` that shows grey 0..255 as 0..1."""
    config = run_config(data={"window": [0, 255]}, **values)
    config.backbone.statistics = "unit"
    return Segmenter(Following(first_label), config, classes, device="cpu")


def fading(frames: int, darker: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """``(D, 40, 48)`` uint8 and labels: a disc (1) of 120 and a cup (2) of 220 on 0, every slice darker than the one
    before; the sizes of both are largest in slice 2."""
    y, x = np.mgrid[:40, :48]
    away = np.hypot(y - 20, x - 24)
    images, masks = np.zeros((2, frames, 40, 48), np.uint8)
    for i in range(frames):
        smaller = abs(i - 2) / 2
        masks[i][away < 12 - smaller], masks[i][away < 6 - smaller] = 1, 2
        images[i] = np.array([0, 120, 220])[masks[i]] - darker * i * (masks[i] > 0)
    return images, masks
