"""Batches of neighbouring slices with their points, for methods that compare what they say about both.

Stateless, as the sources of ``episodes``: a batch depends on the seed, the step and the rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from samsans.config import AugmentConfig
from samsans.data.augment import augment_together
from samsans.data.episodes import BatchSource, plain_batch
from samsans.data.slices import SliceDataset
from samsans.data.transforms import inside
from samsans.errors import InputError
from samsans.types import Batch

GAP = 1.5  # times the median distance of slices: more is a gap (section 2 of the specification)

Prompts = Callable[[str, int], Sequence[np.ndarray]]


def boundaries(positions: Sequence[float]) -> tuple[int, ...]:
    """The slices of a stack that no slice precedes: 0, and those behind a gap, where positions along the stack are
    known to be more than 1.5 times as far apart as the median."""
    steps = np.abs(np.diff(np.asarray(positions, np.float64)))
    return (0, *(np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist()) if len(steps) else (0,)


def stretches(positions: Sequence[float], depth: int) -> list[range]:
    """The ``depth`` slices of a volume in runs without a gap; one run where no positions are known."""
    if positions and len(positions) != depth:
        raise InputError(f"{len(positions)} positions of {depth} slices", "one a slice")
    starts = [*(boundaries(positions) if positions else (0,)), depth]
    return [range(a, b) for a, b in pairwise(starts) if b > a]


def next_slices(slices: SliceDataset) -> np.ndarray:
    """``(len,)`` int64: which slice of ``slices`` follows in the same case, -1 for none.

    None follows the last one, one whose follower was left out (``split.slices``), and one before a gap: where stacked
    files state their numbers, volumes being cut along the stack.
    """
    index = {place: i for i, place in enumerate(slices.places)}
    along = [case for case in slices.cases if case.positions and slices.depths.get(case.id) == len(case.positions)]
    gaps = {case.id: set(boundaries(case.positions)) for case in along}
    follows = [
        -1 if number + 1 in gaps.get(case, ()) else index.get((case, number + 1), -1) for case, number in slices.places
    ]
    return np.array(follows, np.int64)


class NeighbourSource:
    """Batches of pairs: slices ``t`` in the order of ``BatchSource``, each with the next slice of its volume.

    The first ``batch_size`` images of a batch are the slices drawn.  Behind them stand those of their next slices that
    were not drawn themselves, each once.  ``following`` names the next slice of every slice drawn; of the images behind
    it is -1, as where there is none.  Every slice is in a batch once, unless a batch straddles two epochs.

    prompts: points of a case in an epoch, ``(K, 3)`` of each of its slices: x, y in model pixels and the label.
    Slices that are linked are moved by the same draw of ``augmentation``, masks and points with them; points that
    leave the image are dropped.

    Raises InputError as ``BatchSource`` and ``augment_together`` do.
    """

    def __init__(
        self,
        slices: SliceDataset,
        batch_size: int,
        augmentation: AugmentConfig,
        prompts: Prompts,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        self.slices = slices
        self.prompts = prompts
        self.augmentation = augmentation
        self._order = BatchSource(slices, batch_size, augmentation, seed, foreground)
        self._next = next_slices(slices)
        self._kept: dict[tuple[str, int], Sequence[np.ndarray]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one process that pass once over the training slices."""
        return self._order.steps_per_epoch

    def epoch(self, step: int, world: int = 1) -> int:
        """The epoch whose points a step is given: that of its first slice."""
        return step * world * self._order.batch_size // self._order.count

    def draw(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Indices ``(B,)`` of a step's images and ``following`` ``(B,)``."""
        drawn = [int(i) for i in self._order.draw(step, rank, world)]
        place: dict[int, int] = {}
        for position, index in enumerate(drawn):
            place.setdefault(index, position)
        images = list(drawn)
        following = []
        for index in drawn:
            after = int(self._next[index])
            if after >= 0 and after not in place:
                place[after] = len(images)
                images.append(after)
            following.append(place[after] if after >= 0 else -1)
        return np.array(images), np.array(following + [-1] * (len(images) - len(drawn)))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """``Batch`` with masks, ``points`` and ``following``."""
        indices, following = self.draw(step, rank, world)
        rng = np.random.default_rng([self._order.seed, 3, step, rank])
        epoch = self.epoch(step, world)
        points = points_of(self.slices, indices, lambda case: self._points(case, epoch))
        return _moved_batch(self.slices, indices, points, following, self.augmentation, rng)

    def _points(self, case: str, epoch: int) -> Sequence[np.ndarray]:
        """Points of a case; those of this epoch and the one before are kept."""
        key = (case, epoch)
        if key not in self._kept:
            self._kept = {k: v for k, v in self._kept.items() if epoch - 1 <= k[1] <= epoch}
            self._kept[key] = self.prompts(case, epoch)
        return self._kept[key]


def points_of(
    slices: SliceDataset, indices: Sequence[int] | np.ndarray, prompts: Callable[[str], Sequence[np.ndarray]]
) -> tuple[Tensor, ...]:
    """Points ``(K, 3)`` float32 of some slices, out of those of their whole cases."""
    places = [slices.places[int(i)] for i in indices]
    found = {case: prompts(case) for case in dict.fromkeys(case for case, _ in places)}
    arrays = (np.asarray(found[case][number], np.float32).reshape(-1, 3) for case, number in places)
    return tuple(torch.from_numpy(array.copy()) for array in arrays)


def pointed_batch(
    slices: SliceDataset, indices: Sequence[int] | np.ndarray, prompts: Callable[[str], Sequence[np.ndarray]]
) -> Batch:
    """Those slices as one batch with their points, unchanged; ``following`` between them."""
    place: dict[int, int] = {}
    for position, index in enumerate(indices):
        place.setdefault(int(index), position)
    following = [place.get(int(n), -1) for n in next_slices(slices)[np.asarray(indices)]]
    batch = plain_batch(slices, indices)
    return replace(batch, points=points_of(slices, indices, prompts), following=torch.tensor(following))


def _moved_batch(
    slices: SliceDataset,
    indices: np.ndarray,
    points: Sequence[Tensor],
    following: np.ndarray,
    augmentation: AugmentConfig,
    rng: np.random.Generator,
) -> Batch:
    items = [slices[int(i)] for i in indices]
    valid = torch.tensor([item.valid for item in items], dtype=torch.int64)
    images, masks = torch.stack([item.image for item in items]), torch.stack([item.masks for item in items])
    images, masks, points = augment_together(images, masks, points, _linked(following), augmentation, rng)
    kept = tuple(p[(p[:, :2] < v.flip(0) - 0.5).all(1)] for p, v in zip(points, valid, strict=True))
    return Batch(
        slices.preprocess.normalize(images, valid),
        masks & inside(valid, images.shape[-1])[:, None],
        tuple(item.id for item in items),
        slices.objects,
        None,
        valid,
        points=kept,
        following=torch.from_numpy(following),
    )


def _linked(following: np.ndarray) -> list[int]:
    """A number for every image, the same of all that are linked."""
    group = list(range(len(following)))
    for here, there in enumerate(following):
        if there >= 0:
            old, new = group[there], group[here]
            group = [new if g == old else g for g in group]
    return group
