"""A small method of pairs for tests of training: a prior of one convolution, and a weight of the points it lets by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samsans import config as configuration
from samsans.config import RunConfig
from samsans.data.cases import find_cases
from samsans.display import Display
from samsans.training.data import choose_split, read_data
from samsans.training.log import read
from samsans.training.run import fit
from samsans.types import Batch, Needs, ParamGroup, Stage

SIDE, SMALL = 32, 8


class Sieve:
    """Lets points by where the logits, enlarged by nearest neighbours, are above 0; remembers what it was called with.

    Without logits all points pass.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray | None, list[np.ndarray]]] = []

    def __call__(self, logits: np.ndarray | None, points: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.calls.append((logits, list(points)))
        if logits is None:
            return list(points)
        assert len(logits) == len(points)
        return [rows[self.above(map_, rows)] for map_, rows in zip(logits, points, strict=True)]

    @staticmethod
    def above(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x, y = (rows[:, i].astype(int) * SMALL // SIDE for i in range(2))
        return logits[y, x] > 0


class PointMethod(nn.Module):
    """Stage one trains the convolution on slices; stage two the weight of the points on pairs, which must agree."""

    def __init__(self, distill: str = "local") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = False
        self.needs, self.distiller, self.distill = Needs(points=True), Sieve(), distill
        self.backbone = nn.Identity()
        self.body, self.norm = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.weight = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)
        self.judged: list[tuple[tuple[str, ...], bool, bool]] = []
        self.seen: list[Batch] = []
        self.predicted: list[Batch] = []

    def stages(self, config: RunConfig) -> list[Stage]:
        first = ParamGroup((*self.body.parameters(), *self.norm.parameters()))
        pairs = Stage("points", (ParamGroup((self.weight,)),), 0.5, begins="best", batches="pairs")
        if self.distill == "none":
            return [pairs]
        return [Stage("prior", (first,), 0.5), pairs]

    def begin(self, stage: Stage, augmented: bool) -> None:
        self.frozen = stage.batches == "pairs"
        self.train(self.training)

    def train(self, mode: bool = True) -> PointMethod:
        super().train(mode)
        self.norm.train(mode and not self.frozen)
        return self

    def saliency(self, batch: Batch) -> Tensor:
        self.judged.append((batch.ids, self.training, torch.is_grad_enabled()))
        return F.adaptive_avg_pool2d(self.norm(self.body(batch.images)), SMALL)[:, 0]

    def forward(self, batch: Batch) -> Tensor:
        maps = self.norm(self.body(batch.images))
        if batch.points is None:
            return maps
        spots = torch.zeros_like(maps)
        for spot, points in zip(spots, batch.points, strict=True):
            x, y = (points[:, i].long().clamp(0, SIDE - 1) for i in range(2))
            spot[0, y, x] = 4.0
        return self.drop(maps.detach()) + self.weight * F.avg_pool2d(spots, 5, 1, 2)

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if self.training:
            self.seen.append(batch)
        assert batch.masks is not None
        loss = F.binary_cross_entropy_with_logits(output, batch.masks.float())
        if batch.following is None:
            return {"loss": loss}
        here = batch.following >= 0
        psc = (output[here] - output[batch.following[here]]).abs().mean() if here.any() else loss * 0
        return {"loss": loss + 0.1 * psc, "psc": psc}

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        self.predicted.append(batch)
        return self.forward(batch)


def make_config(data: Path, **settings: Any) -> RunConfig:
    """Two stages of two epochs each; keys such as ``train__lr``."""
    values: dict[str, Any] = {
        "data.path": str(data),
        "split.val": 0.34,
        "split.test": 0.0,
        "backbone.name": "tiny",
        "backbone.input_size": SIDE,
        "backbone.statistics": "sam",
        "augment.policy": "affine",
        "augment.flip": 0.0,
        "augment.rotate": 0.0,
        "train.epochs": 4,
        "train.batch_size": 8,
        "train.lr": 0.02,
        "train.schedule": "plateau",
        "train.validate_epochs": 1,
        "train.save_every": 0,
        "train.pictures_every": 0,
        "train.accelerator": "cpu",
        "model.distill": "local",
    }
    return configuration.from_dict(values | {k.replace("__", "."): v for k, v in settings.items()}, method="spd")


class Run:
    """A finished training: its method, the rows of its log and what was said."""

    def __init__(self, config: RunConfig, folder: Path, resume: bool = False, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.method = PointMethod(config.model.distill)

        def heard(progress: Any) -> None:
            self.lines.append(progress.message)
            if stop_after is not None and progress.item == f"step {stop_after}" and progress.message[:4] == "loss":
                import signal

                signal.raise_signal(signal.SIGINT)

        dataset = find_cases(config.data)
        split, _ = choose_split(dataset, config, folder)
        self.data = read_data(dataset, split, config, self.method.needs, SIDE)
        with Display("training", heard) as display:
            fit(config, self.method, self.data, folder, display, resume=resume)
        self.rows = read(folder / "log.csv")

    def said(self, part: str) -> list[str]:
        """The lines that hold ``part``."""
        return [line for line in self.lines if part in line]
