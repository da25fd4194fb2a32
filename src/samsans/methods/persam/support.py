"""What PerSAM keeps of annotated images: a mean feature of every object, and how SAM's three masks are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.methods.support import Bank


@dataclass(frozen=True, kw_only=True)
class PersamBank(Bank):
    """K encoded support pairs for N objects.

    means: ``(K, N, C)`` float32, the mean feature under each mask, 0 where the pair does not show the object.
    present: ``(K, N)`` bool, whether it does.
    mixture: ``(K, N, 2)`` float32, PerSAM-F: weights of SAM's first two masks, learned on the pair; else a third.
    keys: ``(K, T, C)`` float32 support features, and visible: ``(K, T)`` bool, which of them are image and not padding:
    for choosing pairs that look like a target, no more.
    """

    format: ClassVar[str] = "samsans-persam-1"

    means: Tensor
    present: Tensor
    mixture: Tensor
    keys: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Concept:
    """What N objects look like, for each of B images.

    direction: ``(B, N, C)``, whose product with the unit vector of a feature is their likeness.  target: ``(B, N, C)``,
    the mean feature itself.  mixture: ``(B, N, 2)``.  known: ``(B, N)`` bool, whether any support shows the object.
    """

    direction: Tensor
    target: Tensor
    mixture: Tensor
    known: Tensor

    @classmethod
    def of_pairs(cls, bank: PersamBank) -> Self:
        """What each pair shows by itself: B is K."""
        return cls(F.normalize(bank.means, dim=-1), bank.means, bank.mixture, bank.present)

    @classmethod
    def of_banks(cls, banks: Sequence[PersamBank]) -> Self:
        """What the pairs of each image's bank show: the mean of those that show the object.

        With several pairs the paper's mean feature becomes a mean over them, the likeness the mean of theirs (our
        decision: the paper has one).
        """
        every = [_mean_over_pairs(cls.of_pairs(bank)) for bank in banks]
        return cls(*(torch.stack(parts) for parts in zip(*every, strict=True)))


def _mean_over_pairs(pairs: Concept) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shown = pairs.known[..., None].float()
    share = shown / shown.sum(0).clamp_min(1)
    means = [(part * share).sum(0) for part in (pairs.direction, pairs.target, pairs.mixture)]
    return means[0], means[1], means[2], pairs.known.any(0)
