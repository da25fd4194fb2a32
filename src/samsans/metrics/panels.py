"""A picture of the stages of a method: for some cases the image, the truth, and every answer side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from samsans.config import SliceAxis
from samsans.errors import InputError
from samsans.metrics import examples, matching, pictures
from samsans.palette import color
from samsans.types import ClassInfo

if TYPE_CHECKING:
    from samsans.metrics.evaluate import Summary

FILE = "panels.png"
WIDTH, DPI = 2.2, 150  # of a panel, inches; dots an inch
MANY_OBJECTS = 12

Answers = Callable[[matching.Pair], Mapping[str, np.ndarray]]


def plate(
    summary: Summary,
    pairs: Sequence[matching.Pair],
    objects: Sequence[ClassInfo],
    answers: Answers,
    *,
    count: int = 3,
    slice_axis: SliceAxis = "auto",
    remark: str = "",
) -> pictures.Plate:
    """Draw ``count`` cases evenly over the ranking by mean Dice, best first: three are best, median and worst.

    Args:
        summary: What was scored.
        pairs: The scored cases.
        objects: The scored objects.
        answers: Gives the label maps ``(D, H, W)`` of a case by name, the same names for every case.
        count: Rows of the picture, fewer where there are fewer cases.
        slice_axis: Which planes of volumes are shown, as in ``DataConfig``.
        remark: A last sentence of the caption.

    Raises:
        InputError: no row is asked for, or no case has a Dice.
    """
    if count < 1:
        raise InputError(f"a picture of {count} cases", "at least 1")
    ranked = examples.ranked(summary.cases)
    if not ranked:
        raise InputError("no case has a Dice: there is nothing to rank", "at least one case that shows an object")
    by_id = {pair.case.id: pair for pair in pairs}
    rows = []
    for place in examples.spread(len(ranked), count):
        dice, id = ranked[place]
        rows.append((id, dice, examples.example(by_id[id], objects, answers(by_id[id]), slice_axis)))
    caption = (
        "Best to worst by the mean Dice of the whole case, which stands beside its name. Each row is the slice with "
        "most truth; the number above a panel is the mean Dice of the objects in that slice."
    )
    return pictures.Plate(FILE, "Stage by stage", _draw(rows, objects), f"{caption} {remark}".strip())


def _draw(rows: Sequence[tuple[str, float, examples.Example]], objects: Sequence[ClassInfo]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = ["image", "truth", *rows[0][2].found]
    ratios = [shown.rgb.shape[0] / shown.rgb.shape[1] for _, _, shown in rows]
    legend = 0.3 if len(objects) <= MANY_OBJECTS else 0.0
    size = (WIDTH * len(columns) + 0.3, WIDTH * sum(ratios) + 0.3 * len(rows) + legend)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for line, (id, dice, shown) in zip(grid, rows, strict=True):
        nothing = np.zeros_like(shown.truth)
        layers = [nothing, shown.truth, *shown.found.values()]
        for axis, name, labels in zip(line, columns, layers, strict=True):
            axis.imshow(pictures.overlay(shown.rgb, labels))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            slice_dice = shown.dice.get(name)
            axis.set_title(name if slice_dice is None else f"{name}  {slice_dice:.3f}", fontsize=9)
        where = "\n".join(part for part in (id, shown.where, f"Dice {dice:.3f}", shown.note) if part)
        line[0].set_ylabel(where, fontsize=8, parse_math=False)
    if legend:
        chips = [Patch(color="#{:02x}{:02x}{:02x}".format(*color(k)), label=c.name) for k, c in enumerate(objects, 1)]
        figure.legend(handles=chips, loc="outside lower center", ncols=len(chips), fontsize=8, frameon=False)
    return pictures.png(figure, DPI)
