"""Configuration and presets of MaskSAM (arXiv 2403.14103).  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from samsans import zoo
from samsans.errors import InputError

if TYPE_CHECKING:
    from samsans.config import RunConfig

LEAST_QUERIES = 8


@dataclass
class MatchingConfig:
    """Weights of the set prediction loss, which are also those of the matching costs (sections 12 and 13).

    Args:
        classes: Class of every query.
        mask: Cross-entropy of the final masks.
        dice: Dice of the final masks.
        auxiliary: Cross-entropy and Dice, each, of the prompt generator's masks.
        l1: Distance of the boxes' corners.
        giou: Generalised overlap of the boxes.
        no_object: Class weight of queries that match nothing.
        points: Random points a mask is compared at.
        oversample: Times as many points are drawn before the most uncertain are kept.
        importance: Share of the points that are the most uncertain ones.
        auxiliary_on: logits (corrected) or probabilities (released: a sigmoid of a sigmoid).
    """

    classes: float = 0.2
    mask: float = 1.5
    dice: float = 1.5
    auxiliary: float = 0.5
    l1: float = 0.5
    giou: float = 0.2
    no_object: float = 0.1
    points: int = 32768
    oversample: float = 2.0
    importance: float = 0.75
    auxiliary_on: Literal["logits", "probabilities"] = "logits"


@dataclass
class MaskSamConfig:
    """MaskSAM: a 3D prompt generator, adapters across slices, and classes by set prediction.

    Args:
        queries: Masks a slice, Q; more than classes.  null: twice as many as classes with the background, at least 8,
            decided when the objects are known, and written to the run (our decision).
        upsample: Doublings of the in-plane size by the stem before SAM sees it (ACDC: 2); patches are that much smaller
            than the backbone's input side.
        output_cnn: A network enlarges the masks (Synapse, AMOS); false: bilinear (ACDC).
        stem: Channels of the stem's first block.
        widths: Channels of the prompt generator's levels B, C, ..., each twice the size of the one before.
        fusions: Further levels of the last size (ACDC: 2), which share the skip layers of that size.
        space_adapter: unwindowed (corrected: neighbours in depth are neighbours) or windowed (released).
        zero_init: Adapters start as nothing (our option).
        box_norm: Instance norm of the box head, or none.
        mask_prompt: binary (published) or logits.
        prompts: generated, or gt: from the true masks, an upper bound (section 16).
        gt_mask_prompt: gt: the true mask as a mask prompt too, not the box alone.
        query_batch: Queries decoded together, all slices at once; 0: all.
        matching: Loss and matching.
    """

    queries: int | None = 24
    upsample: int = 0
    output_cnn: bool = True
    stem: int = 8
    widths: list[int] = field(default_factory=lambda: [128, 128, 64, 64])
    fusions: int = 0
    space_adapter: Literal["unwindowed", "windowed"] = "unwindowed"
    zero_init: bool = False
    box_norm: Literal["instance", "none"] = "instance"
    mask_prompt: Literal["binary", "logits"] = "binary"
    prompts: Literal["generated", "gt"] = "generated"
    gt_mask_prompt: bool = False
    query_batch: int = 0
    matching: MatchingConfig = field(default_factory=MatchingConfig)


def default_queries(objects: int) -> int:
    """Q for so many objects where ``queries`` is null."""
    return max(LEAST_QUERIES, 2 * (objects + 1))


def complete(config: RunConfig, objects: int) -> RunConfig:
    """The configuration with ``model.queries`` decided."""
    if config.model.queries is not None:
        return config
    return replace(config, model=replace(config.model, queries=default_queries(objects)))


def patch_side(config: RunConfig) -> int:
    """Rows and columns of a patch: the backbone's input side, halved as often as the stem doubles."""
    backbone, size = config.backbone, config.patches.size
    if backbone.input_size is None and backbone.name not in zoo.BACKBONES:
        if size is None:
            raise InputError(
                f"the input side of {backbone.name} is not known before it is read",
                "patches planned for one",
                "Set backbone.input_size",
            )
        return size[-1]
    side = backbone.input_size or zoo.BACKBONES[backbone.name].input_size
    return side // 2**config.model.upsample


_CORRECTED: dict[str, Any] = {
    "backbone": {"name": "sam-vit-h", "input_size": 256, "train": "none", "positions": "crop"},
    "patches": {"size": [26, 256, 256]},
    "augment": {"policy": "nnunet"},
    "train": {
        "epochs": 1000,
        "batch_size": 2,
        "optimizer": "sgd",
        "lr": 1e-3,
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 3e-5,
        "schedule": "poly_epoch",
        "warmup": 0,
        "clip": 12.0,
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    "corrected": _CORRECTED,
    "released": _CORRECTED | {"model": {"space_adapter": "windowed", "matching": {"auxiliary_on": "probabilities"}}},
    "scratch": {
        "backbone": {"name": "scratch", "input_size": 64, "train": "all"},
        "augment": {"rotate": 15.0, "scale": 0.1, "shift": 0.05, "intensity": 0.1},
        "patches": {"per_epoch": 50},
        "train": {
            "batch_size": 2,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup": 50,
        },
        "model": {
            "queries": None,
            "output_cnn": False,
            "widths": [32, 32, 16],
            "fusions": 1,
            "zero_init": True,
            "matching": {"points": 2048},
        },
    },
}
