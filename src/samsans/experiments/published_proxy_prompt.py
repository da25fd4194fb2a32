"""What the Proxy Prompt paper (arXiv 2502.03501) printed, as plain data, and whether ours can be held against it.

Dice in per cent.  Columns of the tables by object: disc and cup of REFUGE2, vessels of STARE, pubic symphysis and fetal
head of FH-PS-AOP.  ``average`` is the paper's; where it is not the mean of its own row, a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samsans.config import RunConfig

OBJECTS = ("REFUGE2 disc", "REFUGE2 cup", "STARE vessel", "FPA symphysis", "FPA head")


@dataclass(frozen=True)
class Row:
    """One printed row: its average Dice, the objects' Dice in the order of ``OBJECTS``, what else it tells."""

    average: float
    objects: tuple[float, ...] = ()
    more: str = ""


@dataclass(frozen=True)
class Table:
    """Printed rows by the name of our arm.  source: where they stand.  note: what a reader must know.

    backbone: theirs; ``sam2``: a SAM 2 of a size that is not told.
    """

    source: str
    rows: Mapping[str, Row]
    note: str = ""
    backbone: str = "sam-vit-h"


FULL = (88.0, 85.5, 81.6, 85.3, 89.3)

TABLES: dict[str, Table] = {
    "main": Table(
        "Table 1",
        {
            "SAM, one point": Row(28.3, (39.1, 33.5, 16.3, 18.2, 34.4)),
            "SAM, box": Row(60.3, (54.2, 71.6, 20.5, 67.0, 88.0)),
            "SAM, everything": Row(34.1, (48.8, 40.0, 20.5, 25.6, 35.4)),
            "MedSAM, box": Row(74.5, (87.2, 81.3, 20.1, 97.1, 97.5), "FPA seen in its training; row mean 76.6"),
            "Med-SA, one point": Row(73.3, (85.6, 83.0, 45.4, 71.3, 81.4)),
            "Med-SA, box": Row(72.3, (86.8, 82.6, 37.1, 71.8, 83.1)),
            "SAMed": Row(68.1, (86.9, 84.3, 15.8, 66.3, 87.0)),
            "AutoSAM": Row(80.7, (87.9, 84.6, 73.8, 78.0, 79.1)),
            "Proxy Prompt": Row(85.9, FULL),
        },
        "16 training images of each set; K and the draw are not told",
    ),
    "modules": Table(
        "Tables 4 and 12",
        {
            "CSM and CCM": Row(85.9, FULL, "std 2.6"),
            "without CCM": Row(85.2, (87.6, 85.3, 80.2, 83.7, 89.2), "std 3.1"),
            "without CSM": Row(84.3, (87.1, 84.6, 79.2, 83.3, 87.6), "std 3.0"),
            "without both": Row(84.0, (87.0, 83.7, 79.0, 82.7, 87.6), "std 3.1"),
        },
        "std: over the five objects, of the population (ddof 0), as recomputed from Table 12",
    ),
    "context": Table(
        "Tables 5 and 13",
        {
            "vim": Row(85.9, FULL, "7.9 M, IoU 76.3"),
            "vit_b": Row(84.5, (86.8, 84.3, 79.6, 83.2, 88.4), "89.0 M, IoU 74.0"),
            "resnet50": Row(83.9, (85.8, 83.9, 79.3, 82.4, 88.0), "8.5 M, IoU 72.6"),
        },
        "parameters: of the context encoder alone; the 7.9 M hold a classification head that is never used",
    ),
    "qualities": Table(
        "Table 7",
        {
            "empty": Row(47.9, (), "prompt 0.0"),
            "low": Row(71.8, (), "prompt 66.6"),
            "medium": Row(86.5, (), "prompt 81.6"),
            "high": Row(86.8, (), "prompt 100"),
            "senior doctor": Row(86.6, (), "prompt 88.3"),
            "normal user": Row(86.5, (), "prompt 74.8"),
        },
        "on REFUGE2: 86.8 is the mean of its disc and cup",
    ),
    "strategies": Table(
        "Table 9",
        {
            "one per data set": Row(86.4, (88.3, 86.0, 82.5, 85.7, 89.5)),
            "one per modality": Row(85.9, FULL),
            "one for all": Row(84.3, (87.2, 84.9, 74.2, 85.6, 89.7)),
        },
    ),
    "pretrained": Table(
        "Tables 6 and 14",
        {
            "medsam-vit-b, box": Row(74.5, (87.2, 81.3, 20.1, 97.1, 97.5)),
            "medsam-vit-b, PP": Row(81.3, (94.3, 83.8, 59.4, 81.9, 86.9)),
            "sam-vit-b, box": Row(56.1, (39.3, 68.2, 20.3, 69.0, 83.9)),
            "sam-vit-b, PP": Row(85.1, (87.5, 85.5, 80.1, 84.2, 88.2)),
            "sam-vit-h, box": Row(60.3, (54.2, 71.6, 20.5, 67.0, 88.0)),
            "sam-vit-h, PP": Row(85.9, FULL),
        },
        "medsam-vit-b with box: the mean of its printed row is 76.6, not 74.5; MedSAM has seen FPA in its training",
    ),
    "stability": Table(
        "Tables 3, 10 and 11",
        {
            "MedSAM2": Row(63.3, (62.6, 64.0), "std 10.9, max - min 29.1"),
            "Proxy Prompt": Row(80.9, (78.0, 83.7), "std 0.3, max - min 1.0"),
        },
        "JNU-IFM videos, objects symphysis and head, one support pair each; std of the five runs' averages, of the "
        "sample (ddof 1); recomputed from Tables 10 and 11 max - min is 0.6, not 1.0",
        backbone="sam2",
    ),
    "relevance": Table(
        "Figures 5 and 10",
        {
            "the target itself": Row(95.5, (), "95.42 to 95.53 from MSE 0 to 3010.1; the supplement has 94.42"),
            "unrelated": Row(65.25, (), "a retinal scan as support of another modality"),
        },
        "one target",
    ),
}

STEPS, SHOTS, SIDE = 4000, 16, 1024


def obstacles(config: RunConfig, training_images: int, backbone: str = "sam-vit-h") -> list[str]:
    """What keeps a run from being one of the paper's experiments, in words; never empty, since no run knows whether
    its data are those of the paper with its unpublished choice of 16 images.

    Args:
        config: Of the run.
        training_images: How many it learned from.
        backbone: That of the printed table, as in ``Table``.
    """
    found = ["other data: the paper's 16 images of each set are not published"]
    if backbone == "sam2":
        found.append(f"backbone {config.backbone.name} instead of a SAM 2 of a size that the paper does not tell")
    elif config.backbone.name != backbone:
        found.append(f"backbone {config.backbone.name} instead of {backbone}")
    if config.method != "proxy_prompt":
        found.append(f"{config.method}, not proxy_prompt")
    if (side := config.backbone.input_size or SIDE) != SIDE:
        found.append(f"{side} px instead of {SIDE}")
    if config.preset != "paper":
        found.append(f"preset {config.preset} instead of paper")
    if config.train.minutes is not None or config.train.epochs is not None or config.train.steps < STEPS:
        found.append("another length of training")
    if training_images != SHOTS:
        found.append(f"{training_images} training images instead of {SHOTS}")
    return found


def told(name: str, config: RunConfig, training_images: int) -> list[str]:
    """Lines that say where the printed numbers stand and why ours are not comparable with them."""
    table = TABLES[name]
    lines = [f"published: {table.source} of arXiv 2502.03501, Dice in %" + (f" ({table.note})" if table.note else "")]
    return [*lines, f"not comparable: {'; '.join(obstacles(config, training_images, table.backbone))}"]


def published_lines(name: str, keys: Sequence[str] | None = None) -> list[str]:
    """The printed rows for a terminal, of some arms."""
    rows = TABLES[name].rows
    lines = []
    for key in rows if keys is None else keys:
        row = rows[key]
        parts = " ".join(f"{value:5.1f}" for value in row.objects)
        lines.append(f"  {key:22}{row.average:6.1f}  {parts}{'  ' if parts else ''}{row.more}".rstrip())
    return lines
