"""What a prior made of a volume, kept on disk: saliency maps, and the points that were distilled by them.

One ``<key>.safetensors`` each, whose name hashes everything that its content depends on.  A file that is damaged, or is
of another key, is told of and made again; files appear whole or not at all.  They may be removed at any time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from samsans import io

log = logging.getLogger(__name__)

MAPS, ROWS, COUNTS = "logits", "points", "counts"


class PromptCache:
    """The files of one folder, which is made when there is something to keep.

    method: whose maps and points are kept, with its final weights.
    """

    def __init__(self, folder: Path, method: nn.Module) -> None:
        self.folder, self._method = folder, method
        self._weights = self._state()

    @property
    def current(self) -> bool:
        """Whether the weights are still those of the beginning: of others nothing is to be kept, nor used."""
        return self._state() == self._weights

    def _state(self) -> list[tuple[str, int, int]]:
        """Changes when a parameter is exchanged or written to."""
        return [(name, id(parameter), parameter._version) for name, parameter in self._method.named_parameters()]

    def path(self, key: str) -> Path:
        """Where what belongs to ``key`` is kept."""
        return self.folder / f"{key}.safetensors"

    def saliency(self, key: str, shape: tuple[int, int, int]) -> np.ndarray | None:
        """Saliency logits ``(T, h, h)`` float32 of this shape; ``None`` where they are not there or not usable."""
        arrays = self._read(key)
        if arrays is None:
            return None
        maps = arrays.get(MAPS)
        if len(arrays) == 1 and maps is not None and maps.shape == shape and maps.dtype == np.float32:
            return maps
        self._refuse(key, "its arrays are others than those of saliency maps")
        return None

    def keep_saliency(self, key: str, maps: np.ndarray) -> None:
        """Keep saliency logits ``(T, h, h)`` float32."""
        self._write(key, {MAPS: maps})

    def consensus(self, key: str, depth: int) -> list[np.ndarray] | None:
        """The points ``(K, 3)`` float64 of each of ``depth`` slices; ``None`` likewise."""
        arrays = self._read(key)
        if arrays is None:
            return None
        rows, counts = arrays.get(ROWS), arrays.get(COUNTS)
        if (
            len(arrays) == 2
            and rows is not None
            and counts is not None
            and (rows.dtype, counts.dtype) == (np.float64, np.int64)
            and counts.shape == (depth,)
            and rows.shape == (counts.sum(), 3)
        ):
            return np.split(rows, np.cumsum(counts)[:-1])
        self._refuse(key, "its arrays are others than those of points")
        return None

    def keep_consensus(self, key: str, points: Sequence[np.ndarray]) -> None:
        """Keep the points ``(K, 3)`` of each slice."""
        rows = np.concatenate([np.zeros((0, 3)), *points])
        self._write(key, {ROWS: rows, COUNTS: np.array([len(p) for p in points], np.int64)})

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            self._refuse(key, str(error))
            return None
        if about != _about(key, arrays):
            self._refuse(key, "it is damaged, or of something else")
            return None
        return arrays

    def _refuse(self, key: str, why: str) -> None:
        log.warning("%s cannot be used and is made again: %s", self.path(key), why)

    def _write(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            with io.atomic_path(self.path(key)) as temporary:
                temporary.write_bytes(save(arrays, metadata=_about(key, arrays)))
        except OSError as error:
            log.warning("The saliency and points of a volume are not kept: %s", error)


def _about(key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What is noted in a file: its key and a hash of its arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"key": key, "sha256": digest.hexdigest()}
