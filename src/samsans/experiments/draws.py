"""What the studies of support pairs share: the pool of pairs, the draws, and how each draw does on each case.

A pair is encoded once, a target reads every pair once, and a draw is a merge of read-outs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samsans.data.cases import Dataset
from samsans.data.classes import class_masks
from samsans.data.episodes import plain_batch
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.inference import supports
from samsans.inference.slices import SliceJob, autocast
from samsans.methods.proxy_prompt.pairs import read_pairs, segment_draws
from samsans.metrics.statistics import class_means
from samsans.types import Batch, Case, Embedding

if TYPE_CHECKING:
    from samsans.inference import Segmenter

POOL = 16  # training images of the paper
RESAMPLES = 2000


@dataclass(frozen=True)
class Study:
    """A run with supports, its data, the slices that may be supports (patients in turn) and the held-out cases."""

    segmenter: Segmenter
    dataset: Dataset
    slices: SliceDataset
    order: tuple[int, ...]
    cases: tuple[Case, ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the N objects."""
        return self.slices.objects

    def bank(self, indices: Sequence[int], change: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The encoded pairs of some slices; ``change`` is applied to their masks ``(K, N, S, S)`` first."""
        batch = plain_batch(self.slices, indices)
        assert batch.masks is not None
        if change is not None:
            batch = Batch(batch.images, change(batch.masks), batch.ids, batch.objects, None, batch.valid)
        return encode(self.segmenter, batch)


def encode(segmenter: Segmenter, batch: Batch) -> Any:
    """The bank of a batch of supports."""
    with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
        return supports.encode(segmenter.method, batch, segmenter.device, segmenter.batch_size(None))


def study(
    asked: Request, part: str = "train", run: Any = None, *, objects: Sequence[str] = (), merging: bool = True
) -> Study:
    """Open the run of a request (or ``run``), find its held-out cases and the slices of ``part`` that show an object.

    Args:
        asked: Whose run, data and seed.
        part: Of the run's split.
        run: Another run than the request's.
        objects: Names of the only objects asked for; all by default.
        merging: Read-outs of pairs are to be merged, which not every run allows.

    Raises:
        InputError: the method takes no supports or does not merge their read-outs, the run holds nobody out, an object
            is unknown, or there are no such slices.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder if run is None else run)
    if not segmenter.method.needs.supports:
        raise InputError(f"{segmenter.config.method} takes no support pairs", "a method that does: proxy_prompt")
    if merging and not merges(segmenter):
        view = f" that follows objects ({segmenter.own_view or 'always'})" if segmenter.follows(None) else ""
        raise InputError(
            f"a run of {segmenter.config.method}{view}",
            "one of proxy_prompt that sees every slice by itself",
            "Use a run of proxy_prompt with model.memory_mode proxy_only; `stability` takes any method with supports",
        )
    dataset = asked.find(segmenter.classes)
    if objects:
        known = [info.name for info in dataset.classes]
        if unknown := [name for name in objects if name not in known]:
            raise InputError(f"objects {', '.join(unknown)}", f"some of {', '.join(known)}")
        dataset = replace(dataset, classes=tuple(info for info in dataset.classes if info.name in objects))
    split = Split.load(asked.run_folder / "split.json")
    axis = segmenter.config.data.slice_axis
    slices = SliceDataset(dataset, getattr(split, part), segmenter.preprocess, slice_axis=axis)
    shown = [i for i in np.random.default_rng(asked.seed).permutation(len(slices)) if slices.present[i].any()]
    if not shown:
        raise InputError(f"no slice of the {part} part of {asked.run_folder} shows an object", "annotated images")
    order = patients_first(slices, [int(i) for i in shown])
    return Study(segmenter, dataset, slices, tuple(order), tuple(asked.held_out(dataset)))


def merges(segmenter: Segmenter) -> bool:
    """Whether a run reads every support pair by itself and every slice without those before it."""
    return segmenter.config.method == "proxy_prompt" and not segmenter.follows(None)


def patients_first(slices: SliceDataset, indices: Sequence[int]) -> list[int]:
    """The indices in an order that repeats no patient before every patient had one."""
    seen: dict[str, int] = {}
    rounds = []
    for index in indices:
        patient = slices.patients[index]
        rounds.append((seen.get(patient, 0), index))
        seen[patient] = seen.get(patient, 0) + 1
    return [index for _, index in sorted(rounds, key=lambda item: item[0])]


def random_draws(pool: int, k: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """``count`` seeded draws of ``k`` of ``pool`` pairs, each without replacement; draws may repeat."""
    rng = np.random.default_rng([seed, pool, k])
    return [tuple(sorted(int(i) for i in rng.permutation(pool)[:k])) for _ in range(count)]


@dataclass(frozen=True)
class Counts:
    """Voxels ``(draws, cases, N)`` int64 in both masks, in what was found, in the truth."""

    both: np.ndarray
    found: np.ndarray
    truth: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """``(draws, cases, N)`` in [0, 1], of a volume as a whole; NaN where nothing is drawn and nothing found."""
        return _ratio(2 * self.both, self.found + self.truth)

    @property
    def iou(self) -> np.ndarray:
        """``(draws, cases, N)`` likewise."""
        return _ratio(self.both, self.found + self.truth - self.both)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


Draws = Sequence[tuple[int, ...]]
Choose = Callable[[Embedding], Draws]


def score_draws(asked: Request, this: Study, bank: Any, draws: Draws | Choose, what: str) -> Counts:
    """How every draw of pairs of ``bank`` does on every case of ``this``, on the images' own grids.

    Args:
        asked: Told of the progress.
        this: Where the cases are.
        bank: All pairs.
        draws: Numbers of pairs; or what gives as many draws for the embedding of each slice.
        what: Said in the progress.
    """
    bank = bank.to(this.segmenter.device)
    rows = []
    for done, case in enumerate(this.cases, start=1):
        job = open_case(this, case)
        rows.append(sum(_count(this, job, index, bank, draws) for index in range(job.depth)))
        asked.tell(done, len(this.cases), f"{what}: {case.id}")
    return Counts(*np.stack(rows).transpose(1, 2, 0, 3))  # from (cases, 3, draws, N)


def open_case(this: Study, case: Case) -> SliceJob:
    """A held-out case with its truth, in canonical slices."""
    volume, truth = this.dataset.read_image(case), this.dataset.read_labels(case)
    job = this.segmenter.open(case.id, volume, truth, ())
    assert isinstance(job, SliceJob)
    return job


def slice_batch(this: Study, job: SliceJob, index: int) -> Batch:
    """One slice of a case as the network sees it."""
    preprocess, picture = this.segmenter.preprocess, job.slices[index]
    valid = torch.tensor([preprocess.valid(*picture.shape[:2])], dtype=torch.int64)
    image = preprocess.normalize(preprocess.image(picture, job.levels)[None], valid)
    return Batch(image, None, (job.name(index),), this.objects, None, valid).to(this.segmenter.device)


def _count(this: Study, job: SliceJob, index: int, bank: Any, draws: Draws | Choose) -> np.ndarray:
    """``(3, draws, N)`` int64 of one slice."""
    segmenter, n = this.segmenter, len(this.objects)
    batch = slice_batch(this, job, index)
    assert job.truth is not None
    assert batch.valid is not None
    truth = class_masks(job.truth[index], this.dataset.classes)
    with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
        embedding = segmenter.method.backbone.encode(batch.images)
        chosen = draws(embedding) if callable(draws) else draws
        unique = list(dict.fromkeys(chosen))
        partials = read_pairs(segmenter.method, embedding.features, bank)
        logits = segment_draws(segmenter.method, embedding, partials, unique, n)
    counted = {}
    for draw, one in zip(unique, logits, strict=True):
        native = segmenter.preprocess.restore(one, batch.valid[0], job.slices.shape[1:3])
        found = (native > 0).cpu().numpy()
        counted[draw] = np.stack([(found & truth).sum((1, 2)), found.sum((1, 2)), truth.sum((1, 2))])
    return np.stack([counted[draw] for draw in chosen], axis=1)


def mean_dice(dice: np.ndarray) -> np.ndarray:
    """``(draws,)`` from ``(draws, cases, N)``: mean over the cases, then over the objects (the paper's average)."""
    return class_means(object_dice(dice).T)


def object_dice(dice: np.ndarray) -> np.ndarray:
    """``(draws, N)`` from ``(draws, cases, N)``: mean over the cases where it is defined, NaN where it never is."""
    return np.stack([class_means(one) for one in dice])


def paired(difference: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Mean of paired differences ``(n,)`` and its 95 % bootstrap interval; NaN entries are left out."""
    values = difference[np.isfinite(difference)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def plain(value: Any) -> Any:
    """A number for JSON: ``None`` for NaN."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
