"""Position tables for another input side: resized or cropped, never re-initialised."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor

from samsans.architectures import SamArchitecture

REL_POS = re.compile(r"vision_encoder\.layers\.(\d+)\.attn\.rel_pos_[hw]")


def resize_pos_embed(table: Tensor, grid: int) -> Tensor:
    """Absolute positions ``(1, g, g, width)`` to ``(1, grid, grid, width)``.

    Bilinear, no corner alignment, no antialiasing, as SAMed and H-SAM do (our decision where a paper is silent).
    """
    if table.shape[1:3] == (grid, grid):
        return table
    moved = F.interpolate(table.permute(0, 3, 1, 2), (grid, grid), mode="bilinear", align_corners=False)
    return moved.permute(0, 2, 3, 1).contiguous()


def crop_pos_embed(table: Tensor, grid: int) -> Tensor:
    """The top left ``(1, grid, grid, width)`` of absolute positions: the image is a corner of a larger canvas."""
    return table if table.shape[1:3] == (grid, grid) else table[:, :grid, :grid].contiguous()


def resize_rel_pos(table: Tensor, grid: int) -> Tensor:
    """Relative positions of a global block ``(2g - 1, d)`` to ``(2 grid - 1, d)``; linear, no corner alignment."""
    if len(table) == 2 * grid - 1:
        return table
    return F.interpolate(table.T[None], 2 * grid - 1, mode="linear", align_corners=False)[0].T.contiguous()


def resize_state(
    state: dict[str, Tensor], arch: SamArchitecture, grid: int, positions: str = "resize"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict for an input of ``grid`` tokens a side, and one line per table that had to be resized.

    Only ``pos_embed`` and the relative positions of the *global* blocks depend on the input side; those of windows
    depend on the window.  ``positions``: resize or crop ``pos_embed``; relative positions are resized in any case.
    """
    resized, lines = dict(state), []
    for key, table in state.items():
        if key == "vision_encoder.pos_embed":
            crop = positions == "crop"
            resized[key] = crop_pos_embed(table, grid) if crop else resize_pos_embed(table, grid)
            how = "top left" if crop else "bilinear"
        elif (match := REL_POS.fullmatch(key)) and int(match[1]) in arch.global_blocks:
            resized[key], how = resize_rel_pos(table, grid), "linear"
        else:
            continue
        if resized[key] is not table:
            lines.append(f"{key} {tuple(table.shape)} -> {tuple(resized[key].shape)} ({how})")
    return resized, tuple(lines)
