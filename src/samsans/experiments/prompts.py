"""What a method that prompts itself was told: masks and boxes it made for one slice, and what came of them.

One patch of each case, on the grid that the network sees, around the slice that shows most truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samsans import io
from samsans.data.patches import around, as_batch, patch_size, read_patch
from samsans.data.volumes import PreparedVolume, VolumeDataset
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.inference.slices import autocast
from samsans.methods.masksam.outputs import Outputs, class_scores
from samsans.metrics import conventions, overlap, pictures
from samsans.palette import color
from samsans.types import ClassInfo

if TYPE_CHECKING:
    from samsans.inference import Segmenter

FILES = ("prompts.png", "prompts.json")
CASES = 3  # drawn where no number is given
SURE = 0.5  # probability of its class above which a query is shown
WIDTH, DPI = 2.0, 150  # of a panel, inches; dots an inch


@dataclass(frozen=True)
class Query:
    """A query that names an object in a slice.

    number: from 0.  label: of the object, from 1.  probability: of that class.  prompt, mask: ``(H, W)`` bool, the mask
    it was prompted with and the final one.  box: x0, y0, x1, y1 of the prompt in pixels, the last ones inclusive.
    """

    number: int
    label: int
    probability: float
    prompt: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the box where pixel i spans i - 0.5 to i + 0.5."""
        x0, y0, x1, y1 = self.box
        return x0 - 0.5, y0 - 0.5, x1 - x0 + 1, y1 - y0 + 1


@dataclass(frozen=True)
class Scene:
    """A slice of a patch, without what was added around a small volume.

    image: ``(H, W)`` float32.  truth, found: ``(H, W)`` of 0..N.  corner: row and column of the first pixel in the
    whole slice.  place: number of the slice, from 0, of ``depth``.  spacing: of rows and columns.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    queries: Sequence[Query]
    corner: tuple[int, int]
    place: int
    depth: int
    spacing: tuple[float, float]

    def dice(self, label: int) -> float | None:
        """Of an object in what is shown of the slice; ``None`` where it is in neither."""
        value = overlap.dice(self.found == label, self.truth == label)
        return None if np.isnan(value) else value


def prompts(asked: Request) -> str:
    """Draw the prompts that a method made for the first held-out cases, over the slice with most truth.

    Writes ``prompts.png`` (a row a case: image, truth, prompts, masks of the same queries, label map of the patch) and
    ``prompts.json``.  Queries are those that give an object a probability above 0.5; their prompt masks are shown above
    0, before they are brought to the size of SAM's prompts, and boxes in whole pixels as SAM is told.

    By default three cases, in the order of the data set.  Nothing is drawn by chance, and no convention applies: Dice
    are those of what is shown.

    Returns:
        A table: of each case the slice, and of each object the queries and the Dice.

    Raises:
        InputError: the method does not prompt itself, or the run holds nobody out.
    """
    from samsans.inference import load

    if asked.convention != "default":
        raise InputError(f"convention {asked.convention} for pictures of prompts", "none: no volume is scored")
    segmenter = load(asked.run_folder)
    if not hasattr(segmenter.method, "explain"):
        raise InputError(f"{segmenter.config.method} makes no prompts of its own", "a method that does: masksam")
    dataset, known = asked.find(segmenter.classes), [info.name for info in segmenter.classes]
    cases = (asked if asked.limit is not None else replace(asked, limit=CASES)).held_out(dataset)
    config = segmenter.config
    volumes = VolumeDataset(
        dataset,
        [case.id for case in cases],
        config.patches,
        slice_axis=config.data.slice_axis,
        channels=segmenter.preprocess.channels,
    )
    if volumes.objects != tuple(known):
        raise InputError(f"objects {', '.join(volumes.objects)}", f"those of the run, in order: {', '.join(known)}")
    scenes = []
    for index in range(len(volumes)):
        scenes.append(scene(segmenter, volumes[index]))
        asked.tell(index + 1, len(volumes), scenes[-1].id)
    with io.atomic_path(asked.out / FILES[0]) as temporary:
        temporary.write_bytes(_draw(scenes, segmenter.classes))
    rows = [_told(one, segmenter.classes) for one in scenes]
    io.write_json(asked.out / FILES[1], {"run": str(asked.run_folder), "cases": rows})
    return "\n".join(_text(row) for row in rows)


def scene(segmenter: Segmenter, volume: PreparedVolume) -> Scene:
    """The slice of a volume with most truth, and what a run makes of the patch around it."""
    size = patch_size(segmenter.config.patches)
    z = int((volume.labels > 0).sum((1, 2)).argmax())
    start = around((z, *_middle(volume.labels[z])), volume.labels.shape, size)
    image, labels = read_patch(volume, start, size)
    batch = as_batch([image], [labels], [volume.id], [c.name for c in segmenter.classes]).to(segmenter.device)
    with autocast(segmenter.device, segmenter.precision), torch.inference_mode():
        outputs: Outputs = segmenter.method.explain(batch)
        found = class_scores(outputs)[0, :, z - start[0]].argmax(0).cpu().numpy()
    rows, columns = (
        slice(max(-s, 0), min(p, n - s)) for s, p, n in zip(start[1:], size[1:], volume.labels.shape[1:], strict=True)
    )
    inside = (rows, columns)
    spacing = segmenter.config.patches.spacing
    assert spacing is not None  # planned
    return Scene(
        id=volume.id,
        image=image[0, z - start[0]].numpy()[inside],
        truth=labels[z - start[0]].numpy()[inside].astype(np.int32),
        found=found[inside].astype(np.int32),
        queries=sure_queries(outputs, z - start[0], inside),
        corner=(start[1] + rows.start, start[2] + columns.start),
        place=z,
        depth=len(volume.labels),
        spacing=(spacing[1], spacing[2]),
    )


def sure_queries(outputs: Outputs, place: int, inside: tuple[slice, slice]) -> list[Query]:
    """The queries of the slice ``place`` of the first patch that give an object more than 0.5, by object.

    inside: Rows and columns to keep of the masks; boxes count from the first of them.
    """
    assert outputs.auxiliary_logits is not None
    assert outputs.boxes is not None
    chances, labels = outputs.class_logits[place].float().softmax(-1)[:, 1:-1].max(-1)
    height, width = outputs.mask_logits.shape[-2:]
    top, left = inside[0].start, inside[1].start
    side = torch.tensor([width, height, width, height], device=outputs.boxes.device)
    boxes = (outputs.boxes[place].float() * side).floor().int() - side.new_tensor([left, top, left, top])
    found = []
    for number in (chances > SURE).nonzero()[:, 0].tolist():
        x0, y0, x1, y1 = boxes[number].tolist()
        found.append(
            Query(
                number,
                int(labels[number]) + 1,
                float(chances[number]),
                _positive(outputs.auxiliary_logits[place, number])[inside],
                _positive(outputs.mask_logits[place, number])[inside],
                (x0, y0, x1, y1),
            )
        )
    return sorted(found, key=lambda query: query.label)


def _positive(logits: Tensor) -> np.ndarray:
    return (logits > 0).cpu().numpy()


def _middle(labels: np.ndarray) -> tuple[int, ...]:
    """Row and column in the middle of what is drawn, or of the slice."""
    if not labels.any():
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(p.min() + p.max() + 1) // 2 for p in np.nonzero(labels))


def _told(one: Scene, objects: Sequence[ClassInfo]) -> dict[str, Any]:
    """A case for ``prompts.json``: boxes in pixels of the slice, on the grid the network sees."""
    row, column = one.corner
    queries = []
    for query in one.queries:
        x0, y0, x1, y1 = query.box
        truth = one.truth == query.label
        queries.append(
            {
                "query": query.number,
                "slice": one.place + 1,
                "class": objects[query.label - 1].name,
                "probability": round(query.probability, 4),
                "box": [x0 + column, y0 + row, x1 + column, y1 + row],
                "prompt_dice": _rounded(overlap.dice(query.prompt, truth)),
                "mask_dice": _rounded(overlap.dice(query.mask, truth)),
            }
        )
    dice = {info.name: _rounded(one.dice(k)) for k, info in enumerate(objects, 1)}
    about = {"id": one.id, "slice": one.place + 1, "slices": one.depth, "spacing": list(one.spacing)}
    return about | {"shown": [column, row, *one.truth.shape[::-1]], "dice": dice, "queries": queries}


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(value, 4)


def _text(row: dict[str, Any]) -> str:
    lines = [f"{row['id']}, slice {row['slice']} of {row['slices']}"]
    for name, dice in row["dice"].items():
        said = [f"{q['query']} ({q['probability']:.2f})" for q in row["queries"] if q["class"] == name]
        lines.append(
            f"  {name:14} Dice {'-' if dice is None else f'{dice:.3f}':5}  queries {', '.join(said) or 'none'}"
        )
    return "\n".join(lines)


def _draw(scenes: Sequence[Scene], objects: Sequence[ClassInfo]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    columns = ("image", "truth", "prompts made", "masks", "label map")
    ratios = [s.truth.shape[0] * s.spacing[0] / (s.truth.shape[1] * s.spacing[1]) for s in scenes]
    height = WIDTH * sum(ratios) + 0.3 * len(scenes) + 0.3
    figure = Figure(figsize=(WIDTH * len(columns) + 0.7, height), layout="constrained", facecolor="white")
    grid = figure.subplots(len(scenes), len(columns), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for line, one in zip(grid, scenes, strict=True):
        h, w = one.truth.shape
        rgb = pictures.to_rgb(one.image[..., None])
        made = _painted([(q.prompt, q.label) for q in one.queries], (h, w))
        final = _painted([(q.mask, q.label) for q in one.queries], (h, w))
        layers = (np.zeros_like(one.truth), one.truth, made, final, one.found)
        for axis, name, labels in zip(line, columns, layers, strict=True):
            shown = (pictures.square_pixels(p, one.spacing, smooth=p is rgb) for p in (rgb, labels))
            axis.imshow(
                pictures.overlay(*shown),
                extent=(-0.5, w - 0.5, h - 0.5, -0.5),  # whatever the enlargement, coordinates are pixels of the slice
                aspect=one.spacing[0] / one.spacing[1],
            )
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            axis.set_title(name, fontsize=9)
        for query in one.queries:
            left, top, across, down = query.edges
            line[2].add_patch(Rectangle((left, top), across, down, fill=False, ec=_hex(query.label), lw=1.2))
            said = f"{query.number}: {query.probability:.2f}"
            line[2].text(left, top, said, color=_hex(query.label), fontsize=6, va="bottom", clip_on=True)
        mean = conventions.mean([one.dice(k) for k in range(1, len(objects) + 1)])
        line[4].set_title(columns[4] if mean is None else f"{columns[4]}, Dice {mean:.3f}", fontsize=9)
        line[0].set_ylabel(f"{one.id}\nslice {one.place + 1} of {one.depth}", fontsize=8, parse_math=False)
    chips = [Patch(color=_hex(k), label=c.name) for k, c in enumerate(objects, 1)]
    figure.legend(handles=chips, loc="outside lower center", ncols=min(len(chips), 10), fontsize=8, frameon=False)
    return pictures.png(figure, DPI)


def _painted(parts: Sequence[tuple[np.ndarray, int]], shape: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` int32 of the labels of masks, large ones below."""
    out = np.zeros(shape, np.int32)
    for mask, label in sorted(parts, key=lambda part: -int(part[0].sum())):
        out[mask] = label
    return out


def _hex(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color(label))
