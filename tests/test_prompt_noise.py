"""The simulator of bad prompts: its published numbers, its random numbers, and each of its processes alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from samsans.data.clean_points import find_centres
from samsans.data.phantoms import Phantom, make
from samsans.data.prompt_noise import (
    AXES,
    LEVELS,
    PRESETS,
    TAGS,
    Noise,
    PromptStatistics,
    autoregressive,
    clean_points,
    missing,
    poisson,
    simulate,
    statistics,
)
from samsans.errors import InputError
from samsans.types import Points

# on-target share, object slices with a point on target, empty slices with a point
PUBLISHED = {
    "L0": (1.00, 1.00, 0.00),
    "L1": (0.83, 0.84, 0.12),
    "L2": (0.66, 0.68, 0.25),
    "L3": (0.36, 0.42, 0.47),
    "L4": (0.14, 0.17, 0.66),
    "L5": (0.04, 0.06, 0.80),
}


@cache
def phantoms(size: int, n: int) -> tuple[Phantom, ...]:
    return tuple(make("distractors", n, size=size))


@cache
def tube(index: int = 0, size: int = 96) -> np.ndarray:
    return phantoms(size, 4)[index].labels[0] == 1


def disc(side: int, radius: float, y: float, x: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - y, columns - x) <= radius


def drawn(noise: Noise, mask: np.ndarray, draw: int = 0, **given_: object) -> Points:
    return simulate(mask, noise, volume="case", draw=draw, **given_)  # type: ignore[arg-type]


def voxels(points: Points, *tags: str) -> set[tuple[int, ...]]:
    chosen = [p for p, tag in zip(points.positions, points.tags, strict=True) if not tags or tag in tags]
    return {tuple(int(v) for v in p) for p in chosen}


# Random processes


def test_poisson_is_the_inverse_of_its_distribution() -> None:
    u = np.random.default_rng(0).random(300)
    for mean in (0.02, 0.5, 2.0, 8.0, 40.0):
        assert [poisson(v, mean) for v in u] == stats.poisson.ppf(u, mean).astype(int).tolist()
    assert poisson(0.999, 0) == 0


def test_latents_against_the_recursion() -> None:
    normals = np.random.default_rng(1).standard_normal((50, 2))
    z = [normals[0]]
    for e in normals[1:]:
        z.append(0.8 * z[-1] + 0.6 * e)
    assert np.allclose(autoregressive(normals, 0.8), z)
    long = autoregressive(np.random.default_rng(2).standard_normal(200_000), 0.8)
    assert long.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("share", "burst"), [(0.1, 1.91), (0.3, 2.79), (0.5, 4.05), (0.7, 6.63)])
def test_missing_slices_have_the_rate_and_the_runs(share: float, burst: float) -> None:
    lost = missing(np.random.default_rng(3).standard_normal(400_000), share)
    assert lost.mean() == pytest.approx(share, abs=0.01)
    runs = np.count_nonzero(np.diff(lost.astype(int)) == 1) + lost[0]
    assert lost.sum() / runs == pytest.approx(burst, rel=0.03)


@pytest.mark.parametrize("kind", ["s_jit", "s_drift"])
@pytest.mark.parametrize(("s", "share"), [(0.5, 0.8647), (0.75, 0.5889), (1, 0.3935), (1.5, 0.1993), (2, 0.1175)])
def test_slips_leave_a_disc_as_the_formula_says(kind: str, s: float, share: float) -> None:
    assert share == pytest.approx(1 - np.exp(-1 / (2 * s**2)), abs=5e-5)
    side, slices = 513, 400
    one = disc(side, 30, 256, 256)
    centres = find_centres(one[None])
    assert centres.rho == pytest.approx(30, abs=0.05)
    centres = replace(centres, positions=np.column_stack([np.arange(slices), np.full((slices, 2), 256)]))
    hits = []
    for draw in range(60 if kind == "s_drift" else 10):  # drift wanders: its slices are not independent
        points = drawn(Noise(**{kind: s}), np.broadcast_to(one, (slices, side, side)), draw, centres=centres)
        hits.append(one[tuple(points.positions[:, 1:].astype(int).T)].sum() / slices)
    assert np.mean(hits) == pytest.approx(share, abs=0.02)


# Levels


def test_levels_have_the_published_statistics() -> None:
    """10 volumes x 6 draws of our own phantom and random numbers: within 0.1, as the table says of itself."""
    masks = [case.labels[0] == 1 for case in phantoms(192, 10)]
    assert masks[0].shape == (24, 192, 192)
    all_centres = [find_centres(mask) for mask in masks]
    assert all(len(c.positions) == m.any((1, 2)).sum() for c, m in zip(all_centres, masks, strict=True))  # one each
    for level, published in PUBLISHED.items():
        counts = [
            statistics(simulate(mask, LEVELS[level], volume=f"{v}", draw=draw, centres=centres), mask)
            for v, (mask, centres) in enumerate(zip(masks, all_centres, strict=True))
            for draw in range(6)
        ]
        total = reduce(add, counts)
        found = (total.on_target_share, total.reached_share, total.misled_share)
        assert found == pytest.approx(published, abs=0.1), level
    assert list(LEVELS) == list(PUBLISHED)


def test_clean_prompts_are_all_on_target() -> None:
    for index in range(4):
        points = drawn(LEVELS["L0"], tube(index))
        assert statistics(points, tube(index)).on_target_share == 1.0
        assert np.array_equal(points.positions, clean_points(tube(index)).positions)
        assert set(points.tags) == {"clean"}


def test_the_same_seed_gives_the_same_bytes() -> None:
    def made(volume: str, draw: int) -> tuple[bytes, bytes, tuple[str, ...]]:
        points = simulate(tube(), LEVELS["L3"], volume=volume, draw=draw)
        return points.positions.tobytes(), points.labels.tobytes(), points.tags

    assert made("a", 0) == made("a", 0)
    assert len({made(volume, draw)[0] for volume in "abc" for draw in range(3)}) == 9


def test_all_slices_missing() -> None:
    assert len(drawn(Noise(p_miss=1), tube())) == 0
    points = drawn(Noise(p_miss=1, s_jit=1, p_off=0.5, lam_over=2), tube())
    assert not (tube().any((1, 2))[points.positions[:, 0].astype(int)]).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_nested_in_every_share(draw: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    mask = tube(draw % 4)
    assert voxels(drawn(Noise(p_miss=high), mask, draw)) <= voxels(drawn(Noise(p_miss=low), mask, draw))
    off = [voxels(drawn(Noise(p_off=p, s_jit=0.5), mask, draw), "off") for p in (low, high)]
    assert off[0] <= off[1]
    over = [voxels(drawn(Noise(lam_over=8 * p), mask, draw), "over") for p in (low, high)]
    assert over[0] <= over[1]
    spur = [voxels(drawn(Noise(lam_spur=2 * p), mask, draw), "spur") for p in (low, high)]
    assert spur[0] <= spur[1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(list(LEVELS)))
def test_processes_do_not_disturb_each_other(draw: int, level: str) -> None:
    mask, noise = tube(draw % 4), LEVELS[level]
    points = drawn(noise, mask, draw)
    assert (points.positions == np.floor(points.positions)).all()
    assert ((points.positions >= 0) & (points.positions < mask.shape)).all()
    assert len(voxels(points)) == len(points) == len(points.tags) == len(points.labels)
    assert (np.diff(points.positions[:, 0]) >= 0).all()
    assert (points.labels == 1).all()
    assert set(points.tags) <= set(TAGS)
    for tag, alone in (("over", Noise(lam_over=noise.lam_over)), ("spur", Noise(lam_spur=noise.lam_spur))):
        assert voxels(points, tag) <= voxels(drawn(alone, mask, draw), tag)
    jittered = drawn(Noise(s_jit=noise.s_jit, s_drift=noise.s_drift), mask, draw)
    assert voxels(points, "jitter", "clean") <= voxels(jittered)


def test_further_points_leave_the_numbers_of_the_others_alone() -> None:
    few, many = (drawn(Noise(s_jit=0.5, density=n), tube()) for n in (2, 10))
    assert voxels(few) < voxels(many)
    few, many = (drawn(Noise(p_off=0.5, density=n), tube()) for n in (2, 10))
    assert voxels(few, "off") < voxels(many, "off")


# One process at a time


def test_off_target_points_lie_in_the_ring_and_the_body() -> None:
    mask = np.repeat(disc(256, 14, 120, 130)[None], 60, 0)
    body = np.zeros_like(mask)
    body[:, :, 120:] = True
    points = drawn(Noise(p_off=1), mask, body=body)
    assert set(points.tags) == {"off"}
    assert len(points) == 60
    away = ndimage.distance_transform_edt(~mask[0])[tuple(points.positions[:, 1:].astype(int).T)]
    assert away.min() >= 0.04 * 256
    assert away.max() <= 0.15 * 256
    assert away.max() - away.min() > 15
    assert (points.positions[:, 2] >= 120).all()
    stays = drawn(Noise(p_off=1), mask, body=np.zeros_like(mask))  # no room anywhere
    assert set(stays.tags) == {"clean"}


def test_hard_points_look_like_the_object() -> None:
    mask = np.repeat(disc(128, 8, 64, 64)[None], 80, 0)
    rng = np.random.default_rng(0)
    image = np.where(mask, 200, 20) + rng.normal(0, 5, mask.shape)
    twin = np.repeat(disc(128, 5, 64, 84)[None], 80, 0)
    image[twin] += 175
    share = {mode: _on(twin, drawn(Noise(p_off=1, mode=mode), mask, image=image)) for mode in ("uniform", "hard")}
    assert share["hard"] == 1.0
    assert share["uniform"] < 0.15
    above = drawn(Noise(p_off=1, mode="hard", above=190), mask, image=image)
    assert (image[tuple(above.positions.astype(int).T)] > 190).all()
    flat = np.full(mask.shape, 7, np.uint8)  # nothing to tell by, no spread to divide by
    assert len(drawn(Noise(p_off=1, mode="hard"), mask, image=flat)) == 80


def _on(where: np.ndarray, points: Points) -> float:
    return float(where[tuple(points.positions.astype(int).T)].mean())


def test_over_run_goes_on_as_the_line_did() -> None:
    mask = np.zeros((40, 200, 200), bool)
    for z in range(15, 25):
        mask[z] = disc(200, 8, 40 + 4 * (z - 10), 100 - (z - 10))
    ends: dict[int, list[np.ndarray]] = {-1: [], 1: []}
    for draw in range(40):
        points = drawn(Noise(lam_over=4), mask, draw)
        run = points.positions[np.array(points.tags) == "over"]
        below, above = run[run[:, 0] < 15], run[run[:, 0] > 24]
        assert len(below) + len(above) == len(run)
        assert below[:, 0].tolist() == list(range(15 - len(below), 15))
        assert above[:, 0].tolist() == list(range(25, 25 + len(above)))
        ends[-1].append(below), ends[1].append(above)
    for side in ends.values():
        assert np.mean([len(run) for run in side]) == pytest.approx(4, abs=1.0)
        every = np.concatenate(side)
        off = every[:, 1:] - np.column_stack([40 + 4 * (every[:, 0] - 10), 100 - (every[:, 0] - 10)])
        assert np.abs(off.mean(0)).max() < 1.5
        steps = np.minimum(np.abs(every[:, 0] - 14), np.abs(every[:, 0] - 24 - 1) + 1)
        assert np.sqrt((off**2).mean()) == pytest.approx(2.0 * np.sqrt(steps.mean()), rel=0.35)  # 1 % of 200 px a slice


def test_over_run_stays_in_the_volume_and_a_lone_slice_runs_straight() -> None:
    mask = np.zeros((3, 100, 100), bool)
    mask[1] = disc(100, 8, 50, 50)
    points = drawn(Noise(lam_over=30), mask)
    assert points.positions[:, 0].tolist() == [0, 1, 2]
    assert np.abs(points.positions[:, 1:] - 50).max() <= 4
    assert len(drawn(LEVELS["L5"], np.zeros((3, 64, 64), bool))) > 0  # an empty volume has stray points alone
    assert set(drawn(LEVELS["L5"], np.zeros((3, 64, 64), bool)).tags) == {"spur"}


def test_stray_points_lie_in_the_body_off_the_object() -> None:
    mask = np.repeat(disc(64, 10, 32, 32)[None], 400, 0)
    body = np.repeat(disc(64, 20, 32, 32)[None], 400, 0)
    points = drawn(Noise(p_miss=1, lam_spur=0.5), mask, body=body)
    assert set(points.tags) == {"spur"}
    assert len(points) / 400 == pytest.approx(0.5, abs=0.1)
    assert _on(body & ~mask, points) == 1.0
    assert len(drawn(Noise(p_miss=1, lam_spur=5), mask, body=mask)) == 0


def test_density_is_the_number_of_clicks() -> None:
    mask = np.zeros((30, 256, 256), bool)
    mask[:] = disc(256, 15, 80, 80) | disc(256, 12, 160, 160) | disc(256, 9, 200, 40)
    for level in AXES["density"].levels:
        points = drawn(AXES["density"].at(level), mask)
        assert np.bincount(points.positions[:, 0].astype(int)).mean() == pytest.approx(level, abs=0.2)
    only = drawn(Noise(density=1), mask)
    assert (only.positions[:, 1:] == 80).all()  # the thickest
    assert len(drawn(Noise(density=10), mask)) == 90  # clicks at one place are one point


def test_all_points_on_one_wrong_object() -> None:
    for case in phantoms(96, 4):
        mask = case.labels[0] == 1
        assert case.points is not None
        line = case.points["distractor2"]
        points = drawn(Noise(wrong=True), mask, distractor=line)
        assert set(points.tags) == {"wrong"}
        assert len(points) == mask.any((1, 2)).sum()
        assert np.abs(points.positions - line[points.positions[:, 0].astype(int)]).max() <= 0.5
        assert statistics(points, mask).on_target == 0
        clean = clean_points(mask).positions
        assert len(drawn(Noise(wrong=True), mask, distractor=line[:0])) == 0
        moved = drawn(Noise(wrong=True, mode="hard"), mask, image=case.image[..., 0])
        assert statistics(moved, mask).on_target == 0
        assert np.ptp(moved.positions - clean, axis=0).max() == 0  # the same way in every slice
    waist = np.stack(
        [disc(128, 20 - 3 * min(z, 8 - z), 64, 64) for z in range(9)]
    )  # off its middle is not off its ends
    for draw in range(20):
        assert statistics(drawn(Noise(wrong=True), waist, draw), waist).on_target == 0
    twins = [drawn(Noise(wrong=True), tube(), draw).positions[0] for draw in range(8)]
    assert len({tuple(p) for p in twins}) == 8


def test_axes_start_from_clean_points() -> None:
    assert [axis.letter for axis in AXES.values()] == ["A", "B", "C", "C", "D", "E", "F", "G", "I"]
    for name, axis in AXES.items():
        assert list(axis.levels) == sorted(axis.levels)
        if name not in ("density", "off_target_hard"):
            assert axis.at(axis.levels[0]) == LEVELS["L0"]
        for level in axis.levels:
            assert getattr(axis.at(level), axis.parameter) == level
    assert PRESETS["ti"].lam_over == 4
    assert PRESETS["scar"] == replace(LEVELS["L2"], mode="hard", step=12)


# Statistics, errors, the phantom


def test_statistics_by_hand() -> None:
    mask = np.zeros((5, 8, 8), bool)
    mask[1, 2:5, 2:5] = mask[2, 2:5, 2:5] = True
    positions = [[1, 3.4, 3], [1, 4.5, 3], [0, 1, 1], [0, 2, 2], [2, 7, 7], [9, 3, 3], [4, 3, 3], [2, -5, 3]]
    found = statistics(Points(np.array(positions, float), np.array([1, 1, 1, 1, 1, 1, 0, 1])), mask)
    assert found == PromptStatistics(7, 1, 5, 2, 1, 1, 2)
    assert found.on_target_share == pytest.approx(1 / 7)
    assert (found.reached_share, found.misled_share) == (0.5, pytest.approx(1 / 3))
    assert found.points_per_slice == pytest.approx(7 / 5)
    assert (found + found).points == 14
    assert (found + found).misled_share == found.misled_share
    empty = statistics(Points(np.zeros((0, 3)), np.zeros(0, np.int64)), mask)
    assert np.isnan(empty.on_target_share)
    assert (empty.reached_share, empty.unprompted) == (0, 5)


@pytest.mark.parametrize(
    "options",
    [{"s_jit": -1}, {"lam_over": float("nan")}, {"p_off": 1.2}, {"p_miss": -0.1}, {"mode": "soft"}, {"density": 0}],
)
def test_impossible_noise_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Noise(**options)  # type: ignore[arg-type]


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(InputError, match="image that the points"):
        drawn(PRESETS["kits"], tube())
    with pytest.raises(InputError, match="same shape"):
        drawn(Noise(), tube(), body=tube()[1:])
    with pytest.raises(InputError, match="one slice"):
        drawn(Noise(), tube()[0])
    with pytest.raises(InputError, match="0 or more"):
        drawn(Noise(), tube(), draw=-1)


def test_distractors_look_like_the_tube_and_do_not_touch_it() -> None:
    shares, radii = [], []
    for case in make("distractors", 60, size=96):
        mask = case.labels[0][:, :, :] == 1
        assert mask[0].sum() == mask[-1].sum() == 0
        shares.append(mask.mean())
        radii.append(np.sqrt(mask.sum() / np.pi / mask.any((1, 2)).sum()))
    assert np.mean(shares) == pytest.approx(0.0028, abs=0.0003)
    assert min(radii) > 3.3  # 7 and 12 px of 192
    assert max(radii) < 6.2
    for case in make("distractors", 4, size=192, difficulty=0.0):
        mask, image = case.labels[0] == 1, case.image[..., 0]
        assert case.points is not None
        inside = case.points["centreline"]
        bright = np.median(_values(image, inside))
        around = np.median(image[mask.any((1, 2))][:, 40:150, 40:150])
        for number in range(1, 5):
            line = case.points[f"distractor{number}"]
            assert len(line) == len(mask)
            assert np.hypot(*(line[inside[:, 0].astype(int)] - inside)[:, 1:].T).min() > 24
            assert np.median(_values(image, line)) == pytest.approx(bright, rel=0.3)
            assert np.median(_values(image, line)) > 1.5 * around
        first, last = inside[0], inside[-1]
        for end, step in ((first, -1), (last, 1)):  # visible beyond its annotation
            z = int(end[0]) + step
            y, x = np.rint(end[1:]).astype(int)
            assert np.median(image[z, y - 2 : y + 3, x - 2 : x + 3]) > 1.5 * around
            assert not mask[z].any()


def _values(image: np.ndarray, line: np.ndarray) -> np.ndarray:
    return image[tuple(np.rint(line).astype(int).T)]
