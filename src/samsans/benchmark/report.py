"""The benchmark as one HTML page that needs nothing else, and as one CSV table."""

from __future__ import annotations

import csv
import io as streams
from collections.abc import Mapping, Sequence
from typing import Any

import samsans
from samsans.benchmark import noise
from samsans.metrics import pages
from samsans.metrics.pictures import png_uri

PAGES = {"ranking": "ranking.html", "prompt_noise": "noise.html", "shots": "shots.html", "sets": "sets.html"}
METRICS = {"dice": "Dice", "iou": "IoU", "hd95_mm": "HD95", "asd_mm": "ASD", "nsd": "NSD"}
TITLES = {
    "volumetric_dice": "Dice of volumes",
    "dice": "Dice of slices",
    "dice_positive": "Dice, slices with the object",
    "false_positive_rate": "false alarms on empty slices",
    "hd95": "HD95",
    "asd": "ASD",
    "coverage": "coverage",
}
SUMMARIES = {
    "naurc": "nAURC",
    "half_drop": "half-drop",
    "crossover": "crossover",
    "clean_cost": "clean cost",
}


def render(summary: Mapping[str, Any], text: str, pictures: Mapping[str, bytes]) -> str:
    """The report of a summary as HTML text; ``text``: the same table for a terminal; ``pictures``: PNG by file name."""
    return pages.render(
        "samsans.benchmark",
        PAGES[summary["kind"]],
        filters={"number": number},
        summary=summary,
        text=text,
        pictures={name: png_uri(png) for name, png in pictures.items()},
        titles=TITLES,
        summaries=SUMMARIES,
        shares=noise.SHARES,
        score=noise.SCORE,
        metrics=METRICS,
        version=samsans.__version__,
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number as shown, an en dash where it is undefined."""
    return "–" if value is None else f"{value:,.{digits}f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text, empty where a value is undefined."""
    buffer = streams.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return buffer.getvalue()
