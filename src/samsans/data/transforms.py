"""From slices in native values to the square 8-bit images the networks see, and logits back to the slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from samsans.config import RunConfig
from samsans.errors import InputError

PERCENTILES = (1.0, 99.0)  # of a volume, decision D-26
EXTREMES = (0.0, 100.0)  # of a slice
POSITIVE = (0.5, 99.5)  # of the values of a volume above 0
MEAN = (123.675, 116.28, 103.53)  # ImageNet, 0..255, as in SAM
STD = (58.395, 57.12, 57.375)
STATISTICS = {"sam": (MEAN, STD), "unit": ((0.0,) * 3, (255.0,) * 3), "symmetric": ((127.5,) * 3, (127.5,) * 3)}

Levels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Preprocess:
    """How slices are shown to a model.

    input_size: side S in pixels.  resize: ``squash`` to S x S (decision D-02), or ``pad``: longest side to S, zeros at
    the bottom and the right after normalising, as SAM does.
    window: intensities [low, high] shown as black and white; ``None`` takes them from the image.
    stretch: without a window, one pair of levels a ``volume``, one of its ``positive`` values, or one a ``slice``.
    channels: ``auto`` (grey repeated, three channels kept), or the numbers of one or three channels.
    statistics: ``sam`` takes off ImageNet's mean and divides by its deviation, ``unit`` divides by 255, ``symmetric``
    brings black to -1 and white to 1 (section 4 of SPD's supplement).
    resampling: ``linear`` (antialiased bilinear, half pixels aligned), or ``spline`` (cubic splines, nearest neighbours
    for labels and results, corners aligned, as SAMed and H-SAM).  via: side that slices are brought to before S.
    """

    input_size: int
    resize: Literal["squash", "pad"] = "squash"
    window: tuple[float, float] | None = None
    channels: tuple[int, ...] | Literal["auto"] = "auto"
    statistics: Literal["sam", "unit", "symmetric"] = "sam"
    resampling: Literal["linear", "spline"] = "linear"
    via: int | None = None
    stretch: Literal["volume", "slice", "positive"] = "volume"

    @classmethod
    def of(cls, config: RunConfig, input_size: int, predicting: bool = False) -> Preprocess:
        """What a run configuration asks for, for a network that sees ``input_size`` pixels a side.

        predicting: slices go via ``backbone.via_predict`` where that is set.
        """
        data, backbone = config.data, config.backbone
        via = backbone.via_predict if predicting and backbone.via_predict is not None else backbone.via
        if via is not None and via < 1:
            raise InputError(f"slices are to go via {via} pixels", "at least 1", "See backbone.via and via_predict")
        if data.window is not None and (len(data.window) != 2 or data.levels != "volume"):
            raise InputError(
                f"data.window is {data.window}, data.levels {data.levels}",
                "two intensities, low and high, or other levels",
                "Set data.window to null, or data.levels to volume",
            )
        return cls(
            input_size,
            backbone.resize,
            None if data.window is None else (data.window[0], data.window[1]),
            data.channels if isinstance(data.channels, str) else tuple(data.channels),
            backbone.statistics,
            backbone.resampling,
            via,
            data.levels,
        )

    def levels(self, array: np.ndarray) -> Levels | None:
        """Values shown as black and white, ``(C,)`` or ``(1,)`` float32 each, from the whole volume ``(D, H, W, C)``.

        The window where given; 0 and 255 for 8-bit pictures (one slice, or colour); else percentiles 1 and 99 of the
        finite values (decision D-26), by channel, save that the three channels of a picture share theirs.  ``None``
        where each slice has its own.  positive: percentiles 0.5 and 99.5 of the values above 0, of 8-bit pictures too.
        """
        if self.stretch == "slice":
            return None
        depth, channels = array.shape[0], array.shape[3]
        if self.window is not None:
            low, high = (np.array([v], np.float32) for v in self.window)
        elif self.stretch == "positive":
            return _stretched(array, POSITIVE, positive=True)
        elif array.dtype == np.uint8 and (depth == 1 or channels == 3):
            low, high = np.zeros(1, np.float32), np.full(1, 255, np.float32)
        else:
            return _stretched(array, PERCENTILES)
        return _apart(low, high)

    def image(self, slice: np.ndarray, levels: Levels | None) -> Tensor:
        """``(3, S, S)`` uint8 from a slice ``(H, W, C)`` in native values, resized as ``resampling`` says.

        levels: of its volume; ``None``: from the smallest to the largest finite value of the slice, by channel, save
        that three channels share theirs.  Values that are not finite are shown as the lower level.  Raises InputError
        where the channels cannot be shown as three.
        """
        low, high = _stretched(slice[None], EXTREMES) if levels is None else levels
        picked = self._channels(slice.shape[2])
        chosen = slice[..., picked].astype(np.float32)
        low, high = (v[picked] if len(v) > 1 else v for v in (low, high))
        scaled = (chosen - low) * (255 / (high - low))
        scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0), 0, 255)
        tensor = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        for size in self._sizes(*slice.shape[:2]):
            if tuple(tensor.shape[1:]) == size:
                continue
            if self.resampling == "spline":
                tensor = torch.from_numpy(spline(tensor.numpy(), size))
            else:
                tensor = F.interpolate(tensor[None], size, mode="bilinear", antialias=True)[0]
        out = tensor.round().clamp_(0, 255).to(torch.uint8)
        return self._pad(out.expand(3, -1, -1))

    def labels(self, masks: np.ndarray) -> Tensor:
        """``(N, S, S)`` bool from masks ``(N, H, W)`` bool, nearest pixel; padding is ``False``."""
        return self._pad(torch.from_numpy(np.ascontiguousarray(self.sample(masks))))

    def sample(self, labels: np.ndarray) -> np.ndarray:
        """The values of ``(..., H, W)`` that ``labels`` takes, ``(..., h, w)``, without padding."""
        height, width = labels.shape[-2:]
        source = aligned if self.resampling == "spline" else _nearest
        rows, columns = np.arange(height), np.arange(width)
        for h, w in self._sizes(height, width):
            rows, columns = rows[source(len(rows), h)], columns[source(len(columns), w)]
        return labels[..., rows[:, None], columns]

    def valid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the part of S x S that a slice of this size fills."""
        return self._fit(self.input_size, height, width)

    def restore(self, logits: Tensor, valid: Sequence[int] | Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``(N, S, S)`` cut to ``valid`` and brought to the slice's own ``size`` (H, W).

        Bilinear; with ``spline`` the nearest logit with corners aligned, so that what wins on the model's grid is what
        is enlarged or reduced, as SAMed and H-SAM do.
        """
        height, width = int(valid[0]), int(valid[1])
        if self.resampling == "spline":
            rows, columns = (torch.from_numpy(aligned(n, m)) for n, m in zip((height, width), size, strict=True))
            return logits[:, rows.to(logits.device)[:, None], columns.to(logits.device)]
        return F.interpolate(logits[None, :, :height, :width], size, mode="bilinear", align_corners=False)[0]

    def normalize(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """``(B, 3, S, S)`` float32 from uint8, by ``statistics``; zero outside ``valid``.

        valid: ``(B, 2)`` int64, height and width of the image part; ``None``: no padding.
        """
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in STATISTICS[self.statistics])
        out = (images.float() - mean) / std
        return out if valid is None else out * inside(valid, images.shape[-1])[:, None]

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width that a slice is brought to, one after the other."""
        sides = [self.input_size] if self.via is None else [self.via, self.input_size]
        return [self._fit(side, height, width) for side in sides]

    def _fit(self, side: int, height: int, width: int) -> tuple[int, int]:
        if self.resize == "squash":
            return side, side
        scale = side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

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


def inside(valid: Tensor, side: int) -> Tensor:
    """``(B, S, S)`` bool: which pixels are image and not padding, from ``valid`` ``(B, 2)``."""
    index = torch.arange(side, device=valid.device)
    rows, columns = (index < valid[:, i, None] for i in (0, 1))
    return rows[:, :, None] & columns[:, None, :]


def spline(channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(C, h, w)`` float32 from ``(C, H, W)``: cubic splines through the pixels, corners aligned, channels apart.

    SciPy's zoom of order 3, which SAMed and H-SAM use.  Its way of going beyond the border is not theirs: with theirs
    rounding leaves the last row and column black at some sizes, such as 512 to 224.  All else is equal.
    """
    factors = [m / n for n, m in zip(channels.shape[1:], size, strict=True)]
    return np.stack([ndimage.zoom(c, factors, np.float32, order=3, mode="mirror") for c in channels])


def aligned(size: int, wanted: int) -> np.ndarray:
    """Source index of each of ``wanted`` samples along ``size`` pixels, corners aligned: round(i (n - 1) / (m - 1)).

    Halves are rounded up, as in SciPy's zoom of order 0.
    """
    last = max(wanted - 1, 1)
    return (2 * np.arange(wanted) * (size - 1) + last) // (2 * last)


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Source index of each of ``wanted`` pixel centres along ``size`` pixels."""
    return (2 * np.arange(wanted) + 1) * size // (2 * wanted)


def _stretched(array: np.ndarray, percentiles: tuple[float, float], positive: bool = False) -> Levels:
    """Two percentiles of a volume ``(D, H, W, C)`` by channel; those of a picture of three channels are shared.
    positive: of the values above 0 alone."""
    depth, channels = array.shape[0], array.shape[3]
    groups = [array] if depth == 1 and channels == 3 else [array[..., c] for c in range(channels)]
    groups = [g[g > 0] for g in groups] if positive else groups
    return _apart(*np.stack([_percentiles(g, percentiles) for g in groups], 1))


def _apart(low: np.ndarray, high: np.ndarray) -> Levels:
    """The levels, the upper one a little above the lower one at least."""
    return low, np.maximum(high, low + np.float32(1e-6) * np.maximum(1, np.abs(low)))


def _percentiles(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Percentiles of the finite values, ``(2,)`` float32; 0 and 1 where there is none."""
    flat = values.ravel()
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    return np.percentile(flat, percentiles).astype(np.float32) if flat.size else np.array([0, 1], np.float32)
