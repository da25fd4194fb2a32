"""Batches of a step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_files import flat_set, nifti
from samsans.config import AugmentConfig, DataConfig, EpisodeConfig
from samsans.data.cases import find_cases
from samsans.data.episodes import BatchSource, EpisodeSource
from samsans.data.slices import SliceDataset
from samsans.data.transforms import Preprocess, inside
from samsans.errors import InputError
from samsans.ops.labels import class_labels

ALL = AugmentConfig(flip=0.5, rotate=15, scale=0.1, shift=0.1, intensity=0.1)


def made(root: Path, count: int, values: tuple[int, ...] = (255,), per_patient: int = 1) -> SliceDataset:
    dataset = flat_set(root, count, values, per_patient)
    return SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(16))


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> SliceDataset:
    """Three volumes of 20 slices, 6 of which show the object."""
    root = tmp_path_factory.mktemp("stacks")
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 99, (20, 8, 8)).astype(np.int16)
        mask = np.zeros((20, 8, 8), np.uint8)
        mask[5:11, 2:6, 2:6] = 1
        nifti(root / "images" / f"v{i}.nii.gz", image)
        nifti(root / "labels" / f"v{i}.nii.gz", mask)
    dataset = find_cases(DataConfig(path=str(root)))
    return SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(8))


def test_a_batch_depends_on_seed_step_and_rank_alone(tmp_path: Path) -> None:
    slices = made(tmp_path, 12, (1, 2))
    config = EpisodeConfig(images=5, targets=2, synthetic=0.3)
    first, again = (EpisodeSource(slices, config, ALL, seed=3) for _ in range(2))
    for step in (0, 7):
        a, b = first.batch(step), again.batch(step)
        assert torch.equal(a.images, b.images)
        assert a.masks is not None
        assert b.masks is not None
        assert torch.equal(a.masks, b.masks)
        assert (a.ids, a.objects) == (b.ids, b.objects)
    drawn = [
        first.batch(0).ids,
        first.batch(1).ids,
        first.batch(0, rank=1, world=2).ids,
        EpisodeSource(slices, config, ALL, seed=4).batch(0).ids,
    ]
    assert len(set(drawn)) == 4


def test_shapes(tmp_path: Path) -> None:
    batch = EpisodeSource(made(tmp_path, 12, (1, 2)), EpisodeConfig(images=5, targets=2), ALL).batch(0)
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.masks is not None
    assert batch.masks.shape == (5, len(batch.objects), 16, 16)
    assert batch.masks.dtype == torch.bool
    assert batch.targets is not None
    assert batch.targets.dtype == torch.int64
    assert len(set(batch.targets.tolist())) == 2
    assert batch.valid is not None
    assert batch.valid.tolist() == [[16, 16]] * 5


def test_without_changes_the_batch_holds_the_slices_themselves(tmp_path: Path) -> None:
    slices = made(tmp_path, 9, (1, 2))
    source = EpisodeSource(slices, EpisodeConfig(images=4, targets=2, object_subset=0), AugmentConfig())
    batch = source.batch(5)
    for i, id in enumerate(batch.ids):
        item = slices[slices.ids.index(id)]
        torch.testing.assert_close(batch.images[i], slices.preprocess.normalize(item.image[None])[0])
        assert batch.masks is not None
        assert torch.equal(batch.masks[i], item.masks)


def test_a_small_set_is_taken_whole(tmp_path: Path) -> None:
    slices = made(tmp_path, 6, per_patient=2)
    source = EpisodeSource(slices, EpisodeConfig(images=16, targets=4), AugmentConfig())
    for step in range(5):
        batch = source.batch(step)
        assert sorted(batch.ids) == sorted(slices.ids)
        assert batch.targets is not None
        assert len(batch.targets) == 4
    two = made(tmp_path / "two", 2)
    assert len(EpisodeSource(two, EpisodeConfig(), AugmentConfig()).batch(0).targets) == 2  # type: ignore[arg-type]


def test_images_are_of_different_patients(tmp_path: Path) -> None:
    slices = made(tmp_path, 24, per_patient=3)
    source = EpisodeSource(slices, EpisodeConfig(images=8, targets=4), AugmentConfig())
    seen: Counter[str] = Counter()
    for step in range(60):
        ids = source.batch(step).ids
        assert len({id[:3] for id in ids}) == 8
        seen.update(ids)
    assert set(seen) == set(slices.ids)
    assert source.steps_per_epoch == 6


@pytest.mark.parametrize("targets", [1, 2, 4])
def test_with_few_patients_no_target_is_supported_by_its_own(stacks: SliceDataset, targets: int) -> None:
    source = EpisodeSource(stacks, EpisodeConfig(images=12, targets=targets, volume_supports=[]), AugmentConfig())
    empty = 0
    for step in range(40):
        batch = source.batch(step)
        assert batch.targets is not None
        assert batch.masks is not None
        assert len(set(batch.ids)) == 12
        patients = [id.partition("#")[0] for id in batch.ids]
        chosen = batch.targets.tolist()
        for t in chosen:
            assert patients.count(patients[t]) == 1
        shown = batch.masks.flatten(1).any(1)
        empty += int(not shown[chosen[0]])
        supports = [i for i in range(12) if i not in chosen]
        assert shown[supports].sum() >= min(len(supports), 6)
    assert 5 < empty < 40, "targets may be empty"


def test_a_single_patient_still_gives_episodes(tmp_path: Path) -> None:
    slices = made(tmp_path, 9, per_patient=9)
    batch = EpisodeSource(slices, EpisodeConfig(images=4, targets=2), AugmentConfig()).batch(0)
    assert len(set(batch.ids)) == 4


def test_supports_show_an_object_asked_for(tmp_path: Path) -> None:
    slices = made(tmp_path, 40, (1, 2), per_patient=4)
    source = EpisodeSource(slices, EpisodeConfig(images=6, targets=2, object_subset=1.0), AugmentConfig())
    for step in range(30):
        batch = source.batch(step)
        assert batch.masks is not None
        assert len(batch.objects) == 1
        assert batch.masks.flatten(1).any(1).sum() >= 5  # all but one target, which may be empty


def test_balanced_episodes_show_rare_objects(tmp_path: Path) -> None:
    slices = made(tmp_path, 24, (1, 2))
    slices.present[:, 1] = False
    slices.present[[3, 8, 20], 1] = True
    rare = []
    for balance in (False, True):
        config = EpisodeConfig(images=4, targets=4, object_subset=0, balance=balance)
        source = EpisodeSource(slices, config, AugmentConfig())
        drawn = [source.draw(np.arange(2), np.random.default_rng(i))[0] for i in range(60)]
        assert all(len(set(indices)) == 4 for indices in drawn)
        rare.append([int(slices.present[indices, 1].sum()) for indices in drawn])
    assert np.mean(rare[0]) < 0.8  # 4 of 24, three of which show it
    assert 0.3 < np.mean([count >= 2 for count in rare[1]]) < 0.7  # it is drawn half of the time, for half an episode


def test_object_subsets_are_drawn_as_decided(tmp_path: Path) -> None:
    slices = made(tmp_path, 16, (1, 2))
    source = EpisodeSource(slices, EpisodeConfig(images=4, targets=1), AugmentConfig())
    rng = np.random.default_rng(0)
    counts = Counter(tuple(source._objects(rng).tolist()) for _ in range(2000))
    assert abs(counts[0, 1] - 1000) < 120
    assert abs(counts[0,] - 500) < 100
    assert abs(counts[1,] - 500) < 100


def test_synthetic_objects_are_named_so(tmp_path: Path) -> None:
    slices = made(tmp_path, 9, (1, 2))
    source = EpisodeSource(slices, EpisodeConfig(images=4, targets=1, synthetic=1.0), AugmentConfig())
    names = {source.batch(step).objects for step in range(12)}
    assert names == {("synthetic",), ("synthetic_1", "synthetic_2")}


def test_padding_is_no_object(tmp_path: Path) -> None:
    dataset = flat_set(tmp_path, 5)
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(16, resize="pad"))
    source = EpisodeSource(slices, EpisodeConfig(images=4, targets=1, synthetic=1.0), ALL)
    for step in range(8):
        batch = source.batch(step)
        assert batch.masks is not None
        assert not batch.masks[:, :, 12:].any()
        assert batch.images[:, :, 12:].abs().max() == 0


def test_impossible_episodes_are_refused(tmp_path: Path) -> None:
    slices = made(tmp_path, 4)
    with pytest.raises(InputError, match="episodes of 1 images"):
        EpisodeSource(slices, EpisodeConfig(images=1, targets=1), AugmentConfig())
    one = SliceDataset(slices.dataset, ["p00_000"], slices.preprocess)
    with pytest.raises(InputError, match="1 training slices"):
        EpisodeSource(one, EpisodeConfig(), AugmentConfig())
    nothing = find_cases(DataConfig(path=str(tmp_path), classes={"x": [9]}))
    blank = SliceDataset(nothing, [c.id for c in nothing.cases], Preprocess(8))
    with pytest.raises(InputError, match="no training slice shows an object"):
        EpisodeSource(blank, EpisodeConfig(), ALL)


@pytest.mark.parametrize("world", [1, 3])
@given(batch_size=st.integers(1, 5), seed=st.integers(0, 5))
def test_an_epoch_shows_every_slice_once(stacks: SliceDataset, world: int, batch_size: int, seed: int) -> None:
    source = BatchSource(stacks, batch_size, AugmentConfig(), seed)
    steps = -(-2 * len(stacks) // (batch_size * world))
    order = np.concatenate([source.draw(s, r, world) for s in range(steps) for r in range(world)])
    epochs = order[: 2 * len(stacks)].reshape(2, -1)
    assert all(sorted(epoch) == list(range(len(stacks))) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_batches_with_foreground(stacks: SliceDataset) -> None:
    source = BatchSource(stacks, 6, AugmentConfig(), 0, foreground=0.5)
    plain = BatchSource(stacks, 6, AugmentConfig(), 0)
    shown = stacks.present.any(1)
    assert all(shown[source.draw(step)].sum() >= 3 for step in range(30))
    assert any(shown[plain.draw(step)].sum() < 3 for step in range(30))
    batch = source.batch(2)
    assert batch.targets is None
    assert batch.ids == tuple(stacks.ids[i] for i in source.draw(2))
    assert source.steps_per_epoch == 10
    with pytest.raises(InputError, match="batches of 0"):
        BatchSource(stacks, 0, AugmentConfig())


def test_slices_of_volumes_come_with_one_two_or_four_supports(stacks: SliceDataset) -> None:  # decision D-21
    source = EpisodeSource(stacks, EpisodeConfig(images=16, targets=4), AugmentConfig())
    assert {len(source.batch(step).ids) for step in range(30)} == {2, 3, 5}


@pytest.mark.parametrize("policy", ["hsam", "samed", "autosam"])
def test_published_changes_and_unit_statistics(tmp_path: Path, policy: str) -> None:
    dataset = flat_set(tmp_path, 6, (1, 2))
    preprocess = Preprocess(20, resize="pad", statistics="unit", resampling="spline", via=12)
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], preprocess)
    source = BatchSource(slices, 6, AugmentConfig(policy=policy), 1)  # type: ignore[arg-type]
    batch, again = source.batch(3), source.batch(3)
    assert torch.equal(batch.images, again.images)
    assert batch.masks is not None
    assert batch.valid is not None
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    outside = ~inside(batch.valid, 20)[:, None]
    assert outside.any()
    assert not (batch.masks & outside).any()
    assert not (batch.images * outside).any()


@pytest.mark.parametrize("policy", ["affine", "hsam", "samed", "autosam"])
def test_padding_shows_no_object_and_changes_no_label(tmp_path: Path, policy: str) -> None:
    """Slices of 12 x 16 fill the upper three quarters of the square; the rest is background, black and not valid."""
    dataset = flat_set(tmp_path, 6, (1, 2))
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(32, "pad"), exclusive=True)
    changes = AugmentConfig(rotate=40, shift=0.4, policy=policy)  # type: ignore[arg-type]
    for step in range(4):
        batch = BatchSource(slices, 4, changes).batch(step)
        assert batch.masks is not None
        assert batch.valid is not None
        assert batch.valid.tolist() == [[24, 32]] * 4
        assert not batch.masks[:, :, 24:].any()
        assert not batch.images[:, :, 24:].any()
    plain = BatchSource(slices, 6, AugmentConfig()).batch(0)
    assert plain.masks is not None
    labels = class_labels(plain.masks)
    for id, shown in zip(plain.ids, labels, strict=True):
        drawn = torch.from_numpy(dataset.read_labels(dataset.by_id(id)).array[0].astype(np.int64))
        assert torch.equal(shown[:24], drawn.repeat_interleave(2, 0).repeat_interleave(2, 1))
        assert not shown[24:].any()
