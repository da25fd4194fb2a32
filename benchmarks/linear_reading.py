"""What a backbone's embedding says without any training: masks read from it by ridge regression, from few images.

    python benchmarks/linear_reading.py DATA --backbones samsans-small,small-scratch

DATA holds the sets of ``three_sets.yaml``.  Of each backbone and set: the mean Dice of its objects on the test images
that show them, and in how many directions the embedding varies (participation ratio of its covariance).  The sixteenth
parts of a token are told apart; the threshold of each object is the best one on the training images.  Everything is our
decision.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from samsans.backbones import load_backbone
from samsans.benchmark.shots import nested
from samsans.config import BackboneConfig, DataConfig, SplitConfig
from samsans.data.cases import find_cases
from samsans.data.slices import SliceDataset
from samsans.data.splits import make_split
from samsans.data.transforms import Preprocess
from samsans.metrics.overlap import dice

PARTS = 4  # of a token's side
RIDGE = 10.0
THRESHOLDS = torch.linspace(0.05, 0.6, 12)


def read(path: Path, data: dict[str, Any], split: dict[str, Any], shots: int, side: int) -> list[tuple[Tensor, Tensor]]:
    """Images ``(n, 3, S, S)`` float and shares of objects ``(n, N, S / 4, S / 4)``, to learn from and to test on."""
    cases = find_cases(DataConfig(path=str(path), **data))
    whole = make_split(cases, SplitConfig(**{"val": 0.0} | split))
    few = nested(whole.train, {case.id: case.patient for case in cases.cases}, (shots,), 0)[shots]
    found, preprocess = [], Preprocess(side)
    for ids in (few, whole.test):
        slices = list(SliceDataset(cases, ids, preprocess))
        images = torch.stack([preprocess.normalize(one.image) for one in slices])
        found.append((images, F.avg_pool2d(torch.stack([one.masks.float() for one in slices]), 4)))
    return found


@torch.no_grad()
def embed(sam: Any, images: Tensor) -> Tensor:
    """``(n, g, g, C)`` float32."""
    return torch.cat([sam.encode(some).features for some in images.split(16)]).permute(0, 2, 3, 1)


def directions(features: Tensor) -> float:
    """Participation ratio of the covariance of all tokens."""
    tokens = features.flatten(0, 2)
    power = torch.linalg.svdvals(tokens - tokens.mean(0)).square()
    return float(power.sum().square() / power.square().sum())


def reading(seen: Tensor, shares: Tensor, unseen: Tensor, wanted: Tensor) -> float:
    """Mean Dice of the objects on unseen images."""
    mean, deviation = seen.flatten(0, 2).mean(0), seen.flatten(0, 2).std(0) + 1e-6

    def rows(features: Tensor) -> Tensor:
        tokens = (features.flatten(0, 2) - mean) / deviation
        return torch.cat([tokens, torch.ones(len(tokens), 1)], 1)

    x, y = rows(seen), F.pixel_unshuffle(shares, PARTS).permute(0, 2, 3, 1).flatten(0, 2)
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)

    def maps(features: Tensor) -> Tensor:
        return F.pixel_shuffle((rows(features) @ weights).unflatten(0, features.shape[:3]).permute(0, 3, 1, 2), PARTS)

    first, second, scores = maps(seen), maps(unseen), []
    for k in range(shares.shape[1]):
        truth, there = shares[:, k] > 0.5, wanted[:, k] > 0.5
        shown = there.flatten(1).any(1)
        if truth.any() and shown.any():
            best = max(THRESHOLDS, key=lambda t: dice((first[:, k] > t).numpy(), truth.numpy()))
            found = zip((second[shown, k] > best).numpy(), there[shown].numpy(), strict=True)
            scores.append(np.mean([dice(*pair) for pair in found]))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbones", default="samsans-small,small-scratch")
    parser.add_argument("--shots", type=int, default=16, help="training images")
    args = parser.parse_args()
    sets = yaml.safe_load((Path(__file__).parent / "three_sets.yaml").read_text())["sets"]
    for name in args.backbones.split(","):
        sam = load_backbone(BackboneConfig(name=name)).eval()
        for place, asked in sets.items():
            (images, shares), (others, wanted) = read(
                args.data / place, asked["data"], asked["split"], args.shots, sam.input_size
            )
            seen, unseen = embed(sam, images), embed(sam, others)
            score = reading(seen, shares, unseen, wanted)
            print(f"{name:20} {place:22} Dice {score:.3f}, {directions(seen):5.1f} directions", flush=True)


if __name__ == "__main__":
    main()
