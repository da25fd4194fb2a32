"""From a data set to batches.  The sample order is a function of the step, so a resumed run sees what it would have."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from samsans import config as configuration
from samsans import methods
from samsans.config import PatchConfig, RunConfig
from samsans.data import protocols
from samsans.data.cases import Dataset as Cases
from samsans.data.classes import read_classes, write_classes
from samsans.data.episodes import BatchSource, EpisodeSource
from samsans.data.neighbours import NeighbourSource
from samsans.data.patches import MiddlePatches, PatchSource
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split, few_slices, make_split
from samsans.data.transforms import Preprocess
from samsans.data.volumes import VolumeDataset, plan
from samsans.errors import InputError
from samsans.training.prepared import PreparedSlices
from samsans.training.prompts import PairPrompts
from samsans.types import Batch, Needs, Stage


class Source(Protocol):
    """Training batches without a state of their own."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one process that pass once over the training slices."""
        ...

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step for one of ``world`` processes; always the same one."""
        ...


class Slices(Protocol):
    """Prepared slices (or patches of volumes) with their masks."""

    @property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which slice shows which object."""
        ...

    @property
    def class_pixels(self) -> np.ndarray:
        """``(N + 1,)`` int64: pixels of background and of each object in all slices."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those slices as one batch, unchanged by augmentation."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """All that a run reads: batches to learn from, the slices they are drawn from, held-out slices, object names.

    drawn: names of the training slices where a share of them was drawn, else empty.  notes: for people.
    """

    source: Source
    train: Slices
    val: Slices
    objects: tuple[str, ...]
    drawn: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_split(dataset: Cases, config: RunConfig, run: Path) -> tuple[Split, bool]:
    """The split, and whether it is complete, as the run folder holds it (of a run that is resumed).

    Else it is the one the configuration asks for, of which ``split.slice_share`` of the slices is still to be drawn.
    """
    written = run / "split.json"
    if written.is_file():
        return Split.load(written), True
    return make_split(dataset, config.split, config.seed), False


def read_data(
    dataset: Cases, split: Split, config: RunConfig, needs: Needs, input_size: int, *, complete: bool = False
) -> TrainingData:
    """Slices and batches of a split, for a network that sees ``input_size`` pixels a side.

    Training slices are drawn where ``split.slice_share`` asks for it, unless the split is ``complete``.  Held-out
    slices are prepared as in predicting, for which they choose the weights.  Slices on which no annotator drew anything
    are left out where the method learns from all of them, unless its ``train_on_empty`` says otherwise.  Where the
    method needs volumes, they are those of the split on the grid of ``config.patches``, which must be planned (see
    ``plan_patches``).
    """
    if needs.volumes:
        return _read_volumes(dataset, split, config)
    share, protocol = config.split.slice_share, config.split.protocol
    draw = None if share is None or complete else partial(few_slices, share=share, seed=config.seed)
    nonempty = needs.annotators and not config.model.train_on_empty
    train = SliceDataset(
        dataset,
        split.train,
        Preprocess.of(config, input_size),
        slice_axis=config.data.slice_axis,
        cache_gb=config.data.cache_gb,
        only=split.slices or None,
        shown=protocol is not None and protocols.load(protocol).shown,
        foreground=config.split.slices == "foreground" or nonempty,
        draw=draw,
        exclusive=needs.exclusive,
        annotators=needs.annotators,
    )
    val = SliceDataset(
        dataset,
        split.val,
        Preprocess.of(config, input_size, predicting=True),
        slice_axis=config.data.slice_axis,
        cache_gb=config.data.cache_gb,
        exclusive=needs.exclusive,
        annotators=needs.annotators,
    )
    source: Source
    if needs.supports:
        source = EpisodeSource(train, config.episodes, config.augment, config.seed)
    else:
        source = BatchSource(train, config.train.batch_size, config.augment, config.seed, config.train.foreground)
    drawn = () if draw is None else train.ids
    return TrainingData(source, PreparedSlices(train), PreparedSlices(val), train.objects, drawn, train.notes)


def pair_prompts(config: RunConfig, method: Any, data: TrainingData) -> PairPrompts:
    """The points of a method's stages of pairs.  InputError where its slices are not those of whole volumes."""
    if not isinstance(data.train, PreparedSlices) or not isinstance(data.val, PreparedSlices):
        raise InputError("pairs of neighbouring slices from patches", "a method that learns from slices")
    return PairPrompts(config, method.distiller, data.train.slices, data.val.slices)


def pair_source(config: RunConfig, prompts: PairPrompts) -> Source:
    """What a stage of pairs learns from."""
    train = config.train
    return NeighbourSource(
        prompts.train.slices, train.batch_size, config.augment, prompts.train, config.seed, train.foreground
    )


def stage_source(source: Source, stage: Stage) -> Source:
    """What a stage of slices learns from: ``source``, or its first slices alone where ``stage.images`` says how many.

    Raises InputError where batches are not plain slices, or none of those shows an object.
    """
    if stage.images is None:
        return source
    if not hasattr(source, "first"):
        raise InputError(f"stage {stage.name!r} of the first {stage.images} slices", "a method that learns from slices")
    first: Source = source.first(stage.images)
    return first


def _read_volumes(dataset: Cases, split: Split, config: RunConfig) -> TrainingData:
    data, patches = config.data, config.patches
    train, val = (
        VolumeDataset(dataset, ids, patches, slice_axis=data.slice_axis, cache_gb=data.cache_gb, channels=data.channels)
        for ids in (split.train, split.val)
    )
    source = PatchSource(train, patches, config.train.batch_size, config.augment, config.seed)
    return TrainingData(source, MiddlePatches(train, patches), MiddlePatches(val, patches), train.objects)


def plan_patches(dataset: Cases, split: Split, config: RunConfig, side: int) -> RunConfig:
    """The configuration with all of ``patches`` known: planned from the training cases where it was open.

    side: rows and columns of a patch.  Raises InputError where an option is set that volumes know nothing of.
    """
    if split.slices or config.split.slices != "all" or config.split.slice_share is not None:
        raise InputError(
            "a split that leaves out slices, for a method that sees volumes",
            "whole training volumes",
            "Set split.slices to all and split.slice_share to null, or take a split without a list of slices",
        )
    if config.data.window is not None or config.data.levels != "volume":
        raise InputError(
            f"data.window is {config.data.window}, data.levels {config.data.levels}, for a method that sees volumes",
            "neither: patches.intensity says how values are normalised",
            "Set data.window to null and data.levels to volume",
        )
    planned = plan(dataset, split.train, config.patches, side, config.data.slice_axis, config.data.channels)
    return replace(config, patches=planned)


def keep_plan(config: RunConfig, run: Path) -> RunConfig:
    """The configuration with what it leaves open as a former training in the folder ``run`` decided it."""
    written = run / "config.yaml"
    if not written.is_file():
        return config
    former, now = configuration.load(written).patches, config.patches
    open_ = [name for name in ("spacing", "size", "statistics") if getattr(now, name) is None]
    open_ += ["intensity"] if now.intensity == "auto" else []
    kept: PatchConfig = replace(now, **{name: getattr(former, name) for name in open_})
    return methods.complete(replace(config, patches=kept), [c.name for c in read_classes(run / "classes.json")])


def describe(run: Path, dataset: Cases, split: Split) -> None:
    """Write ``split.json`` and ``classes.json``."""
    split.save(run / "split.json")
    write_classes(run / "classes.json", dataset.classes)


class _Steps(Dataset[Batch]):
    def __init__(self, source: Source, rank: int, world: int) -> None:
        self.source, self.rank, self.world = source, rank, world

    def __getitem__(self, step: int) -> Batch:
        return self.source.batch(step, self.rank, self.world)


def _same(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(source: Source, steps: range, rank: int, world: int, workers: int) -> DataLoader[Batch]:
    """A loader of the batches of ``steps``: equal, and in equal order, for any number of workers."""
    return DataLoader(
        _Steps(source, rank, world),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
