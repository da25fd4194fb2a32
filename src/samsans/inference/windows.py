"""Sliding windows over volumes: where they start, how they are weighted, and scores that stream out slice by slice.

Windows go from the first slice to the last.  A slice that no later window touches is finished and leaves at once, so
that only as many slices of scores exist as a window has, however deep the volume is.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.errors import InputError

Size = tuple[int, int, int]
Score = Callable[[Tensor], Tensor]  # windows (B, C, T, H, W) to scores (B, K, T, H, W) float32

AXES = (-3, -2, -1)  # depth, height, width
CENTRE = 10.0  # weight of the voxel in the middle of a window; only ratios matter


def starts(length: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Where windows of ``patch`` voxels start along an axis of ``length`` (at least ``patch``), spread evenly.

    nnU-Net's rule: ``n = ceil((L - P) / (P (1 - overlap))) + 1`` windows, which start at ``i (L - P) / (n - 1)``
    rounded, halves to even.
    """
    room = length - patch
    count = math.ceil(room / (patch * (1 - overlap)) - 1e-9) + 1  # a rounding error is no reason for another window
    return tuple(round(i * room / (count - 1)) for i in range(count)) if count > 1 else (0,)


def gaussian(patch: Size) -> Tensor:
    """Weights ``(T, H, W)`` float32 of a window's voxels: a Gaussian of deviation P / 8 along every axis.

    As in nnU-Net, the middle is the voxel P // 2, and a weight of 0 is replaced by the smallest that is not.
    """
    t, h, w = (torch.exp(-0.5 * ((torch.arange(p) - p // 2) * (8 / p)) ** 2) for p in patch)
    weights = CENTRE * t[:, None, None] * h[:, None] * w
    return weights.clamp_min(weights[weights > 0].min())


def padding(size: Size, patch: Size) -> tuple[int, int, int, int, int, int]:
    """Voxels to add left, right, at the top, the bottom, before and behind: the volume is in the middle of the patch.

    In the order of ``torch.nn.functional.pad``; of an odd number the larger half comes after.
    """
    (t, h, w) = (max(0, p - n) for n, p in zip(size, patch, strict=True))
    return w // 2, w - w // 2, h // 2, h - h // 2, t // 2, t - t // 2


def mirrored(score: Score) -> Score:
    """``score`` as the mean over the eight mirrorings of the windows, each mirrored back (section 15)."""

    def mean(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for count in range(len(AXES) + 1):
            for axes in itertools.combinations(AXES, count):
                answer = score(windows.flip(axes)).flip(axes)
                total = answer if total is None else total + answer
        assert total is not None
        return total / 2 ** len(AXES)

    return mean


@dataclass(frozen=True)
class Windows:
    """The windows over a volume of ``size`` slices, rows and columns.

    patch: of a window.  overlap: of neighbours, as a share of it.  batch_size: windows that are scored together.
    Raises InputError where windows of this patch and overlap cannot cover a volume.
    """

    size: Size
    patch: Size
    overlap: float = 0.5
    batch_size: int = 1

    def __post_init__(self) -> None:
        if min(self.patch) < 1 or not 0 <= self.overlap < 1:
            raise InputError(
                f"windows of {self.patch} voxels that overlap by {self.overlap}",
                "at least one voxel along each axis, and an overlap from 0 to below 1",
                "Correct patches.size or patches.overlap",
            )

    @property
    def padded(self) -> Size:
        """The size with what is added to volumes thinner than a window."""
        d, h, w = (max(n, p) for n, p in zip(self.size, self.patch, strict=True))
        return d, h, w

    @property
    def places(self) -> list[Size]:
        """First voxel of every window in the padded volume, by depth."""
        z, y, x = (starts(n, p, self.overlap) for n, p in zip(self.padded, self.patch, strict=True))
        return list(itertools.product(z, y, x))

    def slide(self, volume: Tensor, score: Score, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """The weighted mean of the windows' scores, one slice ``(K, h, w)`` float32 on ``device`` at a time, in order.

        volume: ``(C, d, h, w)`` of ``size``; zeros are added around what is thinner than a window.
        score: called with windows ``(B, C, T, H, W)`` on ``device``, B at most ``batch_size``.
        """
        pad = padding(self.size, self.patch)
        left, _, top, _, front, _ = pad
        depth, height, width = self.size
        padded = F.pad(volume, pad) if any(pad) else volume
        sums = _Sums(self.padded, gaussian(self.patch).to(device))
        for index, finished in enumerate(self._finished(padded, score, sums, device)):
            if front <= index < front + depth:
                yield finished[:, top : top + height, left : left + width]

    def _finished(self, volume: Tensor, score: Score, sums: _Sums, device: torch.device | str) -> Iterator[Tensor]:
        """Every slice of the padded volume, as soon as the last window over it is scored."""
        places, (t, h, w) = self.places, self.patch
        for first in range(0, len(places), self.batch_size):
            some = places[first : first + self.batch_size]
            cut = [volume[:, z : z + t, y : y + h, x : x + w] for z, y, x in some]
            for scores, place in zip(score(torch.stack(cut).to(device)), some, strict=True):
                yield from sums.before(place[0])
                sums.add(scores, place)
        yield from sums.before(self.padded[0])


class _Sums:
    """Weighted sums of scores, and sums of the weights, of as many slices as a window has.

    size: of the volume.  weights: ``(T, H, W)`` of a window.
    """

    def __init__(self, size: Size, weights: Tensor) -> None:
        self.plane, self.weights = size[1:], weights
        self._next = 0  # the slice that leaves next
        self._slices: deque[tuple[Tensor, Tensor]] = deque()

    def add(self, scores: Tensor, place: Size) -> None:
        """Add the scores ``(K, T, H, W)`` of the window at ``place``; its first slice is the one that leaves next."""
        _, y, x = place
        _, h, w = self.weights.shape
        while len(self._slices) < len(self.weights):
            self._slices.append((scores.new_zeros(len(scores), *self.plane), scores.new_zeros(self.plane)))
        for (total, seen), part, weight in zip(self._slices, scores.unbind(1), self.weights, strict=True):
            total[:, y : y + h, x : x + w] += part * weight
            seen[y : y + h, x : x + w] += weight

    def before(self, index: int) -> Iterator[Tensor]:
        """Take the slices ``(K, h, w)`` before ``index`` out, divided by their weights."""
        while self._next < index:
            total, seen = self._slices.popleft()
            self._next += 1
            yield total.div_(seen)
