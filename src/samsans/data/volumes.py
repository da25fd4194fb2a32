"""Whole volumes, prepared for networks that see 3D patches: the plan of a training set, and its volumes on that grid.

As nnU-Net does it: a common voxel size, a fixed patch, intensities by modality.  Unlike nnU-Net, volumes are not
cropped to what is not zero, and the slice axis is that of all our methods (``DataConfig.slice_axis``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from samsans.cache import GIB, Cache
from samsans.config import PatchConfig, SliceAxis
from samsans.data.cases import Dataset, require_same_grid
from samsans.data.classes import disjoint_classes
from samsans.data.grids import ANISOTROPIC, Grid
from samsans.data.layouts import read_dataset_json
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.types import Case, ClassInfo, Volume

Channels = Sequence[int] | Literal["auto"]

DEEPEST = 16  # slices of a planned patch at most
HOUNSFIELD = -500  # whole numbers below this in most cases: CT (our decision)
SAMPLED = 20_000  # voxels of objects read of each case for the statistics of CT
PLACES = 10_000  # voxels of each object remembered of each volume, to centre patches on


@dataclass(frozen=True)
class PreparedVolume:
    """A case on the planned grid.

    image: ``(C, D, H, W)`` float32, normalised.  labels: ``(D, H, W)`` uint8, 0 background, 1..N the objects.
    places: of each object, up to 10 000 of its voxels, ``(n, 3)`` int32, evenly spread.
    """

    image: np.ndarray
    labels: np.ndarray
    places: tuple[np.ndarray, ...]
    id: str
    patient: str


@dataclass(frozen=True)
class _Survey:
    """spacing, shape: canonical.  hounsfield: whether values look like CT.  values: ``(n, C)`` of objects."""

    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    hounsfield: bool
    values: np.ndarray


def plan(
    dataset: Dataset,
    ids: Sequence[str],
    patches: PatchConfig,
    side: int,
    slice_axis: SliceAxis | int = "auto",
    channels: Channels = "auto",
) -> PatchConfig:
    """What ``patches`` leaves open, from the training cases ``ids``; nothing is read where nothing is open.

    spacing: the median along each axis.  Along an axis more than 3 times as coarse as the others and with less than a
        third of their voxels, the 10th percentile, but more than the others (nnU-Net's rule).
    size: the median depth on that grid, at most 16 slices, and ``side`` rows and columns.
    intensity: as ``dataset.json`` names the channels (see ``named_intensity``); where it names none, ct if most cases
        hold whole numbers below -500, else zscore (our decision).
    statistics: of ct, for each channel: percentiles 0.5 and 99.5, mean and deviation of the objects' voxels, of which
        at most 20 000 a case are taken.

    Raises InputError where a given value cannot be used, or there is no object to take statistics of.
    """
    _require_usable(patches, side)
    if patches.intensity == "auto":
        patches = replace(patches, intensity=named_intensity(dataset, channels) or "auto")
    open_ = patches.intensity == "auto" or (patches.intensity == "ct" and patches.statistics is None)
    if patches.spacing is not None and patches.size is not None and not open_:
        return patches
    if not ids:
        raise InputError("no training case to plan patches from", "at least one")
    read = [_survey(dataset, dataset.by_id(id), slice_axis, channels, values=open_) for id in ids]
    spacing = patches.spacing
    if spacing is None:
        spacing = target_spacing([s.spacing for s in read], [s.shape for s in read])
    size = patches.size
    if size is None:
        depths = [round(s.shape[0] * s.spacing[0] / spacing[0]) for s in read]
        size = [min(max(int(np.median(depths)), 1), DEEPEST), side, side]
    intensity, statistics = patches.intensity, patches.statistics
    if intensity == "auto":
        intensity = "ct" if 2 * sum(s.hounsfield for s in read) > len(read) else "zscore"
    if intensity == "ct" and statistics is None:
        statistics = _statistics(np.concatenate([s.values for s in read]))
    if intensity == "zscore":
        statistics = None
    return replace(patches, spacing=spacing, size=size, intensity=intensity, statistics=statistics)


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> list[float]:
    """Voxel size ``(z, y, x)`` for volumes of these voxel sizes and shapes, see ``plan``."""
    target, size = np.median(spacings, 0), np.median(shapes, 0)
    coarse = int(target.argmax())
    others, fine = np.delete(target, coarse), np.delete(size, coarse)
    if target[coarse] > ANISOTROPIC * others.max() and size[coarse] * ANISOTROPIC < fine.min():
        tenth = np.percentile(np.array(spacings)[:, coarse], 10)
        target[coarse] = max(tenth, others.max() + 1e-5)
    return [round(float(v), 6) for v in target]


def prepare(
    volume: Volume, patches: PatchConfig, slice_axis: SliceAxis | int = "auto", channels: Channels = "auto"
) -> tuple[np.ndarray, Grid, Orientation]:
    """An image as a network sees it: ``(C, D, H, W)`` float32 on the planned grid, that grid, and its orientation."""
    orientation = Orientation.of(volume, slice_axis)
    image = normalize(pick(orientation.to_slices(volume.array), channels), patches)
    assert patches.spacing is not None
    grid = Grid.of(image.shape[1:], orientation.spacing, patches.spacing)
    return grid.to_target(image), grid, orientation


def pick(array: np.ndarray, channels: Channels) -> np.ndarray:
    """The channels ``(D, H, W, C)`` a network sees of ``(D, H, W, there)``; ``auto``: the only one, or grey as RGB."""
    there = array.shape[-1]
    if channels == "auto":
        grey = there == 3 and all(np.array_equal(array[..., 0], array[..., c]) for c in (1, 2))
        if there != 1 and not grey:
            raise InputError(
                f"the image has {there} channels", "one", "Pick those to see with data.channels, e.g. [0, 1, 2]"
            )
        return array[..., :1]
    if not channels or not all(0 <= c < there for c in channels):
        raise InputError(
            f"data.channels is {list(channels)}, the image has {there} channels", f"numbers from 0 to {there - 1}"
        )
    return array[..., list(channels)]


def normalize(array: np.ndarray, patches: PatchConfig) -> np.ndarray:
    """``(C, D, H, W)`` float32 from ``(D, H, W, C)`` in native values, as ``patches.intensity`` says.

    zscore: less the mean of the volume, by its deviation.  ct: clipped, less mean and by deviation of the statistics.
    Values that are not finite count as the lowest one that is.  Raises InputError where none is.
    """
    out = np.empty((array.shape[3], *array.shape[:3]), np.float32)
    if patches.intensity == "zscore":
        for c, channel in enumerate(out):
            channel[...] = _finite(array[..., c])
            mean, deviation = channel.mean(dtype=np.float64), channel.std(dtype=np.float64)
            channel -= mean
            channel /= max(deviation, 1e-8)
        return out
    known = patches.statistics or []
    if len(known) != 4 * len(out):
        raise InputError(
            f"patches.statistics holds {len(known)} numbers for {len(out)} channels",
            "low, high, mean and deviation of each channel",
        )
    for c, channel in enumerate(out):
        low, high, mean, deviation = known[4 * c : 4 * c + 4]
        np.clip(_finite(array[..., c]), low, high, out=channel, casting="unsafe")
        channel -= mean
        channel /= max(deviation, 1e-8)
    return out


def _finite(values: np.ndarray) -> np.ndarray:
    """The same values, those that are not finite replaced by the lowest one that is."""
    there = np.isfinite(values)
    if there.all():
        return values
    if not there.any():
        raise InputError("the image has no finite value")
    return np.where(there, values, values[there].min())


def label_map(labels: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """uint8 label map of 0 and 1..N, the position of each of the disjoint ``classes``, from file values."""
    out = np.zeros(labels.shape, np.uint8)
    for number, info in enumerate(classes, 1):
        out[np.isin(labels, info.values)] = number
    return out


class VolumeDataset(Sequence[PreparedVolume]):
    """The cases ``ids`` of ``dataset`` in canonical orientation on the planned grid, normalised.

    patches: a plan, with spacing and intensity.  cache_gb: memory for prepared volumes, in GiB; volumes that do not fit
    are read and resampled again whenever they are asked for.  Nothing is read before the first use.  Objects are made
    disjoint (``disjoint_classes``); the masks are those of the first annotator (decision D-25).

    Raises InputError that names the file where one is damaged, has no mask or one on another grid.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        patches: PatchConfig,
        *,
        slice_axis: SliceAxis | int = "auto",
        cache_gb: float = 2.0,
        channels: Channels = "auto",
    ) -> None:
        if patches.spacing is None or patches.intensity == "auto":
            raise InputError("patches without spacing or intensity", "a plan", "Plan them first")
        if len(dataset.classes) > np.iinfo(np.uint8).max:
            raise InputError(f"{len(dataset.classes)} objects", "at most 255")
        self.dataset = dataset
        self.cases = tuple(dataset.by_id(id) for id in ids)
        self.classes = disjoint_classes(dataset.classes)
        self.patches = patches
        self.slice_axis = slice_axis
        self.channels = channels
        self._cache = Cache(int(cache_gb * GIB))

    @property
    def objects(self) -> tuple[str, ...]:
        """The N object names."""
        return tuple(c.name for c in self.classes)

    @property
    def ids(self) -> tuple[str, ...]:
        """Case of every volume."""
        return tuple(case.id for case in self.cases)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of every volume."""
        return tuple(case.patient for case in self.cases)

    @cached_property
    def voxels(self) -> np.ndarray:
        """``(len, N + 1)`` int64: native voxels of background and of each object in every volume; reads the masks."""
        count = len(self.classes) + 1
        maps = (label_map(self.dataset.read_labels(case).array, self.classes) for case in self.cases)
        rows = [np.bincount(found.ravel(), minlength=count) for found in maps]
        return np.array(rows, np.int64).reshape(len(self), count)

    @property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which volume shows which object."""
        return self.voxels[:, 1:] > 0

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        prepared = self._cache.get(index)
        if prepared is None:
            prepared = self._prepare(self.cases[index])
            size = prepared.image.nbytes + prepared.labels.nbytes + sum(p.nbytes for p in prepared.places)
            self._cache.put(index, prepared, size)
        return prepared

    def _prepare(self, case: Case) -> PreparedVolume:
        volume, drawn = self.dataset.read_image(case), self.dataset.read_labels(case)
        require_same_grid(case, volume, drawn)
        try:
            image, grid, orientation = prepare(volume, self.patches, self.slice_axis, self.channels)
        except InputError as error:
            raise InputError(f"{case.images[0]}: {error}") from error
        labels = grid.labels_to_target(label_map(orientation.to_slices(drawn.array), self.classes))
        places = tuple(_places(labels == number) for number in range(1, len(self.classes) + 1))
        return PreparedVolume(image, labels, places, case.id, case.patient)


def _places(mask: np.ndarray) -> np.ndarray:
    """At most ``PLACES`` voxels of a mask, evenly spread over them, ``(n, 3)`` int32."""
    found = np.flatnonzero(mask)
    if len(found) > PLACES:
        found = found[np.linspace(0, len(found) - 1, PLACES).round().astype(np.int64)]
    return np.stack(np.unravel_index(found, mask.shape), 1).astype(np.int32)


def _survey(dataset: Dataset, case: Case, slice_axis: SliceAxis | int, channels: Channels, *, values: bool) -> _Survey:
    volume = dataset.read_image(case)
    orientation = Orientation.of(volume, slice_axis)
    shape = tuple(volume.shape[axis] for axis in orientation.axes)
    if not values:
        return _Survey(orientation.spacing, shape, False, np.zeros((0, 1), np.float32))
    drawn = dataset.read_labels(case)
    require_same_grid(case, volume, drawn)
    try:
        image = pick(volume.array, channels)
    except InputError as error:
        raise InputError(f"{case.images[0]}: {error}") from error
    inside = np.flatnonzero(np.isin(drawn.array, [v for info in dataset.classes for v in info.values]))
    if len(inside) > SAMPLED:
        inside = inside[np.linspace(0, len(inside) - 1, SAMPLED).round().astype(np.int64)]
    sample = image.reshape(-1, image.shape[-1])[inside].astype(np.float32)
    return _Survey(orientation.spacing, shape, hounsfield(image), sample)


def named_intensity(dataset: Dataset, channels: Channels = "auto") -> Literal["ct", "zscore"] | None:
    """What the ``dataset.json`` of nnU-Net or the Decathlon says: ct where each channel that is seen is called CT.

    zscore for all other names; ``None`` where no channel is named.
    """
    described = read_dataset_json(dataset.root)
    names = described.get("channel_names", described.get("modality"))
    if not isinstance(names, Mapping) or not names:
        return None
    seen = list(names.values()) if channels == "auto" else [names.get(str(channel)) for channel in channels]
    return "ct" if all(str(name).casefold() == "ct" for name in seen) else "zscore"


def hounsfield(image: np.ndarray) -> bool:
    """Whether the values look like Hounsfield units: whole, signed, and as low as air."""
    if image.dtype.kind == "u" or image.min() >= HOUNSFIELD:
        return False
    return image.dtype.kind == "i" or bool((image == np.rint(image)).all())


def _statistics(values: np.ndarray) -> list[float]:
    if len(values) == 0:
        raise InputError(
            "no training case shows an object, so that CT has no statistics",
            "masks that hold the values of the objects",
            "Run `samsans check`, or give patches.statistics",
        )
    out: list[float] = []
    for channel in values.T.astype(np.float64):
        low, high = np.percentile(channel, (0.5, 99.5))
        out += [round(float(v), 4) for v in (low, high, channel.mean(), channel.std())]
    return out


def _require_usable(patches: PatchConfig, side: int) -> None:
    """InputError that names the first value no patches can have."""
    spacing, size = patches.spacing, patches.size
    rules = {
        "spacing": (spacing is None or (len(spacing) == 3 and min(spacing) > 0), "three lengths above 0: z, y, x"),
        "size": (
            size is None or (len(size) == 3 and size[0] >= 1 and size[1:] == [side, side]),
            f"slices, {side} rows and {side} columns, as backbone.input_size (and model.upsample) have it",
        ),
        "statistics": (
            patches.statistics is None or (len(patches.statistics) > 0 and len(patches.statistics) % 4 == 0),
            "low, high, mean and deviation of each channel",
        ),
        "foreground": (0 <= patches.foreground <= 1, "a share from 0 to 1"),
        "per_epoch": (patches.per_epoch >= 1, "at least 1"),
        "overlap": (0 <= patches.overlap < 1, "a share, below 1"),
    }
    for name, (usable, wanted) in rules.items():
        if not usable:
            raise InputError(f"patches.{name} is {getattr(patches, name)}", wanted)
