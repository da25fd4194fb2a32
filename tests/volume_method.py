"""A small method that sees volumes, and volumes to train it on: two bright blocks of different levels in noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_files import nifti
from samsans import config as configuration
from samsans import zoo
from samsans.config import RunConfig
from samsans.types import Batch, Needs, ParamGroup, Stage


@dataclass
class VolumeConfig:
    """Options of the method.

    Args:
        width: Channels.
    """

    width: int = 8


PRESETS: dict[str, dict[str, Any]] = {"small": {"backbone": {"name": "tiny"}}}


def patch_side(config: RunConfig) -> int:
    return config.backbone.input_size or 64


class VolumeMethod(nn.Module):
    """Two 3D convolutions; the scores are the softmax over background and objects."""

    needs = Needs(volumes=True, exclusive=True)

    def __init__(self, size: Sequence[int], width: int, objects: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = tuple(size)
        self.backbone = SimpleNamespace(input_size=size[-1], name="none", base_hash="none", from_scratch=True)
        self.first, self.last = nn.Conv3d(1, width, 3, padding=1), nn.Conv3d(width, objects + 1, 1)

    def stages(self, config: RunConfig) -> list[Stage]:
        return [Stage("all", (ParamGroup(tuple(self.parameters())),))]

    def forward(self, batch: Batch) -> Tensor:
        assert batch.images.shape[2:] == self.size
        return self.last(torch.relu(self.first(batch.images)))

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        assert batch.masks is not None
        labels = (batch.masks * torch.arange(1, batch.masks.shape[1] + 1).view(1, -1, 1, 1, 1)).sum(1)
        return {"loss": F.cross_entropy(output, labels)}

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        return self.forward(batch).float().softmax(1)


def build(config: RunConfig, objects: tuple[str, ...]) -> VolumeMethod:
    assert config.patches.size is not None
    return VolumeMethod(config.patches.size, config.model.width, len(objects))


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``volumetric`` be asked for by name."""
    entry = zoo.MethodEntry(
        "volumetric", "A test", "", "volume_method", "volume_method:VolumeConfig", ("small",), "A test"
    )
    monkeypatch.setitem(zoo.METHODS, "volumetric", entry)


def settings(data: Path, **options: Any) -> RunConfig:
    """A short run on the CPU; patches of 16 pixels a side."""
    values: dict[str, Any] = {"data.path": str(data), "backbone.input_size": 16, "train.accelerator": "cpu"}
    values |= {"data.classes": {"cube": [1], "rod": [2]}, "split.val": 0.25, "train.batch_size": 2}
    values |= {"train.steps": 6, "train.pictures_every": 0, "train.optimizer": "adamw", "train.lr": 0.03}
    values |= {"train.warmup": 0, "patches.per_epoch": 3}
    return configuration.from_dict(values | options, method="volumetric")


def volume_set(root: Path, count: int = 4, dtype: Any = np.int16) -> Path:
    """Volumes of about 10 slices of 20 x 24 voxels, 3 mm thick, with a cube (value 1) and a rod (value 2)."""
    for number in range(count):
        rng = np.random.default_rng(number)
        labels = np.zeros((10 + number % 2, 20, 24), np.uint8)
        z, y, x = rng.integers(1, 4), rng.integers(1, 8), rng.integers(1, 6)
        labels[z : z + 4, y : y + 6, x : x + 6] = 1
        labels[2:9, y + 4 : y + 9, 16:21] = 2
        image = 100 + 100 * labels.astype(np.float64) + rng.normal(0, 8, labels.shape)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nifti(root / "images" / f"p{number}.nii.gz", image.astype(dtype), affine)
        nifti(root / "labels" / f"p{number}.nii.gz", labels, affine)
    return root
