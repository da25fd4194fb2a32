"""A small method and data for tests of the training loop; as a script it trains them in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samsans import config as configuration
from samsans.config import RunConfig
from samsans.display import Display
from samsans.ops.losses import dice_loss
from samsans.training.data import TrainingData
from samsans.training.log import read
from samsans.training.run import check_folder, first_process, fit
from samsans.types import Batch, Needs, ParamGroup, Stage

SIDE = 16
OBJECTS = ("disc", "square")


class DummySlices:
    """Bright discs and dark squares on noise, drawn from their index."""

    def __init__(self, count: int, first: int = 0, delay: float = 0.0) -> None:
        self.count, self.first, self.delay = count, first, delay

    def __len__(self) -> int:
        return self.count

    @property
    def present(self) -> np.ndarray:
        return np.ones((self.count, 2), bool)

    @property
    def class_pixels(self) -> np.ndarray:
        return np.array([900, 80, 20], np.int64)

    def batch(self, indices: Sequence[int], rank: int = 0, world: int = 1) -> Batch:
        time.sleep(self.delay)
        images, masks = zip(*(self.draw(self.first + i) for i in indices), strict=True)
        ids = tuple(f"image{self.first + i}" for i in indices)
        return Batch(torch.stack(images), torch.stack(masks), ids, OBJECTS)

    @staticmethod
    def draw(index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        cy, cx = torch.randint(4, 8, (2,), generator=random).tolist()
        disc = (y - cy) ** 2 + (x - cx) ** 2 < 12
        square = (y > cy + 5) & (x > cx + 3) & (x < cx + 8)
        image = 0.2 * torch.randn(SIDE, SIDE, generator=random) + disc.float() - square.float()
        return image.expand(3, SIDE, SIDE).clone(), torch.stack([disc, square])


class DummySource(DummySlices):
    """Four images a step, drawn from (step, rank)."""

    steps_per_epoch = 3

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:  # type: ignore[override]
        random = torch.Generator().manual_seed(step * 1000 + rank)
        return super().batch(torch.randint(self.count, (4,), generator=random).tolist())


class DummyMethod(nn.Module):
    """A frozen blur, two trained convolutions (one a stage, if asked), dropout, a running mean."""

    def __init__(self, stages: int = 1, supports: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.needs = Needs(supports=supports)
        self.count = stages
        self.backbone = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
        self.backbone.name, self.backbone.base_hash = "dummy", "abc"
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Conv2d(8, 2, 1)
        self.last.bias._no_weight_decay = True
        self.poison_at: tuple[str, ...] = ()

    def stages(self, config: RunConfig) -> list[Stage]:
        head = ParamGroup(tuple(self.last.parameters()), lr_scale=2.0)
        body = ParamGroup((*self.first.parameters(), *self.norm.parameters()), decay=False)
        if self.count == 1:
            return [Stage("all", (head, body))]
        return [Stage("head", (head,), 0.5), Stage("body", (body,), 0.5)]

    def forward(self, batch: Batch) -> Tensor:
        features = torch.relu(self.norm(self.first(self.backbone(batch.images))))
        return self.last(self.drop(features))

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        dice = dice_loss(output, batch.masks).mean()
        return {"loss": dice * (float("nan") if set(self.poison_at) & set(batch.ids) else 1.0), "dice": dice}

    def encode_support(self, batch: Batch) -> Tensor:
        return batch.masks.float().mean()

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        assert (support is not None) == self.needs.supports
        return self.forward(batch).float()

    def gauges(self, batch: Batch) -> dict[str, float]:
        return {"weight": float(self.last.weight.norm())}

    def gauge_warning(self, gauges: Mapping[str, float], step: int, warmup: int) -> str | None:
        return "gauge too large" if gauges["weight"] > 1e6 else None


def make_config(**train: Any) -> RunConfig:
    """A run of 20 steps on the CPU; keyword arguments are options of ``train``."""
    options = {
        "steps": 20,
        "lr": 0.05,
        "warmup": 5,
        "schedule": "constant",
        "save_every": 5,
        "pictures_every": 0,
        "accelerator": "cpu",
    }
    return configuration.from_dict({"train": options | train, "backbone": {"name": "tiny"}}, method="proxy_prompt")


def make_data(val: int = 4, delay: float = 0.0) -> TrainingData:
    """Twelve training images and ``val`` held-out ones; ``delay`` seconds to read a batch."""
    return TrainingData(DummySource(12, delay=delay), DummySlices(12), DummySlices(val, first=100), OBJECTS)


def train(run: Path, resume: bool = False, method: DummyMethod | None = None, **options: Any) -> DummyMethod:
    """Train the dummy method in this process; ``data`` replaces its data, other options are those of ``train``."""
    data = options.pop("data", None) or make_data()
    display = Display("training", options.pop("on_progress", None), silent=not first_process())
    method, config = method or DummyMethod(), make_config(**options)
    if first_process():
        check_folder(config, run, resume)
    with display:
        fit(config, method, data, run, display, resume=resume)
    return method


def log_rows(run: Path) -> list[dict[str, str]]:
    """The rows of the log without the columns that tell the time."""
    timed = ("seconds", "wait", "lr")
    return [{k: v for k, v in row.items() if k not in timed} for row in read(run / "log.csv")]


class WatchingMethod(DummyMethod):
    """One whose loss depends on the pixels it was told of before training and on how far the training is."""

    def __init__(self, exclusive: bool = False) -> None:
        super().__init__()
        self.needs = Needs(exclusive=exclusive)
        self.register_buffer("pixels", torch.zeros(3, dtype=torch.int64))
        self.told: list[tuple[float, float]] = []
        self.observed = 0

    def observe(self, pixels: Tensor) -> None:
        self.pixels.copy_(pixels)
        self.observed += 1

    def schedule(self, epoch: float, used: float) -> None:
        self.told.append((epoch, used))

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        epoch, used = self.told[-1]
        weights = self.pixels.sum() / self.pixels[1:].float() * torch.tensor([used, 1 - used])
        loss = (dice_loss(output, batch.masks) * weights).mean() * 0.99**epoch
        return {"loss": loss}


if __name__ == "__main__":
    train(Path(sys.argv[1]), method=DummyMethod(stages=2), accelerator="cpu", devices=2, strategy="ddp")
