"""Batches of neighbouring slices with their points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import nifti, png, square
from samsans.config import AugmentConfig, DataConfig
from samsans.data.cases import find_cases
from samsans.data.neighbours import NeighbourSource, boundaries, next_slices, pointed_batch, stretches
from samsans.data.slices import SliceDataset
from samsans.data.transforms import Preprocess
from samsans.errors import InputError

NOTHING = AugmentConfig(policy="spd")
SIDE = 16


def volumes(root: Path, depths: tuple[int, ...] = (4, 1, 3), **only: object) -> SliceDataset:
    """Slice ``t`` of volume ``v`` is grey ``20 v + t + 1`` and shows an object."""
    for v, depth in enumerate(depths):
        array = np.zeros((depth, SIDE, SIDE), np.uint8)
        array += (20 * v + 1 + np.arange(depth, dtype=np.uint8))[:, None, None]
        affine = np.diag([-1.0, -1.0, 3.0, 1.0])
        nifti(root / "images" / f"v{v}.nii.gz", array, affine)
        nifti(root / "labels" / f"v{v}.nii.gz", np.repeat(square(1, (SIDE, SIDE))[None], depth, 0), affine)
    dataset = find_cases(DataConfig(path=str(root)))
    preprocess = Preprocess(SIDE, window=(0.0, 255.0), statistics="unit")
    return SliceDataset(dataset, [c.id for c in dataset.cases], preprocess, **only)  # type: ignore[arg-type]


def prompts(case: str, epoch: int) -> list[np.ndarray]:
    """One point whose place tells volume, slice and epoch; none in the third slice."""
    v = int(case[1:])
    return [np.array([[v, t, epoch]][: t != 2], float).reshape(-1, 3) for t in range(9)]


def test_the_next_slice_is_of_the_same_volume(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    assert next_slices(slices).tolist() == [1, 2, 3, -1, -1, 6, 7, -1]
    assert slices.places[5] == ("v2", 0)
    assert slices.depths == {"v0": 4, "v1": 1, "v2": 3}


def test_slices_that_were_left_out_have_no_neighbours(tmp_path: Path) -> None:
    slices = volumes(tmp_path, only=["v0#000", "v0#001", "v0#003", "v1", "v2#001", "v2#002"])
    assert next_slices(slices).tolist() == [1, -1, -1, -1, 5, -1]


def test_every_batch_holds_what_it_says(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    source = NeighbourSource(slices, 3, NOTHING, prompts, seed=5)
    assert source.steps_per_epoch == 3
    seen: list[str] = []
    for step in range(8):
        batch = source.batch(step)
        assert batch.following is not None
        assert batch.points is not None
        assert batch.masks is not None
        assert 3 <= len(batch.ids) <= 6
        assert len(batch.points) == len(batch.following) == len(batch.images) == len(batch.masks)
        seen += batch.ids[:3]
        linked = set(batch.following.tolist()) - {-1}
        assert set(range(3, len(batch.ids))) <= linked  # behind the slices drawn there are next slices only
        for i, after in enumerate(batch.following.tolist()):
            case, _, number = batch.ids[i].partition("#")
            last = case == "v1" or (case, number) in {("v0", "003"), ("v2", "002")}
            assert (after == -1) == (last or i >= 3)
            if after >= 0:
                assert batch.ids[after] == f"{case}#{int(number) + 1:03d}"
            t, v = int(number or 0), int(case[1])
            assert round(float(batch.images[i, 0, 0, 0] * 255)) == 20 * v + t + 1
            wanted = [] if t == 2 else [[v, t, source.epoch(step)]]
            assert batch.points[i].tolist() == wanted
            assert batch.points[i].shape[1:] == (3,)
    assert sorted(seen) == sorted(slices.ids * 3)  # 8 steps of 3 are 3 epochs of 8
    again = NeighbourSource(slices, 3, NOTHING, prompts, seed=5).batch(7)
    assert torch.equal(again.images, batch.images)
    assert again.ids == batch.ids


def test_a_batch_encodes_no_slice_twice(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    batch = NeighbourSource(slices, 8, NOTHING, prompts).batch(0)
    assert sorted(batch.ids) == sorted(slices.ids)
    ranks = [NeighbourSource(slices, 2, NOTHING, prompts).batch(0, rank, 2).ids[:2] for rank in (0, 1)]
    assert not set(ranks[0]) & set(ranks[1])


def test_pairs_are_moved_together(tmp_path: Path) -> None:
    """Masks of all slices are one square: after a turn they are equal within a pair, and so are the points."""
    slices = volumes(tmp_path)
    config = AugmentConfig(policy="spd", flip=0.5, rotate=15.0)

    def same_place(case: str, epoch: int) -> list[np.ndarray]:
        return [np.array([[5.0, 5.0, 1.0], [0.0, 0.0, 1.0]])] * 9

    source = NeighbourSource(slices, 2, config, same_place)
    moved = dropped = 0
    for step in range(20):
        batch = source.batch(step)
        assert batch.following is not None
        assert batch.points is not None
        assert batch.masks is not None
        for i, after in enumerate(batch.following.tolist()):
            if after >= 0:
                assert torch.equal(batch.masks[i], batch.masks[after])
                assert torch.equal(batch.points[i], batch.points[after])
            x, y = (int(v) for v in batch.points[i][0, :2].round())
            assert batch.masks[i, 0, y - 1 : y + 2, x - 1 : x + 2].any()
            moved += batch.points[i][0, :2].tolist() != [5.0, 5.0]
            dropped += len(batch.points[i]) == 1
    assert moved
    assert dropped


def test_points_beyond_the_padding_are_dropped(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png", np.full((8, 16), 9, np.uint8))
    png(tmp_path / "masks" / "a.png", square(1, (8, 16)))
    dataset = find_cases(DataConfig(path=str(tmp_path)))
    slices = SliceDataset(dataset, ["a"], Preprocess(SIDE, "pad"))
    source = NeighbourSource(slices, 1, NOTHING, lambda case, epoch: [np.array([[1, 7.4, 1], [1, 7.6, 1]])])
    points = source.batch(0).points
    assert points is not None
    assert len(points[0]) == 1


def test_unchanged_batches(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    batch = pointed_batch(slices, [5, 1, 2, 6], lambda case: prompts(case, 0))
    assert batch.following is not None
    assert batch.points is not None
    assert batch.following.tolist() == [3, 2, -1, -1]
    assert [len(p) for p in batch.points] == [1, 1, 0, 1]


def test_gaps() -> None:
    assert boundaries([1, 2, 3]) == (0,)
    assert boundaries([10, 20, 30, 50, 60]) == (0, 3)
    assert boundaries([7.0]) == (0,)
    assert boundaries([9, 8, 5, 4]) == (0, 2)
    assert stretches((1, 2, 4, 5, 6), 5) == [range(2), range(2, 5)]
    assert stretches((), 4) == [range(4)]
    with pytest.raises(InputError, match="3 positions of 4 slices"):
        stretches((1, 2, 3), 4)


def test_a_gap_of_a_stack_parts_its_slices(tmp_path: Path) -> None:
    for number in (1, 2, 3, 6, 7):
        png(tmp_path / "images" / f"v_{number}.png", np.full((8, 8), number, np.uint8))
        png(tmp_path / "masks" / f"v_{number}.png", square(1, (8, 8)))
    dataset = find_cases(DataConfig(path=str(tmp_path), volume=r"(v)_(\d+)"))
    slices = SliceDataset(dataset, ["v"], Preprocess(SIDE))
    assert next_slices(slices).tolist() == [1, 2, -1, 4, -1]
    across = SliceDataset(dataset, ["v"], Preprocess(SIDE), slice_axis="1")
    assert next_slices(across).tolist() == [*range(1, 8), -1]
