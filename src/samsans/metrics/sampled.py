"""Several answers against several annotators: a folder of samples scored by the metrics of ``ambiguity``.

Three trivial answers are scored beside: no object at all, the one label map repeated, and annotations of the same image
drawn at random, which no method can be expected to beat.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.errors import InputError
from samsans.io.samples import map_file
from samsans.metrics import ambiguity, matching, statistics
from samsans.metrics.ambiguity import METRICS, Ambiguity, Reliability
from samsans.recipes import PublishedSets
from samsans.types import ClassInfo, Progress

ANSWERS = {
    "samples": "the samples",
    "empty": "nothing in every sample",
    "repeated": "the one label map in every sample",
    "annotators": "annotations of the same image drawn at random with replacement, the practical upper bound",
}
GROUPS = {
    "all": "all images",
    "agreed": "every annotator drew something",
    "dissent": "some annotators drew something, some nothing",
    "absent": "no annotator drew anything",
}
LEVELS = {"volume": "an image, or a whole volume, counts once", "slice": "each slice counts once"}
SHARE, MEAN = "share of the samples that show the object", "mean probability of the samples"
COLUMNS = (*(m for m in METRICS if m != "dmax_pred"), "ece")  # of the tables


@dataclass(frozen=True)
class Sampled:
    """The section ``ambiguity`` of an evaluation; plain values, None for what is undefined.

    samples: K.  annotators: number of images by their number of annotators.  level: see ``LEVELS``.
    probability: what the calibration is of.  seed: of the drawn annotations and the intervals.
    groups: by name of ``GROUPS``, of the samples: ``images``, each of ``METRICS`` (mean over images), ``ece`` (over all
        pixels of the group), ``empty_samples`` and ``empty_annotations`` (shares), and ``ci``: metric -> [low, high].
    trivial: the same of the other ``ANSWERS``, by answer and group, without intervals.
    reliability: ``count``, mean ``predicted`` and mean ``observed`` of every bin, of all images.
    left_out: ids of cases with fewer than two annotators.
    published: rows of the recipe that the run was trained from: ``table``, ``method``, ``scores``, ``note``.
    cases: a row for each image: ``id``, ``patient``, ``slice``, ``presence`` and the fields of ``Ambiguity``.
    """

    samples: int
    annotators: Mapping[str, int]
    level: str
    probability: str
    seed: int
    groups: Mapping[str, Mapping[str, Any]]
    trivial: Mapping[str, Mapping[str, Mapping[str, Any]]]
    reliability: Mapping[str, Sequence[float | None]]
    left_out: Sequence[str]
    cases: Sequence[Mapping[str, Any]] = field(repr=False)
    published: Sequence[Mapping[str, Any]] = ()

    @property
    def titles(self) -> dict[str, str]:
        """What the columns are called; K is part of the name of what depends on it."""
        return {
            "ged": f"GED_{self.samples}",
            "cross": "cross",
            "sample_diversity": "D_SS",
            "annotator_diversity": "D_YY",
            "hm_iou": "HM-IoU",
            "hm_iou_rect": "HM-IoU rect",
            "dmax_gt": "Dmax",
            "dmax_global": "Dmax global",
            "dmean": "Dmean",
            "ece": "ECE",
        }

    @property
    def legend(self) -> str:
        """The conventions behind the numbers, in sentences."""
        return (
            f"{LEVELS[self.level].capitalize()}. GED_{self.samples}: squared generalised energy distance with 1 - IoU, "
            f"2 cross - D_SS - D_YY, lower is better; it compares only with others of {self.samples} samples, and a "
            f"perfect sampler has D_YY / {self.samples}. HM-IoU: both sides repeated to their least common multiple; "
            "HM-IoU rect (P2SAM-style): only the best pairs, no repetition, so not comparable with it. Dmax: mean over "
            "annotators of the best sample's Dice; Dmax global (P2SAM-style): the best pair's alone. Dmean: Dice of "
            "all pairs. Two empty masks overlap by 1, one empty mask by 0. ECE: expected calibration error of the "
            f"{self.probability} against the share of annotators, {ambiguity.BINS} bins of equal width, all pixels "
            "alike, background included. Rows: " + "; ".join(f"{name}: {what}" for name, what in ANSWERS.items()) + "."
        )

    def text(self) -> str:
        """The tables for a terminal."""
        titles = self.titles
        who = ", ".join(f"{n} with {a} annotators" for a, n in self.annotators.items())
        lines = [f"{self.samples} samples against several annotators: {who}", ""]
        lines.append(f"{'':22}{'images':>7}" + "".join(f"{titles[m]:>12}" for m in COLUMNS) + f"{'empty':>7}")

        def row(name: str, values: Mapping[str, Any]) -> str:
            cells = ("-" if values[m] is None else f"{values[m]:.3f}" for m in COLUMNS)
            empty = f"{values['empty_samples']:>7.0%}"
            return f"{name:22}{values['images']:>7}" + "".join(f"{cell:>12}" for cell in cells) + empty

        for group, values in self.groups.items():
            lines.append(row(f"{group}: samples", values))
            lines += [row(f"  {answer}", found[group]) for answer, found in self.trivial.items()]
        low_high = self.groups["all"]["ci"]["ged"]
        if low_high is not None:
            lines += ["", f"{titles['ged']} of all: 95 % interval {low_high[0]:.3f} to {low_high[1]:.3f}"]
        for line in self.published:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in line["scores"].items())
            lines.append(f"published: {line['method']}: {scores} ({line['table']}) {line['note']}".rstrip())
        return "\n".join([*lines, "", *textwrap.wrap(f"{self.legend} Last column: share of empty samples.", 120)])


@dataclass(frozen=True)
class Answers:
    """What was predicted and drawn of one case, one object.

    samples: ``(K, D, H, W)`` bool.  annotations: ``(A, D, H, W)`` bool.  prediction: ``(D, H, W)`` bool.
    probability: ``(D, H, W)`` float64 in [0, 1].
    """

    samples: np.ndarray
    annotations: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray

    def slices(self) -> list[Answers]:
        """Each slice along the first axis of the volume."""
        return [
            Answers(self.samples[:, z], self.annotations[:, z], self.prediction[z], self.probability[z])
            for z in range(len(self.prediction))
        ]


@dataclass(frozen=True)
class _Image:
    """The results of one image, by answer."""

    id: str
    patient: str
    slice: int | None
    measured: Mapping[str, Ambiguity]
    calibrated: Mapping[str, Reliability]

    @property
    def presence(self) -> str:
        return self.measured["samples"].presence


class Folder:
    """A folder of predictions with ``count`` samples of each case, and how to read what belongs to a case.

    objects: the scored objects.  Raises InputError unless it is exactly one.
    """

    def __init__(self, root: Path, count: int, objects: Sequence[ClassInfo]) -> None:
        if len(objects) != 1:
            raise InputError(f"samples of {len(objects)} objects", "one object", "choose one with data.classes")
        self.root, self.count, self.object = root, count, objects[0]
        self._soft: bool | None = None

    def use(self, pairs: Sequence[matching.Pair]) -> str:
        """Decide whether mean probabilities are read: where every case has one.  Returns what is used, in words."""
        self._soft = all(self._map(pair).is_file() for pair in pairs)
        return MEAN if self._soft else SHARE

    def read(self, pair: matching.Pair) -> Answers:
        """Everything of one case; InputError where a file is missing, damaged, or on another grid."""
        predicted = io.read_labels(pair.prediction)
        made = io.read_samples(pair.prediction, self.count)
        if made.array.shape[1:] != predicted.shape:
            raise InputError(
                f"{pair.case.id}: samples {made.array.shape[1:]}, label map {predicted.shape}", "one grid (z, y, x)"
            )
        drawn = []
        for annotator in range(len(pair.case.labels)):
            volume = matching.read_reference(pair.case, annotator)
            matching.check_grid(predicted, volume, pair.case.id)
            drawn.append(np.isin(volume.array, self.object.values))
        samples = made.array == self.object.label
        probability = self._probability(pair, predicted.shape) if self._soft else samples.mean(axis=0)
        return Answers(samples, np.stack(drawn), predicted.array == self.object.label, probability)

    def _map(self, pair: matching.Pair) -> Path:
        return self.root / map_file("probabilities", pair.prediction.relative_to(self.root), self.object.name)

    def _probability(self, pair: matching.Pair, shape: tuple[int, int, int]) -> np.ndarray:
        path = self._map(pair)
        array = io.read_image(path).array[..., 0]
        if array.shape != shape:
            raise InputError(f"{path} has the shape {array.shape}", f"that of its label map, {shape}", "Predict again")
        return array / np.float64(65535) if array.dtype.kind == "u" else array.astype(np.float64)


def score(
    folder: Folder,
    pairs: Sequence[matching.Pair],
    *,
    level: str = "volume",
    resamples: int = 1000,
    seed: int = 0,
    published: Sequence[PublishedSets] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Sampled | None:
    """Score the samples of all cases with several annotators; None where there is none.

    level: ``volume`` (whole masks) or ``slice`` (each slice of volumes).  resamples: of the 95 % intervals over
    patients.
    """
    chosen = [pair for pair in pairs if len(pair.case.labels) > 1]
    if not chosen:
        return None
    used = folder.use(chosen)
    images: list[_Image] = []
    for done, pair in enumerate(chosen, start=1):
        whole = folder.read(pair)
        parts = [(None, whole)] if level == "volume" else list(enumerate(whole.slices()))
        images += [_measure(pair, z, answers, seed) for z, answers in parts]
        if on_progress is not None:
            on_progress(Progress(done, len(chosen), pair.case.id, "samples scored"))
    counts = sorted(i.measured["samples"].annotations for i in images)
    pooled = _pooled(images, "samples")
    groups = _by_group(images, "samples")
    for name, group in groups.items():
        group["ci"] = _intervals([i for i in images if name in ("all", i.presence)], resamples, seed)
    return Sampled(
        samples=folder.count,
        annotators={str(a): counts.count(a) for a in dict.fromkeys(counts)},
        level=level,
        probability=used,
        seed=seed,
        groups=groups,
        trivial={answer: _by_group(images, answer) for answer in ANSWERS if answer != "samples"},
        reliability={
            "count": pooled.count.tolist(),
            "predicted": _ratios(pooled.predicted, pooled.count),
            "observed": _ratios(pooled.observed, pooled.count),
        },
        left_out=[pair.case.id for pair in pairs if len(pair.case.labels) < 2],
        cases=[_row(image) for image in images],
        published=[vars(row) for row in published],
    )


def _measure(pair: matching.Pair, z: int | None, found: Answers, seed: int) -> _Image:
    """Every answer about one image, from one comparison of all masks with each other."""
    k, a = len(found.samples), len(found.annotations)
    masks = [found.samples, found.annotations, found.prediction[None], np.zeros_like(found.prediction)[None]]
    compared = ambiguity.overlaps(np.concatenate(masks))
    annotations = range(k, k + a)
    digest = hashlib.sha256(f"{seed}:{pair.case.id}:{z}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).integers(0, a, k)
    answers = {
        "samples": (range(k), found.probability),
        "empty": ([k + a + 1] * k, np.zeros(found.prediction.shape)),
        "repeated": ([k + a] * k, found.prediction.astype(np.float64)),
        "annotators": (k + drawn, found.annotations[drawn].mean(axis=0)),
    }
    return _Image(
        pair.case.id,
        pair.case.patient,
        z,
        {name: ambiguity.measure(compared, list(chosen), annotations) for name, (chosen, _) in answers.items()},
        {name: ambiguity.reliability(soft, found.annotations) for name, (_, soft) in answers.items()},
    )


def _pooled(images: Sequence[_Image], answer: str) -> Reliability:
    total = images[0].calibrated[answer]
    for image in images[1:]:
        total += image.calibrated[answer]
    return total


def _by_group(images: Sequence[_Image], answer: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name in GROUPS:
        chosen = [image for image in images if name in ("all", image.presence)]
        if chosen:
            groups[name] = {
                **ambiguity.mean([i.measured[answer] for i in chosen]),
                "ece": _pooled(chosen, answer).error,
            }
    return groups


def _intervals(images: Sequence[_Image], resamples: int, seed: int) -> dict[str, list[float] | None]:
    values = np.array([[getattr(i.measured["samples"], m) for m in METRICS] for i in images], dtype=np.float64)
    found = statistics.bootstrap(values, [i.patient for i in images], resamples, seed).classes
    intervals = {m: found[i].tolist() if np.isfinite(found[i]).all() else None for i, m in enumerate(METRICS)}
    return {**intervals, "ece": _ece_interval(images, resamples, seed)}


def _ece_interval(images: Sequence[_Image], resamples: int, seed: int) -> list[float] | None:
    """Percentile bootstrap over patients of the error of the pooled bins."""
    patients, index = np.unique([i.patient for i in images], return_inverse=True)
    if resamples < 1 or len(patients) < 2:
        return None
    sums = np.zeros((len(patients), 2, ambiguity.BINS))
    for place, image in zip(index, images, strict=True):
        bins = image.calibrated["samples"]
        sums[place] += np.stack([bins.count, bins.predicted - bins.observed])
    weights = np.random.default_rng(seed).multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), size=resamples
    )
    count, apart = np.moveaxis(np.tensordot(weights, sums, 1), 1, 0)  # (resamples, bins) each
    return [float(v) for v in np.quantile(np.abs(apart).sum(axis=1) / count.sum(axis=1), (0.025, 0.975))]


def _ratios(total: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [float(t / n) if n else None for t, n in zip(total, count, strict=True)]


def _row(image: _Image) -> dict[str, Any]:
    found = image.measured["samples"]
    error = image.calibrated["samples"].error
    return {
        "id": image.id,
        "patient": image.patient,
        "slice": image.slice,
        "presence": image.presence,
        **vars(found),
        "ece": None if math.isnan(error) else error,
    }
