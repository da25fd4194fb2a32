"""What prompts SAM instead of a person: a 3D network makes masks, boxes and class tokens of every query and slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.methods.masksam.adapters import slices
from samsans.methods.masksam.encoder import Conv3d, ConvBlock, doubled
from samsans.methods.masksam.matching import Targets, mask_boxes

CORNERS = 2  # side of the map that a box is read from
FINE = 4  # doublings from which on blocks convolve in plane only, as in the published networks


@dataclass(frozen=True)
class Auxiliary:
    """What the generator makes of ``B`` patches for ``Q`` queries.

    masks: ``(B, Q, T, H, W)`` logits.  boxes: ``(B, Q, T, 4)`` normalised x0, y0, x1, y1, the means of the network's
    boxes and those of the masks.  tokens: ``(B, Q, T, C)``.
    """

    masks: Tensor
    boxes: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Prompts:
    """What SAM's prompt encoder is told, constants all but the tokens.

    boxes: ``(B, Q, T, 4)`` float32, in pixels of the side SAM sees.  masks: ``(B, Q, T, 4g, 4g)`` float32 or ``None``.
    shown: ``(B, Q, T)`` bool, which of the masks are given, the others being "no mask"; ``None``: all.
    tokens: ``(B, Q, T, C)``, added to the class token, or ``None``.
    """

    boxes: Tensor
    masks: Tensor | None = None
    shown: Tensor | None = None
    tokens: Tensor | None = None

    def queries(self, start: int, stop: int) -> Prompts:
        """Those of some queries."""
        given = (self.boxes, self.masks, self.shown, self.tokens)
        return Prompts(*(None if part is None else part[:, start:stop] for part in given))  # type: ignore[arg-type]


class PromptGenerator(nn.Module):
    """A 3D U-Net's decoder over SAM's feature maps with three heads (section 6).

    Level A comes from the embedding, every further level doubles the size before it and adds one map, deep ones first;
    fusions add maps at the last size, through the very skip layers of that size.

    Args:
        channels: C of the embedding.
        width: Channels of the maps.
        widths: Channels of the levels after A.
        fusions: Levels of the last size after those.
        queries: Q.
        norm: Instance norm of the box head.
    """

    def __init__(
        self, channels: int, width: int, widths: Sequence[int], fusions: int, queries: int, norm: bool = True
    ) -> None:
        super().__init__()
        self.start = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))
        self.below, self.skips, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for doublings, (before, after) in enumerate(zip([channels, *widths[:-1]], widths, strict=True), 1):
            kernel = (1 if doublings >= FINE else 3, 3, 3)
            self.below.append(doubled(before, after))
            self.skips.append(skip_layers(width, after, doublings, kernel))
            self.blocks.append(ConvBlock(2 * after, after, kernel))
        self.fusions = nn.ModuleList(ConvBlock(2 * widths[-1], widths[-1]) for _ in range(fusions))
        pooled = channels + sum(widths) + fusions * widths[-1]
        self.token_grid = token_grid(channels)
        self.masks = nn.Conv3d(widths[-1], queries, 1)
        self.boxes = nn.Conv3d(pooled, queries, 1, bias=False)
        self.box_norm = nn.InstanceNorm3d(queries, affine=True) if norm else nn.Identity()
        self.tokens = nn.Sequential(Conv3d(pooled, queries), nn.InstanceNorm3d(queries, affine=True), nn.GELU())

    def forward(self, embedding: Tensor, maps: Sequence[Tensor]) -> Auxiliary:
        """Answers from the embedding ``(B, C, T, g, g)`` and maps ``(B, width, T, g, g)``, shallow to deep."""
        levels = self.levels(embedding, maps)
        masks = self.masks(levels[-1])
        boxes = (self.network_boxes(levels) + mask_boxes(masks.detach() > 0)) / 2
        return Auxiliary(masks, boxes, self.tokens(pool(levels, self.token_grid)).flatten(-2))

    def levels(self, embedding: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels A, B, ...: ``(B, ., T, ., .)`` each."""
        deep_first = iter(reversed(maps))
        levels = [self.start(embedding)]
        for below, skip, block in zip(self.below, self.skips, self.blocks, strict=True):
            levels.append(block(torch.cat([below(levels[-1]), skip(next(deep_first))], 1)))
        for block in self.fusions:
            levels.append(block(torch.cat([levels[-1], self.skips[-1](next(deep_first))], 1)))
        return levels

    def network_boxes(self, levels: Sequence[Tensor]) -> Tensor:
        """``(B, Q, T, 4)`` float32 normalised x0, y0, x1, y1, in order."""
        cells = self.box_norm(self.boxes(pool(levels, (CORNERS, CORNERS)))).float().sigmoid()
        return decode_boxes(cells)


def skip_layers(width: int, after: int, doublings: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    """A map of SAM, doubled so many times, a convolution block after each."""
    steps = [(width if step == 0 else after, after) for step in range(doublings)]
    return nn.Sequential(*(layer for step in steps for layer in (doubled(*step), ConvBlock(after, after, kernel))))


def pool(levels: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Means of every level over the cells of a grid, slice by slice, one after another: ``(B, sum, T, *grid)``."""
    return torch.cat([F.adaptive_avg_pool3d(level, (level.shape[2], *grid)) for level in levels], 1)


def token_grid(channels: int) -> tuple[int, int]:
    """Rows and columns of the map that a token is read from, as square as can be: 16 x 16 for 256 channels."""
    rows = next(rows for rows in range(math.isqrt(channels), 0, -1) if channels % rows == 0)
    return rows, channels // rows


def decode_boxes(cells: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 ``(..., 4)`` of cells ``[[x0, y0], [rx, ry]]`` ``(..., 2, 2)`` in [0, 1].

    The second corner divides what is left: ``x1 = x0 + (1 - x0) rx``, so that boxes are in order and inside.
    """
    low, share = cells.unbind(-2)
    return torch.cat([low, low + (1 - low) * share], -1)


def generated_prompts(made: Auxiliary, grid: int, scale: int, binary: bool) -> Prompts:
    """Prompts from the generator's answers (section 7).

    grid: g.  scale: Pixels that SAM sees along a pixel of the patch.  binary: Masks are 0 or 1 by nearest neighbours,
    and carry no gradient; otherwise they are the logits, bilinear.  Boxes are whole pixels, and carry none either.
    """
    side = made.masks.shape[-1]
    boxes = (made.boxes.detach() * side).floor() * scale
    masks = (made.masks.detach() > 0).float() if binary else made.masks.float()
    return Prompts(boxes, _resized(masks, 4 * grid, "nearest" if binary else "bilinear"), None, made.tokens)


def true_prompts(truth: Targets, depth: int, queries: int, grid: int, scale: int, with_masks: bool) -> Prompts:
    """Prompts from the truth, an upper bound (section 16): slot j is the j-th class present in its slice, ascending.

    Slots left over have a box of zeros and no mask.  At most ``queries`` classes.
    """
    slots = truth.present.int().argsort(dim=1, descending=True, stable=True)
    present, boxes = truth.present.gather(1, slots), truth.boxes.gather(1, slots[..., None].expand(-1, -1, 4))
    side, spare = truth.masks.shape[-1], queries - slots.shape[1]
    boxes = F.pad((boxes * side).round() * scale, (0, 0, 0, spare))
    shown = F.pad(present, (0, spare))
    masks = None
    if with_masks:
        chosen = truth.masks.gather(1, slots[..., None, None].expand_as(truth.masks))
        masks = F.pad(_resized(chosen.float(), 4 * grid, "nearest"), (0, 0, 0, 0, 0, spare))
        masks = slices(masks, depth).transpose(1, 2)
    return Prompts(slices(boxes, depth).transpose(1, 2), masks, slices(shown, depth).transpose(1, 2))


def _resized(masks: Tensor, side: int, mode: str) -> Tensor:
    """``(..., H, W)`` to ``(..., side, side)``."""
    flat = masks.flatten(0, -3)[:, None]
    if masks.shape[-2:] != (side, side):
        flat = F.interpolate(flat, (side, side), mode=mode)
    return flat[:, 0].unflatten(0, masks.shape[:-2])
