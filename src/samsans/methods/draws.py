"""What methods share that draw several answers: Gaussians, noise that a seed decides, the annotation of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samsans.methods.classes import true_masks
from samsans.types import Batch


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions of ``C`` coordinates for ``B`` images; both ``(B, C)`` float32."""

    mean: Tensor
    log_sigma: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """``(B, K, C)`` draws, of standard normal ``noise`` ``(B, K, C)``, with gradients."""
        return self.mean[:, None] + self.log_sigma.exp()[:, None] * noise

    def divergence(self, prior: Gaussian) -> Tensor:
        """KL divergence ``(B,)`` of this distribution from ``prior``, summed over coordinates."""
        ratio = 2 * (self.log_sigma - prior.log_sigma)
        apart = (self.mean - prior.mean).square() * (-2 * prior.log_sigma).exp()
        return 0.5 * (ratio.exp() + apart - 1 - ratio).sum(1)


def seeded_noise(seeds: Sequence[int], count: int, width: int) -> Tensor:
    """``(B, count, width)`` standard normal numbers; each image's depend on its seed, and fewer begin as more do."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.stack([torch.randn(width, generator=generator) for _ in range(count)]))
    return torch.stack(rows)


def all_annotations(batch: Batch) -> Tensor:
    """``(B, A, S, S)`` bool of the one object; the mask alone where the data has one annotator."""
    return true_masks(batch) if batch.annotations is None else batch.annotations[:, :, 0]


def choose(annotations: Tensor, drawn: Tensor | None = None, empty: bool = False) -> Tensor:
    """One annotation of each image, ``(B, S, S)`` bool of ``(B, A, S, S)``, uniformly over those that show something.

    drawn: ``(B, A)`` bool, which of them there are; default: all.  empty: those without any pixel are chosen as well.
    They are too where an image has no other: a lesion may have left the image by augmentation.
    """
    there = annotations.new_ones(annotations.shape[:2]) if drawn is None else drawn
    chances = there.float()
    if not empty:
        shown = chances * annotations.flatten(2).any(2)
        chances = torch.where(shown.any(1, keepdim=True), shown, chances)
    picked = torch.multinomial(chances, 1)[:, 0]
    return annotations[torch.arange(len(picked), device=picked.device), picked]
