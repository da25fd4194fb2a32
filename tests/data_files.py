"""Small image files for the tests of the data layer."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from PIL import Image

from samsans.config import DataConfig
from samsans.data.cases import Dataset, find_cases


def png(path: Path, array: np.ndarray) -> Path:
    """Write ``(H, W)`` or ``(H, W, 3)`` uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write ``(D, H, W)`` with an affine of voxel index (x, y, z) to RAS+ mm; identity where none is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.eye(4) if affine is None else affine), path)
    return path


def picture(seed: int, size: tuple[int, ...] = (12, 16)) -> np.ndarray:
    """Noise, different for every seed."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def square(value: int = 255, size: tuple[int, int] = (12, 16), at: int = 3) -> np.ndarray:
    """A mask with a square of 4 pixels' side."""
    mask = np.zeros(size, np.uint8)
    mask[at : at + 4, at : at + 4] = value
    return mask


def flat_set(root: Path, count: int, values: tuple[int, ...] = (255,), per_patient: int = 1) -> Dataset:
    """``images/p<patient>_<number>.png`` with ``masks/``; image ``i`` shows the values whose bit ``i + 1`` has."""
    for i in range(count):
        name = f"p{i // per_patient:02d}_{i:03d}.png"
        mask = np.zeros((12, 16), np.uint8)
        for bit, value in enumerate(values):
            if (i + 1) >> bit & 1 or len(values) == 1:
                mask[2 + 5 * bit : 6 + 5 * bit, 3:9] = value
        png(root / "images" / name, picture(i))
        png(root / "masks" / name, mask)
    return find_cases(DataConfig(path=str(root), patient=r"^(p\d+)", classes={f"o{v}": [v] for v in values}))


def packed(
    path: Path, image: np.ndarray, label: np.ndarray | None, names: tuple[str, str] = ("image", "label")
) -> Path:
    """Write a ``.npz`` or ``.h5`` file of an image and its mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in zip(names, (image, label), strict=True) if array is not None}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path
