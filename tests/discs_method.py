"""A method prompted with points that is easy to see through: saliency is brightness, answers are discs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.config import BackboneConfig, DataConfig, PromptConfig, RunConfig
from samsans.inference import Segmenter
from samsans.methods.spd.config import SpdConfig
from samsans.methods.spd.distiller import Distiller
from samsans.types import Batch, ClassInfo, Needs

LESION = (ClassInfo("lesion", 2, (1,)),)
SIDE = 32


class Discs(nn.Module):
    """Inside is what is at most ``radius`` model pixels from a point; saliency 1 on white and 0 on black."""

    needs = Needs(points=True)
    prompted = True

    def __init__(self, config: SpdConfig, radius: float = 3.0) -> None:
        super().__init__()
        self.config, self.radius = config, radius
        self.backbone = SimpleNamespace(input_size=SIDE, grid=4, base_hash="base")
        self.distil = Distiller(config, SIDE)
        self.reach = config.neighbours if config.distill == "context" else 0
        self.frozen_prior = config.distill != "none"
        self.encoded: list[int] = []  # slices of each batch
        self.judged = self.decoded = 0
        self.watch: Any = lambda: None

    def features(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        self.watch()
        return images.clone()

    def judge(self, features: Tensor) -> Tensor:
        self.judged += len(features)
        return 20 * (F.adaptive_avg_pool2d(features.mean(1), 4 * self.backbone.grid) - 0.5)

    def answer(self, features: Tensor, points: Sequence[Tensor]) -> Tensor:
        self.decoded += len(features)
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        out = []
        for rows in points:
            inside = rows[rows[:, 2] == 1]
            away = torch.hypot(x[..., None] - inside[:, 0], y[..., None] - inside[:, 1])
            nearest = away.min(-1).values if len(inside) else torch.full((SIDE, SIDE), 99.0)
            out.append(self.radius - nearest)
        return torch.stack(out)[:, None]

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        assert batch.points is not None
        return self.answer(self.features(batch.images), batch.points)


class Plain(nn.Module):
    """The same discs, of a method that has nothing but ``predict``."""

    needs = Needs(points=True)

    def __init__(self) -> None:
        super().__init__()
        self.discs = Discs(SpdConfig())
        self.backbone = self.discs.backbone

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        return self.discs.predict(batch)


def run_config(prompts: PromptConfig | None = None, data: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    return RunConfig(
        method="spd",
        backbone=BackboneConfig(name="tiny", statistics="unit"),
        data=DataConfig(**({"window": [0, 255]} | (data or {}))),
        model=SpdConfig(**model),
        prompts=prompts or PromptConfig(),
    )


def segmenter(
    run: Path | None = None, *, prompts: PromptConfig | None = None, data: dict[str, Any] | None = None, **model: Any
) -> Segmenter:
    config = run_config(prompts, data, **model)
    return Segmenter(Discs(config.model), config, LESION, run=run, device="cpu")


def bright(depth: int, height: int = 32, width: int = 32) -> np.ndarray:
    """White slices ``(D, H, W)`` uint8 with noise that makes each another one."""
    noise = np.random.default_rng(0).integers(0, 40, (depth, height, width))
    return (255 - noise).astype(np.uint8)


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray(np.hypot(rows - y, columns - x) < radius)


def kept(run: Path) -> set[str]:
    """Names of the files that a run's predictions have kept."""
    return {p.name for p in (run / "cache").glob("*")}
