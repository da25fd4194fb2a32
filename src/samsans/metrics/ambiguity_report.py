"""What a report shows of several answers: the table, how well probabilities are calibrated, the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from samsans.config import SliceAxis
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.metrics import examples, matching, pages, pictures, plots, sampled
from samsans.metrics.sampled import COLUMNS, Folder, Sampled

FILE = "ambiguity.png"
SHOWN = 4  # samples in the picture
WIDTH, DPI = 1.35, 150  # of a panel, inches; dots an inch
ACCENT = "#0b7a75"


def section(found: Sampled) -> Markup:
    """The part of the report about samples, as HTML."""
    page = pages.render(
        "samsans.metrics",
        "ambiguity.html",
        filters={"number": lambda value: "–" if value is None else f"{value:.3f}"},
        found=found,
        columns=COLUMNS,
        groups=sampled.GROUPS,
        scores=list(dict.fromkeys(name for row in found.published for name in row["scores"])),
        plot=Markup(reliability_plot(found)),
    )
    return Markup(page)


def reliability_plot(found: Sampled) -> str:
    """Mean probability against the share of annotators, bin by bin, and how many pixels each bin holds; as SVG."""
    counts = np.array(found.reliability["count"], dtype=np.float64)
    filled = counts > 0
    predicted, observed = (
        np.array(found.reliability[name], dtype=np.float64)[filled] for name in ("predicted", "observed")
    )
    with plots.style("reliability"):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        above.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1.5)
        above.plot(predicted, observed, "o-", color=ACCENT, markersize=5)
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        above.set_ylabel("annotators who drew it", color=plots.INK)
        edges = np.linspace(0, 1, len(counts) + 1)
        below.bar(edges[:-1][filled], counts[filled], 0.9 / len(counts), align="edge", color=ACCENT, alpha=0.6)
        below.set_yscale("log")
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.set_ylabel("pixels", color=plots.INK)
        below.set_xlabel(found.probability, color=plots.INK)
        plots.dress(above, "Reliability")
        plots.dress(below, "")
        for axes in (above, below):
            axes.grid(axis="y", color=plots.FAINT, linewidth=0.7)
        return plots.svg(figure, "reliability")


def plate(
    found: Sampled, folder: Folder, pairs: Sequence[matching.Pair], *, count: int = 3, slice_axis: SliceAxis = "auto"
) -> pictures.Plate:
    """Image, all annotators, the first samples and the entropy of the probability, from the lowest GED to the highest.

    count: rows, evenly over the ranking of cases (of slices: of their mean): three are best, median and worst.
    slice_axis: which planes of volumes are shown; of each the one that annotators drew most in, else samples.
    """
    values: dict[str, list[float]] = {}
    for row in found.cases:
        values.setdefault(row["id"], []).append(row["ged"])
    ranked = sorted(((float(np.mean(v)), id) for id, v in values.items()), reverse=True)
    if not ranked:
        raise InputError("no case was scored: there is nothing to draw", "at least one case")
    by_id = {pair.case.id: pair for pair in pairs}
    chosen = [ranked[place] for place in examples.spread(len(ranked), count)]
    rows = [(id, value, _row(folder, by_id[id], slice_axis)) for value, id in chosen]
    caption = (
        f"Lowest to highest GED_{found.samples}, which stands beside the name. Entropy of the {found.probability}, in "
        "bits: black 0, yellow 1."
    )
    return pictures.Plate(FILE, "Annotators and samples", _draw(rows), caption)


@dataclass(frozen=True)
class _Row:
    """What is drawn of one case: titled pictures ``(H, W, 3)`` uint8, an entropy map ``(H, W)`` uint8, and a remark."""

    titled: list[tuple[str, np.ndarray]]
    entropy: np.ndarray
    remark: str


def _row(folder: Folder, pair: matching.Pair, slice_axis: SliceAxis) -> _Row:
    answers = folder.read(pair)
    reference = matching.read_reference(pair.case)
    orientation = Orientation.of(reference, slice_axis)
    annotations = [orientation.to_slices(mask) for mask in answers.annotations]
    samples = [orientation.to_slices(mask) for mask in answers.samples[:SHOWN]]
    shown = annotations if any(mask.any() for mask in annotations) else samples
    z = int(np.argmax(np.sum(shown, axis=(0, 2, 3))))
    image, note = examples.read_image(pair, reference.shape)
    step = orientation.spacing[1:]
    focus = np.any([mask[z] for mask in (*annotations, *samples)], axis=0)
    rgb = pictures.square_pixels(pictures.to_rgb(orientation.to_slices(image)[z], focus=focus), step, smooth=True)

    def over(mask: np.ndarray) -> np.ndarray:
        return pictures.overlay(rgb, pictures.square_pixels(mask[z].astype(np.uint8), step, smooth=False))

    nothing = np.zeros_like(annotations[0])
    titled = [("image", over(nothing))]
    for who, masks in (("annotator", annotations), ("sample", samples)):
        titled += [
            (f"{who} {n}" if mask[z].any() else f"{who} {n}: nothing", over(mask)) for n, mask in enumerate(masks, 1)
        ]
    bits = _entropy(orientation.to_slices(answers.probability)[z])
    grey = pictures.square_pixels(np.rint(bits * 255).astype(np.uint8), step, smooth=False)
    where = f"slice {z + 1} of {len(nothing)}" if len(nothing) > 1 else ""
    return _Row(titled, grey, "\n".join(part for part in (where, note) if part))


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy in bits, in [0, 1], of probabilities."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.clip(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), 0, 1)


def _draw(rows: Sequence[tuple[str, float, _Row]]) -> bytes:
    columns = max(len(row.titled) for _, _, row in rows) + 1
    ratios = [row.titled[0][1].shape[0] / row.titled[0][1].shape[1] for _, _, row in rows]
    size = (WIDTH * columns + 0.3, WIDTH * sum(ratios) + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for line, (id, value, row) in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, (title, picture) in zip(line, row.titled, strict=False):
            axes.imshow(picture)
            axes.set_title(title, fontsize=8)
        line[-1].imshow(row.entropy, cmap="inferno", vmin=0, vmax=255, interpolation="nearest")
        line[-1].set_title("entropy", fontsize=8)
        remark = "\n".join(part for part in (id, f"GED {value:.3f}", row.remark) if part)
        line[0].set_ylabel(remark, fontsize=7, parse_math=False)
    return pictures.png(figure, DPI)
