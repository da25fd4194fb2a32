"""Must a support look like the target?  From the target itself to the least similar support, and another modality.

With heat maps of what the selective map reads (Figures 5 and 10 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samsans import io
from samsans.data.classes import class_masks
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.draws import (
    POOL,
    Study,
    encode,
    open_case,
    plain,
    slice_batch,
    study,
)
from samsans.experiments.published_proxy_prompt import published_lines, told
from samsans.inference import supports
from samsans.inference.slices import autocast
from samsans.methods.proxy_prompt.pairs import attention, read_pairs, segment_draws
from samsans.metrics.pictures import overlay
from samsans.types import Batch

TARGETS = 8  # where no number is given
ITSELF, UNRELATED = "the target itself", "unrelated"
RANKS = ("nearest", "median", "farthest")


@dataclass(frozen=True)
class Shown:
    """One support of one target, for the picture.

    name: which one.  error: MSE of the two images.  image: ``(S, S, 3)`` uint8.  mask: ``(S, S)`` bool.
    heat: ``(g, g)``, how much the object found in the target reads of each support token.  read: ``(g, g)`` in [0, 1],
    how much of what each target token reads lies in the support's mask.  found: ``(S, S)`` bool, truth likewise.
    """

    name: str
    error: float
    image: np.ndarray
    mask: np.ndarray
    heat: np.ndarray
    read: np.ndarray
    found: np.ndarray
    dice: float


def relevance(asked: Request, unrelated: str | None = None) -> str:
    """Segment held-out cases with one support each: itself, the nearest, median and farthest training image by mean
    squared error of the 8-bit pictures that the network sees, and a pair of another modality.

    Of volumes the slice with most truth.  Writes ``relevance.json`` and, of the first case and its largest object,
    ``relevance.png``: each support with what was read of it, and the target with what it read and what was found.

    Args:
        asked: By default of at most 8 cases.
        unrelated: ``IMAGE:MASK`` of another modality, its mask drawn in the values of the run's objects; without it
            that row is left out.

    Returns:
        The table as text.

    Raises:
        InputError: the method takes no supports or has no selective map, or the run holds nobody out.
    """
    this = study(asked if asked.limit is not None else replace(asked, limit=TARGETS))
    if not this.segmenter.method.config.csm.selective:
        raise InputError("a run without the selective map", "model.csm.selective true")
    order = this.order[:POOL]
    pool = this.bank(order)
    images = torch.stack([this.slices[i].image for i in order])
    strange = None if unrelated is None else _strange(this, unrelated)
    rows: dict[str, list[tuple[float, float]]] = {}
    picture: list[Shown] = []
    scene: tuple[np.ndarray, np.ndarray] | None = None
    for done, case in enumerate(this.cases, start=1):
        job = open_case(this, case)
        assert job.truth is not None
        index = int((class_masks(job.truth, this.dataset.classes)).any(0).sum((1, 2)).argmax())
        target = slice_batch(this, job, index)
        truth = this.segmenter.preprocess.labels(class_masks(job.truth[index], this.dataset.classes))
        mine = this.segmenter.preprocess.image(job.slices[index], job.levels)
        own = encode(this.segmenter, replace(target.to("cpu"), masks=truth[None]))
        errors = (images.float() - mine.float()).square().mean((1, 2, 3))
        ranked = [int(i) for i in errors.argsort()]
        chosen = dict(zip(RANKS, (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1]), strict=True))
        bank = type(pool).concat([own.to("cpu"), pool.select(list(chosen.values())).to("cpu")])
        told_errors = [0.0, *(float(errors[i]) for i in chosen.values())]
        pictures = [(mine, truth), *((this.slices[i].image, this.slices[i].masks) for i in chosen.values())]
        if strange is not None:
            bank = type(pool).concat([bank, strange[0]])
            told_errors.append(float((strange[1].float() - mine.float()).square().mean()))
            pictures.append((strange[1], strange[2]))
        names = [ITSELF, *RANKS, *([UNRELATED] if strange is not None else [])]
        dice, found, maps = _segment(this, target, bank, truth)
        for name, error, value in zip(names, told_errors, dice, strict=True):
            rows.setdefault(name, []).append((error, float(np.nanmean(value))))
        if not picture:
            n = int(truth.flatten(1).sum(1).argmax())
            scene = mine.permute(1, 2, 0).numpy(), truth[n].numpy()
            for k, name in enumerate(names):
                heat, read = _heat(maps[k], found[k, n], pictures[k][1][n], this.segmenter.method.backbone.grid)
                shown = pictures[k][0].permute(1, 2, 0).numpy()
                drawn = pictures[k][1][n].numpy()
                picture.append(
                    Shown(name, told_errors[k], shown, drawn, heat, read, found[k, n].numpy(), float(dice[k, n]))
                )
        asked.tell(done, len(this.cases), case.id)
    assert scene is not None
    _draw(picture, *scene, asked.out / "relevance.png")
    table = {name: np.array(values) for name, values in rows.items()}
    io.write_json(
        asked.out / "relevance.json",
        {
            "run": str(asked.run_folder),
            "cases": [case.id for case in this.cases],
            "rows": [{"support": k, "mse": plain(v[:, 0]), "dice": plain(v[:, 1])} for k, v in table.items()],
        },
    )
    return "\n".join(_text(table, len(this.cases), this))


def _strange(this: Study, unrelated: str) -> tuple[Any, Tensor, Tensor]:
    """The bank, the picture ``(3, S, S)`` and the masks of a pair of another modality."""
    example = supports.examples_of_pairs([supports.split_pair(unrelated)])
    batch = supports.prepare(
        example, this.dataset.classes, this.segmenter.preprocess, this.segmenter.config.data.slice_axis, per_volume=1
    )
    assert batch.masks is not None
    volume = example[0].image()
    preprocess = this.segmenter.preprocess
    picture = preprocess.image(volume.array[len(volume.array) // 2], preprocess.levels(volume.array))
    return encode(this.segmenter, batch).to("cpu"), picture, batch.masks[0]


def _segment(this: Study, target: Batch, bank: Any, truth: Tensor) -> tuple[np.ndarray, Tensor, list[Tensor]]:
    """With each pair alone: Dice ``(K, N)``, masks ``(K, N, S, S)`` as the network sees them, and the map of each."""
    segmenter, n = this.segmenter, len(this.objects)
    bank = bank.to(segmenter.device)
    with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
        embedding = segmenter.method.backbone.encode(target.images)
        partials = read_pairs(segmenter.method, embedding.features, bank)
        logits = segment_draws(segmenter.method, embedding, partials, [(k,) for k in range(bank.K)], n)
        maps = [attention(embedding.features, bank.select([k]))[0].cpu() for k in range(bank.K)]
    found = (logits > 0).cpu()
    both, either = (found & truth).sum((2, 3)).numpy(), (found.sum((2, 3)) + truth.sum((1, 2))).numpy()
    return np.divide(2 * both, either, out=np.full(both.shape, np.nan), where=either > 0), found, maps


def _heat(weights: Tensor, found: Tensor, mask: Tensor, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """``(g, g)`` twice: mean of the map ``(T, A)`` over target tokens inside what was found, for each support token;
    and of each target token the share of its weights that lies in the support's mask."""
    inside = F.adaptive_avg_pool2d(found[None, None].float(), grid).flatten()
    if not inside.any():
        inside = torch.ones_like(inside)
    heat = (weights * inside[:, None]).sum(0) / inside.sum()
    read = weights @ F.adaptive_avg_pool2d(mask[None, None].float(), grid).flatten()
    return heat.view(grid, grid).numpy(), read.view(grid, grid).numpy()


def _text(table: dict[str, np.ndarray], cases: int, this: Study) -> list[str]:
    lines = [f"{cases} targets, one support pair each", f"{'support':22}{'MSE':>10}{'Dice in %':>11}{'std':>7}"]
    for name, values in table.items():
        spread = f"{100 * values[:, 1].std(ddof=1):7.1f}" if len(values) > 1 else f"{'-':>7}"
        lines.append(f"{name:22}{values[:, 0].mean():10.1f}{100 * np.nanmean(values[:, 1]):11.2f}{spread}")
    lines.append("std: over the targets, of the sample (ddof 1); MSE of 8-bit pictures as the network sees them")
    if UNRELATED not in table:
        lines.append("no pair of another modality was given: --unrelated IMAGE:MASK")
    about = told("relevance", this.segmenter.config, len(this.slices.cases))
    return [*lines, "", *about, *published_lines("relevance")]


def _draw(shown: Sequence[Shown], image: np.ndarray, truth: np.ndarray, path: Path) -> None:
    """A column a support: the pair, what was read of it, what each target token read of its mask, what was found."""
    import matplotlib.pyplot as plt

    rows = ("support", "read from it", "read by the target", "found")
    figure, axes = plt.subplots(
        len(rows), len(shown), figsize=(2.2 * len(shown) + 0.3, 2.25 * len(rows)), squeeze=False, layout="constrained"
    )
    side = truth.shape[0]
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    for column, one in zip(axes.T, shown, strict=True):
        column[0].imshow(overlay(one.image, one.mask.astype(np.uint8)), extent=extent)
        column[0].set_title(f"{one.name}\nMSE {one.error:.0f}", fontsize=9)
        column[1].imshow(one.image, extent=extent)
        column[1].imshow(one.heat, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear", vmin=0)
        column[2].imshow(image, extent=extent)
        column[2].imshow(one.read, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear", vmin=0, vmax=1)
        column[3].imshow(overlay(image, one.found.astype(np.uint8), truth), extent=extent)
        column[3].set_title(f"Dice {one.dice:.3f}", fontsize=9)
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, fontsize=9)
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
