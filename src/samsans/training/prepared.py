"""Slices as a network is shown them, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samsans.data.episodes import plain_batch
from samsans.data.slices import SliceDataset
from samsans.types import Batch


class PreparedSlices:
    """The slices of a ``SliceDataset`` as batches."""

    def __init__(self, slices: SliceDataset) -> None:
        self.slices = slices

    @property
    def present(self) -> np.ndarray:
        """``(len, N)`` bool: which slice shows which object."""
        return self.slices.present

    @property
    def class_pixels(self) -> np.ndarray:
        """``(N + 1,)`` int64: pixels of background and of each object in all slices, padding not counted."""
        return self.slices.class_pixels

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those slices, normalised, with masks (and all annotations, where the method needs them)."""
        return plain_batch(self.slices, indices)
