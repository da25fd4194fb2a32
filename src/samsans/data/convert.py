"""Bring a data set into files that every command reads."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from samsans.data.classes import named_classes, write_classes
from samsans.data.layouts import TABLE
from samsans.errors import InputError
from samsans.io import images
from samsans.io.files import PICKLE_SUFFIXES
from samsans.io.lidc import Crop, read_crops
from samsans.types import Progress

COLUMNS = ("image", "label", "patient", "rater")


def convert(
    path: str | Path, out: str | Path, *, on_progress: Callable[[Progress], None] | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Write the LIDC-IDRI crops of a pickle (see ``io.lidc``) as images, masks and a table into the new folder ``out``.

    ``images/00000.png`` and on, in the order of the file, 8-bit grey; ``labels_0/`` and on, one mask an annotator, of
    the value 1, empty ones too; ``cases.csv`` with the series as patient; ``classes.json``.  The folder appears
    complete or not at all.  Returns ``out``, which is a data set then, and notes for people.

    Raises InputError where the file is another one or ``out`` holds something.
    """
    path, out = Path(path), Path(out)
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}", "a .pickle or .pkl file of LIDC-IDRI crops")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder", "a new folder", "Remove it or choose another")
    count, crops = read_crops(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    series: set[str] = set()
    masks = empty = blank = 0
    try:
        draft.chmod(0o755)
        with open(draft / TABLE, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for number, crop in enumerate(crops):
                table.writerows(_write(draft, f"{number:05d}", crop))
                series.add(crop.series)
                nothing = [not mask.any() for mask in crop.masks]
                masks, empty, blank = masks + len(nothing), empty + sum(nothing), blank + all(nothing)
                if on_progress is not None:
                    on_progress(Progress(number + 1, count, crop.key))
        write_classes(draft / "classes.json", named_classes({"nodule": [1]}))
        if out.exists():
            out.rmdir()
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    notes = [f"{count} images of {len(series)} series, {masks} masks, {empty} of them empty"]
    notes += [f"on {blank} images no annotator drew anything"] if blank else []
    return out, tuple(notes)


def _write(root: Path, name: str, crop: Crop) -> list[tuple[str, str, str, int]]:
    """Write the files of a crop below ``root``; its rows of the table, one an annotator."""
    image = f"images/{name}.png"
    _save(root / image, np.rint(crop.image * 255).astype(np.uint8)[None, :, :, None])
    rows = []
    for rater, mask in enumerate(crop.masks):
        label = f"labels_{rater}/{name}.png"
        _save(root / label, mask.astype(np.uint8)[None])
        rows.append((image, label, crop.series, rater))
    return rows


def _save(path: Path, array: np.ndarray) -> None:
    """One PNG, not flushed to disk by itself: the folder it lies in is a draft."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        images.write(file, array)
