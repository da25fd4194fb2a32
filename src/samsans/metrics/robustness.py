"""How a prompted method degrades as its prompts get worse: curves over levels of noise, and what sums them up.

    line = band(scores)                                  # mean and 95 % band over volumes
    naurc(levels, line.mean), half_drop(levels, line.mean), crossover(levels, line.mean, prompt_free)
    png = curves("Composite noise", levels, {"spd": scores, ...}, prompt_free=("unet",), measured=shares)

Scores of a method are ``(L, R, V)`` float: levels, draws of the noise, volumes; NaN where a score is undefined.
Higher is better everywhere.  Bands resample volumes, never draws or slices, and the same volumes for every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from samsans.errors import InputError
from samsans.metrics import pictures

RESAMPLES = 2000
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Band:
    """Mean over volumes and draws with its 95 % percentile interval, each ``(L,)``; one volume has no interval: NaN."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def naurc(levels: Numbers, scores: Numbers, *, relative: bool = False) -> float:
    """Area under the curve of scores by the trapezoid rule, divided by the range of the levels: a mean score.

    levels: at least two, increasing.  scores: one a level.  relative: divided by the score of the first level.
    """
    x, y = _checked(levels, scores)
    area = float(np.trapezoid(y, x) / (x[-1] - x[0]))
    if not relative:
        return area
    return area / float(y[0]) if y[0] else float("nan")


def half_drop(levels: Numbers, scores: Numbers) -> float | None:
    """First level (interpolated linearly) where the score is half of the first level's; None: it never falls so far."""
    x, y = _checked(levels, scores)
    return _first_below(x, y - y[0] / 2) if y[0] > 0 else None


def crossover(levels: Numbers, scores: Numbers, line: float | Numbers) -> float | None:
    """Level (interpolated linearly) from which on the method first scores less than the prompt-free line; None: never.

    line: one score, or one a level.  The first level, where the method lies below from the start.
    """
    x, y = _checked(levels, scores)
    gap = y - np.broadcast_to(np.asarray(line, np.float64), y.shape)
    return float(x[0]) if gap[0] < 0 else _first_below(x, gap, strictly=True)


def prompt_reliance(clean: float | Numbers, random: float | Numbers) -> float:
    """Score with clean prompts minus score with random points, of means or of lists of volumes.

    Near 0: the prompts say nothing that the method uses, it is an automatic method.
    """
    return float(np.nanmean(np.asarray(clean, np.float64)) - np.nanmean(np.asarray(random, np.float64)))


def band(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Band:
    """Mean curve of ``scores (L, R, V)`` and its bootstrap band over volumes."""
    low, high = _interval(resample(scores, resamples, seed))
    return Band(_mean_curves(scores, np.ones((1, _shaped(scores).shape[2])))[0], low, high)


def naurc_band(levels: Numbers, scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of ``naurc`` over volumes; NaN for a single volume.

    A claim of robustness needs one that lies wholly above those of tuning on raw prompts and of the best prompt-free
    method.
    """
    x = np.asarray(levels, np.float64)
    areas = np.trapezoid(resample(scores, resamples, seed), x, axis=1) / (x[-1] - x[0])
    low, high = _interval(areas[:, None])
    return float(low[0]), float(high[0])


def resample(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Mean curves ``(resamples, L)`` over volumes drawn with replacement; equal seeds draw equal volumes (paired)."""
    volumes = _shaped(scores).shape[2]
    times = np.random.default_rng(seed).multinomial(volumes, np.full(volumes, 1 / volumes), size=resamples)
    return _mean_curves(scores, times) if volumes > 1 else np.full((resamples, len(scores)), np.nan)


def compare(ours: Numbers, others: Mapping[str, Numbers], patients: Sequence[str] | None = None) -> dict[str, float]:
    """Paired Wilcoxon signed-rank tests of one method against each other, volumes as pairs: p, corrected by Holm.

    Pairs with an undefined score are left out; methods that agree on every volume have p = 1.  patients: of every
    volume; pairs are then patients, each the mean difference of its volumes.
    """
    raw = {}
    for name, theirs in others.items():
        difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
        known = np.isfinite(difference)
        difference = difference[known]
        if patients is not None and len(difference):
            _, of = np.unique(np.asarray(patients)[known], return_inverse=True)
            difference = np.bincount(of, difference) / np.bincount(of)
        raw[name] = float(stats.wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    corrected, worst = {}, 0.0
    for place, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        worst = max(worst, min(1.0, raw[name] * (len(raw) - place)))
        corrected[name] = worst
    return {name: corrected[name] for name in others}


def curves(
    title: str,
    levels: Numbers,
    methods: Mapping[str, np.ndarray],
    *,
    prompt_free: Sequence[str] = (),
    measured: Numbers | None = None,
    ticks: Sequence[str] | None = None,
    score: str = "Dice",
    level: str = "level of noise",
    measure: str = "share of points on the target",
) -> bytes:
    """Draw methods as lines with 95 % bands over the nominal level and, beside it, over what was measured: a PNG.

    Args:
        title: Above the picture.
        levels: The x positions ``(L,)``.
        methods: Scores ``(L, R, V)`` by name; of a prompt-free method ``(1, 1, V)`` is enough.
        prompt_free: Names of the methods that see no prompts; dashed.
        measured: Of the prompts at each level ``(L,)``, NaN where there are none; the axis runs from good to bad.
        ticks: Names of the levels, e.g. L0 to L5.
        score: What the y axis shows.
        level: What the x axis on the left shows.
        measure: What the x axis on the right shows.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    x = np.asarray(levels, np.float64)
    columns = [(x, level)] if measured is None else [(x, level), (np.asarray(measured, np.float64), measure)]
    figure = Figure(figsize=(5.2 * len(columns) + 1.6, 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for (at, name), axis in zip(columns, panels, strict=True):
        shown = np.isfinite(at)
        for place, (method, scores) in enumerate(methods.items()):
            line = band(np.broadcast_to(_shaped(scores), (len(x), *scores.shape[1:])))
            look = {"linestyle": "--"} if method in prompt_free else {"marker": "o", "markersize": 4}
            colour = colours[place % len(colours)]
            axis.plot(at[shown], line.mean[shown], color=colour, label=method, **look)
            axis.fill_between(at[shown], line.low[shown], line.high[shown], color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if ticks is not None:
        panels[0].set_xticks(x, ticks)
    panels[0].set_ylabel(score)
    if len(panels) > 1:
        panels[1].invert_xaxis()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return pictures.png(figure, 150)


def _checked(levels: Numbers, scores: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(levels, np.float64), np.asarray(scores, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 or not np.all(np.diff(x) > 0):
        raise InputError(f"levels {x.tolist()} and scores {y.tolist()}", "two or more increasing levels, a score each")
    return x, y


def _first_below(x: np.ndarray, gap: np.ndarray, *, strictly: bool = False) -> float | None:
    """Where ``gap``, not negative at first, meets 0 on its way down."""
    below = np.flatnonzero(gap < 0 if strictly else gap <= 0)
    if not below.size:
        return None
    i = int(below[0])
    part = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(x[i - 1] + part * (x[i] - x[i - 1]))


def _shaped(scores: np.ndarray) -> np.ndarray:
    if scores.ndim != 3 or 0 in scores.shape:
        raise InputError(f"scores of shape {scores.shape}", "levels x draws x volumes, at least one of each")
    return scores


def _mean_curves(scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean curve (n, L) for each row of ``times (n, V)``: how often each volume counts."""
    defined = np.isfinite(_shaped(scores))
    total = times @ np.where(defined, scores, 0.0).sum(axis=1).T
    count = times @ defined.sum(axis=1).T
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _interval(draws: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 percentiles (2, columns) of the defined entries of each column."""
    found = [
        np.quantile(d, (0.025, 0.975)) if d.size else (np.nan, np.nan) for d in (c[np.isfinite(c)] for c in draws.T)
    ]
    return np.array(found, np.float64).T
