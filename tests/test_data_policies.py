"""Published recipes of random changes, and the warps they are made of."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samsans.config import AugmentConfig
from samsans.data import policies, warps
from samsans.data.augment import augment
from samsans.data.transforms import aligned
from samsans.errors import InputError

POLICIES = sorted(policies.POLICIES)


def config(policy: str, labels: str = "nearest") -> AugmentConfig:
    return AugmentConfig(policy=policy, elastic_labels=labels)  # type: ignore[arg-type]


def scene(batch: int = 2, side: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Coloured noise, and discs 1, 2 and 3 that do not overlap; 2 is absent."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    labels = np.where((rows - 0.4) ** 2 + (columns - 0.4) ** 2 < 0.05, 1, 0)
    labels[(rows - 0.7) ** 2 + (columns - 0.7) ** 2 < 0.03] = 3
    masks = torch.from_numpy(np.stack([labels == k for k in (1, 2, 3)]))
    images = torch.from_numpy(rng.integers(0, 256, (batch, 3, side, side), dtype=np.uint8))
    return images, masks.expand(batch, -1, -1, -1).clone()


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_shapes_classes_and_determinism(policy: str, seed: int) -> None:
    images, masks = scene()
    before = images.clone(), masks.clone()
    changed, moved = augment(images, masks, config(policy), np.random.default_rng(seed))
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert (moved.shape, moved.dtype) == (masks.shape, torch.bool)
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])
    assert moved.sum(1).max() <= 1, "masks stay apart"
    assert not moved[:, 1].any(), "no class is invented"
    again = augment(images, masks, config(policy), np.random.default_rng(seed))
    assert torch.equal(changed, again[0])
    assert torch.equal(moved, again[1])


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_grey_stays_grey_and_the_image_moves_with_its_mask(policy: str, seed: int) -> None:
    _, masks = scene(side=64)
    masks = masks[:, :1]
    images = (masks.expand(-1, 3, -1, -1) * 255).to(torch.uint8)
    changed, moved = augment(images, masks, config(policy), np.random.default_rng(seed))
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])
    for image, mask in zip(changed[:, 0].float(), moved[:, 0], strict=True):
        level = image[mask].median() / 2 if mask.any() else 127  # AutoSAM darkens
        assert ((image > level) == mask).float().mean() > 0.97


@pytest.mark.parametrize("policy", POLICIES)
def test_every_image_is_changed_by_itself(policy: str) -> None:
    images, masks = scene(batch=1)
    changed, _ = augment(
        images.expand(12, -1, -1, -1), masks.expand(12, -1, -1, -1), config(policy), np.random.default_rng(0)
    )
    assert len({c.numpy().tobytes() for c in changed}) > 4


@pytest.mark.parametrize("policy", POLICIES)
def test_no_objects_and_tiny_squares(policy: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        changed, moved = augment(
            torch.ones(2, 3, 3, 3, dtype=torch.uint8), torch.zeros(2, 0, 3, 3) > 0, config(policy), rng
        )
        assert changed.shape == (2, 3, 3, 3)
        assert moved.shape == (2, 0, 3, 3)


def test_branches_of_hsam() -> None:  # check 17 of the specification
    assert math.isclose(sum(policies.HSAM_BRANCHES.values()), 1)
    rng = np.random.default_rng(0)
    counts = Counter(policies.hsam_branch(rng) for _ in range(100_000))
    for branch, share in {"rotate": 0.45, "scale": 0.4125, "elastic": 0.1169, "none": 0.0206}.items():
        assert abs(counts[branch] / 100_000 - share) < 5 * math.sqrt(share * (1 - share) / 100_000)


@pytest.mark.parametrize("branch", policies.HSAM_BRANCHES)
def test_hsam_does_what_its_branch_says(branch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "hsam_branch", lambda rng: branch)
    images, masks = scene(1)
    out = augment(images, masks, config("hsam"), np.random.default_rng(4))
    arrays, rng = (images[0].numpy(), masks[0].numpy()), np.random.default_rng(4)
    expected = {
        "rotate": lambda: policies.rotate(*arrays, rng),
        "scale": lambda: policies.enlarge(*arrays, rng),
        "elastic": lambda: policies.elastic(*arrays, False, rng),
        "none": lambda: arrays,
    }[branch]()
    np.testing.assert_array_equal(out[0][0].numpy(), expected[0])
    np.testing.assert_array_equal(out[1][0].numpy(), expected[1])


@pytest.mark.parametrize("seed", range(8))
def test_rotations_are_those_of_scipy(seed: int) -> None:
    images, masks = scene(1, 65)
    turned, moved = policies.rotate(images[0].numpy(), masks[0].numpy(), np.random.default_rng(seed))
    angle = int(np.random.default_rng(seed).integers(-20, 20))
    oracle = ndimage.rotate(images[0].numpy(), angle, (2, 1), order=0, reshape=False)
    middle = slice(3, -3)  # SciPy calls half a pixel more of the border outside
    assert (turned != oracle)[:, middle, middle].mean() < 0.02
    shown = ndimage.rotate(masks[0, 0].numpy().astype(np.uint8), angle, order=0, reshape=False)
    np.testing.assert_array_equal(moved[0], shown > 0)


def test_angles_of_rotations() -> None:
    seen: set[float] = set()

    def note(positions: np.ndarray, angle: float) -> np.ndarray:
        seen.add(round(math.degrees(angle), 9))
        return positions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "turned", note)
        rng = np.random.default_rng(0)
        for _ in range(600):
            policies.rotate(np.zeros((1, 4, 4), np.uint8), np.zeros((0, 4, 4), bool), rng)
    assert seen == set(range(-20, 20))


def test_enlarging_shows_a_window() -> None:
    side = 40
    ramp = np.repeat(np.linspace(0, 255, side)[None, None], side, 1)
    image = np.concatenate([ramp, ramp.transpose(0, 2, 1), ramp]).round().astype(np.uint8)
    masks = np.stack([image[0] < 100, image[0] >= 100])
    sizes = []
    for seed in range(60):
        out, moved = policies.enlarge(image, masks, np.random.default_rng(seed))
        first, last = (out[0, 0, [0, -1]].astype(float) * (side - 1) / 255).round().astype(int)
        window = last - first + 1
        assert 0.2 * side - 1 <= window <= 0.8 * side
        top = round(float(out[1, 0, 0]) * (side - 1) / 255)
        index = aligned(window, side)
        np.testing.assert_array_equal(moved, masks[:, (top + index)[:, None], first + index])
        assert (moved.sum(0) == 1).all()
        sizes.append(window)
    assert min(sizes) < 0.3 * side
    assert max(sizes) > 0.7 * side


def test_truncated_labels_invent_classes() -> None:
    """Of the fifth class alone, all lower ones appear along its border, as in the released code; none with nearest."""
    masks = np.zeros((5, 64, 64), bool)
    masks[4, 16:48, 16:48] = True
    image = np.zeros((1, 64, 64), np.uint8)
    rng = np.random.default_rng(0)
    _, moved = policies.elastic(image, masks, True, np.random.default_rng(0))
    assert moved[:4].any((1, 2)).all()
    assert moved.sum(0).max() == 1
    _, clean = policies.elastic(image, masks, False, rng)
    assert not clean[:4].any()
    assert clean[4].any()
    core = ndimage.binary_erosion(clean[4], iterations=2)
    assert moved[4][core].all(), "rounding errors do not lower whole numbers"


def test_truncated_labels_need_exclusive_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "hsam_branch", lambda rng: "elastic")
    images, masks = scene()
    masks[:, 1] = masks[:, 0]
    with pytest.raises(InputError, match="masks that overlap"):
        augment(images, masks, config("hsam", "truncated"), np.random.default_rng(0))


def test_samed_is_a_mixture() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64), dtype=np.uint8)
    masks = image > 20
    mirrors = {np.flip(np.rot90(image, k, (1, 2)), a).tobytes() for k in range(4) for a in (1, 2)}
    assert len(mirrors) == 4, "a mirror after a quarter turn is one of four"
    rng = np.random.default_rng(0)
    drawn: list[str] = []
    for _ in range(3000):
        out, moved = policies.samed(image, masks, config("samed"), rng)
        kind = "same" if np.array_equal(out, image) else "mirror" if out.tobytes() in mirrors else "rotated"
        if kind == "mirror":
            np.testing.assert_array_equal(moved, out > 20)
        drawn.append(kind)
    shares = {k: v / 3000 for k, v in Counter(drawn).items()}
    assert abs(shares["mirror"] - 0.5) < 0.04
    assert abs(shares["rotated"] - 0.25 * 39 / 40) < 0.04
    assert abs(shares["same"] - 0.25 * 41 / 40) < 0.04, "the angle may be 0"


def test_autosam_changes_brightness_noise_and_place() -> None:
    image = np.full((1, 64, 64), 120, np.uint8)
    masks = np.zeros((1, 64, 64), bool)
    masks[0, 20:40, 10:24] = True
    levels, noises, areas, lefts = [], [], [], []
    for seed in range(150):
        out, moved = policies.autosam(image, masks, config("autosam"), np.random.default_rng(seed))
        middle = out[0, 26:38, 26:38]
        levels.append(float(np.median(middle)))
        noises.append(float(middle.std()))
        areas.append(int(moved.sum()))
        lefts.append(bool(moved.any()) and float(np.nonzero(moved[0])[1].mean()) < 32)
    assert 14 <= min(levels) < 90 < 150 < max(levels)
    assert 0.3 < np.mean(np.array(noises) < 0.4) < 0.7
    assert min(areas) < 0.5 * 280 < 2 * 280 < max(areas)
    assert 0.35 < np.mean(lefts) < 0.65


def test_a_field_is_smoothed_noise() -> None:
    field = warps.displacement(warps.smoothing(40, 3.0), np.random.default_rng(1))
    noise = np.random.default_rng(1).uniform(-1, 1, (2, 40, 40))
    np.testing.assert_allclose(field, [ndimage.gaussian_filter(n, 3.0) for n in noise], atol=1e-12)


def test_warps_by_hand() -> None:
    pixels = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    plain = warps.grid(5)
    np.testing.assert_array_equal(warps.nearest(pixels, plain), pixels)
    np.testing.assert_allclose(warps.bilinear(pixels, plain), pixels)
    shifted = plain + np.array([0.0, 1.0])[:, None, None]
    expected = np.concatenate([pixels[:, :, 1:], np.zeros((1, 5, 1))], 2)
    np.testing.assert_array_equal(warps.nearest(pixels, shifted), expected)
    between = (pixels[:, :, 1:] + pixels[:, :, :-1].astype(float)) / 2
    np.testing.assert_allclose(warps.bilinear(pixels, (plain + shifted) / 2)[..., :4], between)
    np.testing.assert_allclose(warps.bilinear(pixels, shifted), expected)
    np.testing.assert_array_equal(warps.nearest(pixels, warps.turned(plain, math.pi / 2)), np.rot90(pixels, 1, (1, 2)))
    half = warps.turned(plain, 0, 2.0)
    assert warps.inside(half).sum() == 9
    np.testing.assert_array_equal(warps.nearest(pixels, half)[0, 1:4, 1:4], pixels[0, ::2, ::2])


@given(st.integers(1, 9), st.integers(-30, 30))
def test_reflection_is_numpys(side: int, place: int) -> None:
    padded = np.pad(np.arange(side), 40, mode="reflect") if side > 1 else np.zeros(81, int)
    positions = np.full((2, side, side), float(place))
    assert (warps.reflected(positions) == padded[40 + place]).all()


def test_jitter_is_affine_and_bounded() -> None:
    plain = warps.grid(31)
    np.testing.assert_allclose(warps.jittered(plain, 0, np.random.default_rng(0)), plain, atol=1e-9)
    for seed in range(20):
        moved = warps.jittered(plain, 2.0, np.random.default_rng(seed)) - plain
        assert np.abs(np.diff(moved, 2, axis=1)).max() < 1e-9
        assert np.abs(np.diff(moved, 2, axis=2)).max() < 1e-9
        assert np.abs(moved[:, 5, 5]).max() < 2.01, "a corner of the central square"
        assert np.abs(moved).max() > 0.1
