"""A picture of held-out cases: image, truth and the mask of every contestant, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samsans import io
from samsans.benchmark.plan import Plan
from samsans.data.cases import Dataset
from samsans.metrics import examples, matching, pictures
from samsans.metrics.conventions import mean
from samsans.palette import color

FILE = "panels.png"
COLUMNS, WIDTH, DPI = 6, 2.0, 110  # tiles a line; inches; dots an inch


def draw(plan: Plan, summary: Mapping[str, Any], dataset: Dataset) -> bytes | None:
    """The cases evenly over the ranking by mean Dice of the automatic methods, best first, as PNG.

    Each is shown by its slice with most truth; the number beside a name is the Dice of that slice.  ``None`` where no
    case has a Dice.
    """
    methods = summary["methods"]
    chosen = _cases(methods, summary["cases"], plan.panels)
    if not chosen:
        return None
    folders = {name: plan.masks(name) for name in methods}
    pairs = {name: {p.case.id: p for p in matching.match(f, list(dataset.cases)).pairs} for name, f in folders.items()}
    first = next(iter(methods))
    objects = matching.resolve_classes(
        dataset.classes, matching.read_classes(folders[first]), list(pairs[first].values())
    )
    shown = []
    for id in chosen:
        labels = {name: io.read_labels(found[id].prediction).array for name, found in pairs.items()}
        shown.append((id, examples.example(pairs[first][id], objects, labels, plan.data.slice_axis)))
    return _figure(shown, methods, [c.name for c in objects])


def _cases(methods: Mapping[str, Any], ids: list[str], count: int) -> list[str]:
    automatic = [row["cases"] for row in methods.values() if not row["truth"]]
    automatic = automatic or [row["cases"] for row in methods.values()]
    scores = {id: mean([cases[id] for cases in automatic]) for id in ids}
    ranked = sorted((score, id) for id, score in scores.items() if score is not None)
    return [ranked[place][1] for place in examples.spread(len(ranked), count)] if ranked else []


def _figure(shown: list[tuple[str, examples.Example]], methods: Mapping[str, Any], objects: list[str]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    tiles = 2 + len(methods)
    columns = min(COLUMNS, tiles)
    lines = -(-tiles // columns)
    ratios = [example.rgb.shape[0] / example.rgb.shape[1] for _, example in shown for _ in range(lines)]
    size = (WIDTH * columns + 0.3, sum(WIDTH * ratio + 0.25 for ratio in ratios) + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(ratios), columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axis in grid.flat:
        axis.set_axis_off()
    for place, (id, example) in enumerate(shown):
        layers = {"image": np.zeros_like(example.truth), "truth": example.truth, **example.found}
        for tile, (name, labels) in enumerate(layers.items()):
            axis = grid[place * lines + tile // columns][tile % columns]
            axis.imshow(pictures.overlay(example.rgb, labels))
            dice = example.dice.get(name)
            title = name + ("*" if name in methods and methods[name]["truth"] else "")
            title = " ".join(filter(None, (id, example.where))) if name == "image" else title
            axis.set_title(title if dice is None else f"{title} {dice:.2f}", fontsize=7, parse_math=False)
    chips = [Patch(color="#{:02x}{:02x}{:02x}".format(*color(k)), label=name) for k, name in enumerate(objects, 1)]
    figure.legend(handles=chips, loc="outside lower center", ncols=min(len(chips), 8), fontsize=8, frameon=False)
    return pictures.png(figure, DPI)
