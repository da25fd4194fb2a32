"""Every slice of every case, prepared for a network, with a bounded cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.cache import GIB, Cache
from samsans.config import SliceAxis
from samsans.data.cases import Dataset, require_same_grid, slice_name
from samsans.data.classes import class_masks, disjoint_classes, value_counts
from samsans.data.transforms import Levels, Preprocess
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.types import Case, Volume


@dataclass(frozen=True)
class Slice:
    """One slice as a network sees it.

    image: ``(3, S, S)`` uint8.  masks: ``(N, S, S)`` bool, all ``False`` where the case has no mask.
    valid: height and width of the image part of S x S.  id: ``case``, or ``case#012`` of a volume.
    present: which of the N objects it shows, to any of the annotators that are read.
    annotations: ``(A, N, S, S)`` bool, what each annotator drew, empty beyond the case's own ones, and ``drawn``
        ``(A,)`` bool, which annotators the case has; ``None`` where only the first annotator is read.
    """

    image: Tensor
    masks: Tensor
    valid: tuple[int, int]
    id: str
    patient: str
    present: tuple[bool, ...]
    annotations: Tensor | None = None
    drawn: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of its pixels."""
        drawn = 0 if self.annotations is None else self.annotations.nbytes
        return self.image.nbytes + self.masks.nbytes + drawn


@dataclass(frozen=True)
class _Entry:
    """Where a slice is found: ``index`` of ``depth`` slices of ``case``; its pixels of background and each object by
    the first annotator; which objects it shows to anyone."""

    case: Case
    index: int
    depth: int
    pixels: tuple[int, ...]
    present: tuple[bool, ...]

    @property
    def id(self) -> str:
        return _name(self.case, self.index, self.depth)


def _name(case: Case, index: int, depth: int) -> str:
    return case.id if depth == 1 else slice_name(case.id, index)


@dataclass(frozen=True)
class _Decoded:
    """A case in canonical orientation: image ``(D, H, W, C)``, labels ``(D, H, W)`` by annotator, grey levels."""

    image: np.ndarray
    labels: tuple[np.ndarray, ...]
    levels: Levels | None


class SliceDataset(Sequence[Slice]):
    """The slices of the cases ``ids`` of ``dataset``, in canonical orientation, prepared by ``preprocess``.

    slice_axis: see ``DataConfig``.  cache_gb: memory for decoded volumes and prepared slices, in GiB.
    only: names of the only slices to keep; names of other cases than ``ids`` are passed over.
    shown: every slice asked for shows an object by definition, in its file's own pixels.
    foreground: keep only slices that show an object after resizing.
    draw: chooses at last, from the names of the slices that are left, those to keep.
    exclusive: masks do not overlap: an object loses the pixels of objects that lie inside it by definition.
    annotators: read what all annotators drew, A being the most that any case of ``dataset`` has; a slice then shows
        what any of them drew.  The masks are those of the first annotator (decision D-25) all the same.
    Nothing is read before the first use; the first ``len`` reads the masks (images where there is no mask) to learn
    which slice shows which object.

    Raises InputError that names the file where one is damaged or a mask is not on the grid of its image, the slices of
    ``only`` that are not there or show nothing although ``shown``, and the objects that cannot be made exclusive.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        preprocess: Preprocess,
        *,
        slice_axis: SliceAxis | int = "auto",
        cache_gb: float = 2.0,
        only: Collection[str] | None = None,
        shown: bool = False,
        foreground: bool = False,
        draw: Callable[[Sequence[str]], Collection[str]] | None = None,
        exclusive: bool = False,
        annotators: bool = False,
    ) -> None:
        known = {case.id: case for case in dataset.cases}
        self.cases = tuple(known[id] if id in known else dataset.by_id(id) for id in ids)
        self.dataset = dataset
        self.preprocess = preprocess
        self.slice_axis = slice_axis
        self.classes = disjoint_classes(dataset.classes) if exclusive else dataset.classes
        self._only = None if only is None else frozenset(only)
        self._shown = shown
        self._foreground = foreground
        self._draw = draw
        self.annotators = max((len(case.labels) for case in dataset.cases), default=0) if annotators else 0
        self._cache = Cache(int(cache_gb * GIB))

    @property
    def objects(self) -> tuple[str, ...]:
        """The N object names."""
        return tuple(c.name for c in self.classes)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Name of every slice: ``case``, or ``case#012`` of a volume."""
        return tuple(e.id for e in self._entries)

    @cached_property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Case id of every slice, and its number in the case."""
        return tuple((e.case.id, e.index) for e in self._entries)

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many slices each case has, kept or not."""
        return {e.case.id: e.depth for e in self._entries}

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """Patient of every slice."""
        return tuple(e.case.patient for e in self._entries)

    @cached_property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which slice shows which object, after resizing."""
        return np.array([e.present for e in self._entries], bool).reshape(len(self), len(self.objects))

    @cached_property
    def class_pixels(self) -> np.ndarray:
        """``(N + 1,)`` int64: pixels of background and of each object in all slices, as resized, padding not counted.

        Background is what belongs to no object.  Slices without a mask count nothing.
        """
        counts = np.array([e.pixels for e in self._entries], np.int64).reshape(len(self), len(self.objects) + 1)
        return counts.sum(0)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        prepared = self._cache.get(index)
        if prepared is None:
            prepared = self._prepare(self._entries[index])
            self._cache.put(index, prepared, prepared.nbytes)
        return prepared

    @property
    def notes(self) -> tuple[str, ...]:
        """How many slices ``foreground`` left out, for people; empty where none."""
        out = len(self._scanned) - sum(any(e.present) for e in self._scanned) if self._foreground else 0
        return (f"{out} of {len(self._scanned)} slices, on which nothing is drawn, are left out",) if out else ()

    @cached_property
    def _scanned(self) -> tuple[_Entry, ...]:
        return tuple(entry for case in self.cases for entry in self._scan(case))

    @cached_property
    def _entries(self) -> tuple[_Entry, ...]:
        entries = self._scanned
        if self._only is not None:
            self._require_found({e.id for e in entries})
        left = tuple(e for e in entries if any(e.present) or not self._foreground)
        if self._draw is None:
            return left
        drawn = frozenset(self._draw([e.id for e in left]))
        return tuple(e for e in left if e.id in drawn)

    def _require_found(self, found: set[str]) -> None:
        """InputError where ``only`` names slices that the cases do not have."""
        assert self._only is not None
        cases = {case.id for case in self.cases}
        lost = sorted(n for n in self._only - found if n in cases or n.rpartition("#")[0] in cases)
        if lost:
            raise InputError(
                f"{len(lost)} of the slices to keep are not in {self.dataset.root}: {', '.join(lost[:5])}",
                "slices named by case, or by case#number of a volume, numbered from 0 along data.slice_axis",
                "Check data.slice_axis and the list of slices (split.file or split.protocol)",
            )

    def _scan(self, case: Case) -> list[_Entry]:
        """The slices of a case that are to be kept, and the pixels of each, from its mask where it has one."""
        nothing = (0,) * (len(self.classes) + 1)
        if not case.labels:
            volume = self.dataset.read_image(case)
            depth = Orientation.of(volume, self.slice_axis).to_slices(volume.array).shape[0]
            absent = (False,) * len(self.classes)
            return [_Entry(case, i, depth, nothing, absent) for i in self._kept(case, depth)]
        drawn = [self._upright(case, labels) for labels in self._read(case)]
        depth = drawn[0].shape[0]
        for files, labels in zip(case.labels, drawn, strict=False):
            if labels.shape != drawn[0].shape:
                raise InputError(
                    f"{files[0]} has the size {labels.shape}, {case.labels[0][0]} {drawn[0].shape}",
                    "masks of one size by all annotators of a case",
                )
        kept = self._kept(case, depth)
        if self._shown:
            self._require_shown(case, drawn[0], kept)
        entries = []
        for i in kept:
            counts = [self._pixels(labels[i]) for labels in drawn]
            present = tuple(any(c[1 + n] > 0 for c in counts) for n in range(len(self.classes)))
            entries.append(_Entry(case, i, depth, counts[0], present))
        return entries

    def _read(self, case: Case) -> tuple[Volume, ...]:
        """The label maps of a case: those of all annotators, or the first one's."""
        return self.dataset.read_annotations(case) if self.annotators else (self.dataset.read_labels(case),)

    def _upright(self, case: Case, drawn: Volume) -> np.ndarray:
        """A label map in canonical orientation."""
        grounded = drawn.affine is not None or drawn.shape[0] == 1 or case.stacked or case.labels[0] == case.images
        volume = drawn if grounded else self.dataset.read_image(case)  # a mask without geometry lies as its image does
        return Orientation.of(volume, self.slice_axis).to_slices(drawn.array)

    def _kept(self, case: Case, depth: int) -> list[int]:
        """Which of the ``depth`` slices of a case are asked for."""
        return [i for i in range(depth) if self._only is None or _name(case, i, depth) in self._only]

    def _require_shown(self, case: Case, labels: np.ndarray, kept: Sequence[int]) -> None:
        """InputError where slices of ``only`` show no object: then they are cut or numbered in another way."""
        values = [v for info in self.classes for v in info.values]
        empty = [i for i in kept if not np.isin(labels[i], values).any()]
        if empty:
            names = ", ".join(_name(case, i, len(labels)) for i in empty[:5])
            raise InputError(
                f"{len(empty)} of the {len(kept)} listed slices of {case.labels[0][0]} show no object: {names}",
                "slices that all show one: the list names those alone",
                "Set data.slice_axis to the axis that the list counts along, check the order of the slices and "
                "data.classes",
            )

    def _pixels(self, labels: np.ndarray) -> tuple[int, ...]:
        """Pixels of background and of each object in a slice ``(H, W)`` of file values, as resized."""
        counts = value_counts(self.preprocess.sample(labels))
        covered = {v for info in self.classes for v in info.values}
        background = sum(n for value, n in counts.items() if value not in covered)
        return background, *(sum(counts.get(v, 0) for v in info.values) for info in self.classes)

    def _decode(self, case: Case) -> _Decoded:
        decoded = self._cache.get(case.id)
        if decoded is not None:
            return decoded
        volume = self.dataset.read_image(case)
        orientation = Orientation.of(volume, self.slice_axis)
        drawn = self._read(case) if case.labels else ()
        for files, map_ in zip(case.labels, drawn, strict=False):
            require_same_grid(replace(case, labels=(files,)), volume, map_)
        labels = tuple(orientation.to_slices(d.array) for d in drawn)
        decoded = _Decoded(orientation.to_slices(volume.array), labels, self.preprocess.levels(volume.array))
        if decoded.image.shape[0] > 1:
            self._cache.put(case.id, decoded, decoded.image.nbytes + sum(array.nbytes for array in labels))
        return decoded

    def _prepare(self, entry: _Entry) -> Slice:
        decoded = self._decode(entry.case)
        picture = decoded.image[entry.index]
        side = self.preprocess.input_size
        height, width = valid = self.preprocess.valid(*picture.shape[:2])
        annotations = torch.zeros(max(self.annotators, 1), len(self.objects), side, side, dtype=torch.bool)
        for mask, labels in zip(annotations, decoded.labels, strict=False):  # resized as values: one map instead of N
            sampled = self.preprocess.sample(labels[entry.index])
            mask[:, :height, :width] = torch.from_numpy(class_masks(sampled, self.classes))
        image = self.preprocess.image(picture, decoded.levels)
        plain = Slice(image, annotations[0], valid, entry.id, entry.case.patient, entry.present)
        if not self.annotators:
            return plain
        drawn = torch.arange(self.annotators) < len(decoded.labels)
        return replace(plain, annotations=annotations, drawn=drawn)
