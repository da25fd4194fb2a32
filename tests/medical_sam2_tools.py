"""Medical SAM 2 on the small test network, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from samsans import config as configuration
from samsans.methods import build
from samsans.methods.medical_sam2.model import MedicalSam2
from samsans.types import Batch

SIDE, GRID, CHANNELS = 64, 4, 128


def make(**options: Any) -> MedicalSam2:
    settings = {"backbone.name": "sam2-tiny-test"} | {key.replace("__", "."): v for key, v in options.items()}
    return build(configuration.from_dict(settings, method="medical_sam2"), ("a", "b"))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(images: int = 3, objects: int = 2, seed: int = 0) -> Batch:
    """Masks in whole cells of the decoder's output, so that bringing them to its size and back loses no pixel."""
    cells = rand(images, objects, 16, 16, seed=seed + 1) > 0.5
    masks = F.interpolate(cells.float(), (SIDE, SIDE)).bool()
    ids = tuple(f"image{i}" for i in range(images))
    return Batch(rand(images, 3, SIDE, SIDE, seed=seed), masks, ids, tuple("ab"[:objects]))


def target(images: int = 1, seed: int = 9) -> Batch:
    return Batch(rand(images, 3, SIDE, SIDE, seed=seed), None, tuple("xyz"[:images]), ("a", "b"))


def part(whole: Batch, images: slice, objects: slice = slice(None)) -> Batch:
    assert whole.masks is not None
    return Batch(whole.images[images], whole.masks[images, objects], whole.ids[images], whole.objects[objects])


def eager() -> MedicalSam2:
    """On weights that tell memories apart, at the start what attention adds is small, and that find every object."""
    made = make(model__min_confidence=0.0).eval()
    with torch.no_grad():
        made.backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100)
        for name, parameter in made.backbone.model.memory_attention.named_parameters():
            if "cross_attn" in name and parameter.ndim == 2:
                parameter.mul_(4)
    return made
