"""The picture of learning curves: a panel a method, a line a backbone, with bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samsans import zoo
from samsans.metrics import pictures

FILE = "curves.png"
COLUMNS, WIDTH, HEIGHT, DPI = 4, 2.9, 2.5, 130  # panels a line; inches; dots an inch
COLOURS = ("#0b7a75", "#d9822b", "#5b4fc4", "#8a8f98")


def family(backbone: str) -> str:
    """Of a backbone, ``sam`` or ``sam2``; files and folders are taken for SAM."""
    return zoo.BACKBONES[backbone].family if backbone in zoo.BACKBONES else "sam"


def draw(summary: Mapping[str, Any]) -> bytes:
    """Dice over the number of training images with 95 % bootstrap bands over patients, as PNG.

    Above a panel stands the difference of the first backbone to the second at the most images.
    """
    from matplotlib.figure import Figure

    methods, counts = summary["methods"], summary["shots"]
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.2, HEIGHT * lines + 0.5), layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in grid.flat[len(methods) :]:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    for axis, (name, row) in zip(grid.flat, methods.items(), strict=False):
        for backbone, points in row["curves"].items():
            known = {int(count): point for count, point in points.items() if point["dice"] is not None}
            alone = backbone not in summary["backbones"]
            colour = "#8a8f98" if alone else COLOURS[summary["backbones"].index(backbone) % len(COLOURS)]
            (line,) = axis.plot(list(known), [p["dice"] for p in known.values()], "o-", color=colour, markersize=4)
            bands = {count: point["ci"]["dice"] for count, point in known.items() if point["ci"]["dice"] is not None}
            low, high = ([band[side] for band in bands.values()] for side in (0, 1))
            axis.fill_between(list(bands), low, high, color=colour, alpha=0.15, linewidth=0)
            handles.setdefault("no backbone" if alone else backbone, line)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlim(min(counts) / 1.2, max(counts) * 1.2)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(_title(name, row), fontsize=9, loc="left", parse_math=False)
    figure.supxlabel("training images", fontsize=9)
    figure.supylabel("Dice", fontsize=9)
    figure.legend(
        handles=list(handles.values()),
        labels=list(handles),
        loc="outside upper right",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return pictures.png(figure, DPI)


def _title(name: str, row: Mapping[str, Any]) -> str:
    found = next(iter(row["difference"].values()), None)
    title = name + "*" * row["truth"]
    return title if found is None or found["dice"] is None else f"{title}  {found['dice']:+.3f}"
