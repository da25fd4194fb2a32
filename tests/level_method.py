"""Methods of volumes that can be understood: a voxel's score of a class is the higher the nearer it is to its level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from samsans.config import BackboneConfig, PatchConfig, RunConfig
from samsans.inference import Segmenter
from samsans.types import Batch, ClassInfo, Needs

ORGANS = (ClassInfo("liver", 1, (1,)), ClassInfo("spleen", 2, (2,)))
LEVELS = (0.0, 0.4, 0.9)  # background, liver, spleen, for intensities that are shown as they are
AS_IT_IS = {"intensity": "ct", "statistics": [-1e6, 1e6, 0.0, 1.0]}


class Levels(nn.Module):
    """Scores ``1 / (0.01 + distance)`` to levels, voxel by voxel; ``sided``: and the more the further right."""

    needs = Needs(volumes=True)

    def __init__(self, levels: Sequence[float], sided: bool = False) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(input_size=16, base_hash="base")
        self.levels, self.sided = torch.tensor(levels), sided
        self.seen: list[Batch] = []

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        assert support is None
        self.seen.append(batch)
        scores = 1 / (0.01 + (batch.images - self.levels[:, None, None, None]).abs())
        return scores * torch.linspace(0.2, 1, scores.shape[-1]) if self.sided else scores


class Prompted(Levels):
    """Answers with the true masks it is given."""

    needs = Needs(volumes=True, labels_at_predict=True)

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        assert batch.masks is not None
        self.seen.append(batch)
        return torch.cat([~batch.masks.any(1, keepdim=True), batch.masks], 1).float()


def segmenter(
    method: nn.Module | None = None,
    classes: Sequence[ClassInfo] = ORGANS,
    *,
    size: Sequence[int] = (3, 8, 8),
    spacing: Sequence[float] = (2, 1, 1),
    **patches: Any,
) -> Segmenter:
    """A segmenter of such a method, patches of ``size`` on a grid of ``spacing``."""
    model = dataclasses.make_dataclass("Model", [])()
    planned = PatchConfig(spacing=list(spacing), size=list(size), **(AS_IT_IS | patches))
    config = RunConfig(method="levels", backbone=BackboneConfig(name="tiny"), patches=planned, model=model)
    return Segmenter(Levels(LEVELS) if method is None else method, config, classes, device="cpu")
