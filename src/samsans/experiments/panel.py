"""One picture of a run: for every object an annotated example, and what it makes of images of other patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samsans import io
from samsans.metrics.pictures import overlay, to_rgb
from samsans.types import Case, ClassInfo

if TYPE_CHECKING:
    from samsans.data.cases import Dataset
    from samsans.inference import Segmenter


def draw_panel(
    segmenter: Segmenter, dataset: Dataset, supports: Sequence[Case], targets: Sequence[Case], path: Path
) -> Path:
    """One row an object: the first support pair, then every target segmented with all pairs, truth outlined in white.

    Args:
        segmenter: A method with supports.
        dataset: Where the cases are read.
        supports: Annotated cases; those that show the object are its support pairs.
        targets: Annotated cases of other patients.
        path: PNG file to write.
    """
    import matplotlib.pyplot as plt

    rows, columns = len(dataset.classes), len(targets) + 1
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for row, info in zip(axes, dataset.classes, strict=True):
        pairs = []
        for case in supports:
            mask = _mask(dataset, case, info)
            if mask.any():
                pairs.append((dataset.read_image(case).array, mask.astype(np.uint8) * info.values[0]))
        bank = segmenter.encode_support(pairs)
        image, mask = pairs[0]
        row[0].imshow(_slice(image, mask > 0, None))
        row[0].set_title(f"example: {info.name}", fontsize=10)
        for axis, case in zip(row[1:], targets, strict=True):
            volume, truth = dataset.read_image(case), _mask(dataset, case, info)
            found = segmenter.predict(volume, support=bank).labels > 0
            axis.imshow(_slice(volume.array, found, truth))
            dice = 2 * (found & truth).sum() / max(1, found.sum() + truth.sum())
            axis.set_title(f"Dice {dice:.2f}", fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
    return path


def _mask(dataset: Dataset, case: Case, info: ClassInfo) -> np.ndarray:
    """``(D, H, W)`` bool."""
    return np.isin(dataset.read_labels(case).array, info.values)


def _slice(image: np.ndarray, found: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The slice that shows most of the truth (or of what was found), as a picture."""
    z = int((found if truth is None else truth).sum((1, 2)).argmax())
    return overlay(to_rgb(image[z]), found[z].astype(np.uint8), None if truth is None else truth[z].astype(np.uint8))
