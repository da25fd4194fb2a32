"""Batches of a step: episodes with supports, or plain batches.

Stateless: a batch depends on the seed, the step and the rank alone, so that a resumed run needs nothing but the number
of its step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from samsans.config import AugmentConfig, EpisodeConfig
from samsans.data.augment import augment
from samsans.data.slices import Slice, SliceDataset
from samsans.data.synthetic import synthetic_masks
from samsans.data.transforms import inside
from samsans.errors import InputError
from samsans.types import Batch


class EpisodeSource:
    """Episodes of support and target slices (section 4 of the Proxy Prompt paper; decisions D-20 and D-22).

    An episode holds ``config.images`` slices; each of its targets is segmented with all the others as supports.

    - Slices of volumes come with 1, 2 or 4 supports, drawn for every episode (decision D-21).
    - A training set of no more slices than that is taken whole: leave-one-out over all, as in the paper.
    - Else the slices are of different patients, and show one of the objects asked for where their patient has such a
      slice; every second target is any slice of its patient, so that empty targets occur (our decision).
    - With fewer patients than slices, targets are of different patients and all the others of patients who are no
      target's: no target is segmented with its own patient.  There may then be fewer targets than asked for.
      A single patient cannot be kept apart from himself: then any slices are taken.
    - With ``config.balance`` one of the objects asked for is drawn, and patients who show it are half of an episode, as
      far as there are such (our option: a rare object otherwise hardly ever meets a support that shows it).

    Raises InputError where there are fewer than two slices, or no objects.
    """

    def __init__(self, slices: SliceDataset, config: EpisodeConfig, augmentation: AugmentConfig, seed: int = 0) -> None:
        if len(slices) < 2:
            raise InputError(
                f"{len(slices)} training slices", "at least 2: a target and a support", "Add annotated images"
            )
        _require_objects(slices)
        if config.images < 2 or not 1 <= config.targets <= config.images:
            raise InputError(
                f"episodes of {config.images} images with {config.targets} targets",
                "at least 2 images, and 1 to that many targets",
            )
        self.slices = slices
        self.config = config
        self.augmentation = augmentation
        self.seed = seed
        groups: dict[str, list[int]] = {}
        for index, patient in enumerate(slices.patients):
            groups.setdefault(patient, []).append(index)
        self._volumes = len(slices) > len(slices.cases)
        self._groups = [np.array(group) for group in groups.values()]

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many targets were drawn as there are training slices."""
        return -(-len(self.slices) // self.config.targets)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The episode of a step: ``Batch`` with ``targets``, the masks of the objects drawn, and their names."""
        rng = np.random.default_rng([self.seed, step, rank])
        chosen = self._objects(rng)
        indices, targets = self.draw(chosen, rng)
        items = [self.slices[i] for i in indices]
        images, masks, valid = _stack(items)
        images, masks = augment(images, masks, self.augmentation, rng)
        if rng.random() < self.config.synthetic:
            masks = synthetic_masks(images, masks, rng)
            count = masks.shape[1]
            objects = ("synthetic",) if count == 1 else tuple(f"synthetic_{i + 1}" for i in range(count))
        else:
            masks = masks[:, torch.from_numpy(chosen)]
            objects = tuple(self.slices.objects[i] for i in chosen)
        ids = tuple(s.id for s in items)
        masks = masks & inside(valid, images.shape[-1])[:, None]
        shown = self.slices.preprocess.normalize(images, valid)
        return Batch(shown, masks, ids, objects, torch.from_numpy(targets), valid)

    def _objects(self, rng: np.random.Generator) -> np.ndarray:
        """All objects, or with probability ``object_subset`` a uniformly drawn proper subset (decision D-20)."""
        count = len(self.slices.objects)
        if count == 1 or rng.random() >= self.config.object_subset:
            return np.arange(count)
        while True:  # every subset is equally likely: one fair coin an object, the empty and the full set are refused
            coins = rng.random(count) < 0.5
            if 0 < coins.sum() < count:
                return np.flatnonzero(coins)

    def draw(self, objects: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Slices of an episode about ``objects``: indices ``(M,)`` and which of them are targets ``(T,)``, in order."""
        wanted, patients = self.config.images, len(self._groups)
        if self._volumes and self.config.volume_supports:
            wanted = 1 + int(rng.choice(self.config.volume_supports))
        targets = min(self.config.targets, wanted)
        if len(self.slices) <= wanted:
            indices = rng.permutation(len(self.slices))
            return indices, np.sort(rng.permutation(len(indices))[:targets])
        shown = np.asarray(self.slices.present[:, objects].any(1))
        order = [self._groups[i] for i in rng.permutation(patients)]
        if self.config.balance:
            order = self._balanced(order, int(rng.choice(objects)), wanted)
        if patients == 1:
            pools = [_showing(order[0], shown)]
            indices = self._fill(pools, [order[0]], wanted, rng)
            return indices, np.sort(rng.permutation(len(indices))[:targets])
        apart = patients >= wanted
        count = targets if apart else min(targets, max(1, patients // 2))
        heads = [rng.choice(group if i % 2 == 0 else _showing(group, shown)) for i, group in enumerate(order[:count])]
        rest = order[count:wanted] if apart else order[count:]
        others = self._fill([_showing(g, shown) for g in rest], rest, wanted - count, rng)
        indices = np.concatenate([np.array(heads, int), others])
        mixed = rng.permutation(len(indices))
        return indices[mixed], np.flatnonzero(mixed < count)

    def _balanced(self, order: Sequence[np.ndarray], rare: int, wanted: int) -> list[np.ndarray]:
        """The patients with those who show the object ``rare`` as every second one, of whom only such slices stay."""
        showing = [group[self.slices.present[group, rare]] for group in order]
        first = [i for i, group in enumerate(showing) if len(group)][: (wanted + 1) // 2]
        others = [group for i, group in enumerate(order) if i not in first]
        mixed = [part for pair in zip_longest([showing[i] for i in first], others) for part in pair if part is not None]
        return mixed if first else list(order)

    @staticmethod
    def _fill(
        pools: Sequence[np.ndarray], groups: Sequence[np.ndarray], wanted: int, rng: np.random.Generator
    ) -> np.ndarray:
        """``wanted`` different slices spread evenly over the patients; first from ``pools``, then from ``groups``."""
        queues = []
        for pool, group in zip(pools, groups, strict=True):
            rest = np.setdiff1d(group, pool)
            queues.append([*rng.permutation(pool), *rng.permutation(rest)])
        longest = max((len(q) for q in queues), default=0)
        rounds = [q[i] for i in range(longest) for q in queues if i < len(q)]
        return np.array(rounds[:wanted], int)


class BatchSource:
    """Plain batches for methods without episodes: every slice once an epoch, in an order drawn from seed and epoch.

    All batches are full: the epochs' orders are laid end to end, and a batch may straddle two of them, where the
    published loaders end each epoch with a smaller batch.  Our decision: the steps of an epoch are as many, but where
    ``batch_size`` does not divide the slices, ``n`` epochs show up to ``n (batch_size - 1)`` slices more, less than one
    batch an epoch.

    foreground: least share of every batch that shows an object; slices that show none are replaced by ones that do.
    """

    def __init__(
        self,
        slices: SliceDataset,
        batch_size: int,
        augmentation: AugmentConfig,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        if len(slices) == 0 or batch_size < 1 or not 0 <= foreground <= 1:
            raise InputError(
                f"batches of {batch_size} from {len(slices)} slices, foreground {foreground}",
                "at least 1 of both, and a share from 0 to 1",
            )
        _require_objects(slices)
        self.slices = slices
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.foreground = foreground
        self.count = len(slices)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one process that pass once over the training slices."""
        return -(-self.count // self.batch_size)

    def first(self, count: int) -> BatchSource:
        """The same from the first ``count`` slices alone; from all where there are no more.

        Raises InputError where none of them shows an object.
        """
        fewer = copy.copy(self)
        fewer.count = min(count, self.count)
        if count < 1 or not self.slices.present[: fewer.count].any():
            raise InputError(
                f"the first {count} training slices show no object", "slices that do", "Learn from more slices"
            )
        return fewer

    def draw(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Indices ``(B,)`` of a step: the ``step``-th stretch of all epochs' orders laid end to end, shared by rank."""
        count = self.count
        places = (step * world + rank) * self.batch_size + np.arange(self.batch_size)
        orders = {
            int(e): np.random.default_rng([self.seed, 1, int(e)]).permutation(count) for e in set(places // count)
        }
        indices = np.array([orders[int(p // count)][p % count] for p in places])
        shown = np.asarray(self.slices.present[:count].any(1))
        lacking = np.flatnonzero(~shown[indices])
        missing = int(np.ceil(self.foreground * self.batch_size)) - int(shown[indices].sum())
        if missing > 0 and shown.any():
            rng = np.random.default_rng([self.seed, 2, step, rank])
            pool = np.setdiff1d(np.flatnonzero(shown), indices)
            pool = pool if len(pool) >= missing else np.flatnonzero(shown)
            indices[lacking[:missing]] = rng.choice(pool, missing, replace=len(pool) < missing)
        return indices

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """``Batch`` of ``batch_size`` slices with the masks of all objects (and all annotations), no ``targets``."""
        rng = np.random.default_rng([self.seed, 3, step, rank])
        return plain_batch(self.slices, self.draw(step, rank, world), self.augmentation, rng)


def plain_batch(
    slices: SliceDataset,
    indices: Sequence[int] | np.ndarray,
    augmentation: AugmentConfig | None = None,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Those slices as one batch without ``targets``, normalised, nothing being drawn on padding.

    augmentation: changed at random, by ``rng``; masks and annotations alike.  ``Batch.annotations`` and ``drawn`` are
    there where ``slices`` reads all annotators.
    """
    items = [slices[int(i)] for i in indices]
    images, masks, valid = _stack(items)
    drawn = [s.drawn for s in items if s.drawn is not None]
    annotated = [s.annotations for s in items if s.annotations is not None]
    annotations = torch.stack(annotated) if annotated else masks[:, None]
    if augmentation is not None:
        assert rng is not None
        images, packed = augment(images, annotations.flatten(1, 2), augmentation, rng)  # annotators as channels
        annotations = packed.reshape(annotations.shape)
    annotations = annotations & inside(valid, images.shape[-1])[:, None, None]
    batch = Batch(
        slices.preprocess.normalize(images, valid),
        annotations[:, 0],
        tuple(s.id for s in items),
        slices.objects,
        None,
        valid,
    )
    return replace(batch, annotations=annotations, drawn=torch.stack(drawn)) if drawn else batch


def _require_objects(slices: SliceDataset) -> None:
    if not slices.objects or not slices.present.any():
        names = ", ".join(slices.objects) or "none"
        raise InputError(
            f"no training slice shows an object (objects: {names})",
            "masks that hold their values",
            "Run `samsans check` and give data.classes",
        )


def _showing(group: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The slices of a patient that show what is asked for; all of them where none does."""
    kept = group[shown[group]]
    return kept if len(kept) else group


def _stack(items: Sequence[Slice]) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.stack([s.image for s in items])
    masks = torch.stack([s.masks for s in items])
    return images, masks, torch.tensor([s.valid for s in items], dtype=torch.int64)
