"""Curves over prompt noise: the summaries by hand, the bands by their definition, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from samsans.errors import InputError
from samsans.metrics.robustness import (
    band,
    compare,
    crossover,
    curves,
    half_drop,
    naurc,
    naurc_band,
    prompt_reliance,
    resample,
)  # fmt: skip

LEVELS, SCORES = (0, 0.25, 0.5, 1), (0.8, 0.76, 0.6, 0.2)


def test_worked_example() -> None:
    assert naurc(LEVELS, SCORES) == pytest.approx(0.565)
    assert naurc(LEVELS, SCORES, relative=True) == pytest.approx(0.70625)
    assert half_drop(LEVELS, SCORES) == pytest.approx(0.75)


def test_area_of_a_flat_curve_is_its_score_whatever_the_levels() -> None:
    assert naurc((2, 3, 7), (0.4, 0.4, 0.4)) == pytest.approx(0.4)
    assert np.isnan(naurc((0, 1), (0.0, 0.5), relative=True))


def test_half_drop() -> None:
    assert half_drop((0, 1, 2), (0.8, 0.7, 0.5)) is None
    assert half_drop((0, 1, 2), (0.8, 0.4, 0.5)) == 1
    assert half_drop((0, 1, 2), (0.8, 0.0, 0.8)) == pytest.approx(0.5)  # the first time
    assert half_drop((0, 1), (0.0, 0.0)) is None


def test_crossover() -> None:
    assert crossover(LEVELS, SCORES, 0.7) == pytest.approx(0.25 + 0.25 * 0.06 / 0.16)
    assert crossover(LEVELS, SCORES, 0.1) is None
    assert crossover(LEVELS, SCORES, 0.2) is None  # meets the line at the end, never below
    assert crossover(LEVELS, SCORES, 0.9) == 0
    assert crossover((0, 1, 2), (0.5, 0.5, 0.4), 0.5) == 1  # equal so far, below from there on
    assert crossover((0, 1), (0.8, 0.2), (0.4, 0.6)) == pytest.approx(0.5)


def test_prompt_reliance() -> None:
    assert prompt_reliance(0.8, 0.3) == pytest.approx(0.5)
    assert prompt_reliance([0.8, 0.6, np.nan], [0.2, 0.2, 0.2]) == pytest.approx(0.5)


@pytest.mark.parametrize(("levels", "scores"), [((0,), (1,)), ((0, 0), (1, 1)), ((1, 0), (1, 1)), ((0, 1), (1, 1, 1))])
def test_levels_increase_and_have_a_score_each(levels: tuple[float, ...], scores: tuple[float, ...]) -> None:
    for summary in (naurc, half_drop):
        with pytest.raises(InputError, match="increasing levels"):
            summary(levels, scores)


def test_band_is_the_loop_it_stands_for() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, 2, 5))
    scores[1, 0, 2] = np.nan
    times = np.random.default_rng(4).multinomial(5, [0.2] * 5, size=300)
    drawn = [np.nanmean(scores[:, :, np.repeat(np.arange(5), t)], axis=(1, 2)) for t in times]
    np.testing.assert_allclose(resample(scores, 300, seed=4), drawn)
    found = band(scores, 300, seed=4)
    np.testing.assert_allclose(found.mean, np.nanmean(scores, axis=(1, 2)))
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, (0.025, 0.975), axis=0))
    areas = [naurc((0, 1, 3), curve) for curve in drawn]
    assert naurc_band((0, 1, 3), scores, 300, seed=4) == pytest.approx(np.quantile(areas, (0.025, 0.975)))


def test_one_volume_has_a_mean_and_no_band() -> None:
    found = band(np.full((2, 3, 1), 0.5))
    np.testing.assert_array_equal(found.mean, [0.5, 0.5])
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(naurc_band((0, 1), np.full((2, 3, 1), 0.5))).all()


def test_draws_of_one_volume_do_not_narrow_the_band() -> None:
    scores = np.random.default_rng(1).random((2, 1, 6))
    once, often = band(scores), band(np.repeat(scores, 9, axis=1))
    np.testing.assert_allclose([once.low, once.high], [often.low, often.high])


def test_compare_is_wilcoxon_with_holm() -> None:
    rng = np.random.default_rng(2)
    ours = rng.random(12)
    others = {"far": ours - 0.3 + 0.01 * rng.random(12), "near": ours + 0.1 * rng.normal(size=12), "same": ours}
    raw = [stats.wilcoxon(ours, others[name]).pvalue for name in ("far", "near")]
    assert raw[0] < raw[1]
    found = compare(ours, others)
    assert compare(ours, others, list(map(str, range(len(ours))))) == found
    twice = {name: np.repeat(theirs, 2) for name, theirs in others.items()}
    of = np.repeat(np.arange(len(ours)).astype(str), 2)
    assert compare(np.repeat(ours, 2), twice, of) == pytest.approx(found)
    assert list(found) == ["far", "near", "same"]
    assert found["far"] == pytest.approx(3 * raw[0])
    assert found["near"] == pytest.approx(min(1, 2 * raw[1]))
    assert found["same"] == 1


def test_picture() -> None:
    rng = np.random.default_rng(3)
    methods = {"spd": rng.random((6, 2, 4)), "unet": rng.random((1, 1, 4)), "one volume": rng.random((6, 2, 1))}
    levels, ticks = range(6), [f"L{i}" for i in range(6)]
    shares = [1.0, 0.83, 0.66, 0.36, 0.14, np.nan]
    both = curves("Noise", list(levels), methods, prompt_free=["unet"], measured=shares, ticks=ticks)
    one = curves("Noise", list(levels), methods, prompt_free=["unet"], ticks=ticks)
    sizes = [Image.open(io.BytesIO(png)).size for png in (both, one)]
    assert sizes[0][0] > 1.5 * sizes[1][0]
    assert both == curves("Noise", list(levels), methods, prompt_free=["unet"], measured=shares, ticks=ticks)
    assert both != curves("Noise", list(levels), methods, measured=shares, ticks=ticks)
    with pytest.raises(InputError, match="levels x draws x volumes"):
        curves("Noise", list(levels), {"spd": np.zeros((6, 2))})
