"""The parts of SPD: distillation against golden sets and properties, reading saliency, the head, losses by hand."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.spd.config import SpdConfig
from samsans.methods.spd.cpd import Consensus, distil, spread, unique
from samsans.methods.spd.distiller import Distiller
from samsans.methods.spd.head import SaliencyHead
from samsans.methods.spd.losses import consistency, pair_loss, pairs, segmentation_terms
from samsans.methods.spd.saliency import dense, enlarged, peak
from samsans.ops.losses import focal_loss

Places = set[tuple[float, float]]

POINTS: list[list[tuple[int, int]]] = [[(0, 2), (7, 7)], [(2, 3)], [], [(5, 4), (1, 1)], [(4, 2), (7, 5)]]


def golden() -> tuple[np.ndarray, list[np.ndarray]]:
    """Five maps of 8 x 8 with a bright rectangle that moves right, and points."""
    maps = np.full((5, 8, 8), 0.15)
    for t in range(5):
        maps[t, 2:6, t : t + 4] = 0.9
    return maps, [np.array(own, float).reshape(-1, 2) for own in POINTS]


def places(found: list[Consensus]) -> list[Places]:
    return [{(x, y) for x, y, _ in part.points.tolist()} for part in found]


@pytest.mark.parametrize(
    ("neighbours", "wanted"),
    [
        (0, [{(0, 2)}, {(2, 3)}, set(), {(5, 4)}, {(4, 2), (7, 5)}]),
        (1, [{(0, 2), (2, 3)}, {(2, 3)}, {(2, 3), (5, 4)}, {(5, 4), (4, 2)}, {(4, 2), (7, 5), (5, 4)}]),
        (2, [{(0, 2), (2, 3)}, {(2, 3)}, {(2, 3), (5, 4), (4, 2)}, {(5, 4), (4, 2)}, {(4, 2), (7, 5), (5, 4)}]),
        (3, [{(0, 2), (2, 3)}, {(2, 3), (4, 2)}, {(2, 3), (5, 4), (4, 2)}, {(5, 4), (4, 2)}, {(4, 2), (7, 5), (5, 4)}]),
    ],
)
def test_golden_sets(neighbours: int, wanted: list[Places]) -> None:
    maps, points = golden()
    found = distil(dense(maps), points, tau=0.5, neighbours=neighbours)
    assert places(found) == wanted
    assert all((part.points[:, 2] == 1).all() for part in found)


def test_golden_thresholds_and_provenance() -> None:
    maps, points = golden()
    everything = distil(dense(maps), points, tau=0.1, neighbours=0)
    assert places(everything) == [set(own) for own in POINTS]
    assert not any(len(part) for part in distil(dense(maps), points, tau=0.9, neighbours=3))  # strictly above
    found = distil(dense(maps), points, tau=0.5, neighbours=2)
    assert found[2].points[:, :2].tolist() == [[2, 3], [5, 4], [4, 2]]  # nearest neighbours first
    assert [part.offsets.tolist() for part in found] == [[0, 1], [0], [-1, 1, 2], [0, 1], [0, 0, -1]]


@st.composite
def volumes(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random maps ``(T, 6, 6)`` of few levels, and whole-numbered points of each."""
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    maps = rng.choice([0.1, 0.4, 0.6, 0.9], (count, 6, 6))
    return maps, [rng.integers(0, 6, (rng.integers(0, 5), 2)).astype(float) for _ in range(count)]


@given(volumes(), st.integers(0, 3), st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=80, deadline=None)
def test_properties(volume: tuple[np.ndarray, list[np.ndarray]], n: int, tau: float) -> None:
    maps, points = volume
    found = places(distil(dense(maps), points, tau=tau, neighbours=n))
    wider = places(distil(dense(maps), points, tau=tau, neighbours=n + 1))
    stricter = places(distil(dense(maps), points, tau=tau + 0.2, neighbours=n))
    assert found == naive(maps, points, tau, n)
    for t, own in enumerate(found):
        assert all(maps[t, int(y), int(x)] > tau for x, y in own)
        assert own <= wider[t]
        assert stricter[t] <= own
    again = [np.concatenate([own[::-1], own]) for own in points]
    assert places(distil(dense(maps), again, tau=tau, neighbours=n)) == found
    assert places(distil(dense(maps[::-1]), points[::-1], tau=tau, neighbours=n)) == found[::-1]
    assert places(distil(dense(np.full_like(maps, tau)), points, tau=tau, neighbours=n)) == [set()] * len(points)


def naive(maps: np.ndarray, points: list[np.ndarray], tau: float, n: int) -> list[Places]:
    """The formula of the paper, as sets."""

    def above(t: int, at: tuple[float, float]) -> bool:
        return bool(maps[t, int(at[1]), int(at[0])] > tau)

    valid = [{(x, y) for x, y in own.tolist() if above(t, (x, y))} for t, own in enumerate(points)]
    around = [set().union(*valid[max(t - n, 0) : t], *valid[t + 1 : t + n + 1]) for t in range(len(points))]
    return [valid[t] | {at for at in around[t] if above(t, at)} for t in range(len(points))]


def test_exact_saliency_leaves_only_points_on_target_and_fills_gaps() -> None:
    truth = np.zeros((3, 8, 8))
    truth[:, 2:5, 2:5] = 1
    points = [np.array([[3.0, 3], [6, 6]]), np.empty((0, 2)), np.array([[0.0, 0], [4, 4]])]
    assert places(distil(dense(truth), points, tau=0.5, neighbours=1)) == [{(3, 3)}, {(3, 3), (4, 4)}, {(4, 4)}]


def test_outside_points_stay_where_they_are() -> None:
    maps = np.stack([np.full((4, 4), 0.9), np.full((4, 4), 0.9), np.full((4, 4), 0.1)])
    points = [np.array([[1.0, 1, 1], [2, 2, 0]]), np.empty((0, 3)), np.array([[0.0, 0, 0], [3, 3, 1]])]
    found = distil(dense(maps), points, tau=0.5, neighbours=1)
    assert found[0].points.tolist() == [[1, 1, 1], [2, 2, 0]]
    assert found[1].points.tolist() == [[1, 1, 1]]
    assert len(found[2]) == 0  # outside points alone show no object


def test_rejected_as_negative() -> None:
    maps, points = golden()
    found = distil(dense(maps), points, tau=0.5, neighbours=1, rejected_as_negative=True)
    assert found[0].points.tolist() == [[0, 2, 1], [7, 7, 0], [2, 3, 1]]
    assert found[3].points.tolist() == [[5, 4, 1], [1, 1, 0], [4, 2, 1]]
    assert found[2].points[:, 2].tolist() == [1, 1]  # a neighbour's rejects are not this slice's
    nothing = distil(dense(0 * maps), points, tau=0.5, neighbours=1, rejected_as_negative=True)
    assert not any(len(part) for part in nothing)


def test_cap_spreads_from_the_most_salient_point() -> None:
    maps = np.full((1, 1, 11), 0.6).repeat(11, 1)
    maps[0, 0, 4] = 0.9
    row = np.stack([np.arange(11.0), np.zeros(11)], 1)
    (found,) = distil(dense(maps), [row], tau=0.5, neighbours=0, cap=3)
    assert found.points[:, 0].tolist() == [0, 4, 10]
    assert found.capped == 8
    (whole,) = distil(dense(maps), [row], tau=0.5, neighbours=0, cap=11)
    assert (len(whole), whole.capped) == (11, 0)
    assert spread(row, 20, 0).tolist() == list(range(11))
    assert unique(np.array([[1.0, 2, 1], [1, 2, 0], [0, 5, 1]])).tolist() == [[1, 2, 1], [0, 5, 1]]


@pytest.mark.parametrize("options", [{"neighbours": -1}, {"cap": 0}, {"points": [np.zeros((2, 4))]}])
def test_what_cannot_be_distilled(options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"points": [np.zeros((1, 2))], "neighbours": 1, "cap": 4} | options
    with pytest.raises(InputError):
        distil(dense(np.ones((1, 4, 4))), tau=0.5, **given)


@pytest.mark.parametrize(("small", "side"), [(16, 64), (8, 64), (5, 32), (16, 16)])
def test_saliency_is_read_as_torch_enlarges_it(small: int, side: int) -> None:
    logits = torch.randn(2, small, small, generator=torch.Generator().manual_seed(0)) * 3
    whole = F.interpolate(logits[:, None].double(), (side, side), mode="bilinear", align_corners=False)[:, 0].sigmoid()
    row, column = np.indices((side, side)).reshape(2, -1)
    lookup = enlarged(logits.numpy(), side)
    for t in range(2):
        read = lookup(t, np.stack([column, row], 1).astype(float))
        np.testing.assert_allclose(read, whole[t].numpy()[row, column], atol=1e-12)
        place, value = peak(logits[t].numpy(), side)
        assert value == pytest.approx(float(whole[t].max()), abs=1e-12)
        assert float(whole[t][int(place[1]), int(place[0])]) == pytest.approx(value, abs=1e-12)


def test_places_are_read_at_the_nearest_pixel_inside() -> None:
    maps = np.arange(9.0).reshape(1, 3, 3)
    xy = np.array([[0.4, 0.4], [0.6, 1.4], [-7, 1], [1, 99]])
    assert dense(maps)(0, xy).tolist() == [0, 4, 3, 7]


def test_the_head() -> None:
    head = SaliencyHead(256)
    assert sum(p.numel() for p in head.parameters()) == 73_985
    logits = head(torch.zeros(2, 256, 8, 8))
    assert (logits.shape, logits.dtype) == ((2, 32, 32), torch.float32)
    flat = SaliencyHead(8, (4, 2), bias=-1.5)
    torch.nn.init.zeros_(flat.last.weight)
    torch.testing.assert_close(flat(torch.randn(1, 8, 2, 2)), torch.full((1, 8, 8), -1.5))
    assert 1 / (1 + math.exp(2)) == pytest.approx(0.119, abs=1e-3)  # the saliency a fresh head starts about


def test_losses_by_hand() -> None:
    nothing = torch.zeros(1, 512, 512, dtype=torch.bool)
    dice, focal = segmentation_terms(torch.zeros(1, 512, 512), nothing)
    assert float(dice) == pytest.approx(1.0, abs=1e-7)
    assert float(focal) == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert float(0.7 * dice + 0.3 * focal) == pytest.approx(0.7519860, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "gradient"), [(0.05, 3.686e-4), (0.1, 2.8965e-3), (0.15, 9.5913e-3), (0.2, 2.22813e-2), (0.5, 0.2982868)]
)
def test_focal_gradient_dies_off_on_background(p: float, gradient: float) -> None:
    logit = torch.tensor([[[math.log(p / (1 - p))]]], requires_grad=True)
    focal_loss(logit, torch.zeros(1, 1, 1, dtype=torch.bool)).sum().backward()
    assert logit.grad is not None
    assert float(logit.grad) == pytest.approx(gradient, rel=2e-4)


def test_losses_equal_those_of_monai() -> None:
    pytest.importorskip("monai")
    from monai.losses import DiceFocalLoss

    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 40, 40, generator=generator)
    target = torch.rand(3, 40, 40, generator=generator) > 0.8
    target[1] = False
    theirs = DiceFocalLoss(sigmoid=True, gamma=2.0, lambda_dice=0.7, lambda_focal=0.3)
    dice, focal = segmentation_terms(logits, target)
    torch.testing.assert_close(0.7 * dice + 0.3 * focal, theirs(logits[:, None], target[:, None].float()))


def test_losses_are_of_single_precision() -> None:
    logits, target = torch.randn(2, 8, 8, dtype=torch.bfloat16), torch.rand(2, 8, 8) > 0.5
    wanted = segmentation_terms(logits.float(), target)
    for found, full in zip(segmentation_terms(logits, target), wanted, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, full)
    assert pair_loss(logits.sigmoid(), logits.sigmoid()).dtype == torch.float32


def test_pair_loss_by_hand() -> None:
    a, b = torch.tensor([[[0.9, 0.8, 0.1, 0.0]]]), torch.tensor([[[0.7, 0.2, 0.6, 0.0]]])
    assert pair_loss(a, b, 0).item() == pytest.approx(0.4848485, abs=1e-6)
    assert pair_loss(b, a, 0).item() == pytest.approx(0.4848485, abs=1e-6)
    assert pair_loss(a, a, 0).item() == pytest.approx(0.1888889, abs=1e-6)
    one, other = torch.tensor([[[1.0, 1, 0, 0]]]), torch.tensor([[[0.0, 0, 1, 1]]])
    assert pair_loss(one, one, 0).item() == 0
    assert pair_loss(one, other, 0).item() == 1
    assert pair_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)).item() == 0
    for p in (0.1, 0.5, 0.9):
        flat = torch.full((1, 8, 8), p)
        assert pair_loss(flat, flat, 0).item() == pytest.approx(1 - p, abs=1e-6)


def test_pair_loss_beside_an_empty_mask_grows_the_empty_one() -> None:
    a = torch.full((1, 1, 10), 0.9, requires_grad=True)
    b = torch.zeros(1, 1, 10, requires_grad=True)
    loss = pair_loss(a, b, 0)
    loss.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert loss.item() == 1
    assert (a.grad == 0).all()
    torch.testing.assert_close(b.grad, torch.full_like(b.grad, -0.2))


def test_directions_and_constants() -> None:
    generator = torch.Generator().manual_seed(0)
    for direction, moved in (("next", (True, False)), ("prev", (False, True)), ("both", (True, True))):
        a, b = (torch.rand(2, 4, 4, generator=generator).requires_grad_() for _ in range(2))
        free = consistency(a, b, direction)
        torch.testing.assert_close(free, pair_loss(a, b))
        consistency(a, b, direction, stop_grad=True).sum().backward()
        assert (a.grad is not None, b.grad is not None) == moved


def test_pairs() -> None:
    following = torch.tensor([1, 2, -1, 4, -1])
    current, after = pairs(following, torch.tensor([True, True, True, True, False]))
    assert (current.tolist(), after.tolist()) == ([0, 1], [1, 2])


def maps_of(*levels: float) -> np.ndarray:
    """One slice each of constant logits, 4 x 4."""
    return np.stack([np.full((4, 4), level, np.float32) for level in levels])


RAW = [np.array([[1.0, 2, 1], [1, 2, 1]]), np.array([[9.0, 3, 1]]), np.empty((0, 3))]


@pytest.mark.parametrize(
    ("empty", "wanted"),
    [
        ("empty", [[[1, 2, 1]], [], []]),
        ("no_prompt", [[[1, 2, 1]], [], []]),
        ("raw", [[[1, 2, 1]], [[9, 3, 1]], []]),
        ("saliency_peak", [[[1, 2, 1]], [], [[9, 5, 1]]]),
    ],
)
def test_slices_without_a_consensus(empty: Any, wanted: list[Any]) -> None:
    logits = maps_of(1, -1, -1)
    logits[2, 1, 2] = 9.0
    distiller = Distiller(SpdConfig(empty=empty, neighbours=0), 16)
    shown = distiller(logits, RAW)
    assert [points.shape[1] for points in shown] == [3, 3, 3]
    assert [points.tolist() for points in shown] == wanted
    counts = distiller.counts
    assert (counts["slices"], counts["prompted"], counts["silenced"], counts["empty"]) == (3, 2, 1, 2)
    assert counts["fallback"] == sum(map(len, wanted)) - 1


def test_what_is_distilled_follows_the_configuration() -> None:
    logits, points = maps_of(1, 1, -1), [np.array([[1.0, 2, 1]]), np.empty((0, 3)), np.array([[5.0, 5, 1]] * 2)]

    def shown(**options: Any) -> list[int]:
        return [len(part) for part in Distiller(SpdConfig(**options), 16)(logits, points)]

    assert shown() == [1, 1, 0]
    assert shown(distill="local") == [1, 0, 0]
    assert shown(distill="none") == [1, 0, 1]
    assert shown(tau=0.2) == [2, 2, 2]
    assert shown(tau=0.2, cap=1) == [1, 1, 1]
    many = np.stack([np.arange(9.0), np.zeros(9), np.ones(9)], 1)
    assert Distiller(SpdConfig(distill="none", cap=3), 16)(None, [many])[0][:, 0].tolist() == [0, 4, 8]
    assert Distiller(SpdConfig(distill="none"), 16)(None, [np.array([[1.0, 1, 0]])])[0].shape == (0, 3)
    with pytest.raises(InputError, match="a map for every slice"):
        Distiller(SpdConfig(), 16)(logits[:2], points)
    copied = pickle.loads(pickle.dumps(Distiller(SpdConfig(), 16)))
    assert [len(part) for part in copied(logits, points)] == [1, 1, 0]
