"""Controls: does the result come from the support masks?

Every object is segmented alone, with K = 1, 4 and 8 support pairs, and then with supports that say nothing or the wrong
thing: masks shuffled among the images, empty masks, masks of another object.  Last, the mean training mask as the
prediction of every image.  Only images that show the object are scored, the same ones in every arm.  A method that
uses its supports is much better with the true ones than with any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samsans import io
from samsans.data.cases import Dataset
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.draws import patients_first
from samsans.experiments.held_out import segment
from samsans.experiments.panel import draw_panel
from samsans.metrics.evaluate import evaluate
from samsans.types import Batch, Case, ClassInfo

if TYPE_CHECKING:
    from samsans.inference import Segmenter

SUPPORTS = (1, 4, 8)
SHOWN = 4
RESAMPLES = 2000
THRESHOLDS = tuple(np.arange(1, 20) / 20)


@dataclass(frozen=True)
class Row:
    """One line of the table: mean Dice of an object under one arm, in [0, 1], with its 95 % bootstrap interval.

    less: how much less than with the most supports, image by image; its interval; p of Wilcoxon's signed-rank test.
    """

    object: str
    arm: str
    dice: float
    low: float
    high: float
    n: int
    less: float = 0.0
    less_low: float = 0.0
    less_high: float = 0.0
    p: float = 1.0


def controls(asked: Request) -> str:
    """Run all arms on the run's held-out cases; writes ``controls.json``, two pictures and the label maps.

    The seed is that of the draw of support pairs; every arm is scored by the convention.

    Returns:
        The table as text.

    Raises:
        InputError: the method takes no supports, or the run holds nobody out.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    if not segmenter.method.needs.supports:
        raise InputError(f"{segmenter.config.method} takes no support pairs", "a method that does")
    dataset, out = asked.find(segmenter.classes), asked.out
    split = Split.load(asked.run_folder / "split.json")
    test = asked.held_out(dataset)
    pool = SliceDataset(dataset, split.train, segmenter.preprocess, slice_axis=segmenter.config.data.slice_axis)
    arms = _arms(segmenter, pool, asked.seed)
    rows: list[Row] = []
    best: dict[str, np.ndarray] = {}  # per object, Dice of every image with the most supports
    for done, (info, arm, make) in enumerate(arms, start=1):
        shown = [case for case in test if np.isin(dataset.read_labels(case).array, info.values).any()]
        folder = out / "masks" / info.name / arm.replace(" ", "_")
        bank = make()
        if bank is None:
            _write_mean_mask(pool, dataset, shown, info, folder)
        else:
            segment(segmenter, dataset, shown, folder, support=bank)
        report = out / "reports" / info.name / arm.replace(" ", "_")
        found = evaluate(folder, shown, report, convention=asked.convention, classes=[info], seed=asked.seed)
        scores = found.classes[info.name]
        low, high = scores["ci"]["dice"] or (float("nan"), float("nan"))
        dice = np.array([row["dice"] for row in sorted(found.cases, key=lambda row: row["id"])], float)
        if arm.startswith("K="):
            best[info.name] = dice
        paired = () if arm.startswith("K=") else _paired(best[info.name] - dice, asked.seed)
        rows.append(Row(info.name, arm, scores["dice"], low, high, scores["n"], *paired))
        asked.tell(done, len(arms), f"{info.name}: {arm}")
    io.write_json(out / "controls.json", {"rows": [_plain(row) for row in rows], "test": [case.id for case in test]})
    _draw(rows, out / "controls.png")
    examples = [dataset.by_id(case.id) for case in pool.cases[: max(SUPPORTS)]]
    draw_panel(segmenter, dataset, examples, test[:SHOWN], out / "panel.png")
    return _text(rows)


def _arms(segmenter: Segmenter, pool: SliceDataset, seed: int) -> list[tuple[ClassInfo, str, Callable[[], Any]]]:
    """Every object with every arm, and what makes the arm's bank; ``None`` stands for the mean mask."""
    order = np.random.default_rng(seed).permutation(len(pool))
    arms: list[tuple[ClassInfo, str, Callable[[], Any]]] = []
    for index, info in enumerate(pool.dataset.classes):
        shown = patients_first(pool, [int(i) for i in order if pool.present[i, index]])[: max(SUPPORTS)]
        if len(shown) < 2:
            raise InputError(f"{len(shown)} training images show {info.name}", "at least 2")

        def bank(
            chosen: Sequence[int], name: str, column: int, change: Callable[[Tensor], Tensor] | None = None
        ) -> Callable[[], Any]:
            return lambda: _bank(segmenter, pool, chosen, name, column, change)

        for k in SUPPORTS:
            if k <= len(shown):
                arms.append((info, f"K={k}", bank(shown[:k], info.name, index)))
        arms.append((info, "shuffled masks", bank(shown, info.name, index, lambda masks: masks.roll(1, dims=0))))
        arms.append((info, "empty masks", bank(shown, info.name, index, torch.zeros_like)))
        for other, stranger in enumerate(pool.dataset.classes):
            if other != index:
                arms.append((info, f"masks of {stranger.name}", bank(shown, info.name, other)))
        arms.append((info, "mean mask", lambda: None))
    return arms


def _bank(
    segmenter: Segmenter,
    pool: SliceDataset,
    indices: Sequence[int],
    name: str,
    column: int,
    change: Callable[[Tensor], Tensor] | None,
) -> Any:
    items = [pool[i] for i in indices]
    masks = torch.stack([item.masks[column : column + 1] for item in items])
    images = pool.preprocess.normalize(torch.stack([item.image for item in items]))
    batch = Batch(images, masks if change is None else change(masks), tuple(item.id for item in items), (name,))
    return segmenter.method.encode_support(batch.to(segmenter.device))


def _write_mean_mask(pool: SliceDataset, dataset: Dataset, test: Sequence[Case], info: ClassInfo, folder: Path) -> None:
    """The mean training mask, cut where its Dice on the training images is best, on the grid of every test image."""
    column = dataset.classes.index(info)
    masks = torch.stack([pool[i].masks[column] for i in range(len(pool))]).float()
    mean = masks.mean(0)
    scores = []
    for threshold in THRESHOLDS:
        cut = (mean > threshold * mean.max()).float()
        scores.append(float((2 * (masks * cut).sum((1, 2)) / (masks.sum((1, 2)) + cut.sum()).clamp_min(1)).mean()))
    best = mean > THRESHOLDS[int(np.argmax(scores))] * mean.max()
    for case in test:
        volume = dataset.read_image(case)
        depth, height, width = volume.shape
        rows = (np.arange(height) + 0.5) * best.shape[0] // height
        columns = (np.arange(width) + 0.5) * best.shape[1] // width
        label = best.numpy()[rows.astype(int)][:, columns.astype(int)].astype(np.uint8) * info.label
        path = folder / f"{case.id}{io.output_suffix(case.images[0])}"
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_labels(path, np.broadcast_to(label, (depth, height, width)).copy(), like=volume)


def _paired(difference: np.ndarray, seed: int) -> tuple[float, float, float, float]:
    """Mean of paired differences ``(n,)``, its 95 % bootstrap interval, and p of Wilcoxon's signed-rank test."""
    from scipy.stats import wilcoxon

    draws = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    p = wilcoxon(difference).pvalue if difference.any() else 1.0
    return float(difference.mean()), float(low), float(high), float(p)


def _plain(row: Row) -> Mapping[str, Any]:
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in vars(row).items()}


def _text(rows: Sequence[Row]) -> str:
    lines = [f"{'object':14}{'supports':22}{'Dice':>7}   {'95 % interval':22}paired difference to the most supports"]
    for r in rows:
        line = f"{r.object:14}{r.arm:22}{r.dice:7.3f}   {r.low:.3f} to {r.high:.3f}  n={r.n:<5}"
        if not r.arm.startswith("K="):
            line += f"{-r.less:+.3f} ({-r.less_high:+.3f} to {-r.less_low:+.3f}, p={r.p:.1g})"
        lines.append(line)
    return "\n".join(lines)


def _draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.object for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.2), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        mine = [row for row in rows if row.object == name]
        heights = np.array([row.dice for row in mine])
        errors = np.abs(np.array([[row.dice - row.low, row.high - row.dice] for row in mine]).T)
        colours = ["#2a6f97" if row.arm.startswith("K=") else "#b0b7bf" for row in mine]
        axis.bar(range(len(mine)), heights, color=colours, yerr=errors, capsize=3)
        axis.set_xticks(range(len(mine)), [row.arm for row in mine], rotation=35, ha="right")
        axis.set_title(name)
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("Dice")
    figure.tight_layout()
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
