"""Patches of volumes: where they lie, what random changes do to them, and that they are a function of the step."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch

from samsans.config import AugmentConfig, PatchConfig
from samsans.data.patches import MiddlePatches, PatchSource, around, as_batch, read_patch
from samsans.data.policies3d import intensities, mirrored, place
from samsans.data.volumes import PreparedVolume
from samsans.errors import InputError

PATCHES = PatchConfig(spacing=[1, 1, 1], size=[4, 8, 8], intensity="zscore", per_epoch=5)
NONE, NNUNET = AugmentConfig(), AugmentConfig(policy="nnunet")
AFFINE = AugmentConfig(flip=0.5, rotate=30, scale=0.2, shift=0.1)


def prepared(labels: np.ndarray, name: str = "a", seed: int = 0) -> PreparedVolume:
    """A volume whose values are ten times its labels, and a little noise."""
    noise = np.random.default_rng(seed).normal(0, 0.01, labels.shape)
    image = (10 * labels + noise).astype(np.float32)[None]
    places = tuple(np.argwhere(labels == v).astype(np.int32) for v in (1, 2))
    return PreparedVolume(image, labels.astype(np.uint8), places, name, name)


def blocks() -> list[PreparedVolume]:
    """A large volume with both objects and a thin one with the second alone."""
    large, thin = np.zeros((12, 30, 26), int), np.zeros((3, 6, 40), int)
    large[2:5, 3:6, 3:7] = 1
    large[8:11, 20:28, 18:24] = 2
    thin[:, 2:4, 30:35] = 2
    return [prepared(large, "large"), prepared(thin, "thin")]


class Volumes(list[PreparedVolume]):
    """What the sources know of a ``VolumeDataset``."""

    objects = ("first", "second")

    @property
    def voxels(self) -> np.ndarray:
        return np.array([np.bincount(v.labels.ravel(), minlength=3) for v in self])

    @property
    def present(self) -> np.ndarray:
        return self.voxels[:, 1:] > 0


def source(batch_size: int = 4, augment: AugmentConfig = NONE, volumes: Any = None, **patches: Any) -> PatchSource:
    planned = dataclasses.replace(PATCHES, **patches)
    return PatchSource(volumes or Volumes(blocks()), planned, batch_size, augment, seed=3)  # type: ignore[arg-type]


def same(a: Any, b: Any) -> bool:
    return a.ids == b.ids and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


def test_places_of_patches_by_hand() -> None:
    assert around((5, 5, 5), (12, 12, 12), (4, 5, 6)) == (3, 3, 2)
    assert around((0, 11, 1), (12, 12, 12), (4, 4, 4)) == (0, 8, 0)
    assert around((1, 1, 1), (3, 4, 5), (8, 7, 5)) == (-2, -1, 0)


def test_patches_are_cut_as_from_a_padded_volume() -> None:
    volume = prepared(np.random.default_rng(0).integers(0, 3, (5, 6, 7)))
    padded = np.pad(volume.image, ((0, 0), (9, 9), (9, 9), (9, 9)))
    for start in ((0, 0, 0), (-2, 3, 1), (3, -4, 5), (-9, 0, 0), (1, 1, 1)):
        image, labels = read_patch(volume, start, (4, 5, 6))
        z, y, x = (s + 9 for s in start)
        np.testing.assert_array_equal(image.numpy(), padded[:, z : z + 4, y : y + 5, x : x + 6])
        np.testing.assert_array_equal(labels.numpy(), image[0].numpy().round(-1) / 10)
    image[...] = 99.0
    assert volume.image.max() < 99  # a copy


def test_a_batch_of_the_contract() -> None:
    batch = source().batch(0)
    assert batch.images.shape == (4, 1, 4, 8, 8)
    assert batch.masks is not None
    assert batch.masks.shape == (4, 2, 4, 8, 8)
    assert (batch.images.dtype, batch.masks.dtype) == (torch.float32, torch.bool)
    assert not (batch.masks[:, 0] & batch.masks[:, 1]).any()
    assert set(batch.ids) <= {"large", "thin"}
    assert (batch.objects, batch.targets, batch.valid) == (("first", "second"), None, None)
    values = (batch.masks * torch.tensor([10, 20]).view(1, 2, 1, 1, 1)).sum(1)
    assert (batch.images[:, 0] - values).abs().max() < 0.1
    assert source().steps_per_epoch == 5


@pytest.mark.parametrize("augment", [NONE, AFFINE, dataclasses.replace(AFFINE, intensity=0.2), NNUNET], ids=str)
def test_a_batch_is_a_function_of_seed_step_and_rank(augment: AugmentConfig) -> None:
    made = source(augment=augment)
    first = made.batch(7)
    np.random.seed(1)  # noqa: NPY002  (what others draw must not matter)
    torch.manual_seed(1)
    made.batch(8)
    assert same(first, made.batch(7))
    assert same(first, source(augment=augment).batch(7))
    assert not same(first, made.batch(8))
    assert not same(made.batch(7, 0, 2), made.batch(7, 1, 2))
    assert type(first.images) is type(first.masks) is torch.Tensor  # and none of MONAI's
    assert first.images.isfinite().all()


def test_the_last_patches_show_an_object() -> None:
    def shown(batch_size: int, ranks: int, steps: int = 60, **options: Any) -> np.ndarray:
        made = source(batch_size, volumes=Volumes(blocks()[:1]), **options)
        batches = [[made.batch(s, r, ranks).masks for r in range(ranks)] for s in range(steps)]
        return np.array([[m.flatten(1).any(1).tolist() for m in row if m is not None] for row in batches])

    two = shown(2, 1)[:, 0].mean(0)
    assert two[1] == 1 > two[0]
    ranks = shown(1, 2)[:, :, 0].mean(0)
    assert ranks[1] == 1 > ranks[0]
    six = shown(6, 1)[:, 0].mean(0)  # round(6 * 0.67) = 4 are drawn anywhere
    assert (six[4:] == 1).all()
    assert (six[:4] < 1).all()
    single = shown(1, 1, 200)[:, 0].mean()
    assert two[0] + 0.1 < single < 0.85
    assert (shown(3, 1, foreground=1.0) == 1).all()


def test_forced_patches_are_centred_on_either_object() -> None:
    made = source(1, volumes=Volumes(blocks()[:1]), foreground=1.0)
    masks = [made.batch(step).masks for step in range(60)]
    seen = np.array([m[0].flatten(1).any(1).tolist() for m in masks if m is not None]).mean(0)
    assert (abs(seen - 0.5) < 0.2).all()  # equally likely, though one has eight times the voxels
    middle = np.array([m[0, :, 2, 4, 4].any() for m in masks if m is not None])
    assert middle.mean() > 0.5  # where the border of the volume leaves it room


def test_thin_volumes_lie_in_the_middle_of_zeros() -> None:
    made = source(1, volumes=Volumes(blocks()[1:]))
    for step in range(5):
        image = made.batch(step).images[0, 0]
        assert (image != 0).any(2).any(1).tolist() == [True, True, True, False]
        assert (image != 0).any(2).any(0).tolist() == [False, *[True] * 6, False]


def test_every_place_is_read() -> None:
    values = np.arange(7 * 10 * 11, dtype=np.float32).reshape(7, 10, 11)
    volume = PreparedVolume(values[None], np.ones(values.shape, np.uint8), (np.zeros((1, 3), np.int32),) * 2, "a", "a")
    made = source(1, volumes=Volumes([volume]), foreground=0.0)
    firsts = {int(made.batch(step).images[0, 0, 0, 0, 0]) for step in range(600)}
    assert firsts == {int(values[z, y, x]) for z in range(4) for y in range(3) for x in range(4)}


def test_a_quarter_turn_is_exact() -> None:
    volume = prepared(np.random.default_rng(1).integers(0, 3, (6, 20, 20)))
    theta = np.array([[0, 1, 0], [-1, 0, 0]], np.float32)
    still, turned = read_patch(volume, (1, 5, 6), (4, 8, 8)), read_patch(volume, (1, 5, 6), (4, 8, 8), theta)
    for before, after in zip(still, turned, strict=True):
        np.testing.assert_allclose(after.float(), torch.rot90(before.float(), -1, (-2, -1)), atol=1e-4)


def test_turned_patches_show_what_lies_beside_them() -> None:
    volume = prepared(np.ones((4, 40, 40), int))
    angle, size = np.pi / 4, 1.4
    cos, sin = size * np.cos(angle), size * np.sin(angle)
    theta = np.array([[cos, -sin, 0], [sin, cos, 0]], np.float32)
    image, labels = read_patch(volume, (0, 12, 12), (4, 16, 16), theta)
    assert (labels == 1).all()
    assert image.min() > 9.8
    corner, drawn = read_patch(volume, (0, 0, 0), (4, 16, 16), theta)  # and zeros beside the volume
    assert (drawn == 0).any()
    assert corner.min() == 0


@pytest.mark.parametrize("augment", [AFFINE, NNUNET], ids=["affine", "nnunet"])
def test_masks_move_with_the_image_and_all_slices_alike(augment: AugmentConfig) -> None:
    labels = np.zeros((6, 40, 40), int)
    labels[:, 12:24, 15:22] = 1
    volume = prepared(labels)
    rng, moved = np.random.default_rng(0), 0
    for _ in range(30):
        theta = place(augment, rng)
        if theta is None:
            continue
        moved += 1
        image, drawn = read_patch(volume, (1, 8, 8), (4, 20, 20), theta)
        found = image[0] > 5
        assert 2 * (found & (drawn == 1)).sum() / (found.sum() + (drawn == 1).sum()) > 0.95
        assert (drawn == drawn[0]).all()
    assert moved == 30 if augment is AFFINE else 4 <= moved <= 20  # nnU-Net: 1 - 0.8 * 0.8 of them


def test_nnunet_turns_anyhow_and_scales_evenly_between_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from samsans.data import policies3d as policies

    monkeypatch.setattr(policies, "ZOOM", 1.0)
    rng = np.random.default_rng(0)
    drawn = np.array([place(NNUNET, rng) for _ in range(2000)])
    size, angle = np.linalg.norm(drawn[:, 0, :2], axis=1), np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0])
    np.testing.assert_allclose(np.linalg.norm(drawn[:, 1, :2], axis=1), size, rtol=1e-5)
    np.testing.assert_allclose(np.quantile(size, (0, 0.25, 0.5, 0.75, 1)), np.linspace(0.7, 1.4, 5), atol=0.03)
    turned = np.abs(angle) > 1e-6
    assert 0.15 < turned.mean() < 0.25
    np.testing.assert_allclose(np.quantile(angle[turned], (0, 0.5, 1)), (-np.pi, 0, np.pi), atol=0.4)


def test_mirrored_axes() -> None:
    rng = np.random.default_rng(0)
    assert mirrored(AFFINE, rng) == []
    drawn = [mirrored(NNUNET, rng) for _ in range(400)]
    assert all(abs(sum(axis in axes for axes in drawn) / 400 - 0.5) < 0.08 for axis in range(3))


def test_affine_intensities() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32))
    rng = np.random.default_rng(0)
    assert intensities(image, AFFINE, rng) is image
    changed = [intensities(image, AugmentConfig(intensity=0.1), rng) for _ in range(50)]
    gains = torch.stack([c.std() / image.std() for c in changed])
    shifts = torch.stack([c.mean() - image.mean() for c in changed])
    assert 0.9 <= gains.min() < 0.95 < 1.05 < gains.max() <= 1.1
    assert -0.1 <= shifts.min() < -0.05 < 0.05 < shifts.max() <= 0.1


def test_the_list_of_nnunet_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from samsans.data import policies3d as policies

    image = torch.from_numpy(np.random.default_rng(0).gamma(2, size=(2, 6, 16, 16)).astype(np.float32))
    names = ("NOISE", "BLUR", "BRIGHTNESS", "CONTRAST", "COARSE", "INVERTED_GAMMA", "GAMMA")

    def changed(only: str) -> list[torch.Tensor]:
        for name in names:
            monkeypatch.setattr(policies, name, float(name == only))
        rng = np.random.default_rng(1)
        out = [intensities(image, NNUNET, rng) for _ in range(12)]
        assert all(o.shape == image.shape and o.dtype == torch.float32 and o.isfinite().all() for o in out)
        return out

    def roughness(a: torch.Tensor) -> torch.Tensor:
        return a.diff(dim=-1).square().mean((1, 2, 3))

    assert all(torch.equal(o, image) for o in changed("nothing"))
    spread = [float((o - image).std()) for o in changed("NOISE")]
    assert 0 < min(spread) < max(spread) < 0.1**0.5 + 0.02
    blurred = torch.stack([roughness(o) / roughness(image) for o in changed("BLUR")])
    assert 0.2 < float((blurred < 0.9).float().mean()) < 0.8  # half of the channels
    assert float((blurred == 1).float().mean()) > 0.2
    ratios = torch.stack([o / image for o in changed("BRIGHTNESS")])
    assert 0.75 <= float(ratios.min()) < float(ratios.max()) <= 1.2501
    assert float(ratios.flatten(2).std(2).max()) < 1e-5
    for only in ("CONTRAST", "INVERTED_GAMMA", "GAMMA"):
        for out in changed(only):
            assert not torch.equal(out, image)
            order = image[0].flatten().argsort()
            assert (out[0].flatten()[order].diff() >= -1e-4).all()  # values keep their order
            if only == "CONTRAST":
                assert image.min() <= out.min()
                assert out.max() <= image.max()
            else:
                np.testing.assert_allclose(out[0].mean(), image[0].mean(), atol=1e-4)
                np.testing.assert_allclose(out[0].std(), image[0].std(), rtol=1e-3)
    coarse = changed("COARSE")
    assert any(float(roughness(o).sum()) < 0.8 * float(roughness(image).sum()) for o in coarse)


def test_low_resolution_leaves_depth_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from samsans.data import policies3d as policies

    for name in ("NOISE", "BLUR", "BRIGHTNESS", "CONTRAST", "INVERTED_GAMMA", "GAMMA"):
        monkeypatch.setattr(policies, name, 0.0)
    monkeypatch.setattr(policies, "COARSE", 1.0)
    monkeypatch.setattr(policies, "CHANNEL", 1.0)
    steps = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 16, 16).contiguous()
    np.testing.assert_allclose(intensities(steps, NNUNET, np.random.default_rng(0)), steps, atol=1e-4)


def test_policies_that_are_not_for_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'hsam' for 3D patches.*affine, nnunet"):
        source(augment=AugmentConfig(policy="hsam"))
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(InputError, match=r"samsans\[volumes\]"):
        source(augment=NNUNET)
    assert source(augment=AFFINE).batch(0).ids


def test_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match="no training volume shows an object"):
        source(volumes=Volumes([prepared(np.zeros((4, 8, 8), int))]))
    with pytest.raises(InputError, match="at least 1 of both"):
        source(0)
    with pytest.raises(InputError, match="0 volumes"):
        PatchSource(Volumes(), PATCHES, 2, NONE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Plan them first"):
        source(size=None)


def test_middle_patches() -> None:
    middle = MiddlePatches(Volumes(blocks()), PATCHES)  # type: ignore[arg-type]
    assert len(middle) == 2
    assert middle.present.tolist() == [[True, True], [False, True]]
    assert middle.class_pixels.sum() == 12 * 30 * 26 + 3 * 6 * 40
    assert middle.class_pixels.tolist()[1:] == [3 * 3 * 4, 3 * 8 * 6 + 3 * 2 * 5]
    batch = middle.batch([1, 0])
    assert batch.ids == ("thin", "large")
    assert batch.masks is not None
    assert batch.masks[0, 1].sum() == 3 * 2 * 5  # all of it
    large = blocks()[0]
    np.testing.assert_array_equal(batch.images[1, 0], large.image[0, 4:8, 11:19, 9:17])  # of (2..10, 3..27, 3..23)
    empty = MiddlePatches(Volumes([prepared(np.zeros((8, 16, 16), int))]), PATCHES)  # type: ignore[arg-type]
    assert empty.batch([0]).images.shape == (1, 1, 4, 8, 8)


def test_labels_become_disjoint_masks() -> None:
    labels = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    batch = as_batch([torch.zeros(1, 1, 2, 2)], [labels], ["a"], ("x", "y"))
    assert batch.masks is not None
    assert batch.masks[0, :, 0].int().tolist() == [[[0, 1], [0, 1]], [[0, 0], [1, 0]]]
