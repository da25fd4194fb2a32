"""The evaluation as one HTML page that needs nothing else: numbers, plots, pictures, rules, origin."""

from __future__ import annotations

import base64
import io as streams
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import samsans
from samsans import io
from samsans.config import SliceAxis
from samsans.metrics import ambiguity_report, conventions, examples, matching, pages, pictures, plots, slicewise
from samsans.metrics.conventions import METRICS
from samsans.metrics.evaluate import Summary
from samsans.palette import color
from samsans.types import ClassInfo

LISTED_ROWS = 2000
LONGEST_PICTURE = 1024
FEWEST_FOR_BOXES, MANY_OBJECTS = 3, 12


def render(
    summary: Summary,
    pairs: Sequence[matching.Pair],
    objects: Sequence[ClassInfo],
    plates: Sequence[pictures.Plate] = (),
    slice_axis: SliceAxis = "auto",
) -> str:
    """The report as HTML text; reads again the label maps and images of at most three cases.

    plates: further pictures, shown with their titles and captions.  slice_axis: which planes of volumes are shown.
    """
    names = {
        "dice": "Dice",
        "iou": "IoU",
        "hd95_mm": f"HD95 [{summary.unit}]",
        "asd_mm": f"ASD [{summary.unit}]",
        "nsd": f"NSD at {summary.nsd_tolerance:g} {summary.unit}",
    }
    chips = {c.name: "#{:02x}{:02x}{:02x}".format(*color(k)) for k, c in enumerate(objects, start=1)}
    rows = sorted(summary.cases, key=lambda row: (2.0 if row["dice"] is None else row["dice"], row["id"]))
    return pages.render(
        "samsans.metrics",
        "report.html",
        filters={"number": number, "signed": signed},
        summary=summary,
        version=samsans.__version__,
        metrics=METRICS,
        names=names,
        slice_titles=slicewise.TITLES,
        chips=chips,
        plots=[box_plot(summary, m, names[m], chips) for m in ("dice", "hd95_mm")]
        if summary.n >= FEWEST_FOR_BOXES
        else [],
        many=len(objects) > MANY_OBJECTS,
        pictures=_examples(summary, pairs, objects, slice_axis),
        ambiguity="" if summary.ambiguity is None else ambiguity_report.section(summary.ambiguity),
        plates=[(plate, pictures.png_uri(plate.png)) for plate in plates],
        rows=rows[:LISTED_ROWS],
        provenance=_flat(summary.provenance),
        sliced=any(row["slice"] is not None for row in summary.cases),
    )


def number(value: float | None, metric: str) -> str:
    """A metric as shown: overlaps to three decimals, distances to two, an en dash where undefined."""
    return "–" if value is None else f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def signed(value: float | None, metric: str) -> str:
    """A difference as shown, with its sign."""
    return number(value, metric) if value is None else f"{'+' if value >= 0 else '−'}{number(abs(value), metric)}"


def box_plot(summary: Summary, metric: str, title: str, chips: Mapping[str, str]) -> str:
    """One box (quartiles, whiskers to 1.5 IQR) and all samples for each class, as an SVG that takes the page's ink."""
    values = {
        name: np.array([row[metric] for row in summary.cases if row["class"] == name and row[metric] is not None])
        for name in chips
    }
    with plots.style(metric):
        figure = Figure(
            figsize=(5.2, 0.9 + (0.25 if len(values) > MANY_OBJECTS else 0.42) * len(values)), layout="constrained"
        )
        axes = figure.add_subplot()
        jitter = np.random.default_rng(0)
        for y, (name, numbers) in enumerate(values.items()):
            axes.boxplot(
                [numbers],
                positions=[y],
                orientation="horizontal",
                widths=0.5,
                showfliers=False,
                patch_artist=True,
                boxprops={"facecolor": chips[name], "alpha": 0.45, "edgecolor": plots.INK, "linewidth": 0.8},
                medianprops={"color": plots.INK, "linewidth": 2},
                whiskerprops={"color": plots.INK, "linewidth": 0.8},
                capprops={"color": plots.INK, "linewidth": 0.8},
            )
            where = y + jitter.uniform(-0.16, 0.16, len(numbers))
            axes.scatter(
                numbers, where, s=9, color=chips[name], edgecolors=plots.INK, linewidths=0.4, alpha=0.85, zorder=3
            )
        axes.set_yticks(range(len(values)), list(values))
        axes.set_ylim(len(values) - 0.5, -0.5)
        if metric == "dice":
            axes.set_xlim(-0.02, 1.02)
        else:
            axes.set_xlim(left=0)
        plots.dress(axes, title)
        axes.grid(axis="x", color=plots.FAINT, linewidth=0.7)
        return plots.svg(figure, metric)


def _examples(
    summary: Summary, pairs: Sequence[matching.Pair], objects: Sequence[ClassInfo], slice_axis: SliceAxis
) -> list[dict[str, Any]]:
    """Best, median and worst case by the mean Dice of their objects; fewer where there are fewer cases."""
    ranked = examples.ranked(summary.cases)
    if not ranked:
        return []
    places = {"Best": len(ranked) - 1, "Median": (len(ranked) - 1) // 2, "Worst": 0}
    if len(ranked) == 1:
        places = {"The only case": 0}
    by_id = {pair.case.id: pair for pair in pairs}
    shown: dict[str, dict[str, Any]] = {}
    for title, place in places.items():
        value, case = ranked[place]
        if case not in shown:
            rows = [row for row in summary.cases if row["id"] == case]
            shown[case] = {"title": title, "id": case, "dice": value, **_picture(by_id[case], objects, slice_axis)}
            shown[case]["classes"] = {
                c.name: conventions.mean([row["dice"] for row in rows if row["class"] == c.name]) for c in objects
            }
    return list(shown.values())


def _picture(pair: matching.Pair, objects: Sequence[ClassInfo], slice_axis: SliceAxis) -> dict[str, Any]:
    """The telling slice of one case with and without labels, as data URIs, and what to say below it."""
    shown = examples.example(pair, objects, {"prediction": io.read_labels(pair.prediction).array}, slice_axis)
    over = pictures.overlay(shown.rgb, shown.found["prediction"], shown.truth)
    plain = pictures.overlay(shown.rgb, np.zeros_like(shown.truth))
    return {"overlay": _data_uri(over), "plain": _data_uri(plain), "where": shown.where, "note": shown.note}


def _data_uri(rgb: np.ndarray) -> str:
    picture = Image.fromarray(rgb)
    picture.thumbnail((LONGEST_PICTURE, LONGEST_PICTURE), Image.Resampling.LANCZOS)
    buffer = streams.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Keys and values of a manifest in reading order; long lists are counted."""
    lines: list[tuple[str, str]] = []
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key} / ")
        elif isinstance(value, list) and (len(value) > 8 or any(isinstance(v, (dict, list)) for v in value)):
            lines.append((f"{prefix}{key}", f"{len(value)} entries"))
        else:
            lines.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return lines
