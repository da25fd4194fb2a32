"""M x K: how many annotated images are there, how many of them are shown as supports (Figures 6 and 13 of the paper).

For every cell 100 seeded draws of K support pairs; of each the Dice, averaged over held-out cases and objects.  Every
pair is encoded once and read once by each target; a draw merges read-outs, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.ablation import trained
from samsans.experiments.draws import POOL, Study, mean_dice, plain, random_draws, score_draws, study
from samsans.experiments.published_proxy_prompt import obstacles

SIZES = (2, 4, 8, 16)
SUPPORTS = (1, 2, 4, 8)
DRAWS = 100
PAPER = "Figures 6 and 13 of arXiv 2502.03501 print no numbers: Dice rises with M, and with K until K exceeds M - 1;\n"
PAPER += "the spread of the 100 draws shrinks as K grows, most clearly at M = 16; best at M = 16, K = 8"

Cells = dict[tuple[int, int], np.ndarray]


def grid(asked: Request, retrain: bool = False, steps: int | None = None, minutes: float | None = None) -> str:
    """Score every cell of the grid on the run's held-out cases; writes ``grid.json`` and ``grid.png``.

    Without ``retrain`` the network is that of the run, and M is the number of its training images that supports are
    drawn from: K is at most M.  With it, a network is trained on the first M of these images for every M (the paper's
    protocol), into ``runs/M16`` and so on, and supports are drawn from all of them.

    Args:
        asked: Its seed is that of the draws.
        retrain: Train a network for every M, as long as the run was; resumed and not repeated.
        steps: Length of these trainings instead.
        minutes: Length of these trainings instead.

    Returns:
        The table as text: mean of the 100 averages and their standard deviation (of the sample, ddof 1).

    Raises:
        InputError: the method takes no supports, or the run holds nobody out.
    """
    this = study(asked)
    order = this.order[:POOL]
    sizes = [m for m in SIZES if m <= len(order)]
    if not sizes:
        raise InputError(f"{len(order)} training image that shows an object", "at least 2")
    if not retrain and (steps is not None or minutes is not None):
        raise InputError("a length of training without --retrain", "--retrain, which trains a network for every M")
    cells = {(m, k): _draws(len(order) if retrain else m, k, asked.seed) for m in sizes for k in SUPPORTS}
    cells = {cell: draws for cell, draws in cells.items() if draws}
    found: Cells
    if retrain:
        found = {}
        for m in sizes:
            names = [this.slices.ids[i] for i in order[:m]]
            arm = study(asked, run=trained(asked, f"M{m:02}", {}, steps, minutes, slices=names))
            found |= _score(asked, arm, order, {cell: draws for cell, draws in cells.items() if cell[0] == m})
    else:
        found = _score(asked, this, order, cells)
    _write(asked, found, retrain, [this.slices.ids[i] for i in order])
    _draw(found, asked.out / "grid.png")
    why = f"not comparable: {'; '.join(obstacles(this.segmenter.config, len(this.slices.cases)))}"
    what = "a network trained for every M" if retrain else "one network; M images to draw supports from"
    return "\n".join([f"{len(this.cases)} held-out cases, {DRAWS} draws a cell, {what}", _text(found), PAPER, why])


def _draws(pool: int, k: int, seed: int) -> list[tuple[int, ...]]:
    return random_draws(pool, k, DRAWS, seed) if k <= pool else []


def _score(asked: Request, this: Study, order: Sequence[int], cells: Mapping[tuple[int, int], Any]) -> Cells:
    """Mean Dice of every draw of every cell, from one reading of every pair by every target."""
    flat = [draw for draws in cells.values() for draw in draws]
    means = mean_dice(score_draws(asked, this, this.bank(order), flat, "grid").dice)
    ends = np.cumsum([len(draws) for draws in cells.values()])
    return dict(zip(cells, np.split(means, ends[:-1]), strict=True))


def _write(asked: Request, found: Cells, retrained: bool, pool: Sequence[str]) -> None:
    rows = [
        {"M": m, "K": k, "mean": plain(float(v.mean())), "std": plain(float(v.std(ddof=1))), "draws": plain(v)}
        for (m, k), v in found.items()
    ]
    about: dict[str, Any] = {"run": str(asked.run_folder), "seed": asked.seed, "retrained": retrained}
    io.write_json(asked.out / "grid.json", {**about, "pool": list(pool), "ddof": 1, "rows": rows})


def _text(found: Cells) -> str:
    heads = "".join(f"{f'K = {k}':>18}" for k in SUPPORTS)
    lines = [f"{'Dice, mean (std)':18}{heads}"]
    for m in dict.fromkeys(m for m, _ in found):
        cells = [found.get((m, k)) for k in SUPPORTS]
        shown = ["-" if v is None else f"{v.mean():.3f} ({v.std(ddof=1):.4f})" for v in cells]
        lines.append(f"{f'M = {m}':18}" + "".join(f"{cell:>18}" for cell in shown))
    return "\n".join(lines)


def _draw(found: Cells, path: Path) -> None:
    """Boxes of the 100 averages of every cell, and for every M their densities, one ridge a K."""
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(m for m, _ in found))
    figure, axes = plt.subplots(2, len(sizes), figsize=(2.6 * len(sizes) + 0.6, 5), squeeze=False, layout="constrained")
    everything = np.concatenate(list(found.values()))
    low, high = np.nanmin(everything), np.nanmax(everything)
    margin = max(0.02 * (high - low), 1e-3)
    grid_points = np.linspace(low - margin, high + margin, 300)
    colours = dict(zip(SUPPORTS, ("#9ecae1", "#6baed6", "#3182bd", "#08519c"), strict=True))
    for column, m in enumerate(sizes):
        mine = {k: v for (size, k), v in found.items() if size == m}
        box, ridge = axes[0][column], axes[1][column]
        drawn = box.boxplot(list(mine.values()), tick_labels=[str(k) for k in mine], patch_artist=True, widths=0.6)
        for patch, k in zip(drawn["boxes"], mine, strict=True):
            patch.set_facecolor(colours[k])
        box.set(title=f"M = {m}", xlabel="K", ylim=(low - margin, high + margin))
        for level, (k, values) in enumerate(mine.items()):
            height = 0.9 * _density(values, grid_points)
            ridge.fill_between(grid_points, level, level + height, color=colours[k], alpha=0.8, zorder=10 - level)
            ridge.plot(grid_points, level + height, color="#333333", lw=0.6, zorder=10 - level)
        ridge.set(xlabel="mean Dice of a draw", yticks=range(len(mine)), yticklabels=[f"K={k}" for k in mine])
        for axis in (box, ridge):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("mean Dice of a draw")
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _density(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Gaussian kernel density by Scott's rule, highest 1; equal draws are one narrow peak."""
    width = max(float(values.std()) * len(values) ** -0.2, float(at[1] - at[0]))
    height = np.exp(-0.5 * ((at[:, None] - values[None]) / width) ** 2).sum(1)
    return height / height.max()
