"""Does it pay to choose supports by how they look instead of drawing them?  Beyond the paper, which draws (D-29)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samsans import io
from samsans.experiments import Request
from samsans.experiments.draws import POOL, mean_dice, paired, plain, random_draws, score_draws, study
from samsans.methods.proxy_prompt.pairs import choose_pairs, closeness
from samsans.metrics.statistics import class_means
from samsans.types import Embedding

SUPPORTS = (1, 2, 4, 8)
DRAWS = 20


def choosing(asked: Request) -> str:
    """Segment the run's held-out cases with K pairs of its training images, drawn at random 20 times and chosen by
    similarity and coverage (``predict --choose similar``); writes ``choosing.json`` and ``choosing.png``.

    The gain of choosing is paired: for each case its Dice with the chosen pairs less its mean over the random draws.

    Returns:
        The table as text.

    Raises:
        InputError: the method takes no supports, or the run holds nobody out.
    """
    this = study(asked)
    order = this.order[:POOL]
    bank = this.bank(order)
    here = bank.to(this.segmenter.device)
    sizes = [k for k in SUPPORTS if k < len(order)]
    drawn = {k: random_draws(len(order), k, DRAWS, asked.seed) for k in sizes}

    def draws(embedding: Embedding) -> list[tuple[int, ...]]:
        close = closeness(embedding.features, here)[0]
        chosen = [choose_pairs(close, k, range(len(order))) for k in sizes]
        return [*chosen, *(draw for k in sizes for draw in drawn[k]), tuple(range(len(order)))]

    dice = score_draws(asked, this, bank, draws, "choosing").dice  # (draws, cases, N)
    rows = []
    for place, k in enumerate(sizes):
        start = len(sizes) + place * DRAWS
        random = dice[start : start + DRAWS]
        averages = mean_dice(random)
        gain, low, high = paired(class_means((dice[place] - _over_draws(random)).T), asked.seed)
        rows.append(
            {
                "K": k,
                "random": plain(float(averages.mean())),
                "random_std": plain(float(averages.std(ddof=1))),
                "chosen": plain(float(mean_dice(dice[place : place + 1])[0])),
                "gain": plain(gain),
                "low": plain(low),
                "high": plain(high),
            }
        )
    whole = float(mean_dice(dice[-1:])[0])
    about = {"run": str(asked.run_folder), "pool": [this.slices.ids[i] for i in order], "draws": DRAWS, "ddof": 1}
    io.write_json(asked.out / "choosing.json", {**about, "all": plain(whole), "rows": rows})
    _draw(rows, whole, len(order), asked.out / "choosing.png")
    lines = [
        f"{len(this.cases)} held-out cases, a pool of {len(order)} pairs; Dice in %",
        f"{'K':4}{'random (std)':>16}{'chosen':>9}   gain, 95 % interval over the cases",
    ]
    for row in rows:
        cells = [float("nan") if row[name] is None else 100 * row[name] for name in ("gain", "low", "high")]
        lines.append(
            f"{row['K']:<4}{100 * row['random']:9.1f} ({100 * row['random_std']:.2f}){100 * row['chosen']:9.1f}   "
            f"{cells[0]:+.2f} ({cells[1]:+.2f} to {cells[2]:+.2f})"
        )
    lines.append(f"all {len(order)}: {100 * whole:.1f}")
    lines.append(
        f"std: of {DRAWS} draws' averages, of the sample (ddof 1).  The paper draws at random: nothing to compare"
    )
    return "\n".join(lines)


def _over_draws(dice: np.ndarray) -> np.ndarray:
    """``(cases, N)`` mean over the draws of ``(draws, cases, N)`` where it is defined."""
    return class_means(dice.reshape(len(dice), -1)).reshape(dice.shape[1:])


def _draw(rows: list[dict[str, float]], whole: float, pool: int, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    at = [row["K"] for row in rows]
    axis.errorbar(at, [r["random"] for r in rows], [r["random_std"] for r in rows], fmt="o-", color="#b0b7bf",
                  capsize=3, label="drawn at random")  # fmt: skip
    axis.plot(at, [r["chosen"] for r in rows], "o-", color="#2a6f97", label="chosen: similar, covering")
    axis.axhline(whole, color="#333333", lw=0.8, ls=":", label=f"all {pool}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(at, [str(k) for k in at])
    axis.set(xlabel="support pairs K", ylabel="mean Dice")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
