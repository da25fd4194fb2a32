"""3D patches of prepared volumes: random ones to learn from, and the one in the middle of the objects to look at.

Stateless, as all our batches: a patch depends on the seed, the step and the rank alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.config import AugmentConfig, PatchConfig
from samsans.data.policies3d import intensities, mirrored, place, require_policy
from samsans.data.volumes import PreparedVolume, VolumeDataset
from samsans.errors import InputError
from samsans.types import Batch


class PatchSource:
    """Batches of random patches, of volumes drawn with equal chances (nnU-Net's rules).

    The last of a step's patches, over all processes, are centred on a voxel of an object of their volume, every object
    that it shows being equally likely: as many as ``patches.foreground`` asks for, halves rounded to even.  A step of a
    single patch centres it with that probability (our decision).  All others lie anywhere inside.  Volumes thinner than
    a patch lie in its middle, in zeros and background; so does what random changes bring in from outside.

    Raises InputError where no volume shows an object, or the random changes are not for patches.
    """

    def __init__(
        self,
        volumes: VolumeDataset,
        patches: PatchConfig,
        batch_size: int,
        augmentation: AugmentConfig,
        seed: int = 0,
    ) -> None:
        if len(volumes) == 0 or batch_size < 1:
            raise InputError(f"batches of {batch_size} from {len(volumes)} volumes", "at least 1 of both")
        if not volumes.objects or not volumes.present.any():
            raise InputError(
                f"no training volume shows an object (objects: {', '.join(volumes.objects) or 'none'})",
                "masks that hold their values",
                "Run `samsans check` and give data.classes",
            )
        require_policy(augmentation)
        self.volumes = volumes
        self.size = patch_size(patches)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.foreground = patches.foreground
        self.seed = seed
        self._per_epoch = patches.per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: as many as ``patches.per_epoch``, for any number of processes."""
        return self._per_epoch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The patches of a step for one of ``world`` processes: ``Batch`` of ``needs.volumes`` with disjoint masks."""
        rng = np.random.default_rng([self.seed, 4, step, rank])
        images, labels, ids = [], [], []
        for index in range(self.batch_size):
            volume: PreparedVolume = self.volumes[int(rng.integers(len(self.volumes)))]
            start = self._start(volume, self._forced(index, rank, world, rng), rng)
            image, drawn = read_patch(volume, start, self.size, place(self.augmentation, rng))
            image = intensities(image, self.augmentation, rng)
            axes = mirrored(self.augmentation, rng)
            images.append(image.flip([axis + 1 for axis in axes]))
            labels.append(drawn.flip(axes))
            ids.append(volume.id)
        return as_batch(images, labels, ids, self.volumes.objects)

    def _forced(self, index: int, rank: int, world: int, rng: np.random.Generator) -> bool:
        total = self.batch_size * world
        if total == 1:
            return bool(rng.random() < self.foreground)
        return rank * self.batch_size + index >= round(total * (1 - self.foreground))

    def _start(self, volume: PreparedVolume, forced: bool, rng: np.random.Generator) -> tuple[int, ...]:
        shape = volume.labels.shape
        shown = [places for places in volume.places if len(places)]
        if forced and shown:
            places = shown[int(rng.integers(len(shown)))]
            return around(places[int(rng.integers(len(places)))], shape, self.size)
        room = [max(n - p, 0) for n, p in zip(shape, self.size, strict=True)]
        anywhere = [int(rng.integers(r + 1)) + p // 2 for r, p in zip(room, self.size, strict=True)]
        return around(anywhere, shape, self.size)


class MiddlePatches:
    """One patch of every volume, in the middle of what its objects span; unchanged by augmentation."""

    def __init__(self, volumes: VolumeDataset, patches: PatchConfig) -> None:
        self.volumes = volumes
        self.size = patch_size(patches)

    @property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which volume shows which object."""
        return self.volumes.present

    @property
    def class_pixels(self) -> np.ndarray:
        """``(N + 1,)`` int64: native voxels of background and of each object in all volumes."""
        return self.volumes.voxels.sum(0)

    def __len__(self) -> int:
        return len(self.volumes)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The patches of those volumes, with masks."""
        volumes = [self.volumes[i] for i in indices]
        read = [read_patch(v, around(_middle(v), v.labels.shape, self.size), self.size) for v in volumes]
        return as_batch([r[0] for r in read], [r[1] for r in read], [v.id for v in volumes], self.volumes.objects)


def patch_size(patches: PatchConfig) -> tuple[int, int, int]:
    """Slices, rows and columns of planned patches."""
    if patches.size is None:
        raise InputError("patches without a size", "a plan", "Plan them first")
    t, h, w = patches.size
    return t, h, w


def around(centre: Sequence[int] | np.ndarray, shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """First voxel of the patch about ``centre`` that does not leave the volume; negative along axes it exceeds."""
    return tuple(
        -((p - n) // 2) if n <= p else min(max(int(c) - p // 2, 0), n - p)
        for c, n, p in zip(centre, shape, size, strict=True)
    )


def read_patch(
    volume: PreparedVolume, start: Sequence[int], size: Sequence[int], theta: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Image ``(C, T, H, W)`` float32 and labels ``(T, H, W)`` uint8 from ``start``; zeros outside the volume.

    theta: see ``policies3d.place``.  Moved images are read bilinearly, labels at the nearest pixel.
    """
    t, h, w = size
    if theta is None:
        return torch.from_numpy(_cut(volume.image, start, size)), torch.from_numpy(_cut(volume.labels, start, size))
    reach = np.abs(theta[:, :2]).sum(1) + np.abs(theta[:, 2])  # of the corners, x and y, in halves of the patch
    right, down = (max(0, math.ceil((r - 1) * n / 2) + 1) for r, n in zip(reach, (w, h), strict=True))
    place, span = (start[0], start[1] - down, start[2] - right), (t, h + 2 * down, w + 2 * right)
    image, labels = (torch.from_numpy(_cut(a, place, span)) for a in (volume.image, volume.labels))
    grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, h, w], align_corners=False)
    grid = grid * torch.tensor([w / span[2], h / span[1]])
    planes = image.reshape(1, -1, *span[1:])
    moved = F.grid_sample(planes, grid, mode="bilinear", align_corners=False).reshape(len(image), t, h, w)
    drawn = F.grid_sample(labels[None].float(), grid, mode="nearest", align_corners=False)[0]
    return moved, drawn.to(torch.uint8)


def as_batch(images: Sequence[Tensor], labels: Sequence[Tensor], ids: Sequence[str], objects: Sequence[str]) -> Batch:
    """Images ``(C, T, H, W)`` and labels ``(T, H, W)`` of 0..N as a batch of ``needs.volumes``."""
    numbers = torch.arange(1, len(objects) + 1).view(1, -1, 1, 1, 1)
    masks = torch.stack(list(labels))[:, None] == numbers
    return Batch(torch.stack(list(images)).contiguous(), masks, tuple(ids), tuple(objects))


def _cut(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The block of the last three axes at ``start``, zero outside; a copy."""
    out = np.zeros((*array.shape[:-3], *size), array.dtype)
    spans = [(max(s, 0), min(s + p, n)) for s, p, n in zip(start, size, array.shape[-3:], strict=True)]
    if all(low < high for low, high in spans):
        (z, y, x), (a, b, c) = start, (slice(*span) for span in spans)
        inside = out[..., a.start - z : a.stop - z, b.start - y : b.stop - y, c.start - x : c.stop - x]
        inside[...] = array[..., a, b, c]
    return out


def _middle(volume: PreparedVolume) -> tuple[int, ...]:
    """The middle of what the objects span, or of the volume where there is none."""
    places = np.concatenate(volume.places) if volume.places else np.zeros((0, 3), np.int32)
    if len(places) == 0:
        return tuple(n // 2 for n in volume.labels.shape)
    return tuple(int(m) for m in (places.min(0) + places.max(0) + 1) // 2)
