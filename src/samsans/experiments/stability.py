"""Does it matter which support pair is shown?  Five pairs of five patients, the same test cases with each (Tables 3, 10
and 11 of the paper, there on videos)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samsans import io
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.draws import Study, object_dice, plain, score_draws, study
from samsans.experiments.published_proxy_prompt import published_lines, told

PAIRS = 5


def stability(asked: Request) -> str:
    """Segment the run's held-out cases with each of five support pairs alone (K = 1); writes ``stability.json`` and
    ``stability.png``.

    The pairs are of five patients: of the validation part, whom the network has not learned from, where there are as
    many and it is not what is tested; else of the training part, as the table then says.

    Returns:
        The table as text: Dice and IoU of each object for S1 to S5; of the five averages over the objects the mean,
        the standard deviation (of the sample, ddof 1) and the largest difference.

    Raises:
        InputError: fewer than two patients have a pair that shows every object, the method takes no supports, or the
            run holds nobody out.
    """
    split = Split.load(asked.run_folder / "split.json")
    tested = asked.part or ("test" if split.test else "val")
    parts = ["val", "train"] if split.val and tested != "val" else ["train"]
    for part in parts:
        this = study(asked, part)
        chosen = _one_a_patient(this)
        if len(chosen) >= PAIRS or part == parts[-1]:
            break
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} patient with a slice that shows every object", "two at least, best five")
    chosen = chosen[:PAIRS]
    names = [this.slices.ids[i] for i in chosen]
    counts = score_draws(asked, this, this.bank(chosen), [(i,) for i in range(len(chosen))], "stability")
    dice, iou = object_dice(counts.dice), object_dice(counts.iou)  # (pairs, N)
    averages = dice.mean(1)
    spread = {"mean": float(averages.mean()), "std": float(averages.std(ddof=1)), "range": float(np.ptp(averages))}
    rows = [{"object": name, "dice": plain(dice[:, n]), "iou": plain(iou[:, n])} for n, name in enumerate(this.objects)]
    about = {"run": str(asked.run_folder), "part": part, "pairs": names, "ddof": 1}
    io.write_json(asked.out / "stability.json", {**about, "rows": rows, "averages": plain(averages), **spread})
    _draw(this.objects, counts.dice, asked.out / "stability.png")
    seen = "" if part == "val" else "; the network has learned from these pairs, the paper's were set aside"
    lines = [
        f"{len(this.cases)} cases; pairs of the {part} part{seen}",
        *(f"S{i}: {name}" for i, name in enumerate(names, start=1)),
        *_table(this.objects, dice, iou),
        f"{'average':14}{100 * spread['mean']:.1f}, std {100 * spread['std']:.2f} (of the sample, ddof 1), "
        f"max - min {100 * spread['range']:.2f}",
        "",
        *told("stability", this.segmenter.config, len(split.train)),
    ]
    return "\n".join([*lines, *published_lines("stability")])


def _one_a_patient(this: Study) -> list[int]:
    """The first slice of every patient that shows every object, in the order of the study."""
    first: dict[str, int] = {}
    for index in this.order:
        if this.slices.present[index].all():
            first.setdefault(this.slices.patients[index], index)
    return list(first.values())


def _table(objects: Sequence[str], dice: np.ndarray, iou: np.ndarray) -> list[str]:
    heads = "".join(f"{f'S{i + 1}':>14}" for i in range(len(dice)))
    lines = [f"{'Dice / IoU':14}{heads}{'average':>14}{'std':>7}{'max-min':>9}"]
    for n, name in enumerate(objects):
        cells = [f"{100 * d:.1f} / {100 * u:.1f}" for d, u in zip(dice[:, n], iou[:, n], strict=True)]
        cells.append(f"{100 * dice[:, n].mean():.1f} / {100 * iou[:, n].mean():.1f}")
        spread = f"{100 * dice[:, n].std(ddof=1):7.2f}{100 * np.ptp(dice[:, n]):9.2f}"
        lines.append(f"{name:14}" + "".join(f"{cell:>14}" for cell in cells) + spread)
    return lines


def _draw(objects: Sequence[str], dice: np.ndarray, path: Path) -> None:
    """Boxes over the cases for every pair, a panel an object; the line joins the means."""
    import matplotlib.pyplot as plt

    pairs = len(dice)
    figure, axes = plt.subplots(1, len(objects), figsize=(3.6 * len(objects), 3), squeeze=False, sharey=True)
    for n, (axis, name) in enumerate(zip(axes[0], objects, strict=True)):
        values = [one[np.isfinite(one)] for one in dice[:, :, n]]
        axis.boxplot(values, tick_labels=[f"S{i + 1}" for i in range(pairs)], widths=0.55, patch_artist=True,
                     boxprops={"facecolor": "#9ecae1"}, flierprops={"markersize": 3})  # fmt: skip
        axis.plot(range(1, pairs + 1), [v.mean() if len(v) else np.nan for v in values], "o-", color="#d62728", ms=4)
        axis.set(title=name, ylim=(0, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("Dice of a case")
    figure.tight_layout()
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
