"""A method with supports that can be understood: an object is what is about as bright as under the support masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from samsans.config import BackboneConfig, DataConfig, RunConfig
from samsans.data.classes import write_classes
from samsans.data.splits import Split
from samsans.inference import Segmenter
from samsans.methods.support import Bank
from samsans.ops.timing import Timer
from samsans.types import Batch, ClassInfo, Needs

DISC_CUP = (ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,)))


@dataclass(frozen=True, kw_only=True)
class LevelBank(Bank):
    """levels: ``(K, N)`` median normalised grey under each mask, NaN where a mask is empty."""

    format: ClassVar[str] = "levels"

    levels: Tensor


class Threshold(nn.Module):
    """Logit ``10 * (0.25 - distance to the nearest support level)``, the grey level being the mean of the channels."""

    needs = Needs(supports=True)

    def __init__(self, size: int = 32, weights: str = "w", bank_per_image: bool = False) -> None:
        super().__init__()
        self.bank_per_image = bank_per_image
        self.backbone = SimpleNamespace(input_size=size, base_hash="base")
        self.weights, self.timer, self.batches = weights, Timer(), []

    def fingerprint(self) -> str:
        return self.weights

    def encode_support(self, batch: Batch) -> LevelBank:
        grey = batch.images.mean(1, keepdim=True).expand(batch.masks.shape)
        levels = grey.where(batch.masks, torch.nan).flatten(2).nanmedian(2).values
        return LevelBank(levels=levels, objects=batch.objects, ids=batch.ids, weights=self.weights)

    def load_support(self, path: str) -> LevelBank:
        return LevelBank.load(path).require(self.weights)

    def predict(self, batch: Batch, support: LevelBank | list[LevelBank] | None = None) -> Tensor:
        assert batch.masks is None
        assert support is not None
        banks = support if isinstance(support, list) else [support] * len(batch.ids)
        self.batches.append((len(batch.ids), banks[0].ids))
        with self.timer("decode"):
            return torch.stack([self.logits(*pair) for pair in zip(batch.images, banks, strict=True)])

    @staticmethod
    def logits(image: Tensor, bank: LevelBank) -> Tensor:
        away = (image.mean(0) - bank.levels[:, :, None, None]).abs().nan_to_num(99.0)  # (K, N, S, S)
        return 10 * (0.25 - away.min(0).values)


def run_config(data: Path | str = "", **values: Any) -> RunConfig:
    """A configuration with ``k_test`` as its only model option."""
    model = dataclasses.make_dataclass("Model", [("k_test", int, 8)])()
    model.k_test = values.pop("k_test", 8)
    data_config = DataConfig(path=str(data), **values.pop("data", {}))
    return RunConfig(method="threshold", backbone=BackboneConfig(name="tiny"), data=data_config, model=model, **values)


def segmenter(
    classes: Sequence[ClassInfo] = DISC_CUP, size: int = 32, run: Path | None = None, **values: Any
) -> Segmenter:
    weights = values.pop("weights", "w")
    return Segmenter(Threshold(size, weights), run_config(**values), classes, run=run, device="cpu")


def picture(seed: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image ``(H, W, 3)`` uint8 and its mask: a disc (1) of grey 120 with a cup (2) of 220 on grey 20."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = height / 2 + rng.integers(-4, 5), width / 2 + rng.integers(-4, 5)
    away = np.hypot(y - cy, x - cx)
    mask = np.zeros((height, width), np.uint8)
    mask[away < 12], mask[away < 6] = 1, 2
    grey = np.array([20, 120, 220], np.uint8)[mask]
    return np.repeat(grey[..., None], 3, axis=2), mask


def write_pictures(folder: Path, count: int, *, labels: bool = True, sizes: bool = False) -> Path:
    """``images/c0.png`` ... and ``labels/``; with ``sizes`` of different sizes."""
    (folder / "images").mkdir(parents=True)
    if labels:
        (folder / "labels").mkdir()
    for i in range(count):
        image, mask = picture(i, 40 + 3 * i * sizes, 48 + i * sizes)
        Image.fromarray(image).save(folder / f"images/c{i}.png")
        if labels:
            Image.fromarray(mask).save(folder / f"labels/c{i}.png")
    return folder


def write_run(folder: Path, train: Sequence[str], classes: Sequence[ClassInfo] = DISC_CUP) -> Path:
    """What inference reads of a run folder besides configuration and weights."""
    folder.mkdir(parents=True)
    Split(tuple(train)).save(folder / "split.json")
    write_classes(folder / "classes.json", classes)
    return folder


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))
