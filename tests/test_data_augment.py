"""Random changes and synthetic tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samsans.config import AugmentConfig
from samsans.data import synthetic
from samsans.data.augment import augment
from samsans.data.synthetic import IMAGE_RULES, OBJECT_RULES, synthetic_masks


def scene(batch: int = 3, objects: int = 1, side: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright discs on dark noise, and their masks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    images = rng.integers(0, 60, (batch, 3, side, side))
    masks = np.zeros((batch, objects, side, side), bool)
    for b in range(batch):
        for n in range(objects):
            centre = rng.uniform(0.3, 0.7, 2) * side
            masks[b, n] = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (side / 6) ** 2
            images[b][:, masks[b, n]] += 150
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(masks)


def test_nothing_asked_for_nothing_changed() -> None:
    images, masks = scene()
    out = augment(images, masks, AugmentConfig(), np.random.default_rng(0))
    assert out[0] is images
    assert out[1] is masks


def test_a_sure_flip_is_a_mirror() -> None:
    images, masks = scene()
    changed, moved = augment(images, masks, AugmentConfig(flip=1.0), np.random.default_rng(0))
    assert torch.equal(changed, images.flip(-1))
    assert torch.equal(moved, masks.flip(-1))


def test_a_quarter_turn_is_exact() -> None:
    images, masks = scene()

    class Quarter:
        """A generator whose every uniform draw is the upper limit."""

        def random(self) -> float:
            return 0.999

        def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:
            return high if size is None else np.full(size, high)

    changed, moved = augment(images, masks, AugmentConfig(rotate=90), Quarter())  # type: ignore[arg-type]
    turned = [torch.rot90(masks, k, (-2, -1)) for k in (1, 3)]
    assert any(torch.equal(moved, t) for t in turned)
    direction = 1 if torch.equal(moved, turned[0]) else 3
    assert (changed.int() - torch.rot90(images, direction, (-2, -1)).int()).abs().max() <= 1


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_masks_move_with_their_images(seed: int) -> None:
    _, masks = scene(side=64)
    images = (masks.expand(-1, 3, -1, -1) * 255).to(torch.uint8)
    config = AugmentConfig(flip=0.5, rotate=30, scale=0.2, shift=0.1)
    changed, moved = augment(images, masks, config, np.random.default_rng(seed))
    assert changed.dtype == torch.uint8
    assert moved.dtype == torch.bool
    agree = (changed[:, 0] > 127) == moved[:, 0]
    assert agree.float().mean() > 0.99


def test_intensity_changes_images_only_and_each_by_itself() -> None:
    images, masks = scene()
    images = images[:1].expand(3, -1, -1, -1)
    changed, same = augment(images, masks, AugmentConfig(intensity=0.3), np.random.default_rng(0))
    assert same is masks
    assert len({int(c.sum()) for c in changed}) == 3


def test_shift_is_a_share_of_the_side() -> None:
    config = AugmentConfig(shift=0.25)
    images, masks = scene(batch=64)
    _, moved = augment(images, masks, config, np.random.default_rng(0))
    both = masks.flatten(1).any(1) & moved.flatten(1).any(1)
    index = torch.arange(64).float()
    before, after = ((m[both, 0].sum(1) * index).sum(1) / m[both, 0].sum((1, 2)) for m in (masks, moved))
    distance = (after - before).abs()
    assert distance.max() <= 0.25 * 64 + 1
    assert distance.max() > 0.15 * 64


@given(seed=st.integers(0, 10_000), objects=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_synthetic_masks_have_the_shape_and_follow_one_rule(seed: int, objects: int) -> None:
    images, masks = scene(objects=objects, side=48, seed=seed % 7)
    images, masks = (torch.cat([t, t[:1]]) for t in (images, masks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "EXCHANGED", 0.0)
        out = synthetic_masks(images, masks, np.random.default_rng(seed))
        again = synthetic_masks(images, masks, np.random.default_rng(seed))
    assert out.dtype == torch.bool
    assert out.shape[0] == 4
    assert 1 <= out.shape[1] <= max(objects, 1)
    assert out.shape[2:] == (48, 48)
    assert torch.equal(out[0], out[3]), "the same image gets the same mask"
    assert torch.equal(out, again)


def test_exchanged_masks_are_those_of_other_images() -> None:
    masks = scene()[1][:, 0]
    for seed in range(9):
        moved = synthetic.exchanged(masks, np.random.default_rng(seed))
        assert all(not torch.equal(a, b) for a, b in zip(moved, masks, strict=True))
        assert sorted(m.sum().item() for m in moved) == sorted(m.sum().item() for m in masks)


@pytest.mark.parametrize("rule", [*dict.fromkeys(IMAGE_RULES), *OBJECT_RULES])
def test_every_rule_marks_something_somewhere(rule: synthetic.Rule) -> None:
    images, masks = scene(side=96)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        start = masks[:, 0] if rule in OBJECT_RULES else images.float().mean(1) / 255
        marked = rule(start, rng)
        assert marked.dtype == torch.bool
        assert marked.shape == (3, 96, 96)
        assert 0 < marked.float().mean() < 1


@pytest.mark.parametrize("rule", [*dict.fromkeys(IMAGE_RULES), *OBJECT_RULES])
@pytest.mark.parametrize("full", [False, True])
def test_rules_bear_blank_images_and_absent_objects(rule: synthetic.Rule, full: bool) -> None:
    if rule in OBJECT_RULES:
        marked = rule(torch.full((2, 32, 32), full), np.random.default_rng(0))
        if not full:
            assert bool(marked.any()) == (rule is synthetic.complement)
    elif rule is not synthetic.place:  # which asks nothing of the image
        assert not rule(torch.full((2, 32, 32), float(full)), np.random.default_rng(0)).any()


def test_rules_around_the_object() -> None:
    _, masks = scene(side=64)
    mask = masks[:, 0]
    rng = np.random.default_rng(1)
    assert torch.equal(synthetic.complement(mask, rng), ~mask)
    assert (synthetic.dilated(mask, rng) >= mask).all()
    assert (synthetic.eroded(mask, rng) <= mask).all()
    assert not (synthetic.ring(mask, rng) & mask).any()
    assert not (synthetic.beside(mask, rng) & mask).any()
    assert (synthetic.half(mask, rng) <= mask).all()


def test_large_images_are_worked_on_small() -> None:
    images, masks = scene(batch=2, side=512)
    for seed in range(6):
        out = synthetic_masks(images, masks, np.random.default_rng(seed))
        assert out.shape == (2, 1, 512, 512)
