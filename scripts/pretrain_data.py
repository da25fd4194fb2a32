"""What ``pretrain_small.py`` learns from: folders of real data, phantoms, random changes, and prompts for them."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from samsans.architectures import SMALL
from samsans.config import AugmentConfig, DataConfig
from samsans.data.augment import augment
from samsans.data.cases import find_cases
from samsans.data.classes import class_masks
from samsans.data.phantoms import FAMILIES, make
from samsans.data.slices import SliceDataset
from samsans.data.synthetic import IMAGE_RULES, place
from samsans.data.transforms import Preprocess

SIDE, MASKS = SMALL.input_size, SMALL.input_size // SMALL.patch * 4
PREPROCESS = Preprocess(SIDE)
MOST = 1500  # slices of one set
HELD = 10  # one patient in so many is held out, and the curve measured on them
PICTURES = ("fundus", "ultrasound", "lesions", "two_objects")  # families drawn at full size
POOL = 128  # phantoms of a family at a time
AUGMENT = AugmentConfig(flip=0.5, rotate=30.0, scale=0.35, shift=0.1, intensity=0.25)
BLURS = (1.5, 3.0)  # pixels: of the lines and edges that the embedding must keep
DETAILS = 3 + 3 * len(BLURS)
RULES = tuple(rule for rule in IMAGE_RULES if rule is not place)
ORGANS = ("aorta", "autochthon_left", "autochthon_right", "inferior_vena_cava", "liver", "spleen")


def merged(path: Path) -> dict[str, list[int]]:
    """Classes of ``labels.json`` without side and number: images are mirrored, and a rib is a rib."""
    out: dict[str, list[int]] = {}
    for value, name in json.loads(path.read_text())["total"].items():
        name = re.sub(r"_(left|right|upper|middle|lower|lobe|[CLST]?\d+)(?=_|$)", "", name)
        out.setdefault(name, []).append(int(value))
    return out


# How each folder is read: arguments of DataConfig; several rows of one folder are one set.
SETS: dict[str, list[dict[str, Any]]] = {
    "kvasir_hyper_polyps": [{"classes": {"polyp": [255]}}],
    "msd_hippocampus": [{"classes": {"anterior": [1], "posterior": [2]}}],
    "scd_cardiac_mri": [
        {
            "images": "images/*/*.png",
            "labels": "labels/{below}/{stem}.png",
            "patient": r"(SC-[A-Z-]+-\d+)",
            "classes": {"cavity": [255]},
        }
    ],
    "lidc_crops4": [
        {
            "images": "*/*/image_*.jpg",
            "labels": f"{{parent}}/label{reader}_.jpg",
            "threshold": 127,
            "classes": {"nodule": [1]},
        }
        for reader in range(4)
    ],
    "medscribble_open": [
        {"images": f"{part}/*.npz", "labels": "{parent}/{name}", "threshold": 0.5, "classes": {name: [1]}}
        for part, name in (("BTCV", "bladder"), ("HipXRay", "femur"), ("OCTA500", "vessel"))
    ],
    "totalseg_examples": [
        {"images": "example_ct.nii.gz", "labels": "example_seg_fast_force_split.nii.gz", "slice_axis": axis}
        for axis in ("axial", "coronal", "sagittal")
    ],
    "msd_spleen_crop": [
        {
            "images": "ct_scan/*/ct/*.nii.gz",
            "labels": "ct_scan/derivatives/labels/{below}/{stem}_seg-manual.nii.gz",
            "classes": {"spleen": [1]},
        }
    ],
    "sct_spinalcord_mri": [
        {"images": f"{name}.nii.gz", "labels": "{parent}/{stem}_seg-manual.nii.gz", "classes": {"cord": [1]}}
        for name in ("t1/t1w", "t2/t2")
    ],
    "pyradiomics_lesions": [{"images": "brain1_image.nrrd", "labels": "brain1_label.nrrd", "classes": {"lesion": [1]}}],
    "sammed2d_demo": [
        {
            "images": "data_demo/images/*.png",
            "labels": f"data_demo/masks/{{stem}}_{organ}_000.png",
            "classes": {organ.removesuffix("_left").removesuffix("_right"): [255]},
        }
        for organ in ORGANS
    ],
}


@dataclass
class Sample:
    """A slice: image ``(3, S, S)`` uint8, masks ``(n, S, S)`` bool as bits, their class numbers, and all class numbers
    that are annotated."""

    image: Tensor
    bits: np.ndarray
    present: tuple[int, ...]
    known: tuple[int, ...]

    @property
    def masks(self) -> Tensor:
        flat = np.unpackbits(self.bits, axis=1)
        return torch.from_numpy(flat.reshape(-1, SIDE, SIDE).astype(bool))


@dataclass
class Pools:
    """Samples to learn from and held-out ones by set; ``classes`` numbers (set, name)."""

    train: dict[str, list[Sample]] = field(default_factory=dict)
    held: dict[str, list[Sample]] = field(default_factory=dict)
    classes: dict[tuple[str, str], int] = field(default_factory=dict)

    def sample(self, name: str, names: list[str], image: Tensor, masks: Tensor) -> Sample:
        known = tuple(self.classes.setdefault((name, n), len(self.classes)) for n in names)
        shown = masks.flatten(1).any(1)
        bits = np.packbits(masks[shown].flatten(1).numpy(), axis=1)
        image = image[:1].clone() if bool((image == image[:1]).all()) else image
        return Sample(image, bits, tuple(k for k, s in zip(known, shown, strict=True) if s), known)


def read_real(root: Path, pools: Pools, rng: np.random.Generator) -> None:
    """All sets below ``root``: every slice that shows something, at most ``MOST`` of a set, patients held out."""
    for name, rows in SETS.items():
        if not (root / name).is_dir():
            continue
        for row in rows:
            row = {"classes": merged(root / name / "labels.json")} | row if name == "totalseg_examples" else row
            dataset = find_cases(DataConfig(path=str(root / name), **row))
            patients = {c.patient for c in dataset.labelled}
            held = {p for p in patients if zlib.crc32(p.encode()) % HELD == 0} if len(patients) >= 5 else set()
            slices = SliceDataset(
                dataset,
                [c.id for c in dataset.labelled],
                PREPROCESS,
                slice_axis=row.get("slice_axis", "auto"),
                cache_gb=0.2,
                foreground=True,
                draw=lambda ids: set(rng.permutation(sorted(ids))[:MOST]),
            )
            for item in slices:
                pool = (pools.held if item.patient in held else pools.train).setdefault(name, [])
                pool.append(pools.sample(name, list(slices.objects), item.image, item.masks))


def phantoms(family: str, pools: Pools, seed: int) -> Iterator[Sample]:
    """Samples of a family without end; of volumes and videos a few slices each."""
    rng = np.random.default_rng([seed, sorted(FAMILIES).index(family)])
    number = 0
    while True:
        case = next(
            make(
                family,
                1,
                size=SIDE if family in PICTURES else SIDE // 2,
                difficulty=rng.random(),
                seed=seed,
                start=number,
            )
        )
        number += 1
        levels, labels = PREPROCESS.levels(case.image), case.labels[rng.integers(len(case.labels))]
        there = np.flatnonzero(labels.any((1, 2))) if len(labels) > 1 else np.arange(1)
        for index in rng.permutation(there)[:8]:
            masks = PREPROCESS.labels(class_masks(labels[index], case.classes))
            names = [re.sub("^(left|right) ", "", c.name) for c in case.classes]
            yield pools.sample(family, names, PREPROCESS.image(case.image[index], levels), masks)


def recolour(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Gamma, colour gains, one channel for all, inversion, blur and noise, each sometimes."""
    x = image.float() / 255
    if rng.random() < 0.5:
        x = x ** math.exp(rng.uniform(-0.5, 0.5))
    if rng.random() < 0.3:
        x = x * torch.from_numpy(rng.uniform(0.7, 1.3, (3, 1, 1)).astype(np.float32))
    if rng.random() < 0.15:
        x = x[rng.integers(3)].expand(3, -1, -1)
    if rng.random() < 0.15:
        x = 1 - x
    if rng.random() < 0.15:
        x = F.interpolate(F.avg_pool2d(x, 2)[None], (SIDE, SIDE), mode="bilinear")[0]
    if rng.random() < 0.25:
        x = x + torch.from_numpy(rng.normal(0, rng.uniform(0, 0.08), (1, SIDE, SIDE)).astype(np.float32))
    return x.clamp(0, 1).mul(255).round().to(torch.uint8)


def component(mask: np.ndarray, rng: np.random.Generator, least: int) -> np.ndarray:
    """One connected part of at least ``least`` pixels at random; the mask itself where there is none."""
    parts, count = ndimage.label(mask)
    large = np.flatnonzero(np.bincount(parts.ravel(), minlength=count + 1)[1:] >= least) + 1
    return parts == large[rng.integers(len(large))] if len(large) else mask


def regions(image: Tensor, masks: Tensor, rng: np.random.Generator, most: int = 3) -> list[np.ndarray]:
    """Up to ``most`` masks to prompt for: real objects or parts of them, the last one (or all) by a rule."""
    out = []
    for _ in range(most - 1 if len(masks) else 0):
        mask = masks[rng.integers(len(masks))].numpy()
        out.append(component(mask, rng, 40) if rng.random() < 0.4 else mask)
    for _ in range(most - len(out)):
        colours = torch.from_numpy(rng.normal(size=3).astype(np.float32))
        grey = torch.einsum("chw,c->hw", F.avg_pool2d(image.float() / 255, 2), colours)[None]
        small = RULES[rng.integers(len(RULES))](grey, rng)[0].numpy()
        small = component(small, rng, 30) if rng.random() < 0.8 else small
        out.append(small.repeat(2, 0).repeat(2, 1))
    return [m for m in out if 40 <= m.sum() <= 0.7 * m.size]


def box_of(mask: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """``x0, y0, x1, y1`` in pixels; by up to a tenth of its sides wrong where ``rng`` is given."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    if rng is not None and rng.random() < 0.7:
        box += rng.uniform(-0.1, 0.1, 4).astype(np.float32) * np.tile(box[2:] - box[:2], 2)
    return box.clip(0, SIDE)


def points_of(mask: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` points (x, y) and labels: the first inside, of the others a third outside but near."""
    inside = np.argwhere(mask)
    near = np.argwhere(ndimage.binary_dilation(mask[::4, ::4], iterations=4) & ~mask[::4, ::4]) * 4
    labels = np.array([1, *(rng.random(count - 1) > 1 / 3)], np.int64) if len(near) else np.ones(count, np.int64)
    chosen = [(inside if label else near)[rng.integers(len(inside if label else near))] for label in labels]
    return np.array(chosen, np.float32)[:, ::-1] + 0.5, labels


def coarse(masks: Tensor) -> Tensor:
    """Logits ``(P, 1, 4g, 4g)`` of a wrong guess at masks ``(P, S, S)``: smoothed noise moves the borders."""
    soft = F.avg_pool2d(masks[:, None].float(), SIDE // 32)
    guess = soft + 0.25 * torch.randn_like(soft) - 0.5
    return F.interpolate(8 * guess, (MASKS, MASKS), mode="bilinear")


def details(images: Tensor) -> Tensor:
    """``(B, DETAILS, 4g, 4g)`` of images ``(B, 3, S, S)`` uint8: colours, and of grey values blurred in two widths how
    bright, dark lines and edges are; these with mean 0 and deviation 1 in each image."""
    colours = F.avg_pool2d(PREPROCESS.normalize(images).float(), SIDE // MASKS)
    grey = images.float().mean(1).numpy() / 255
    maps = []
    for sigma in BLURS:
        down, right = np.gradient(ndimage.gaussian_filter(grey, (0, sigma, sigma), truncate=3), axis=(1, 2))
        (yy, xy), xx = np.gradient(down, axis=(1, 2)), np.gradient(right, axis=2)
        middle, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
        maps += [np.maximum(spread + middle, 0), np.maximum(spread - middle, 0), np.hypot(down, right)]
    shown = F.avg_pool2d(torch.from_numpy(np.stack(maps, 1).astype(np.float32)), SIDE // MASKS)
    shown = (shown - shown.mean((2, 3), keepdim=True)) / shown.std((2, 3), keepdim=True).clamp(min=1e-4)
    return torch.cat([colours, shown.clamp(-4, 4)], 1)


def asked_of(known: list[tuple[int, int]], dense: list[Tensor], rng: np.random.Generator) -> np.ndarray:
    """Of the rows of ``known`` up to two an image, of classes that it shows rather than of others."""
    owner = np.array([number for number, _ in known])
    weight = np.array([1.0 if shown.any() else 0.15 for shown in dense])
    first = np.lexsort((-(rng.random(len(known)) ** (1 / weight)), owner))  # weighted, without replacement
    ranks = np.arange(len(known)) - np.searchsorted(owner[first], owner[first])
    return np.sort(first[ranks < 2])


def batch_of(samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
    """Images, dense targets, and two groups of prompts, all changed at random."""
    images, dense, known, targets, index = [], [], [], [], []
    for number, sample in enumerate(samples):
        moved, masks = augment(sample.image.expand(3, -1, -1)[None], sample.masks[None], AUGMENT, rng)
        images.append(recolour(moved[0], rng))
        found = regions(moved[0], masks[0][masks[0].flatten(1).sum(1) >= 40], rng)
        targets += found
        index += [number] * len(found)
        places = {
            c: F.avg_pool2d(m[None].float(), SIDE // MASKS)[0] for c, m in zip(sample.present, masks[0], strict=True)
        }
        for c in sample.known:
            known.append((number, c))
            dense.append(places.get(c, torch.zeros(MASKS, MASKS)))
    if len(targets) < 4:  # hardly ever
        return batch_of(samples, rng)
    order = rng.permutation(len(targets))
    half, count = len(order) // 2, int(rng.choice([1, 1, 3, 6]))
    boxes, pointed = order[:half], order[half:]
    points = [points_of(targets[i], count, rng) for i in pointed]
    truth = torch.from_numpy(np.stack(targets))
    return {
        "images": (pixels := torch.stack(images)),
        "detail": details(pixels),
        "known": torch.tensor(known),
        "dense": torch.stack(dense),
        "asked": torch.from_numpy(asked_of(known, dense, rng)),
        "targets": F.avg_pool2d(truth[order][:, None].float(), 2)[:, 0],
        "index": torch.tensor(index)[order],
        "boxes": torch.from_numpy(np.stack([box_of(targets[i], rng) for i in boxes])),
        "points": torch.from_numpy(np.stack([p for p, _ in points])),
        "labels": torch.from_numpy(np.stack([label for _, label in points])),
        "coarse": coarse(truth[order]) if rng.random() < 0.15 else None,
        "multimask": count == 1 and rng.random() < 0.5,
    }
