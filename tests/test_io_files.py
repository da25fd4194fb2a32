"""Names, suffixes, folders and hashes; and that importing ``samsans.io`` is light."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samsans.errors import InputError
from samsans.io import (
    IMAGE_SUFFIXES,
    VOLUME_SUFFIXES,
    file_hash,
    find_images,
    is_image,
    output_suffix,
    read_image,
    stem,
    suffix,
    write_image,
    write_labels,
)


@pytest.mark.parametrize(
    ("name", "ending", "base", "output"),
    [
        ("a.nii.gz", ".nii.gz", "a", ".nii.gz"),
        ("a.b.NII.GZ", ".nii.gz", "a.b", ".nii.gz"),
        ("x/a.nii", ".nii", "a", ".nii"),
        ("a.PNG", ".png", "a", ".png"),
        ("a.1.jpg", ".jpg", "a.1", ".png"),
        ("a.nhdr", ".nhdr", "a", ".nrrd"),
        ("a.mhd", ".mhd", "a", ".mha"),
        ("a.dcm", ".dcm", "a", ".nii.gz"),
        ("a.gz", ".gz", "a.gz", None),
        ("1.2.840", ".840", "1.2.840", None),
        ("a", "", "a", None),
    ],
)
def test_names(name: str, ending: str, base: str, output: str | None) -> None:
    assert suffix(name) == ending
    assert stem(name) == base
    assert is_image(name) is (output is not None)
    if output is None:
        with pytest.raises(InputError, match=r"Expected one of \.png"):
            output_suffix(name)
    else:
        assert output_suffix(name) == output


def test_suffix_tables_are_apart() -> None:
    assert not set(IMAGE_SUFFIXES) & set(VOLUME_SUFFIXES)
    assert {".png", ".jpg", ".tif"} <= set(IMAGE_SUFFIXES)
    assert {".nii.gz", ".nrrd", ".dcm", ".mha"} <= set(VOLUME_SUFFIXES)


def test_find_images_is_recursive_sorted_and_skips_hidden(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    wanted = [tmp_path / "a" / "z.png", tmp_path / "b.nii.gz", tmp_path / "c.tif"]
    for path in [*wanted, tmp_path / ".hidden.png", tmp_path / ".cache" / "x.png"]:
        write_image(path, image)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == wanted


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"holds no image.*\.png"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_images(tmp_path / "nowhere")


def test_missing_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(InputError, match=r"a\.xyz ends in \.xyz\. Expected one of \.png"):
        read_image(tmp_path / "a.xyz")
    (tmp_path / "a").write_text("?")
    with pytest.raises(InputError, match="a has no suffix"):
        read_image(tmp_path / "a")
    for name in ("a.jpg", "a.nhdr", "a.dcm", "a"):
        with pytest.raises(InputError, match=r"Expected one of \.png, \.tif"):
            write_labels(tmp_path / name, np.zeros((1, 2, 3), int))


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_importing_io_is_light() -> None:
    heavy = ["torch", "nibabel", "nrrd", "pydicom", "tifffile", "PIL", "SimpleITK", "scipy"]
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import samsans.io; print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
