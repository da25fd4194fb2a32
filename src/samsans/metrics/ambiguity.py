"""Agreement of a set of samples with a set of annotations of the same image: GED, HM-IoU, Dmax, Dmean, calibration.

K samples and A annotations of one image are boolean masks of one shape, ``(K, ...)`` and ``(A, ...)``.  IoU and Dice of
two empty masks are 1, of exactly one empty mask 0; nothing is added to a denominator.  All metrics are of one image;
the value of a data set is their plain mean over its images (``mean``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from samsans.errors import InputError

BINS = 10
METRICS = (
    *("ged", "cross", "sample_diversity", "annotator_diversity", "hm_iou", "hm_iou_rect"),
    *("dmax_gt", "dmax_global", "dmax_pred", "dmean"),
)
_CHUNK = 1 << 20  # pixels a product: sums of ones stay exact in float32 (below 2**24), and memory stays small


@dataclass(frozen=True)
class Ged:
    """Generalised energy distance, squared (no root is taken): ``2 cross - sample_diversity - annotator_diversity``.

    cross: mean distance 1 - IoU of all K A pairs of a sample and an annotation.
    sample_diversity, annotator_diversity: mean distance of all K^2 (A^2) pairs, the K (A) pairs of a mask with itself
        included: the plug-in form, never negative.  squared: in [0, 2]; a perfect sampler of K independent samples
        has the expectation ``annotator_diversity / K``, so values of different K do not compare.
    """

    squared: float
    cross: float
    sample_diversity: float
    annotator_diversity: float


@dataclass(frozen=True)
class Ambiguity:
    """All metrics of one image.

    samples, annotations: K and A.  empty_samples, empty_annotations: how many of them hold no pixel.
    ged and its terms: see ``Ged``.  hm_iou, hm_iou_rect: see the functions of these names.
    dmax_gt: mean over annotations of the Dice of the best sample (also called maximum Dice matching).
    dmax_global: the highest Dice of any pair, "P2SAM-style": near 1 as soon as one sample fits one annotation.
    dmax_pred: mean over samples of the Dice of the best annotation.  dmean: mean Dice of all pairs.
    """

    samples: int
    annotations: int
    empty_samples: int
    empty_annotations: int
    ged: float
    cross: float
    sample_diversity: float
    annotator_diversity: float
    hm_iou: float
    hm_iou_rect: float
    dmax_gt: float
    dmax_global: float
    dmax_pred: float
    dmean: float

    @property
    def presence(self) -> str:
        """``agreed`` if every annotator drew something, ``dissent`` if only some did, ``absent`` if none."""
        if self.empty_annotations == 0:
            return "agreed"
        return "absent" if self.empty_annotations == self.annotations else "dissent"


@dataclass(frozen=True)
class Overlaps:
    """M masks of one image compared with each other.

    iou: ``(M, M)`` float64.  empty: ``(M,)`` bool, which of them hold no pixel.
    """

    iou: np.ndarray
    empty: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """Sums over pixels by bin of the predicted probability; those of several images add up.

    Bin ``b`` of ``n`` holds probabilities in ``[b / n, (b + 1) / n)``, the last one also 1.
    count, predicted, observed: ``(n,)`` float64: pixels, sum of their probabilities, sum of their votes.
    """

    count: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.count + other.count, self.predicted + other.predicted, self.observed + other.observed)

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1]: mean over bins, weighted by their pixels, of the distance between mean
        probability and mean vote; NaN without pixels."""
        total = self.count.sum()
        return float(np.abs(self.predicted - self.observed).sum() / total) if total else math.nan


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(K, A)`` float64 intersection over union of each of ``a (K, ...)`` with each of ``b (A, ...)``, boolean."""
    left, right = _flat(a, b)
    both, one, other = _counts(left, right)
    return _ratio(both, one[:, None] + other[None] - both)


def dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(K, A)`` float64 Dice overlap of each of ``a (K, ...)`` with each of ``b (A, ...)``, boolean."""
    left, right = _flat(a, b)
    both, one, other = _counts(left, right)
    return _ratio(2 * both, one[:, None] + other[None])


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(K, A)`` float64 distances 1 - IoU (Jaccard, a metric) in [0, 1]."""
    return 1 - iou(a, b)


def ged(samples: np.ndarray, annotations: np.ndarray) -> Ged:
    """Generalised energy distance of ``samples (K, ...)`` and ``annotations (A, ...)``, boolean."""
    left, right = _flat(samples, annotations)
    return _ged(overlaps(np.concatenate([left, right])).iou, len(left))


def hm_iou(samples: np.ndarray, annotations: np.ndarray) -> float:
    """Hungarian-matched IoU in [0, 1], the standard one: samples and annotations repeated to their least common
    multiple, the best one-to-one assignment's mean IoU.  The same as optimal transport between uniform weights."""
    return _matched(iou(samples, annotations))


def hm_iou_rect(samples: np.ndarray, annotations: np.ndarray) -> float:
    """The same without repeating ("P2SAM-style"): only the best min(K, A) pairs count, the other samples are ignored.
    Never below ``hm_iou``, and not comparable with it."""
    return _matched_rect(iou(samples, annotations))


def compare(samples: np.ndarray, annotations: np.ndarray) -> Ambiguity:
    """All metrics of one image, ``samples (K, ...)`` and ``annotations (A, ...)``, boolean, of one shape.

    Raises InputError where one of them is not boolean or empty of masks, or their shapes differ.
    """
    left, right = _flat(samples, annotations)
    found = overlaps(np.concatenate([left, right]))
    return measure(found, range(len(left)), range(len(left), len(left) + len(right)))


def overlaps(masks: np.ndarray) -> Overlaps:
    """Of ``masks (M, ...)``, boolean, at least one, with each other: by one matrix product, chunk by chunk."""
    flat, _ = _flat(masks, masks)
    both, area, _ = _counts(flat, flat)
    return Overlaps(_ratio(both, area[:, None] + area[None] - both), area == 0)


def measure(masks: Overlaps, samples: Sequence[int], annotations: Sequence[int]) -> Ambiguity:
    """All metrics of the masks numbered ``samples`` against those numbered ``annotations``; numbers may repeat."""
    k, a = len(samples), len(annotations)
    chosen = np.array([*samples, *annotations])
    overlap = masks.iou[np.ix_(chosen, chosen)]
    energy, cross = _ged(overlap, k), overlap[:k, k:]
    pairs = 2 * cross / (1 + cross)  # Dice of the same pairs
    return Ambiguity(
        samples=k,
        annotations=a,
        empty_samples=int(masks.empty[chosen[:k]].sum()),
        empty_annotations=int(masks.empty[chosen[k:]].sum()),
        ged=energy.squared,
        cross=energy.cross,
        sample_diversity=energy.sample_diversity,
        annotator_diversity=energy.annotator_diversity,
        hm_iou=_matched(cross),
        hm_iou_rect=_matched_rect(cross),
        dmax_gt=float(pairs.max(axis=0).mean()),
        dmax_global=float(pairs.max()),
        dmax_pred=float(pairs.max(axis=1).mean()),
        dmean=float(pairs.mean()),
    )


def mean(images: Sequence[Ambiguity]) -> dict[str, float | int]:
    """Of a data set: plain means over images of all ``METRICS``, the number of ``images``, the share of empty
    ``samples`` and ``annotations``; NaN without images."""
    values = {m: float(np.mean([getattr(i, m) for i in images])) if images else math.nan for m in METRICS}
    drawn, sampled = sum(i.annotations for i in images), sum(i.samples for i in images)
    return {
        "images": len(images),
        **values,
        "empty_samples": sum(i.empty_samples for i in images) / sampled if sampled else math.nan,
        "empty_annotations": sum(i.empty_annotations for i in images) / drawn if drawn else math.nan,
    }


def reliability(probability: np.ndarray, annotations: np.ndarray, bins: int = BINS) -> Reliability:
    """Mean probability of the samples, any shape, against ``annotations (A, ...)``, boolean.

    Convention (our decision): a pixel's truth is the share of annotators who drew it, its vote; every pixel counts the
    same, background included; those of all images are pooled; ``bins`` of equal width.
    Raises InputError where shapes differ or a probability lies outside [0, 1].
    """
    p = np.asarray(probability, dtype=np.float64).ravel()
    if probability.shape != annotations.shape[1:]:
        raise InputError(f"probabilities {probability.shape}, annotations {annotations.shape[1:]}", "one shape")
    if not (p.size and p.min() >= 0 and p.max() <= 1):
        raise InputError("probabilities outside [0, 1], or none", "probabilities in [0, 1]")
    votes = annotations.mean(axis=0, dtype=np.float64).ravel()
    at = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(at, minlength=bins).astype(np.float64)
    return Reliability(count, np.bincount(at, p, minlength=bins), np.bincount(at, votes, minlength=bins))


def _flat(samples: np.ndarray, annotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as ``(masks, pixels)`` boolean."""
    for name, masks in (("samples", samples), ("annotations", annotations)):
        if masks.dtype != bool or masks.ndim < 2 or not masks.size:
            raise InputError(f"{name} of shape {masks.shape} and type {masks.dtype}", "boolean masks (how many, ...)")
    if samples.shape[1:] != annotations.shape[1:]:
        raise InputError(f"samples {samples.shape[1:]}, annotations {annotations.shape[1:]}", "masks of one shape")
    return samples.reshape(len(samples), -1), annotations.reshape(len(annotations), -1)


def _counts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels in both ``(K, A)``, in a ``(K,)`` and in b ``(A,)``, exact, as float64."""
    both = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _CHUNK):
        left = a[:, start : start + _CHUNK].astype(np.float32)
        right = left if b is a else b[:, start : start + _CHUNK].astype(np.float32)
        both += left @ right.T
    if b is a:
        return both, np.diag(both), np.diag(both)
    return both, np.count_nonzero(a, axis=1).astype(np.float64), np.count_nonzero(b, axis=1).astype(np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; 1 where nothing is there at all."""
    return np.divide(part, whole, out=np.ones(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def _ged(overlap: np.ndarray, k: int) -> Ged:
    """From the ``(K + A, K + A)`` IoU of K samples and A annotations."""
    apart = 1 - overlap
    cross, within, between = (float(part.mean()) for part in (apart[:k, k:], apart[:k, :k], apart[k:, k:]))
    return Ged(max(0.0, 2 * cross - within - between), cross, within, between)  # below 0 by rounding alone


def _matched(overlap: np.ndarray) -> float:
    k, a = overlap.shape
    both = math.lcm(k, a)
    return _matched_rect(np.repeat(np.repeat(overlap, both // k, axis=0), both // a, axis=1))


def _matched_rect(overlap: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[rows, columns].mean())
