"""The files of a segmented case: what they are called, and their writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from samsans import io
from samsans.io.samples import map_file, sample_files, write_beside
from samsans.types import ClassInfo, Prediction

PROBABILITIES, ENTROPY = "probabilities", "entropy"


def files_beside(output: str, classes: Sequence[ClassInfo], probabilities: bool, samples: int) -> tuple[str, ...]:
    """Files of a case besides its label map ``output``, all paths being relative to one folder.

    Of samples their own files, and the mean probability and the entropy of each object.
    """
    files = list(sample_files(output, samples)) if samples else []
    if probabilities or samples:
        files += _map_files(PROBABILITIES, output, classes)
    if samples:
        files += _map_files(ENTROPY, output, classes)
    return tuple(file.as_posix() for file in files)


def write(made: Prediction, out: Path, output: str) -> None:
    """Write a prediction and what it holds besides, the label map last: where it is, all is there.

    Everything lies on the input's own grid.  Probabilities and entropies are 16-bit PNG, where 65535 is 1, or float32
    volumes.
    """
    if made.samples is not None:
        write_beside(out / output, made.samples, made.volume)
    for folder, maps in ((PROBABILITIES, made.probabilities), (ENTROPY, made.entropy)):
        if maps is not None:
            for file, soft in zip(_map_files(folder, output, made.classes), maps, strict=True):
                _write_map(out / file, soft, made)
    made.save(out / output)


def _write_map(path: Path, soft: np.ndarray, made: Prediction) -> None:
    array = np.rint(soft.astype(np.float32) * 65535).astype(np.uint16) if io.suffix(path) == ".png" else soft
    io.write_image(path, array, like=made.volume)


def _map_files(folder: str, output: str, classes: Sequence[ClassInfo]) -> Iterator[Path]:
    return (map_file(folder, output, info.name) for info in classes)
