"""Every slice of every case, prepared for a network, with a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samsans.data.cases import Dataset, require_same_grid
from samsans.data.classes import class_masks
from samsans.data.transforms import Levels, Preprocess
from samsans.io.orientation import Orientation
from samsans.types import Case

GIB = 1 << 30


@dataclass(frozen=True)
class Slice:
    """One slice as a network sees it.

    image: ``(3, S, S)`` uint8.  masks: ``(N, S, S)`` bool, all ``False`` where the case has no mask.
    valid: height and width of the image part of S x S.  id: ``case``, or ``case#012`` of a volume.
    present: which of the N objects it shows.
    """

    image: Tensor
    masks: Tensor
    valid: tuple[int, int]
    id: str
    patient: str
    present: tuple[bool, ...]


@dataclass(frozen=True)
class _Entry:
    """Where a slice is found: ``index`` of ``depth`` slices of ``case``."""

    case: Case
    index: int
    depth: int
    present: tuple[bool, ...]

    @property
    def id(self) -> str:
        return self.case.id if self.depth == 1 else f"{self.case.id}#{self.index:03d}"


@dataclass(frozen=True)
class _Decoded:
    """A case in canonical orientation: image ``(D, H, W, C)``, labels ``(D, H, W)`` or ``None``, grey levels."""

    image: np.ndarray
    labels: np.ndarray | None
    levels: Levels


class _Cache:
    """The most recently used values, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        if size > self.limit or key in self._values:
            return
        self._values[key] = value, size
        self.used += size
        while self.used > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.used -= freed


class SliceDataset(Sequence[Slice]):
    """The slices of the cases ``ids`` of ``dataset``, in canonical orientation, prepared by ``preprocess``.

    slice_axis: see ``DataConfig``.  cache_gb: memory for decoded volumes and prepared slices, in GiB.
    The masks are those of the first annotator (decision D-25).  Nothing is read before the first use; the first
    ``len`` reads the masks (images where there is no mask) to learn which slice shows which object.

    Raises InputError that names the file where one is damaged or a mask is not on the grid of its image.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        preprocess: Preprocess,
        *,
        slice_axis: Literal["auto", "0", "1", "2"] | int = "auto",
        cache_gb: float = 2.0,
    ) -> None:
        known = {case.id: case for case in dataset.cases}
        self.cases = tuple(known[id] if id in known else dataset.by_id(id) for id in ids)
        self.dataset = dataset
        self.preprocess = preprocess
        self.slice_axis: Literal["auto"] | int = "auto" if slice_axis == "auto" else int(slice_axis)
        self._cache = _Cache(int(cache_gb * GIB))

    @property
    def objects(self) -> tuple[str, ...]:
        """The N object names."""
        return tuple(c.name for c in self.dataset.classes)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Name of every slice: ``case``, or ``case#012`` of a volume."""
        return tuple(e.id for e in self._entries)

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """Patient of every slice."""
        return tuple(e.case.patient for e in self._entries)

    @cached_property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which slice shows which object, after resizing."""
        return np.array([e.present for e in self._entries], bool).reshape(len(self), len(self.objects))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        prepared = self._cache.get(index)
        if prepared is None:
            prepared = self._prepare(self._entries[index])
            self._cache.put(index, prepared, prepared.image.nbytes + prepared.masks.nbytes)
        return prepared

    @cached_property
    def _entries(self) -> tuple[_Entry, ...]:
        return tuple(entry for case in self.cases for entry in self._scan(case))

    def _scan(self, case: Case) -> list[_Entry]:
        """The slices of a case, and the objects each shows, from its mask where it has one."""
        classes = self.dataset.classes
        if not case.labels:
            volume = self.dataset.read_image(case)
            depth = Orientation.of(volume, self.slice_axis).to_slices(volume.array).shape[0]
            return [_Entry(case, i, depth, (False,) * len(classes)) for i in range(depth)]
        drawn = self.dataset.read_labels(case)
        ungrounded = drawn.affine is None and drawn.shape[0] > 1 and not case.stacked
        volume = (
            self.dataset.read_image(case) if ungrounded else drawn
        )  # a mask without geometry lies as its image does
        labels = Orientation.of(volume, self.slice_axis).to_slices(drawn.array)
        shown = np.any(class_masks(self.preprocess.sample(labels), classes), axis=(2, 3))
        depth = labels.shape[0]
        return [_Entry(case, i, depth, tuple(flags)) for i, flags in enumerate(shown.T.tolist())]

    def _decode(self, case: Case) -> _Decoded:
        decoded = self._cache.get(case.id)
        if decoded is not None:
            return decoded
        volume = self.dataset.read_image(case)
        orientation = Orientation.of(volume, self.slice_axis)
        labels = None
        if case.labels:
            drawn = self.dataset.read_labels(case)
            require_same_grid(case, volume, drawn)
            labels = orientation.to_slices(drawn.array)
        decoded = _Decoded(orientation.to_slices(volume.array), labels, self.preprocess.levels(volume.array))
        if decoded.image.shape[0] > 1:
            size = decoded.image.nbytes + (0 if labels is None else labels.nbytes)
            self._cache.put(case.id, decoded, size)
        return decoded

    def _prepare(self, entry: _Entry) -> Slice:
        decoded = self._decode(entry.case)
        picture = decoded.image[entry.index]
        side = self.preprocess.input_size
        if decoded.labels is None:
            masks = torch.zeros(len(self.objects), side, side, dtype=torch.bool)
        else:
            masks = self.preprocess.labels(class_masks(decoded.labels[entry.index], self.dataset.classes))
        image = self.preprocess.image(picture, decoded.levels)
        valid = self.preprocess.valid(*picture.shape[:2])
        return Slice(image, masks, valid, entry.id, entry.case.patient, entry.present)
