"""From slices in native values to the square 8-bit images the networks see, and logits back to the slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.errors import InputError

PERCENTILES = (1.0, 99.0)  # decision D-26
MEAN = (123.675, 116.28, 103.53)  # ImageNet, 0..255, as in SAM
STD = (58.395, 57.12, 57.375)

Levels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Preprocess:
    """How slices are shown to a model.

    input_size: side S in pixels.  resize: ``squash`` to S x S (decision D-02), or ``pad``: longest side to S, zeros at
    the bottom and the right after normalising, as SAM does.
    window: intensities [low, high] shown as black and white; ``None`` takes them from the image.
    channels: ``auto`` (grey repeated, three channels kept), or the numbers of one or three channels.
    """

    input_size: int
    resize: Literal["squash", "pad"] = "squash"
    window: tuple[float, float] | None = None
    channels: tuple[int, ...] | Literal["auto"] = "auto"

    def levels(self, array: np.ndarray) -> Levels:
        """Values shown as black and white, ``(C,)`` or ``(1,)`` float32 each, from the whole volume ``(D, H, W, C)``.

        The window where given; 0 and 255 for 8-bit pictures (one slice, or colour); else percentiles 1 and 99 of the
        finite values (decision D-26), by channel, save that the three channels of a picture share theirs.
        """
        depth, channels = array.shape[0], array.shape[3]
        if self.window is not None:
            low, high = (np.array([v], np.float32) for v in self.window)
        elif array.dtype == np.uint8 and (depth == 1 or channels == 3):
            low, high = np.zeros(1, np.float32), np.full(1, 255, np.float32)
        else:
            shared = depth == 1 and channels == 3
            groups = [array] if shared else [array[..., c] for c in range(channels)]
            low, high = np.stack([_percentiles(g) for g in groups], 1)
        return low, np.maximum(high, low + np.float32(1e-6) * np.maximum(1, np.abs(low)))

    def image(self, slice: np.ndarray, levels: Levels) -> Tensor:
        """``(3, S, S)`` uint8 from a slice ``(H, W, C)`` in native values: antialiased bilinear, half pixels aligned.

        Values that are not finite are shown as the lower level.  Raises InputError where the channels cannot be shown
        as three.
        """
        low, high = levels
        picked = self._channels(slice.shape[2])
        chosen = slice[..., picked].astype(np.float32)
        low, high = (v[picked] if len(v) > 1 else v for v in (low, high))
        scaled = (chosen - low) * (255 / (high - low))
        scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0), 0, 255)
        tensor = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        height, width = self.valid(*slice.shape[:2])
        if tuple(tensor.shape[1:]) != (height, width):
            tensor = F.interpolate(tensor[None], (height, width), mode="bilinear", antialias=True)[0]
        out = tensor.round().clamp_(0, 255).to(torch.uint8)
        return self._pad(out.expand(3, height, width))

    def labels(self, masks: np.ndarray) -> Tensor:
        """``(N, S, S)`` bool from masks ``(N, H, W)`` bool, nearest pixel centre; padding is ``False``."""
        return self._pad(torch.from_numpy(np.ascontiguousarray(self.sample(masks))))

    def sample(self, labels: np.ndarray) -> np.ndarray:
        """The values of ``(..., H, W)`` that ``labels`` takes, ``(..., h, w)``, without padding."""
        (height, width), (h, w) = labels.shape[-2:], self.valid(*labels.shape[-2:])
        return labels[..., _nearest(height, h)[:, None], _nearest(width, w)]

    def valid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the part of S x S that a slice of this size fills."""
        if self.resize == "squash":
            return self.input_size, self.input_size
        scale = self.input_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def restore(self, logits: Tensor, valid: Sequence[int] | Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``(N, S, S)`` cut to ``valid`` and brought to the slice's own ``size`` (H, W), bilinear."""
        height, width = int(valid[0]), int(valid[1])
        return F.interpolate(logits[None, :, :height, :width], size, mode="bilinear", align_corners=False)[0]

    def _pad(self, tensor: Tensor) -> Tensor:
        """Zeros at the bottom and the right up to S x S."""
        height, width = tensor.shape[-2:]
        if (height, width) == (self.input_size, self.input_size):
            return tensor.contiguous()
        return F.pad(tensor, (0, self.input_size - width, 0, self.input_size - height))

    def _channels(self, there: int) -> list[int]:
        picked = ([0] if there == 1 else [0, 1, 2]) if self.channels == "auto" else list(self.channels)
        if self.channels == "auto" and there not in (1, 3):
            raise InputError(
                f"the image has {there} channels", "1 or 3", "Pick three with data.channels, e.g. [0, 1, 2]"
            )
        if len(picked) not in (1, 3) or not all(0 <= c < there for c in picked):
            raise InputError(
                f"data.channels is {list(self.channels)}, the image has {there} channels",
                f"one or three numbers from 0 to {there - 1}",
            )
        return picked


def normalize(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """``(B, 3, S, S)`` float32 from uint8: ImageNet mean and standard deviation in 0..255, zero outside ``valid``.

    valid: ``(B, 2)`` int64, height and width of the image part; ``None``: no padding.
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    out = (images.float() - mean) / std
    return out if valid is None else out * inside(valid, images.shape[-1])[:, None]


def inside(valid: Tensor, side: int) -> Tensor:
    """``(B, S, S)`` bool: which pixels are image and not padding, from ``valid`` ``(B, 2)``."""
    index = torch.arange(side, device=valid.device)
    rows, columns = (index < valid[:, i, None] for i in (0, 1))
    return rows[:, :, None] & columns[:, None, :]


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Source index of each of ``wanted`` pixel centres along ``size`` pixels."""
    return (2 * np.arange(wanted) + 1) * size // (2 * wanted)


def _percentiles(values: np.ndarray) -> np.ndarray:
    """Percentiles 1 and 99 of the finite values, ``(2,)`` float32; 0 and 1 where there is none."""
    flat = values.ravel()
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    return np.percentile(flat, PERCENTILES).astype(np.float32) if flat.size else np.array([0, 1], np.float32)
