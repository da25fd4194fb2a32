"""Pictures of a training: the loss over the steps, and what the method segments now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from samsans.io.atomic import atomic_path
from samsans.metrics.pictures import overlay
from samsans.training.log import read
from samsans.training.validation import dice, found
from samsans.types import Batch


def draw_loss(log: Path, path: Path) -> None:
    """Training loss (each step and smoothed) and what validations measured against the step."""
    rows = read(log)
    if not rows:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps, loss = _column(rows, "loss")
    axes.plot(steps, loss, color="#bbbbbb", linewidth=0.8, label="loss")
    width = max(1, len(loss) // 50)
    if width > 1:
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="#406eff", label=f"mean of {width} steps")
    for name, label, color in (("dice", "Dice", "#ff9f1c"), ("ged", "energy distance", "#2a9d5c")):
        val_steps, val = _column(rows, f"val/{name}")
        if len(val):
            axes.plot(val_steps, val, "o-", color=color, markersize=4, label=f"validation {label}")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_sample(batch: Batch, logits: Tensor, support: Batch | None, path: Path, exclusive: bool = False) -> None:
    """One image, its truth, the prediction and, where there are supports, one of them.

    batch, support: one image each, with masks; of a patch, the slice that shows most of the objects is drawn, under the
    Dice of the whole patch.  logits: ``(1, N, S, S)``, or the scores of a patch.  exclusive: see ``Needs``.
    """
    assert batch.masks is not None
    mean, predicted = float(dice(logits, batch, exclusive)[0].nanmean()), found(logits, batch, exclusive)[0]
    picture, truth, name = batch.images[0], batch.masks[0], batch.ids[0]
    if picture.ndim == 4:
        index = int(truth.any(0).sum((1, 2)).argmax())
        picture, truth, predicted = (part[:, index] for part in (picture, truth, predicted))
        name = f"{name}, slice {index + 1} of the patch"
    image = to_picture(picture)
    panels: list[tuple[str, Any]] = [
        (name, image),
        ("truth", overlay(image, to_labels(truth))),
        ("prediction" if np.isnan(mean) else f"prediction, Dice {mean:.3f}", overlay(image, to_labels(predicted))),
    ]
    if support is not None and support.masks is not None:
        shown = overlay(to_picture(support.images[0]), to_labels(support.masks[0]))
        panels.append((f"a support: {support.ids[0]}", shown))
    _draw_panels([panels], path)


def draw_samples(batch: Batch, logits: Tensor, samples: Tensor, path: Path) -> None:
    """One image and what each annotator drew on it, above the prediction and a few samples.

    batch: one image with masks.  logits: ``(1, N, S, S)``.  samples: ``(1, K, N, S, S)`` logits.
    """
    assert batch.masks is not None
    drawn = batch.masks if batch.annotations is None or batch.drawn is None else batch.annotations[0, batch.drawn[0]]
    image = to_picture(batch.images[0])
    answers = [found(one, batch)[0] for one in (logits, *samples.unbind(1))]
    truths = [(f"annotator {i}", mask) for i, mask in enumerate(drawn, 1)]
    names = ("prediction", *(f"sample {i}" for i in range(1, len(answers))))
    above = [(batch.ids[0], image), *((name, overlay(image, to_labels(mask))) for name, mask in truths)]
    below = [(name, overlay(image, to_labels(mask))) for name, mask in zip(names, answers, strict=True)]
    _draw_panels([above, below], path)


def _draw_panels(rows: Sequence[Sequence[tuple[str, Any]]], path: Path) -> None:
    """Titled pictures in rows."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(3.6 * columns, 3.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (title, picture) in zip(line, panels, strict=False):
            axes.imshow(picture)
            axes.set_title(title, fontsize=9)
    _save(figure, path)


def to_picture(image: Tensor) -> np.ndarray:
    """A normalised ``(C, S, S)`` image as ``(S, S, 3)`` uint8, darkest value black and brightest white.

    Of other numbers of channels than 3 the first is shown, in grey.
    """
    values = image.detach().float().cpu()
    values = values if len(values) == 3 else values[:1].expand(3, -1, -1)
    low, high = values.amin(), values.amax()
    scaled = (values - low) / (high - low).clamp(min=1e-6) * 255
    return scaled.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def to_labels(masks: Tensor) -> np.ndarray:
    """``(N, S, S)`` bool as a label map ``(S, S)`` of 1..N; later objects lie on top."""
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    for value, mask in enumerate(masks.cpu().numpy(), start=1):
        labels[mask] = value
    return labels


def _column(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=np.float64)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
