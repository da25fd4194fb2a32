"""The analyses of distillation as text, Markdown and one picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from samsans.metrics import pictures

COLUMNS = {
    "volumetric_dice": "Dice of volumes",
    "dice": "Dice of slices",
    "dice_present": "with the object",
    "false_positives": "false alarms",
    "on_target_share": "on target",
    "reached_share": "reached",
    "misled_share": "misled",
    "points_per_slice": "points/slice",
}
SWEEPS = {"neighbours": "n", "tau": "tau", "sources": "points, decoder"}


def text(found: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    lines = []
    for sweep, title in SWEEPS.items():
        lines.append(f"{title:18}" + "".join(f"{head:>17}" for head in COLUMNS.values()))
        for row in found[sweep]:
            lines.append(f"{row[sweep]!s:18}" + "".join(f"{_number(row[key]):>17}" for key in COLUMNS))
        lines.append("")
    return "\n".join([*lines, *_sentences(found)])


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = []
    for sweep, title in SWEEPS.items():
        lines = [f"| {title} | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
        lines += [
            f"| {row[sweep]} | " + " | ".join(_number(row[key]) for key in COLUMNS) + " |" for row in found[sweep]
        ]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *_sentences(found)]) + "\n"


def _sentences(found: Mapping[str, Any]) -> list[str]:
    first, last = found["jaccard"]["between"]
    prior, speed, shares = found["stage1"], found["latency"], found["histogram"]["shares"]
    lines = [
        f"The consensus sets at tau {first} and {last} overlap by {_number(found['jaccard']['overlap'])} (Jaccard).",
        f"Saliency above tau {found['tau_of_run']} as the mask: Dice of volumes {_number(prior['volumetric_dice'])}, "
        f"of slices {_number(prior['dice'])}; recall {_number(prior['recall'])}, "
        f"{_number(prior['area_ratio'])} times the size of the object.",
        "Prompt reliance (Dice of volumes with the consensus less that with random salient points): "
        f"{_number(found['prompt_reliance'])}.",
        f"Saliency of all pixels: {shares[0] + shares[1]:.2%} below 0.2, {shares[8] + shares[9]:.2%} above 0.8.",
    ]
    if found["frozen_is_random"]:
        lines.append("The run's backbone began with random weights: the rows of the frozen one only show that it runs.")
    if speed is None:
        return [*lines, "No slice kept a point: nothing was timed."]
    ms, ratio = speed["ms_per_slice"], speed["ratio"]
    return [
        *lines,
        f"A slice ({speed['slices']} of them, one a batch, {speed['device']}): plain SAM with the same points "
        f"{ms['plain']:.1f} ms; SPD {ms['cold']:.1f} ms ({ratio['cold']:.3f} times as long); with kept points "
        f"{ms['warm']:.1f} ms ({ratio['warm']:.3f} times).",
    ]


def draw(found: Mapping[str, Any]) -> bytes:
    """Four panels as PNG: the sweeps of n and tau, the histogram of the saliency on a log scale, the sources."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained", facecolor="white")
    (one, two), (three, four) = figure.subplots(2, 2)
    for axis, sweep, name, own in (
        (one, "neighbours", "n: slices on either side whose points count", found["neighbours_of_run"]),
        (two, "tau", "tau: saliency that a point must exceed", found["tau_of_run"]),
    ):
        x = [row[sweep] for row in found[sweep]]
        for key in ("volumetric_dice", "dice_present", "on_target_share", "reached_share"):
            axis.plot(x, [_float(row[key]) for row in found[sweep]], marker="o", markersize=4, label=COLUMNS[key])
        axis.axvline(own, color="0.6", linestyle=":", linewidth=1)
        axis.set_xlabel(name)
        axis.set_ylim(-0.02, 1.02)
    one.set_xticks([row["neighbours"] for row in found["neighbours"]])
    one.legend(frameon=False, fontsize=8)
    edges = found["histogram"]["edges"]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    three.bar(middles, found["histogram"]["pixels"], width=0.09, color="tab:blue")
    three.set_yscale("symlog", linthresh=1)
    three.set_xlabel("saliency")
    three.set_ylabel("pixels")
    labels = [row["sources"] for row in found["sources"]]
    values = [_float(row["volumetric_dice"]) for row in found["sources"]]
    colours = ["tab:orange" if label.endswith("frozen") else "tab:blue" for label in labels]
    four.barh(range(len(labels)), values, color=colours)
    four.set_yticks(range(len(labels)), labels)
    four.invert_yaxis()
    four.set_xlim(0, 1)
    four.set_xlabel("Dice of volumes, by whose points and which decoder")
    for axis in (one, two, three, four):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return pictures.png(figure, 150)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _float(value: float | None) -> float:
    return float("nan") if value is None else value
