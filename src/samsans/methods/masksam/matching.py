"""Which query answers for which class of a slice: targets and their assignment at least cost, slice by slice.

A slice has at most one target a class, so that targets are columns (class k in column k) and an assignment is the class
of every query; nothing here goes through slices, queries or classes one by one on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from samsans.methods.masksam.config import MatchingConfig
from samsans.methods.masksam.outputs import Outputs

UNKNOWN = 100.0  # cost of a pair whose cost is not a number
TINY = 1e-6  # added to the areas that GIoU divides by


@dataclass(frozen=True)
class Targets:
    """What the ``B*T`` slices show, by class: 0 is background, K = N + 1 classes.

    masks: ``(B*T, K, H, W)`` bool.  present: ``(B*T, K)`` bool, classes with a pixel at least.
    boxes: ``(B*T, K, 4)`` float32, see ``mask_boxes``; of absent classes zeros.
    """

    masks: Tensor
    present: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Matching:
    """Who answers for what.

    classes: ``(B*T, Q)`` int64, the class each query answers for, K for none.
    slices, queries, targets: ``(P,)`` int64 each, the P pairs: slice, query and class.
    """

    classes: Tensor
    slices: Tensor
    queries: Tensor
    targets: Tensor


def targets(masks: Tensor) -> Targets:
    """Targets of every slice, background among them: what no object covers (supplement, not the components of a class).

    masks: ``(B, N, T, H, W)`` bool, disjoint.  Slices of the result are in the order (patch, slice).
    """
    background = ~masks.any(1, keepdim=True)
    classes = torch.cat([background, masks], 1).transpose(1, 2).flatten(0, 1)
    return Targets(classes, classes.any(-1).any(-1), mask_boxes(classes))


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks: first and last column and row, the last inclusive, as shares of width and height.

    masks: ``(..., H, W)`` bool.  Returns ``(..., 4)`` float32: x1 / W, y1 / H, x2 / W, y2 / H; zeros where nothing is.
    """
    ends = []
    for line in (masks.any(-2), masks.any(-1)):  # columns, then rows
        count = line.shape[-1]
        place = torch.arange(count, device=masks.device)
        first = torch.where(line, place, count).amin(-1)
        last = torch.where(line, place, -1).amax(-1)
        ends.append(torch.stack([first.where(last >= 0, 0), last.clamp(min=0)], -1) / count)
    return torch.stack(ends, -1).flatten(-2).to(torch.float32)


def draw(rows: int, points: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Random points ``(rows, points, 2)`` float32, x and y, uniform in [0, 1)."""
    return torch.rand(rows, points, 2, device=device, generator=generator)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps at points, bilinear between pixel centres and 0 beyond the border (``align_corners=False``).

    maps: ``(R, C, H, W)`` of any type.  points: ``(R, P, 2)`` float32 in [0, 1].  Returns ``(R, C, P)`` float32.
    """
    grid = (2 * points - 1)[:, :, None]
    return functional.grid_sample(maps.to(torch.float32), grid, mode="bilinear", align_corners=False)[..., 0]


def pairwise_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy over points of every logit mask with every true mask.

    logits: ``(R, Q, P)`` float32.  truth: ``(R, K, P)`` float32 in [0, 1].  Returns ``(R, Q, K)``.
    """
    on, off = functional.softplus(-logits), functional.softplus(logits)
    return (on @ truth.mT + off @ (1 - truth).mT) / logits.shape[-1]


def pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss over points, smoothed by 1, of every logit mask with every true mask; shapes as above."""
    p = logits.sigmoid()
    sizes = p.sum(-1)[..., None] + truth.sum(-1)[..., None, :]
    return 1 - (2 * (p @ truth.mT) + 1) / (sizes + 1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes ``(..., 4)`` xyxy, broadcast against each other.

    Both denominators have 1e-6 added, so that two equal boxes without area have 0 and not NaN.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap / (union + TINY) - (hull - union) / (hull + TINY)


def auxiliary(logits: Tensor, config: MatchingConfig) -> Tensor:
    """What losses and costs take for logits of the auxiliary masks: these, or in ``released`` their probabilities.

    The released code takes the sigmoid twice: its cross-entropy of a perfect mask is 0.69 on background.
    """
    logits = logits.to(torch.float32)
    return logits.sigmoid() if config.auxiliary_on == "probabilities" else logits


@torch.no_grad()
def costs(
    outputs: Outputs, wanted: Targets, config: MatchingConfig, generator: torch.Generator | None = None
) -> Tensor:
    """Cost of every query for every class, ``(B*T, Q, K)`` float32; those of absent classes mean nothing.

    Masks are compared at uniform random points, one set a slice for all its queries, classes, final and auxiliary
    masks.
    """
    device = outputs.class_logits.device
    with torch.autocast(device.type, enabled=False):
        points = draw(wanted.masks.shape[0], config.points, device, generator)
        truth = sample(wanted.masks, points)
        final = sample(outputs.mask_logits, points)
        total = -config.classes * outputs.class_logits.to(torch.float32).softmax(-1)[..., :-1]
        total = total + config.mask * pairwise_cross_entropy(final, truth) + config.dice * pairwise_dice(final, truth)
        if outputs.auxiliary_logits is not None:
            first = sample(auxiliary(outputs.auxiliary_logits, config), points)
            both = pairwise_cross_entropy(first, truth) + pairwise_dice(first, truth)
            total = total + config.auxiliary * both
        if outputs.boxes is not None:
            boxes, true = outputs.boxes.to(torch.float32)[:, :, None], wanted.boxes[:, None]
            total = total + config.l1 * (boxes - true).abs().sum(-1) - config.giou * giou(boxes, true)
    return total


def match(
    outputs: Outputs, wanted: Targets, config: MatchingConfig, generator: torch.Generator | None = None
) -> Matching:
    """Assign a query to every present class of every slice at least total cost, each slice for itself.

    One transfer brings the costs of all slices to the CPU.  A cost that is not finite counts 100; a slice none of whose
    costs is finite is left without pairs.
    """
    table = torch.cat([costs(outputs, wanted, config, generator), wanted.present[:, None]], 1).cpu().numpy()
    count, queries, classes = table.shape[0], table.shape[1] - 1, table.shape[2]
    assigned = np.full((count, queries), classes, np.int64)
    for row, cost in zip(assigned, table, strict=True):
        shown = np.flatnonzero(cost[-1])
        cost = cost[:-1, shown]
        if np.isfinite(cost).any():
            query, column = linear_sum_assignment(np.where(np.isfinite(cost), cost, UNKNOWN))
            row[query] = shown[column]
    return _pairs(assigned, classes, outputs.class_logits.device)


def identity(wanted: Targets, queries: int) -> Matching:
    """Query j answers for the j-th class that its slice shows, in ascending order (prompts from the truth).

    Raises ValueError where there are fewer queries than classes.
    """
    present = wanted.present.cpu().numpy()
    count, classes = present.shape
    if queries < classes:
        raise ValueError(f"{queries} queries cannot answer for {classes} classes")
    assigned = np.full((count, queries), classes, np.int64)
    row, column = present.nonzero()
    assigned[row, present.cumsum(1)[row, column] - 1] = column
    return _pairs(assigned, classes, wanted.present.device)


def _pairs(assigned: np.ndarray, classes: int, device: torch.device) -> Matching:
    row, query = (assigned < classes).nonzero()
    flat = torch.from_numpy(np.concatenate([assigned.ravel(), row, query, assigned[row, query]])).to(device)
    of_query, *pairs = flat.split([assigned.size, *[row.size] * 3])
    return Matching(of_query.view(assigned.shape), *pairs)
