"""MetaImage, ``.mha`` and ``.mhd``, through SimpleITK (extra ``[itk]``)."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samsans.errors import InputError
from samsans.io.arrays import single_channel
from samsans.io.files import reading
from samsans.io.geometry import affine_of, steps_and_origin
from samsans.types import Volume


@dataclass(frozen=True)
class Grid:
    """Origin, spacing and direction as ITK states them: LPS, file axis order."""

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` voxel ``(x, y, z)`` to RAS+ mm; a 2D grid lies in the plane z = 0 with slices 1 mm thick."""
        n = len(self.origin)
        steps, origin = np.eye(3), np.zeros(3)
        steps[:n, :n] = np.reshape(self.direction, (n, n)) * np.asarray(self.spacing)
        origin[:n] = self.origin
        return affine_of(steps, origin)


def _simpleitk(what: Path | str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            f"{what} needs SimpleITK, which is not installed", todo='pip install "samsans[itk]"'
        ) from error
    return SimpleITK


def read(path: Path, labels: bool = False) -> Volume:
    """Read as ``(D, H, W, C)`` in the file's dtype; components of vector pixels are channels.

    Raises InputError for damaged files, files of more than three axes, and where SimpleITK is not installed.
    """
    sitk = _simpleitk(path)
    with reading(path, "MetaImage"):
        image = sitk.ReadImage(str(path))
    if image.GetDimension() not in (2, 3):
        raise InputError(f"{path} has {image.GetDimension()} axes", "two or three", "Split it into volumes")
    grid = Grid(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    array = sitk.GetArrayFromImage(image)
    array = array if image.GetNumberOfComponentsPerPixel() > 1 else array[..., None]
    return Volume(array if array.ndim == 4 else array[None], grid.affine, path, grid)


def write(file: BinaryIO, array: np.ndarray, like: Volume | None = None) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)``, compressed, on the grid of ``like``.

    From ITK's own grid its numbers are kept; from other formats directions are the unit vectors of the affine.
    """
    sitk = _simpleitk("an .mha file")
    array = single_channel(array)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
    if like is not None and like.affine is not None:
        grid = like.header
        if not (isinstance(grid, Grid) and len(grid.origin) == 3 and np.array_equal(grid.affine, like.affine)):
            steps, origin = steps_and_origin(like.affine)
            spacing = np.linalg.norm(steps, axis=0)
            grid = Grid(tuple(origin), tuple(spacing), tuple((steps / spacing).ravel()))
        image.SetOrigin(grid.origin)
        image.SetSpacing(grid.spacing)
        image.SetDirection(grid.direction)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "image.mha"  # ITK takes no streams, and the format from the name
        sitk.WriteImage(image, str(made), useCompression=True)
        with made.open("rb") as source:
            shutil.copyfileobj(source, file)
