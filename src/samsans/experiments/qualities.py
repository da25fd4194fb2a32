"""How well must the support masks be drawn?  Six qualities of them, from none to the truth (Table 7 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from samsans import io
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.ablation import draw
from samsans.experiments.draws import POOL, mean_dice, object_dice, paired, plain, score_draws, study
from samsans.experiments.published_proxy_prompt import published_lines, told
from samsans.inference import supports
from samsans.metrics import overlap

LEVELS = {
    "empty": 0.0,
    "low": 0.666,
    "medium": 0.816,
    "high": 1.0,
    "senior doctor": 0.883,
    "normal user": 0.748,
}  # mean Dice of the support masks, Table 7
SMOOTH = 0.04  # of the side: standard deviation of the deformation's Gaussian
HALVINGS = 24


def qualities(asked: Request) -> str:
    """Segment the held-out cases with the run's training images as supports, their masks drawn six times more or less
    well; writes ``qualities.json`` and ``qualities.png``.

    The same support pairs for every quality (K = ``model.k_test`` of at most 16, one seeded draw a case).  Qualities in
    between are the true masks deformed by a smooth random field whose amplitude is found by bisection, so that the mean
    Dice of the support masks is the paper's (decision D-32: neither doctors nor MedSAM are asked).

    Returns:
        Our table beside the published one.

    Raises:
        InputError: the method takes no supports, the run holds nobody out, or its objects are too small to deform so.
    """
    this = study(asked)
    order = this.order[:POOL]
    masks = torch.stack([this.slices[i].masks for i in order])
    found: dict[str, float] = {}
    prompts: dict[str, float] = {}
    classes: dict[str, dict[str, Any]] = {}
    for done, (name, level) in enumerate(LEVELS.items(), start=1):
        changed = redrawn(masks, level, asked.seed)
        prompts[name] = masks_dice(changed, masks)
        bank = this.bank(order, _swap(changed))
        scores = []
        for case in this.cases:
            one = type(this)(this.segmenter, this.dataset, this.slices, this.order, (case,))
            drawn = supports.draw(bank.ids, this.segmenter.k, asked.seed, case.id, leave_out_own=False)
            scores.append(score_draws(Request(asked.data, asked.run_folder, asked.out), one, bank, [drawn], name).dice)
        dice = np.concatenate(scores, axis=1)
        found[name] = float(mean_dice(dice)[0])
        each = object_dice(dice)[0]
        classes[name] = {}
        for n, info in enumerate(this.objects):
            _, low, high = paired(dice[0, :, n], asked.seed)
            ends = None if np.isnan(low) else [low, high]
            classes[name][info] = {"dice": plain(float(each[n])), "ci": {"dice": ends}}
        asked.tell(done, len(LEVELS), name)
    draw("qualities", classes, asked.out / "qualities.png")
    rows = [{"quality": q, "prompt": plain(prompts[q]), "dice": plain(found[q]), "classes": classes[q]} for q in found]
    io.write_json(asked.out / "qualities.json", {"run": str(asked.run_folder), "seed": asked.seed, "rows": rows})
    heads = "".join(f"{name[:11]:>12}" for name in this.objects)
    lines = [f"{len(this.cases)} cases, Dice in %", f"{'support masks':22}{'drawn':>8}{'result':>9}{heads}"]
    for name in found:
        cells = "".join(
            f"{float('nan') if (v := classes[name][info]['dice']) is None else 100 * v:12.1f}" for info in this.objects
        )
        lines.append(f"{name:22}{100 * prompts[name]:8.1f}{100 * found[name]:9.1f}{cells}")
    images = len(Split.load(asked.run_folder / "split.json").train)
    return "\n".join([*lines, "", *told("qualities", this.segmenter.config, images), *published_lines("qualities")])


def _swap(masks: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: masks


def masks_dice(one: Tensor, other: Tensor) -> float:
    """Mean Dice of masks ``(K, N, S, S)`` bool over those where either is drawn."""
    a, b = one.flatten(0, 1).numpy(), other.flatten(0, 1).numpy()
    return float(np.nanmean([overlap.dice(x, y) if y.any() or x.any() else np.nan for x, y in zip(a, b, strict=True)]))


def redrawn(masks: Tensor, level: float, seed: int) -> Tensor:
    """The masks ``(K, N, S, S)`` bool as someone draws them who reaches a mean Dice of ``level`` with the truth.

    1: as they are; 0: empty.  All objects of an image share its deformation.

    Raises:
        InputError: no deformation of at most half the side brings the masks down to it.
    """
    if level >= 1:
        return masks
    if level <= 0:
        return torch.zeros_like(masks)
    side = masks.shape[-1]
    fields = [_field(side, np.random.default_rng([seed, k])) for k in range(len(masks))]
    low, high = 0.0, side / 2
    if masks_dice(_deformed(masks, fields, high), masks) > level:
        raise InputError(
            f"support masks that no deformation brings to a Dice of {level}", "objects smaller than the image"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if masks_dice(_deformed(masks, fields, middle), masks) > level else (low, middle)
    return _deformed(masks, fields, high)


def _field(side: int, rng: np.random.Generator) -> np.ndarray:
    """``(2, side, side)``: smooth displacements, of root mean square 1."""
    noise = np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), SMOOTH * side) for _ in range(2)])
    return noise / np.sqrt(np.square(noise).sum(0).mean())


def _deformed(masks: Tensor, fields: list[np.ndarray], amplitude: float) -> Tensor:
    side = masks.shape[-1]
    rows, columns = np.mgrid[:side, :side]
    out = torch.empty_like(masks)
    for k, field in enumerate(fields):
        y = np.clip(np.rint(rows + amplitude * field[0]), 0, side - 1).astype(int)
        x = np.clip(np.rint(columns + amplitude * field[1]), 0, side - 1).astype(int)
        out[k] = masks[k][:, y, x]
    return out
