"""The points of a stage that learns from pairs of slices: given or simulated, distilled by the method, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from samsans.config import PromptConfig, RunConfig
from samsans.data.clean_points import Centres, find_centres
from samsans.data.episodes import plain_batch
from samsans.data.neighbours import pointed_batch, stretches
from samsans.data.points import by_slice, of_volume, to_model, to_slices
from samsans.data.prompt_noise import LEVELS, simulate
from samsans.data.prompt_statistics import PromptStatistics, statistics
from samsans.data.slices import SliceDataset
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.training.prepared import PreparedSlices
from samsans.types import Batch

Distiller = Callable[[np.ndarray | None, Sequence[np.ndarray]], list[np.ndarray]]

HELD_OUT_DRAW = 0  # of the noise; training has the others, one an epoch


class VolumePrompts:
    """The points that a method is shown on the slices of whole volumes, ``(K, 3)`` float64 of each slice: x, y and the
    label in model pixels.

    They are read from files, or simulated from the masks as the model sees them, and then distilled.

    distiller: called with the saliency logits ``(T, 4g, 4g)`` of a volume (``None`` where there are none, see
        ``judge``) and the points of its T slices; gives the points to be shown.

    Raises InputError where ``slices`` leaves out slices of a volume.
    """

    def __init__(self, slices: SliceDataset, config: PromptConfig, distiller: Distiller) -> None:
        self.slices, self.config, self.distiller = slices, config, distiller
        self.noise = replace(LEVELS[config.level], mode=config.mode)
        self.reads = reads_files(slices, config)
        self.volumes = whole_volumes(slices)
        self.logits: dict[str, np.ndarray] = {}
        self._centres: dict[str, Centres] = {}
        self._given: dict[str, list[np.ndarray]] = {}

    def judge(self, method: Any, batch_size: int, device: torch.device) -> None:
        """Keep the saliency logits of all slices as they are (not augmented), by the method's present weights."""
        for case, indices in self.volumes.items():
            parts = []
            for start in range(0, len(indices), batch_size):
                batch = plain_batch(self.slices, indices[start : start + batch_size])
                parts.append(method.saliency(batch.to(device)).float().cpu().numpy())
            self.logits[case] = np.concatenate(parts)

    def __call__(self, case: str, epoch: int) -> list[np.ndarray]:
        """The points of an epoch of training."""
        return self.points(case, HELD_OUT_DRAW + 1 + epoch)

    def points(self, case: str, draw: int) -> list[np.ndarray]:
        """The points of a volume after distilling, which knows of no slices beyond a gap.

        draw: of the noise; points of files are the same in all.
        """
        raw, logits = self.raw(case, draw), self.logits.get(case)
        positions = self.slices.dataset.by_id(case).positions
        runs = stretches(positions if len(positions) == len(raw) else (), len(raw))
        parts = (
            self.distiller(None if logits is None else logits[r.start : r.stop], raw[r.start : r.stop]) for r in runs
        )
        return [rows for part in parts for rows in part]

    def raw(self, case: str, draw: int) -> list[np.ndarray]:
        """The points of a volume as they are given, at most ``prompts.keep`` a slice."""
        points = self._read(case) if self.reads else self._simulated(case, draw)
        return [rows[: self.config.keep] for rows in points]

    def _read(self, case: str) -> list[np.ndarray]:
        if case not in self._given:
            dataset = self.slices.dataset
            found = dataset.by_id(case)
            volume = dataset.read_image(found)
            orientation = Orientation.of(volume, self.slices.slice_axis)
            height, width = orientation.to_slices(volume.array).shape[1:3]
            native = to_slices(dataset.read_points(found, volume), orientation, volume.shape)
            self._given[case] = [to_model(rows, (height, width), self.slices.preprocess) for rows in native]
        return self._given[case]

    def _simulated(self, case: str, draw: int) -> list[np.ndarray]:
        mask = self.masks(case)
        image = None
        if self.noise.mode == "hard":
            rows, columns = mask.shape[1:]
            shown = (self.slices[i].image[:, :rows, :columns] for i in self.volumes[case])
            image = np.stack([picture.float().mean(0).numpy() for picture in shown])
        if case not in self._centres:
            self._centres[case] = find_centres(mask, step=self.noise.step)
        drawn = simulate(mask, self.noise, volume=case, draw=draw, image=image, centres=self._centres[case])
        return by_slice(drawn, len(mask))

    def masks(self, case: str) -> np.ndarray:
        """``(T, h, w)`` bool: the object as the model sees it, without padding."""
        items = [self.slices[i] for i in self.volumes[case]]
        rows, columns = items[0].valid
        return np.stack([item.masks[0, :rows, :columns].numpy() for item in items])

    def measured(self, draw: int) -> tuple[PromptStatistics, PromptStatistics]:
        """How good the points of all volumes are before and after distilling."""
        before = after = PromptStatistics(0, 0, 0, 0, 0, 0, 0)
        for case in self.volumes:
            mask = self.masks(case)
            before += statistics(of_volume(self.raw(case, draw)), mask)
            after += statistics(of_volume(self.points(case, draw)), mask)
        return before, after


class PromptedSlices(PreparedSlices):
    """Prepared slices with their points, those of the draw for held-out slices."""

    def __init__(self, prompts: VolumePrompts) -> None:
        super().__init__(prompts.slices)
        self.prompts = prompts
        self._points: dict[str, list[np.ndarray]] = {}

    def forget(self) -> None:
        """The points are to be distilled anew."""
        self._points.clear()

    def points(self, case: str) -> list[np.ndarray]:
        """The points of each slice of a volume."""
        if case not in self._points:
            self._points[case] = self.prompts.points(case, HELD_OUT_DRAW)
        return self._points[case]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those slices, unchanged by augmentation, with masks, points, and which of them follow each other."""
        return pointed_batch(self.slices, indices, self.points)

    def pairs(self, batch_size: int) -> Iterator[Batch]:
        """All slices in batches of at most ``batch_size`` pairs of neighbours; each pair is in one of them.

        A batch begins with the slice that the one before it ended with.
        """
        for indices in self.prompts.volumes.values():
            for start in range(0, max(len(indices) - 1, 1), batch_size):
                yield self.batch(indices[start : start + batch_size + 1])


class PairPrompts:
    """The points of training and held-out slices for the stages of a method that learn from pairs."""

    def __init__(self, config: RunConfig, distiller: Distiller, train: SliceDataset, val: SliceDataset) -> None:
        self.distills = config.model.distill != "none"
        self.batch_size = config.train.batch_size
        self.train, self.val = (VolumePrompts(slices, config.prompts, distiller) for slices in (train, val))
        self.learned, self.held_out = PromptedSlices(self.train), PromptedSlices(self.val)

    def prepare(self, method: Any, device: torch.device, *, validates: bool) -> list[str]:
        """Judge all slices by the method's present weights, and tell how good the points are.

        validates: the held-out slices are needed as well.
        """
        parts = {"training": self.train} | ({"held-out": self.val} if validates and len(self.held_out) else {})
        lines = []
        self.learned.forget()
        self.held_out.forget()
        for name, prompts in parts.items():
            if self.distills:
                prompts.judge(method, self.batch_size, device)
            before, after = prompts.measured(HELD_OUT_DRAW + (prompts is self.train))
            where = "files" if prompts.reads else f"noise {prompts.config.level} ({prompts.config.mode})"
            lines.append(f"points of {name} slices from {where}: {told(before, after if self.distills else None)}")
        return lines


def reads_files(slices: SliceDataset, config: PromptConfig) -> bool:
    """Whether points are read from files; InputError where they are to be, and no case of the data set has any."""
    there = any(case.points for case in slices.dataset.cases)
    if config.source == "files" and not there:
        raise InputError(
            f"no point prompts in {slices.dataset.root}",
            "files of points, in a folder points or beside the images",
            "Set data.points, or prompts.source to noise",
        )
    return there and config.source != "noise"


def whole_volumes(slices: SliceDataset) -> dict[str, list[int]]:
    """Indices of the slices of each case, in their order.  InputError where slices in between are left out."""
    volumes: dict[str, list[int]] = {}
    for index, (case, number) in enumerate(slices.places):
        if number != len(volumes.get(case, ())):
            raise InputError(
                f"slices of {case} that are left out, for a method that learns from neighbouring slices",
                "whole volumes",
                "Set split.slices to all and split.slice_share to null, or take a split without a list of slices",
            )
        volumes.setdefault(case, []).append(index)
    return volumes


def told(before: PromptStatistics, after: PromptStatistics | None) -> str:
    """Points in one line, for people; ``after``: distilled ones, where there are such."""
    parts = (
        ("on the object", "on_target"),
        ("slices of the object reached", "reached"),
        ("empty slices with points", "misled"),
        ("slices without points", "unprompted"),
    )
    wholes = {"on_target": "points", "reached": "object_slices", "misled": "empty_slices", "unprompted": "slices"}
    return ", ".join(
        f"{what} " + " -> ".join(_share(s, name, wholes[name]) for s in (before, after) if s is not None)
        for what, name in parts
    )


def _share(counts: PromptStatistics, part: str, whole: str) -> str:
    total = getattr(counts, whole)
    return f"{getattr(counts, part) / total:.0%}" if total else "none"
