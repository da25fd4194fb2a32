"""Matching and losses of MaskSAM: against loops, all permutations, the library's formulas and values by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.mask2former import modeling_mask2former as library

from samsans.methods.masksam import losses, matching
from samsans.methods.masksam.config import MatchingConfig
from samsans.methods.masksam.outputs import Outputs

SIDE, OBJECTS = 16, 3
SMALL = MatchingConfig(points=64)


def truth(batch: int = 2, depth: int = 3, seed: int = 0) -> Tensor:
    """Disjoint masks ``(B, N, T, 16, 16)``; some slices lack an object, one is empty."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((batch, depth, SIDE, SIDE), np.int64)
    for b, t in itertools.product(range(batch), range(depth)):
        for k in range(1, OBJECTS + 1):
            if rng.random() < 0.7:
                y, x = rng.integers(0, 9, 2)
                labels[b, t, y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = k
    labels[0, 0] = 0
    one_hot = functional.one_hot(torch.from_numpy(labels), OBJECTS + 1)
    return one_hot.permute(0, 4, 1, 2, 3)[:, 1:].bool()


def outputs(queries: int = 6, batch: int = 2, depth: int = 3, seed: int = 0, grad: bool = False) -> Outputs:
    g = torch.Generator().manual_seed(seed)
    rows = batch * depth
    logits, final, first = (
        torch.randn(rows, queries, *shape, generator=g).mul(2).requires_grad_(grad)
        for shape in ((OBJECTS + 2,), (SIDE, SIDE), (SIDE, SIDE))
    )
    low, size = torch.rand(2, rows, queries, 2, generator=g)
    boxes = torch.cat([low, low + (1 - low) * size], -1).requires_grad_(grad)
    return Outputs(logits, final, first, boxes, depth)


def each(given: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The same with all its tensors changed."""
    assert given.auxiliary_logits is not None
    assert given.boxes is not None
    classes, final = change(given.class_logits), change(given.mask_logits)
    return Outputs(classes, final, change(given.auxiliary_logits), change(given.boxes), given.depth)


def perfect(wanted: matching.Targets, queries: int = 6, sure: float = 20.0) -> Outputs:
    """Query k answers for class k where that is present; the others for none."""
    rows, classes = wanted.present.shape
    logits = torch.full((rows, queries, classes + 1), -sure)
    logits[:, :, -1] = sure
    final = torch.full((rows, queries, *wanted.masks.shape[-2:]), -sure)
    boxes = torch.rand(rows, queries, 2).repeat(1, 1, 2)
    for r, k in wanted.present.nonzero().tolist():
        logits[r, k] = -sure
        logits[r, k, k] = sure
        final[r, k] = torch.where(wanted.masks[r, k], sure, -sure)
        boxes[r, k] = wanted.boxes[r, k]
    return Outputs(logits, final, final.clone(), boxes, 3)


@pytest.fixture
def centres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are always the centres of pixels, where sampling changes nothing."""

    def draw(rows: int, points: int, device: Any, generator: Any = None) -> Tensor:
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        grid = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) / SIDE
        return grid.repeat(math.ceil(points / len(grid)), 1)[:points].expand(rows, -1, -1)

    monkeypatch.setattr(matching, "draw", draw)
    monkeypatch.setattr(losses, "draw", draw)


# targets


@pytest.mark.parametrize("seed", range(3))
def test_targets_against_a_loop(seed: int) -> None:
    masks = truth(seed=seed)
    found = matching.targets(masks)
    for row, (b, t) in enumerate(itertools.product(range(2), range(3))):
        labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        for k in range(OBJECTS):
            labels[masks[b, k, t]] = k + 1
        for k in range(OBJECTS + 1):
            mask = labels == k
            assert (found.masks[row, k] == mask).all()
            assert found.present[row, k] == mask.any()
            box = [0.0] * 4
            if mask.any():
                y, x = mask.nonzero().T
                box = [x.min() / SIDE, y.min() / SIDE, x.max() / SIDE, y.max() / SIDE]
            assert found.boxes[row, k].tolist() == [float(v) for v in box]
    assert found.present[0].tolist() == [True, False, False, False]
    assert found.boxes.dtype == torch.float32


def test_boxes_by_hand() -> None:
    """Check 11, and a rectangle in a frame that is not square."""
    assert matching.mask_boxes(torch.ones(256, 256, dtype=torch.bool)).tolist() == [0, 0, 0.99609375, 0.99609375]
    mask = torch.zeros(2, 3, 4, 8, dtype=torch.bool)
    assert (matching.mask_boxes(mask) == 0).all()
    mask[1, 2, 1:3, 2:7] = True
    assert matching.mask_boxes(mask)[1, 2].tolist() == [2 / 8, 1 / 4, 6 / 8, 2 / 4]


def test_a_slice_that_objects_fill_has_no_background() -> None:
    masks = torch.zeros(1, 2, 1, 4, 4, dtype=torch.bool)
    masks[0, 1] = True
    assert matching.targets(masks).present.tolist() == [[False, False, True]]


# costs


def test_pairwise_costs_are_the_library_s() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 40, generator=g) * 4
    masks = torch.rand(2, 3, 40, generator=g)
    for r in range(2):
        entropy = library.pair_wise_sigmoid_cross_entropy_loss(logits[r], masks[r])
        torch.testing.assert_close(matching.pairwise_cross_entropy(logits, masks)[r], entropy)
        dice = library.pair_wise_dice_loss(logits[r], masks[r])
        torch.testing.assert_close(matching.pairwise_dice(logits, masks)[r], dice)


def test_sampling_is_the_library_s_and_exact_at_centres() -> None:
    maps, points = torch.randn(2, 3, 5, 7), torch.rand(2, 11, 2)
    expected = library.sample_point(maps, points, align_corners=False)
    torch.testing.assert_close(matching.sample(maps, points), expected, rtol=0, atol=0)
    centre = torch.tensor([(4 + 0.5) / 7, (2 + 0.5) / 5]).expand(2, 1, 2)
    torch.testing.assert_close(matching.sample(maps, centre)[..., 0], maps[:, :, 2, 4])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], -0.5),
        ([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.3], 0.0),
        ([0, 0, 0.4, 1], [0.2, 0, 0.6, 1], 1 / 3),
    ],
)
def test_giou_by_hand(a: list[float], b: list[float], expected: float) -> None:
    """Check 21."""
    assert matching.giou(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("on", ["logits", "probabilities"])
def test_costs_against_a_loop(on: Any) -> None:
    config = dataclasses.replace(SMALL, auxiliary_on=on)
    given, wanted = outputs(), matching.targets(truth())
    found = matching.costs(given, wanted, config, torch.Generator().manual_seed(5))
    points = torch.rand(6, 64, 2, generator=torch.Generator().manual_seed(5))
    assert given.auxiliary_logits is not None
    assert given.boxes is not None
    for r, q, k in itertools.product(range(6), range(6), range(OBJECTS + 1)):
        m = library.sample_point(wanted.masks[r, k].float()[None, None], points[r : r + 1], align_corners=False)[0]
        expected = -0.2 * given.class_logits[r, q].softmax(0)[k]
        for logits, w_entropy, w_dice in ((given.mask_logits, 1.5, 1.5), (given.auxiliary_logits, 0.5, 0.5)):
            x = logits[r, q].sigmoid() if on == "probabilities" and w_dice == 0.5 else logits[r, q]
            x = library.sample_point(x[None, None], points[r : r + 1], align_corners=False)[0]
            expected += w_entropy * functional.binary_cross_entropy_with_logits(x, m)
            expected += w_dice * library.dice_loss(x, m, 1)
        box, true = given.boxes[r, q], wanted.boxes[r, k]
        expected += 0.5 * (box - true).abs().sum() - 0.2 * matching.giou(box, true)
        assert found[r, q, k] == pytest.approx(float(expected), abs=2e-5)


# assignment


@pytest.mark.parametrize(("queries", "seed"), [(4, 0), (5, 1), (6, 2)])
def test_matching_against_all_permutations(queries: int, seed: int) -> None:
    wanted = matching.targets(truth(seed=seed))
    given = outputs(queries, seed=seed)
    cost = matching.costs(given, wanted, SMALL, torch.Generator().manual_seed(1)).double()
    found = matching.match(given, wanted, SMALL, torch.Generator().manual_seed(1))
    for r in range(6):
        shown = wanted.present[r].nonzero()[:, 0].tolist()
        cheapest = min(
            itertools.permutations(range(queries), len(shown)),
            key=lambda chosen: sum(cost[r, q, k].item() for q, k in zip(chosen, shown, strict=True)),
        )
        expected = [OBJECTS + 1] * queries
        for q, k in zip(cheapest, shown, strict=True):
            expected[q] = k
        assert found.classes[r].tolist() == expected
    pairs = {(r, q): k for r, row in enumerate(found.classes.tolist()) for q, k in enumerate(row) if k <= OBJECTS}
    listed = zip(*(v.tolist() for v in (found.slices, found.queries, found.targets)), strict=True)
    assert {(r, q): k for r, q, k in listed} == pairs
    assert len(pairs) == wanted.present.sum()


def test_costs_that_are_no_numbers() -> None:
    """A query of NaN is chosen last; a slice of nothing but NaN is left without pairs."""
    wanted = matching.targets(torch.ones(1, 1, 2, SIDE, SIDE, dtype=torch.bool))
    given = outputs(3, 1, 2)
    boxes = given.boxes.clone() if given.boxes is not None else None
    assert boxes is not None
    boxes[0, :2] = math.nan
    boxes[1] = math.nan
    given = dataclasses.replace(given, class_logits=given.class_logits[..., :3], boxes=boxes)
    found = matching.match(given, wanted, SMALL)
    assert found.classes.tolist() == [[2, 2, 1], [2, 2, 2]]
    assert found.slices.tolist() == [0]
    assert found.targets.dtype == torch.int64


def test_identity() -> None:
    masks = torch.zeros(1, 3, 2, 4, 4, dtype=torch.bool)
    masks[0, 2, 0, :2] = masks[0, 0, 1, 1] = True
    found = matching.identity(matching.targets(masks), 5)
    assert found.classes.tolist() == [[0, 3, 4, 4, 4], [0, 1, 4, 4, 4]]
    assert found.queries.tolist() == [0, 1, 0, 1]
    assert found.targets.tolist() == [0, 3, 0, 1]
    with pytest.raises(ValueError, match="3 queries cannot answer for 4 classes"):
        matching.identity(matching.targets(masks), 3)


# losses


def test_perfect_prediction(centres: None) -> None:
    """Check 17, at pixel centres: between pixels no logits agree with interpolated masks."""
    masks = torch.zeros(1, OBJECTS, 3, SIDE, SIDE, dtype=torch.bool)
    masks[0, 0, :, 1:9, 2:9] = masks[0, 1, 1:, 10:15, 1:15] = True
    wanted = matching.targets(masks)
    given = perfect(wanted)
    found = losses.set_loss(given, wanted, MatchingConfig(points=256))
    assert found["mask"] < 1e-6
    assert found["aux_mask"] < 1e-6
    assert found["dice"] < 1e-4
    assert found["aux_dice"] < 1e-4
    assert found["l1"] == 0
    assert found["giou"] < 1e-4
    assert found["classes"] < 1e-6
    classes = matching.match(given, wanted, MatchingConfig(points=256)).classes
    assert classes.tolist() == [[0, 1, 4, 4, 4, 4], [0, 1, 2, 4, 4, 4], [0, 1, 2, 4, 4, 4]]
    order = torch.randperm(6)
    mixed = each(given, lambda v: v[:, order])
    assert (matching.match(mixed, wanted, MatchingConfig(points=256)).classes == classes[:, order]).all()


@pytest.mark.parametrize(("on", "expected"), [("logits", 0.0), ("probabilities", None)])
def test_cross_entropy_of_a_perfect_auxiliary_mask(centres: None, on: Any, expected: float | None) -> None:
    """Check 20: the released code's second sigmoid leaves 0.69 on background and 0.31 on foreground."""
    config = MatchingConfig(points=256, importance=0.0, auxiliary_on=on)
    mask = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    mask[0, :, :4], mask[1, :, 5, 5:8] = True, True
    logits = torch.where(mask, 60.0, -60.0)
    for row, share in ((0, 0.25), (1, 3 / 256)):
        one = slice(row, row + 1)
        found, _ = losses.mask_losses(matching.auxiliary(logits[one], config), mask[one], torch.tensor(1.0), config)
        said = 0.6931 * (1 - share) + 0.3133 * share if expected is None else expected
        assert found.item() == pytest.approx(said, abs=1e-4 if expected is None else 1e-6)


def test_class_loss_is_the_weighted_mean() -> None:
    """Check 18, and check 15: equal logits cost ln(K + 1)."""
    logits = torch.randn(4, 5, 7)
    classes = torch.randint(0, 7, (4, 5))
    weight = torch.where(classes == 6, 0.1, 1.0)
    entropy = -logits.log_softmax(-1).gather(-1, classes[..., None])[..., 0]
    expected = (weight * entropy).sum() / weight.sum()
    torch.testing.assert_close(losses.class_loss(logits, classes, 0.1), expected)
    library_s = functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), torch.tensor([1.0] * 6 + [0.1]))
    assert losses.class_loss(logits, classes, 0.1).item() == pytest.approx(library_s.item(), abs=1e-6)
    for classes_count, value in ((4, 1.6094), (9, 2.3026), (16, 2.8332)):
        flat = torch.zeros(2, 3, classes_count + 1)
        found = losses.class_loss(flat, torch.randint(0, classes_count + 1, (2, 3)), 0.1)
        assert found.item() == pytest.approx(value, abs=1e-4)


def test_queries_and_classes_may_be_permuted(centres: None) -> None:
    """Check 19: with fixed points the order of queries changes nothing, nor does that of the objects."""
    config = MatchingConfig(points=256)
    masks, given = truth(), outputs()
    reference = losses.set_loss(given, matching.targets(masks), config)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = each(given, lambda v: v[:, order])
    swapped = dataclasses.replace(mixed, class_logits=mixed.class_logits[..., [0, 2, 3, 1, 4]])
    for other, shown in ((mixed, masks), (swapped, masks[:, [1, 2, 0]])):
        found = losses.set_loss(other, matching.targets(shown), config)
        for key, value in reference.items():
            torch.testing.assert_close(found[key], value, msg=key)


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    config = MatchingConfig(0.3, 1.1, 0.7, 0.4, 0.6, 0.9, points=64)
    found = losses.set_loss(outputs(), matching.targets(truth()), config)
    assert list(found) == ["loss", "classes", "mask", "dice", "aux_mask", "aux_dice", "l1", "giou"]
    weights = dict(zip(list(found)[1:], (0.3, 1.1, 0.7, 0.4, 0.4, 0.6, 0.9), strict=True))
    assert found["loss"].item() == pytest.approx(sum(w * found[k].item() for k, w in weights.items()), rel=1e-6)


def test_parts_against_a_loop(centres: None) -> None:
    """Boxes and masks of the pairs, over the number of targets (every point at a centre, none chosen)."""
    config = MatchingConfig(points=256, importance=0.0)
    given, wanted = outputs(), matching.targets(truth())
    assert given.auxiliary_logits is not None
    assert given.boxes is not None
    found = losses.set_loss(given, wanted, config)
    expected = dict.fromkeys(("mask", "dice", "aux_mask", "aux_dice", "l1", "giou"), 0.0)
    for r, row in enumerate(matching.match(given, wanted, config).classes.tolist()):
        for q, k in enumerate(row):
            if k > OBJECTS:
                continue
            m = wanted.masks[r, k].float().reshape(1, -1)
            for prefix, logits in (("", given.mask_logits), ("aux_", given.auxiliary_logits)):
                x = logits[r, q].reshape(1, -1)
                expected[f"{prefix}mask"] += library.sigmoid_cross_entropy_loss(x, m, 1).item()
                expected[f"{prefix}dice"] += library.dice_loss(x, m, 1).item()
            box, true = given.boxes[r, q], wanted.boxes[r, k]
            expected["l1"] += (box - true).abs().sum().item()
            expected["giou"] += 1 - matching.giou(box, true).item()
    number = wanted.present.sum().item()
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value / number, rel=1e-4), key


def test_prompts_from_the_truth() -> None:
    """Only class and final mask are learned, each query from its own class; nothing is asked of a generator."""
    wanted = matching.targets(truth())
    given = dataclasses.replace(outputs(grad=True), auxiliary_logits=None, boxes=None, identity=True)
    found = losses.set_loss(given, wanted, SMALL)
    assert list(found) == ["loss", "classes", "mask", "dice"]
    found["loss"].backward()  # type: ignore[no-untyped-call]
    used = given.mask_logits.grad
    assert used is not None
    assert ((used != 0).any(-1).any(-1).sum(1) == wanted.present.sum(1)).all()
    expected = losses.class_loss(given.class_logits, matching.identity(wanted, 6).classes, 0.1)
    assert found["classes"].item() == expected.item()


def test_uncertain_points() -> None:
    """Of two halves, one sure and one unsure, three quarters and half of the rest are drawn from the unsure one."""
    logits = torch.full((2, 1, SIDE, SIDE), 9.0)
    logits[..., SIDE // 2 :] = 0.1
    config = MatchingConfig(points=4000, oversample=4.0)
    points = losses.uncertain_points(logits, config, torch.Generator().manual_seed(0))
    assert points.shape == (2, 4000, 2)
    assert points.min() >= 0
    assert points.max() < 1
    unsure = (points[..., 0] > 0.5 - 0.5 / SIDE).float().mean(1)
    assert unsure.tolist() == pytest.approx([0.75 + 0.25 * (0.5 + 0.5 / SIDE)] * 2, abs=0.02)
    again = losses.uncertain_points(logits, config, torch.Generator().manual_seed(0))
    assert (points == again).all()


def test_random_points_follow_the_seed() -> None:
    wanted, given = matching.targets(truth()), outputs()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(losses.set_loss(given, wanted, SMALL)["loss"].item())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("on", ["logits", "probabilities"])
def test_gradients(on: Any) -> None:
    """Unmatched queries learn their class alone; everything that is learned has a finite gradient."""
    wanted = matching.targets(truth())
    given = outputs(grad=True)
    config = dataclasses.replace(SMALL, auxiliary_on=on)
    torch.manual_seed(0)
    losses.set_loss(given, wanted, config)["loss"].backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    free = matching.match(given, wanted, config).classes == OBJECTS + 1
    for tensor in (given.class_logits, given.mask_logits, given.auxiliary_logits, given.boxes):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        used = tensor.grad.flatten(2).abs().sum(-1) > 0
        assert (used if tensor is given.class_logits else used == ~free).all()


def test_float32_under_autocast(centres: None) -> None:
    config = MatchingConfig(points=256)
    given, wanted = outputs(), matching.targets(truth())
    plain = losses.set_loss(given, wanted, config)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.set_loss(given, wanted, config)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in plain.items()}
    half = each(given, Tensor.bfloat16)
    assert all(value.dtype == torch.float32 for value in losses.set_loss(half, wanted, config).values())


def test_targets_are_counted_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    present = torch.tensor([[True, False], [True, True]])
    assert losses.instances(present).item() == 3
    assert losses.instances(present & False).item() == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number: number.add_(8))
    assert losses.instances(present).item() == 5.5
