"""How sure a mean is: percentile bootstrap confidence intervals over cases or patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Intervals:
    """Confidence intervals; NaN where there are fewer than two units with a defined value.

    classes: ``(K, 2)`` float64, low and high of each class's mean.  headline: ``(2,)`` of the mean over the classes.
    """

    classes: np.ndarray
    headline: np.ndarray


def class_means(values: np.ndarray) -> np.ndarray:
    """Mean of each column of ``values (n, K)`` over its defined (not NaN) entries; NaN where there are none."""
    return _ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def bootstrap(
    values: np.ndarray, units: Sequence[str], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Intervals:
    """Percentile bootstrap of the class means and of their mean (Efron and Tibshirani 1993, section 13.3).

    values: ``(n, K)`` float64, one row a sample and one column a class, NaN where undefined.
    units: ``n`` names; rows of one name (a patient, a volume) are drawn together, with replacement.
    resamples: number of draws; 0 for no intervals.  seed: same seed, same intervals, whatever the order of classes.
    """
    classes = values.shape[1]
    names, index = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    defined = np.isfinite(values)
    sums, counts = np.zeros((len(names), classes)), np.zeros((len(names), classes))
    np.add.at(sums, index, np.where(defined, values, 0.0))
    np.add.at(counts, index, defined)
    nothing = Intervals(np.full((classes, 2), np.nan), np.full(2, np.nan))
    if resamples < 1 or len(names) < 2:
        return nothing
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    draws = _ratio(weights @ sums, weights @ counts)  # (resamples, K)
    headline = class_means(draws.T)[:, None]  # (resamples, 1)
    enough = (counts > 0).sum(axis=0) >= 2
    low_high = np.array([(1 - level) / 2, (1 + level) / 2])
    return Intervals(
        np.where(enough[:, None], _quantiles(draws, low_high), np.nan),
        _quantiles(headline, low_high)[0] if enough.any() else nothing.headline,
    )


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _quantiles(draws: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Quantiles (K, len(at)) of the defined entries of each column of draws (resamples, K)."""
    rows = [np.quantile(d[np.isfinite(d)], at) if np.isfinite(d).any() else np.full(len(at), np.nan) for d in draws.T]
    return np.stack(rows) if rows else np.empty((0, len(at)))
