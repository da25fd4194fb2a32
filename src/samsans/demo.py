"""The demo: generated fundus photographs, from a folder of annotated images to masks and a report, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samsans import api
from samsans.config import DataConfig

CLASSES = {"disc": [1, 2], "cup": [2]}
PATIENT = r"\w+-\d+"
BACKBONE = "samsans-small"  # part of the package
SHORT = {"train.precision": "bf16", "train.warmup": 10, "episodes.images": 4, "episodes.targets": 4}  # small steps
SHOWN = 4


def demo(out: Path, *, minutes: float = 1.25, images: int = 40, size: int = 192) -> Path:
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
    from samsans.data.splits import Split
    from samsans.display import Display
    from samsans.experiments.panel import draw_panel

    data, run, masks, report = out / "data", out / "run", out / "masks", out / "report"
    settings = DataConfig(path=str(data), classes=CLASSES, patient=PATIENT)
    if not data.exists():
        print(f"1. {images} generated fundus photographs with optic disc and cup: {data}")
        write("fundus", data, n=images, size=size, difficulty=0.3, seed=0)
    resume = (run / "config.yaml").exists()
    flags = " ".join(f"--{key} {value}" for key, value in {"backbone": BACKBONE, "minutes": minutes, **SHORT}.items())
    print(f"2. samsans train proxy_prompt {data} -o {run} {flags}")
    options: dict[str, Any] = {"data.classes": CLASSES, "data.patient": PATIENT, "split.test": 0.25, **SHORT}
    api.train("proxy_prompt", data, out=run, resume=resume, backbone=BACKBONE, minutes=minutes, **options)
    print(f"3. samsans predict {run} -i {data} -o {masks} --split test")
    segmenter = api.load(run)
    held_out = api.inputs(segmenter, [data], settings, "test")
    with Display("segmenting") as display:
        segmenter.predict_folder(held_out, masks, overwrite=True, on_progress=display.step)
    print(f"4. samsans evaluate {masks} {data} -o {report}\n")
    with Display("scoring") as display:
        summary = api.evaluate(masks, settings, report, on_progress=display.step)
    print(summary.text())
    dataset, split = find_cases(settings), Split.load(run / "split.json")
    supports = [dataset.by_id(id) for id in split.train[:8]]
    targets = [dataset.by_id(id) for id in split.test[: 2 * SHOWN : 2]]
    picture = draw_panel(segmenter, dataset, supports, targets, out / "demo.png")
    print(f"\nlook at {picture} and {report / 'report.html'}")
    return picture
