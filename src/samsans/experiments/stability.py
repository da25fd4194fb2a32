"""Does it matter which support pair is shown?  Five pairs of five patients, the same test cases with each (Tables 3, 10
and 11 of the paper, there on videos).  For every method that takes support pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.data.classes import class_masks
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.ablation import trained_parameters
from samsans.experiments.draws import Study, mean_dice, merges, object_dice, patients_first, plain, score_draws, study
from samsans.experiments.held_out import are_frames, score, segment, table, video_means
from samsans.experiments.published_proxy_prompt import published_lines, told
from samsans.metrics.statistics import class_means

PAIRS = 5


@dataclass(frozen=True)
class _Scores:
    """``dice``, ``iou`` ``(pairs, cases, N)``, NaN where undefined; ``shown`` ``(cases, N)`` bool, by the truth."""

    dice: np.ndarray
    iou: np.ndarray
    shown: np.ndarray


def stability(asked: Request, objects: Sequence[str] = ()) -> str:
    """Segment the run's held-out cases with each of five support pairs alone (K = 1); writes ``stability.json`` and
    ``stability.png``, of a method other than Proxy Prompt also ``masks/S1`` and ``reports/S1``, ...

    The pairs are of five patients: of the validation part, whom the network has not learned from, where there are as
    many and it is not what is tested; else of the training part.  Where no part has so many, further slices of the same
    patients are taken, in turn.  Of a video its first frame that shows every object comes first, as in the paper.  The
    table says all that.

    Args:
        asked: Its seed is that of the order of patients and slices.
        objects: Names of the objects wanted, all by default: a pair has to show all of these, and no others are asked
            for or scored.

    Returns:
        The table as text: Dice and IoU of each object for S1 to S5; of the five averages over the objects the mean,
        the standard deviation (of the sample, ddof 1) and the largest difference.  Where the cases are frames of
        videos, Dice is the mean over the frames that show the object, then over the videos (decision D-28).

    Raises:
        InputError: fewer than two slices show every object, no tested case shows any, the method takes no supports, or
            the run holds nobody out.
    """
    split = Split.load(asked.run_folder / "split.json")
    this, part, chosen = _pairs(asked, split, objects)
    if len(chosen) < 2:
        raise InputError(
            f"{len(chosen)} slice that shows {', '.join(this.objects)} at once",
            "two at least, best of five patients",
            "Ask for fewer --objects",
        )
    _require_shown(this)
    names = [this.slices.ids[i] for i in chosen]
    patients = [this.slices.patients[i] for i in chosen]
    found = _merged(asked, this, chosen) if merges(this.segmenter) else _one_by_one(asked, this, chosen)
    videos = are_frames(this.cases)
    if videos:
        dice, iou = (video_means(values, found.shown, this.cases) for values in (found.dice, found.iou))  # (pairs, N)
    else:
        dice, iou = object_dice(found.dice), object_dice(found.iou)
    averages = class_means(dice.T)  # over the objects that some case shows
    spread = _spread(averages)
    rows = [{"object": name, "dice": plain(dice[:, n]), "iou": plain(iou[:, n])} for n, name in enumerate(this.objects)]
    about: dict[str, Any] = {"run": str(asked.run_folder), "part": part, "pairs": names, "patients": patients}
    about |= {"cases": len(this.cases), "videos": len({case.video for case in this.cases}) if videos else None}
    pooled = _spread(mean_dice(found.dice)) if videos else None
    shared = {"ddof": 1, "rows": rows, "averages": plain(averages), **spread, "all_frames_alike": pooled}
    io.write_json(asked.out / "stability.json", about | shared)
    _draw(this.objects, found, dice, asked.out / "stability.png")
    lines = [
        *_about(this, part, part == "train" and bool(trained_parameters(asked.run_folder)), names, patients),
        *_table(this.objects, dice, iou),
        f"{'average':14}{_in_words(spread)}",
        *([] if pooled is None else [f"{'all frames alike, with those that show nothing':14}: {_in_words(pooled)}"]),
        "",
        *told("stability", this.segmenter.config, len(split.train)),
    ]
    return "\n".join([*lines, *published_lines("stability")])


def _pairs(asked: Request, split: Split, objects: Sequence[str]) -> tuple[Study, str, list[int]]:
    """Study, part, slices chosen: of the part with most patients (five at most), of two alike the unseen one."""
    tested = asked.part or ("test" if split.test else "val")
    best: tuple[Study, str, list[int]] | None = None
    most = -1
    for part in ["val", "train"] if split.val and tested != "val" else ["train"]:
        this = study(asked, part, objects=objects, merging=False)
        chosen = _candidates(this)[:PAIRS]
        patients = len({this.slices.patients[i] for i in chosen})
        if patients > most:
            best, most = (this, part, chosen), patients
    assert best is not None
    return best


def _require_shown(this: Study) -> None:
    """InputError where none of the objects is in any tested case; their label maps are read up to the first that is."""
    read = (this.dataset.read_labels(case).array for case in this.cases)
    if not any(class_masks(labels, this.dataset.classes).any() for labels in read):
        raise InputError(
            f"none of the {len(this.cases)} tested cases shows {' or '.join(this.objects)}",
            "objects that some of them show",
            "Ask for other --objects, or test another --split",
        )


def _candidates(this: Study) -> list[int]:
    """Slices that show every object, no patient twice before all had one; of a video its first such frame first."""
    showing = [i for i in this.order if this.slices.present[i].all()]
    cases = {case.id: case for case in this.slices.cases}
    frames = {i: cases[this.slices.places[i][0]] for i in showing}
    first: dict[str, int] = {}
    for index in sorted(showing, key=lambda i: frames[i].frame or 0):
        if frames[index].video:
            first.setdefault(frames[index].video, index)
    ahead = set(first.values())
    return patients_first(this.slices, [*(i for i in showing if i in ahead), *(i for i in showing if i not in ahead)])


def _merged(asked: Request, this: Study, chosen: Sequence[int]) -> _Scores:
    """Every target reads every pair once."""
    counts = score_draws(asked, this, this.bank(chosen), [(i,) for i in range(len(chosen))], "stability")
    return _Scores(counts.dice, counts.iou, counts.truth[0] > 0)


def _one_by_one(asked: Request, this: Study, chosen: Sequence[int]) -> _Scores:
    """The cases segmented anew with every pair, videos as videos, and the label maps scored."""
    found = []
    for place, index in enumerate(chosen, start=1):
        folder, report = (asked.out / kind / f"S{place}" for kind in ("masks", "reports"))
        segment(this.segmenter, this.dataset, this.cases, folder, support=this.bank([index]), seed=asked.seed)
        classes = this.dataset.classes
        scored = score(asked, this.segmenter, this.cases, folder, report, classes, convention="default")
        found.append(table(scored.cases, this.cases, this.objects))
        asked.tell(place, len(chosen), f"stability: S{place}")
    return _Scores(np.stack([f["dice"] for f in found]), np.stack([f["iou"] for f in found]), found[0]["shown"])


def _spread(averages: np.ndarray) -> dict[str, float]:
    spread = {"mean": averages.mean(), "std": averages.std(ddof=1), "range": np.ptp(averages)}
    return {name: float(value) for name, value in spread.items()}


def _in_words(spread: dict[str, float]) -> str:
    return (
        f"{100 * spread['mean']:.1f}, std {100 * spread['std']:.2f} (of the sample, ddof 1), "
        f"max - min {100 * spread['range']:.2f}"
    )


def _about(this: Study, part: str, learned: bool, names: Sequence[str], patients: Sequence[str]) -> list[str]:
    """What was tested and with which pairs, whether the network has ``learned`` from them."""
    cases = f"{len(this.cases)} cases"
    if are_frames(this.cases):
        videos = len({case.video for case in this.cases})
        cases = f"{len(this.cases)} frames of {videos} video{'s' if videos > 1 else ''}; "
        cases += "Dice over the frames that show the object, then over the videos (D-28)"
    seen = "; the network has learned from these pairs, the paper's were set aside" if learned else ""
    lines = [f"{cases}; pairs of the {part} part{seen}"]
    for place, (name, patient) in enumerate(zip(names, patients, strict=True), start=1):
        again = f" (patient {patient} again)" if patient in patients[: place - 1] else ""
        lines.append(f"S{place}: {name}{again}")
    count = len(set(patients))
    if count < PAIRS:
        lines.append(
            f"{len(names)} pairs of {count} patient{'s' if count > 1 else ''}: "
            f"only so many show {' and '.join(this.objects)} at once"
        )
    return lines


def _table(objects: Sequence[str], dice: np.ndarray, iou: np.ndarray) -> list[str]:
    heads = "".join(f"{f'S{i + 1}':>14}" for i in range(len(dice)))
    lines = [f"{'Dice / IoU':14}{heads}{'average':>14}{'std':>7}{'max-min':>9}"]
    for n, name in enumerate(objects):
        cells = [f"{100 * d:.1f} / {100 * u:.1f}" for d, u in zip(dice[:, n], iou[:, n], strict=True)]
        if np.isnan(dice[:, n]).all():
            lines.append(f"{name:14}  in no case")
            continue
        cells.append(f"{100 * dice[:, n].mean():.1f} / {100 * iou[:, n].mean():.1f}")
        spread = f"{100 * dice[:, n].std(ddof=1):7.2f}{100 * np.ptp(dice[:, n]):9.2f}"
        lines.append(f"{name:14}" + "".join(f"{cell:>14}" for cell in cells) + spread)
    return lines


def _draw(objects: Sequence[str], found: _Scores, means: np.ndarray, path: Path) -> None:
    """Boxes over the cases for every pair, a panel an object; the line joins the ``means`` ``(pairs, N)``."""
    import matplotlib.pyplot as plt

    pairs = len(means)
    figure, axes = plt.subplots(1, len(objects), figsize=(3.6 * len(objects), 3), squeeze=False, sharey=True)
    for n, (axis, name) in enumerate(zip(axes[0], objects, strict=True)):
        values = [one[found.shown[:, n] & np.isfinite(one)] for one in found.dice[:, :, n]]
        axis.boxplot(values, tick_labels=[f"S{i + 1}" for i in range(pairs)], widths=0.55, patch_artist=True,
                     boxprops={"facecolor": "#9ecae1"}, flierprops={"markersize": 3})  # fmt: skip
        axis.plot(range(1, pairs + 1), means[:, n], "o-", color="#d62728", ms=4)
        axis.set(title=name, ylim=(0, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("Dice of cases that show it")
    figure.tight_layout()
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
