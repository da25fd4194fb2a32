"""The demo: generated fundus photographs, from a folder of annotated images to masks and a report, in a few minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans import api, io
from samsans.config import DataConfig

if TYPE_CHECKING:
    from samsans.data.cases import Dataset
    from samsans.inference import Segmenter
    from samsans.types import Case

CLASSES = {"disc": [1, 2], "cup": [2]}
PATIENT = r"\w+-\d+"
SHOWN = 4


def demo(out: Path, *, minutes: float = 1.5, images: int = 40, size: int = 192) -> Path:
    """Generate images, train, predict, evaluate, and draw one picture of the result.

    Args:
        out: Folder to write: ``data``, ``run``, ``masks``, ``report`` and ``demo.png``.
        minutes: Training time.
        images: How many images to generate; a quarter of the patients is held out.
        size: Their side, in pixels.

    Returns:
        The picture: the support pair of each task, and what it makes of images of other patients.
    """
    from samsans.data.cases import find_cases
    from samsans.data.phantoms import write
    from samsans.display import Display

    data, run, masks, report = out / "data", out / "run", out / "masks", out / "report"
    settings = DataConfig(path=str(data), classes=CLASSES, patient=PATIENT)
    if not data.exists():
        print(f"1. {images} generated fundus photographs with optic disc and cup: {data}")
        write("fundus", data, n=images, size=size, difficulty=0.3, seed=0)
    resume = (run / "config.yaml").exists()
    print(f"2. samsans train proxy_prompt {data} -o {run} --backbone scratch --input-size 128 --minutes {minutes:g}")
    options: dict[str, Any] = {"data.classes": CLASSES, "data.patient": PATIENT, "split.test": 0.25}
    api.train(
        "proxy_prompt", data, out=run, resume=resume, backbone="scratch", input_size=128, minutes=minutes, **options
    )
    print(f"3. samsans predict {run} -i {data} -o {masks} --split test")
    segmenter = api.load(run)
    held_out = api.inputs(segmenter, [data], settings, "test")
    with Display("segmenting") as display:
        segmenter.predict_folder(held_out, masks, overwrite=True, on_progress=display.step)
    print(f"4. samsans evaluate {masks} {data} -o {report}\n")
    with Display("scoring") as display:
        summary = api.evaluate(masks, settings, report, on_progress=display.step)
    print(summary.text())
    dataset = find_cases(settings)
    picture = _draw(segmenter, dataset, out / "demo.png")
    print(f"\nlook at {picture} and {report / 'report.html'}")
    return picture


def _draw(segmenter: Segmenter, dataset: Dataset, path: Path) -> Path:
    """One row a task: the support pair, then images of other patients segmented with it."""
    import matplotlib.pyplot as plt

    from samsans.data.splits import Split
    from samsans.metrics.pictures import overlay

    assert segmenter.run is not None
    split = Split.load(segmenter.run / "split.json")
    supports, targets = _cases(dataset, split.train, 8), _cases(dataset, split.test, 2 * SHOWN)[::2]
    rows, columns = len(dataset.classes), SHOWN + 1
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.3 * rows))
    for row, info in zip(axes, dataset.classes, strict=True):
        pairs = []
        for case in supports:
            mask = np.isin(dataset.read_labels(case).array[0], info.values)
            pairs.append((dataset.read_image(case).array[0], mask.astype(np.uint8) * info.values[0]))
        bank = segmenter.encode_support(pairs)
        row[0].imshow(overlay(pairs[0][0], (pairs[0][1] > 0).astype(np.uint8)))
        row[0].set_title(f"example: {info.name}", fontsize=10)
        for axis, case in zip(row[1:], targets, strict=True):
            image = dataset.read_image(case)
            found = segmenter.predict(image, support=bank).labels[0] > 0
            truth = np.isin(dataset.read_labels(case).array[0], info.values)
            axis.imshow(overlay(image.array[0], found.astype(np.uint8), truth.astype(np.uint8)))
            dice = 2 * (found & truth).sum() / max(1, found.sum() + truth.sum())
            axis.set_title(f"Dice {dice:.2f}", fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _cases(dataset: Dataset, ids: Sequence[str], count: int) -> list[Case]:
    return [dataset.by_id(id) for id in ids[:count]]
