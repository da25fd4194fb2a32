"""Files that hold an image and its mask: .npz and .h5."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_files import packed
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.errors import InputError
from samsans.io import content_hash, find_images, is_image, output_suffix, read_image, read_labels, stem, write_labels


def arrays(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Values in [0, 1) and labels 0, 1, 2 as float32, as the published files have them."""
    rng = np.random.default_rng(shape)
    return rng.random(shape, np.float32), rng.integers(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("name", ["case0005_slice004.npz", "case0001.npy.h5", "mri.hdf5"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_values_come_back(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    image, label = arrays(*shape)
    path = packed(tmp_path / name, image, label)
    volume, mask = read_image(path), read_labels(path)
    slices = (1, *shape)[-3:]
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, image.reshape(*slices, 1))
    np.testing.assert_array_equal(mask.array, label.reshape(slices))
    assert mask.array.dtype == np.uint8
    assert volume.affine is None
    assert is_image(path)
    assert find_images(tmp_path) == [path]
    assert output_suffix(path) == (".png" if len(shape) == 2 else ".nii.gz")
    written = write_labels(tmp_path / f"out{output_suffix(path)}", mask.array, like=volume)
    np.testing.assert_array_equal(read_labels(written).array, mask.array)


def test_names() -> None:
    names = {"a/case0001.npy.h5": "case0001", "a.h5": "a", "a.NPY.HDF5": "a", "a_slice1.npz": "a_slice1"}
    assert {name: stem(name) for name in names} == names


def test_colour_and_small_dtypes(tmp_path: Path) -> None:
    label = np.ones((4, 6), bool)
    colour = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    path = packed(tmp_path / "a.npz", colour, label)
    np.testing.assert_array_equal(read_image(path).array, colour[None])
    np.testing.assert_array_equal(read_labels(path).array, label[None])
    half = packed(tmp_path / "b.h5", np.full((4, 6), 0.5, np.float16), label.astype(">i4"))
    assert read_image(half).array.dtype == np.float32
    assert read_labels(half).array.dtype.isnative


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_what_is_written_is_planned_from_shapes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    kinds = {(4, 6): (4, 6), (1, 4, 6): (1, 4, 6), (4, 6, 3): (4, 6), (3, 4, 6): (3, 4, 6), (3, 4, 6, 2): (3, 4, 6)}
    for number, (shape, label) in enumerate(kinds.items()):
        path = packed(tmp_path / str(number) / name, np.zeros(shape), np.zeros(label))
        assert output_suffix(path) == (".nii.gz" if label[0] == 3 else ".png")
    with pytest.raises(InputError, match="none is called image"):
        output_suffix(packed(tmp_path / name, np.zeros((4, 6)), np.zeros((4, 6)), names=("picture", "label")))


def test_the_hash_is_of_the_values(tmp_path: Path) -> None:
    image, label = arrays(5, 7)
    hashes = {content_hash(packed(tmp_path / n, image, label)) for n in ("a.npz", "b.h5")}
    assert len(hashes) == 1
    assert content_hash(packed(tmp_path / "c.npz", image + 1, label)) not in hashes


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_other_names_of_arrays_are_named(tmp_path: Path, name: str) -> None:
    image, label = arrays(5, 7)
    path = packed(tmp_path / name, image, label, names=("array", "mask"))
    with pytest.raises(InputError, match=r"holds the arrays array, mask, none is called image"):
        read_image(path)
    with pytest.raises(InputError, match=r"none is called label"):
        read_labels(path)


def test_mistakes_are_named(tmp_path: Path) -> None:
    image, label = arrays(5, 7)
    with pytest.raises(InputError, match=r"\d+ values that are not whole"):
        read_labels(packed(tmp_path / "a.npz", image, label + 0.5))
    with pytest.raises(InputError, match="NaN or infinite"):
        read_image(packed(tmp_path / "b.npz", np.full((2, 2), np.nan), label))
    with pytest.raises(InputError, match=r"has the shape \(3,\)"):
        read_image(packed(tmp_path / "c.h5", np.zeros(3), label))
    with pytest.raises(InputError, match="is of <U1"):
        read_image(packed(tmp_path / "d.npz", np.array([["a"]]), label))
    with pytest.raises(InputError, match="allow_pickle=False"):
        read_image(packed(tmp_path / "e.npz", np.array([{}, None], object), label))
    for name in ("f.npz", "f.h5"):
        (tmp_path / name).write_bytes(b"no arrays")
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            read_image(tmp_path / name)


def test_without_h5py_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.h5", *arrays(5, 7))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r'pip install "samsans\[h5\]"'):
        read_image(path)
    with pytest.raises(InputError, match=r'pip install "samsans\[h5\]"'):
        find_cases(DataConfig(path=str(tmp_path)))


def test_compressed_hdf5(tmp_path: Path) -> None:
    image, label = arrays(3, 5, 7)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")
    np.testing.assert_array_equal(read_image(tmp_path / "a.h5").array[..., 0], image)
