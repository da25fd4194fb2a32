"""Files of several plausible label maps (samples) of one image, beside its label map.

NIfTI: one file ``case_samples.nii.gz`` whose fourth axis is the sample.  Every other format: one file a sample,
``case_sample00.png``, ``case_sample01.png`` and so on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from samsans.errors import InputError
from samsans.io.arrays import smallest_integer
from samsans.io.atomic import suffix
from samsans.io.files import NIFTI_SUFFIXES, stem
from samsans.io.read import read_image, read_labels
from samsans.io.write import write_image, write_labels
from samsans.types import Volume

_NAME = re.compile(r"(.+)_sample(?:s|\d{2,})")


def sample_files(output: str | Path, count: int) -> tuple[Path, ...]:
    """Where ``count`` samples of the label map at ``output`` lie: one path for NIfTI, else one a sample."""
    output = Path(output)
    ending = output.name[len(stem(output)) :]
    if suffix(output) in NIFTI_SUFFIXES:
        return (output.with_name(f"{stem(output)}_samples.nii.gz"),)
    return tuple(output.with_name(f"{stem(output)}_sample{k:02d}{ending}") for k in range(count))


def sampled_case(key: str) -> str | None:
    """The case whose sample the file named ``key`` (a path without suffix) would be; None for every other name."""
    match = _NAME.fullmatch(key)
    return match[1] if match else None


def map_file(folder: str | Path, output: str | Path, name: str) -> Path:
    """Where the map of the object ``name`` lies that belongs to the label map ``output``: ``CASE_OBJECT`` in ``folder``
    (``probabilities``, ``entropy``), characters other than letters, digits, ``-`` and ``_`` of its name made ``_``."""
    output = Path(output)
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    return Path(folder) / output.with_name(f"{stem(output)}_{safe}{output.name[len(stem(output)) :]}")


def write_samples(path: str | Path, samples: np.ndarray, like: Volume | None = None) -> Path:
    """Write label maps ``(K, D, H, W)`` of whole numbers as one NIfTI file of four axes, the sample being the last.

    The grid of ``like`` and its header are kept as by ``write_labels``; the file appears whole or not at all.
    Raises InputError for another suffix than NIfTI's, another shape than the grid's, and values that are not integers.
    """
    path, samples = Path(path), _checked(samples)
    if suffix(path) not in NIFTI_SUFFIXES:
        raise InputError(f"samples for {path}", "a name in " + " or ".join(NIFTI_SUFFIXES), "Write one file a sample")
    return write_image(path, samples.astype(smallest_integer(samples)).transpose(1, 2, 3, 0), like)


def write_beside(output: str | Path, samples: np.ndarray, like: Volume | None = None) -> tuple[Path, ...]:
    """Write label maps ``(K, D, H, W)`` beside the label map at ``output``, in its format; returns ``sample_files``."""
    samples = _checked(samples)
    files = sample_files(output, len(samples))
    if suffix(output) in NIFTI_SUFFIXES:
        write_samples(files[0], samples, like)
    else:
        for path, labels in zip(files, samples, strict=True):
            write_labels(path, labels, like)
    return files


def read_samples(output: str | Path, count: int) -> Volume:
    """The ``count`` samples beside the label map at ``output``: ``array (K, D, H, W)`` integers, on its grid.

    Raises InputError where one is missing or damaged, there are more or fewer, or their sizes differ.
    """
    files = sample_files(output, count)
    if suffix(output) in NIFTI_SUFFIXES:
        volume = read_image(files[0])
        if volume.array.shape[3] != count or volume.array.dtype.kind not in "iu":
            raise InputError(
                f"{files[0]} holds {volume.array.shape[3]} maps of {volume.array.dtype}",
                f"{count} label maps of whole numbers",
                "Predict again",
            )
        return replace(volume, array=np.ascontiguousarray(volume.array.transpose(3, 0, 1, 2)))
    further = sample_files(output, count + 1)[-1]
    if further.exists():
        raise InputError(f"{further} is there", f"{count} samples, as many as were asked for", "Predict again")
    volumes = [read_labels(path) for path in files]
    for path, volume in zip(files, volumes, strict=True):
        if volume.shape != volumes[0].shape:
            raise InputError(
                f"{path} has the size {volume.shape}, {files[0]} {volumes[0].shape}", "samples of one size"
            )
    return replace(volumes[0], array=np.stack([v.array for v in volumes]))


def _checked(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 4 or not len(samples) or samples.dtype.kind not in "biu":
        raise InputError(f"samples of shape {samples.shape} and type {samples.dtype}", "integers (K, D, H, W)")
    return samples
