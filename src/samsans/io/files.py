"""Which files are images, what they are called, and the errors all readers share."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samsans.errors import InputError
from samsans.io.atomic import suffix

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)
NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
ITK_SUFFIXES = (".mha", ".mhd")
HDF5_SUFFIXES = (".h5", ".hdf5")
PACKED_SUFFIXES = (".npz", *HDF5_SUFFIXES)  # image and mask in one file
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *DICOM_SUFFIXES, *ITK_SUFFIXES)
PICKLE_SUFFIXES = (".pickle", ".pkl")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *PACKED_SUFFIXES)


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises about the file at hand into an InputError that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on damaged files: OSError, EOFError, SyntaxError, struct.error
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            f"a whole {kind} file",
            "Copy it again from its source, or open it in a viewer to see what is damaged",
        ) from error


def stem(path: str | Path) -> str:
    """Name without the suffix of its format: ``a`` of ``x/a.nii.gz`` and ``x/a.npy.h5``; a folder's whole name."""
    path = Path(path)
    ending = suffix(path)
    if ending not in KNOWN_SUFFIXES or path.is_dir():
        return path.name
    name = path.name[: -len(ending)]
    return name[:-4] if ending in HDF5_SUFFIXES and name.lower().endswith(".npy") else name


def is_image(path: str | Path) -> bool:
    """Whether ``path`` is a file that ``read_image`` takes by its suffix, or a DICOM file without one."""
    path = Path(path)
    if suffix(path) in KNOWN_SUFFIXES:
        return not path.is_dir()
    return is_dicom(path)


def is_dicom(path: Path) -> bool:
    """Whether the file carries the DICOM mark, whatever its name."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_images(folder: str | Path) -> list[Path]:
    """All images below ``folder``, sorted; hidden files and folders are skipped.

    A folder whose DICOM files form series of several files is one image: the folder is listed, not its files
    (``read_image`` says what to do when it holds more than one series).

    Raises InputError where the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "a folder of images", "Check the path")
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(root) / name for name in names if not name.startswith(".")]
        found += [f for f in files if suffix(f) in KNOWN_SUFFIXES and suffix(f) not in DICOM_SUFFIXES]
        dicoms = [f for f in files if suffix(f) not in KNOWN_SUFFIXES or suffix(f) in DICOM_SUFFIXES]
        found += [f for f in dicoms if suffix(f) in DICOM_SUFFIXES and not is_dicom(f)]  # damaged: reading says so
        found += _dicom_images(Path(root), [f for f in dicoms if is_dicom(f)])
    if not found:
        pickles = sorted(p for p in folder.rglob("*") if suffix(p) in PICKLE_SUFFIXES)
        if pickles:
            raise pickle_error(pickles[0])
        raise InputError(
            f"{folder} holds no image",
            "files ending in " + ", ".join(KNOWN_SUFFIXES),
            "Check the path and the suffixes",
        )
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}", "a readable folder", "Check its rights")


def _dicom_images(folder: Path, files: list[Path]) -> list[Path]:
    if not files:
        return []
    from samsans.io.dicom import group_series

    try:
        series = [s.files for s in group_series(files)]
    except InputError:  # one damaged file must not hide the other images: reading the folder says which it is
        return [folder]
    return [folder] if any(len(s) > 1 for s in series) else [s[0] for s in series]


def output_suffix(path: str | Path) -> str:
    """The suffix that a label map of this input gets.

    ``.png`` for 2D images; a volume keeps its own format, except that formats of two files are written as one
    (``.nhdr`` as ``.nrrd``, ``.mhd`` as ``.mha``), DICOM, and HDF5 and ``.npz`` of several slices become ``.nii.gz``,
    and a TIFF of several slices stays TIFF.
    """
    path = Path(path)
    ending = suffix(path)
    if path.is_dir() or ending in DICOM_SUFFIXES or (ending not in KNOWN_SUFFIXES and is_dicom(path)):
        return ".nii.gz"
    if ending in TIFF_SUFFIXES:
        from samsans.io.tiff import is_stack

        return ".tif" if is_stack(path) else ".png"
    if ending in PACKED_SUFFIXES:
        from samsans.io import packed

        return ".nii.gz" if packed.is_stack(path) else ".png"
    if ending in IMAGE_SUFFIXES:
        return ".png"
    if ending in VOLUME_SUFFIXES:
        return {".nhdr": ".nrrd", ".mhd": ".mha"}.get(ending, ending)
    raise unknown_suffix(path, KNOWN_SUFFIXES)


def pickle_error(path: Path) -> InputError:
    """The error for a pickle where images are asked for: it may run anything, so that it is converted first."""
    return InputError(
        f"{path} is a pickle, which is a program and no image format",
        "images and masks in files",
        f"The crops of LIDC-IDRI become files by `samsans convert {shlex.quote(str(path))} -o FOLDER`",
    )


def unknown_suffix(path: Path, known: tuple[str, ...]) -> InputError:
    """The error for a file whose suffix states no format that can be used here."""
    if suffix(path) in PICKLE_SUFFIXES:
        return pickle_error(path)
    found = f"{path} ends in {suffix(path)}" if suffix(path) else f"{path} has no suffix"
    return InputError(found, "one of " + ", ".join(known), "Rename or convert the file")


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes of the file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
