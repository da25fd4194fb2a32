"""DICOM series: order and grid from geometry, values in physical units, clear refusals; SimpleITK is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from samsans.errors import InputError
from samsans.io import find_images, is_image, output_suffix, read_image, read_labels, stem, write_labels

RNG = np.random.default_rng(2)
AXIAL = [1, 0, 0, 0, 1, 0]
OBLIQUE = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def dicom(path: Path, pixels: np.ndarray, series: str, **tags: Any) -> Path:
    """Write one DICOM file; ``tags`` set or (None) leave out attributes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), series
    ds.Modality, ds.SeriesDescription = "CT", "thorax"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(pixels.dtype == np.int16)
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.75], 3
    ds.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, values: np.ndarray, plane: list[float], step: list[float], shuffle: bool = True, **tags: Any
) -> str:
    """A series of ``(D, H, W)`` values whose files are in no helpful order; returns its UID."""
    uid = generate_uid()
    names = RNG.permutation(len(values)) if shuffle else range(len(values))
    for index, name in enumerate(names):
        position = [float(10 * (axis + 1) + index * step[axis]) for axis in range(3)]
        where = {"ImagePositionPatient": position, "ImageOrientationPatient": plane, "InstanceNumber": int(name) + 1}
        dicom(folder / f"{name:03d}.dcm", values[index], uid, **(where | tags))
    return uid


@pytest.mark.parametrize(
    ("plane", "step"),
    [(AXIAL, [0, 0, 2.5]), (OBLIQUE, [-1.2, 1.6, 0]), (AXIAL, [0, 0.4, 2.0])],
    ids=["axial", "oblique", "gantry tilt"],
)
def test_slices_are_ordered_by_geometry(tmp_path: Path, plane: list[float], step: list[float]) -> None:
    values = RNG.integers(0, 1000, (5, 4, 6), dtype=np.int16)
    normal = np.cross(plane[:3], plane[3:])
    if np.dot(step, normal) < 0:
        values, step = values[::-1], [-s for s in step]
    write_series(tmp_path / "s", values, plane, step)
    volume = read_image(tmp_path / "s")
    np.testing.assert_array_equal(volume.array[..., 0], values)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = np.multiply(plane[:3], 0.75), np.multiply(plane[3:], 0.5), step
    affine[:3, 3] = 10, 20, 30
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine, LPS @ affine, atol=1e-12)


def test_the_order_and_grid_are_those_of_simpleitk(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (5, 4, 6), dtype=np.int16)
    write_series(tmp_path / "s", values, OBLIQUE, [-1.2, 1.6, 0.0], RescaleSlope=1, RescaleIntercept=-1024)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    volume = read_image(tmp_path / "s")
    steps = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, image.GetOrigin()
    np.testing.assert_array_equal(volume.array[..., 0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.affine, LPS @ affine, atol=1e-9)


def test_labels_of_a_series_become_nifti_on_its_grid(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.int16)
    write_series(tmp_path / "study 1.2", values, AXIAL, [0, 0, 2.5])
    folder = tmp_path / "study 1.2"
    assert output_suffix(folder) == ".nii.gz"
    assert stem(folder) == "study 1.2"
    volume = read_image(folder)
    for ending in ("nii.gz", "nrrd"):
        labels = read_labels(write_labels(tmp_path / f"a.{ending}", values > 500, volume))
        np.testing.assert_array_equal(labels.array, values > 500)
        np.testing.assert_allclose(labels.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("tags", "expected", "dtype"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, [-1024, -1023, 3071], "int32"),
        (
            {"RescaleSlope": 2, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11},
            [-1024, -1022, 7166],
            "int16",
        ),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 1}, [1, 1.5, 2048.5], "float32"),
        ({}, [0, 1, 4095], "uint16"),
        ({"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}, [4095, 4094, 0], "uint16"),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 1, "RescaleIntercept": -1024},
            [-1024, -1023, 3071],
            "int32",
        ),
    ],
)
def test_values_are_rescaled(tmp_path: Path, tags: dict[str, Any], expected: list[float], dtype: str) -> None:
    path = dicom(tmp_path / "a.dcm", np.array([[0, 1, 4095]], np.uint16), generate_uid(), **tags)
    array = read_image(path).array
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.ravel(), expected)


def test_signed_monochrome1(tmp_path: Path) -> None:
    pixels = np.array([[-3, 0, 5]], np.int16)
    path = dicom(tmp_path / "a.dcm", pixels, generate_uid(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path).array.ravel(), [2, -1, -6])


def test_a_radiograph_has_spacing_but_is_not_turned(tmp_path: Path) -> None:
    from samsans.io import Orientation

    path = dicom(tmp_path / "IM0001", RNG.integers(0, 9, (4, 6)).astype(np.uint16), generate_uid())
    assert is_image(path)
    volume = read_image(path)
    assert volume.spacing == (3, 0.5, 0.75)
    np.testing.assert_array_equal(Orientation.of(volume).to_slices(volume.array), volume.array)
    assert output_suffix(path) == ".nii.gz"


def test_colour_and_cine_files(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelSpacing": None}
    path = dicom(
        tmp_path / "rgb.dcm",
        rgb[..., 0],
        generate_uid(),
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
        PixelData=rgb.tobytes(),
        **eight,
    )
    np.testing.assert_array_equal(read_image(path).array[0], rgb)
    assert read_image(path).affine is None
    cine = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
    path = dicom(tmp_path / "cine.dcm", cine, generate_uid(), NumberOfFrames=5, **eight)
    np.testing.assert_array_equal(read_image(path).array[..., 0], cine)


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.uint16)

    def item(**tags: Any) -> Dataset:
        ds = Dataset()
        for name, value in tags.items():
            setattr(ds, name, value)
        return ds

    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=2)],
    )
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 30 - 4 * k])],
            PixelValueTransformationSequence=[item(RescaleSlope=k + 1, RescaleIntercept=0)],
        )
        for k in range(3)
    ]
    path = dicom(
        tmp_path / "a.dcm",
        values,
        generate_uid(),
        SOPClassUID=EnhancedMRImageStorage,
        NumberOfFrames=3,
        PixelSpacing=None,
        SliceThickness=None,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array[..., 0], [values[2] * 3, values[1] * 2, values[0]])
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [-1, -2, 22, 1])
    assert volume.spacing == (4, 0.5, 0.75)


def test_several_series_are_listed_and_can_be_chosen(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.int16)
    first = write_series(tmp_path, values, AXIAL, [0, 0, 1])
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name("a" + path.name))
    second = write_series(tmp_path, values + 1, AXIAL, [0, 0, 1], SeriesDescription="lung")
    with pytest.raises(InputError, match="holds 2 series") as error:
        read_image(tmp_path)
    for part in (first, second, "CT thorax, 3 files", "CT lung, 3 files", "folder of its own", "series="):
        assert part in str(error.value)
    np.testing.assert_array_equal(read_image(tmp_path, series=second).array[..., 0], values + 1)
    np.testing.assert_array_equal(read_image(tmp_path, series=first[-12:]).array[..., 0], values)
    with pytest.raises(InputError, match="no series to choose"):
        read_image(tmp_path / "000.dcm", series=first)


def test_uneven_repeated_and_mixed_slices_are_refused(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (5, 4, 6), dtype=np.int16)
    write_series(tmp_path / "gap", values, AXIAL, [0, 0, 2], shuffle=False)
    (tmp_path / "gap" / "002.dcm").unlink()
    with pytest.raises(InputError, match=r"mostly 2 mm apart, but 4 mm between 001\.dcm and 003\.dcm"):
        read_image(tmp_path / "gap")
    write_series(tmp_path / "time", values, AXIAL, [0, 0, 0])
    with pytest.raises(InputError, match="4 slices at the place of another"):
        read_image(tmp_path / "time")
    uid = write_series(tmp_path / "size", values, AXIAL, [0, 0, 2])
    dicom(tmp_path / "size" / "scout.dcm", values[0, :2], uid)
    with pytest.raises(InputError, match="several sizes"):
        read_image(tmp_path / "size")
    uid = write_series(tmp_path / "plane", values, AXIAL, [0, 0, 2])
    dicom(
        tmp_path / "plane" / "zz.dcm", values[0], uid, ImageOrientationPatient=OBLIQUE, ImagePositionPatient=[0, 0, 9]
    )
    with pytest.raises(InputError, match=r"several planes or pixel sizes.*zz\.dcm"):
        read_image(tmp_path / "plane")
    uid = write_series(tmp_path / "place", values, AXIAL, [0, 0, 2], ImagePositionPatient=None)
    with pytest.raises(InputError, match="without positions"):
        read_image(tmp_path / "place")


def test_unknown_compression_says_what_to_install(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", np.zeros((4, 6), np.uint16), generate_uid())
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    ds["PixelData"].VR = "OB"
    ds.save_as(path)
    with pytest.raises(InputError, match=r"JPEG-LS.*pylibjpeg"):
        read_image(path)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", np.zeros((40, 60), np.uint16), generate_uid())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"a\.dcm cannot be read"):
        read_image(path)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"a\.dcm cannot be read"):
        read_image(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no DICOM image"):
        read_image(tmp_path / "empty")


def test_objects_that_are_no_images_are_left_out_of_a_series(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.int16)
    write_series(tmp_path / "a", values, AXIAL, [0, 0, 2])
    report = dicom(tmp_path / "a" / "report.dcm", values[0], generate_uid(), SOPClassUID=BasicTextSRStorage)
    ds = pydicom.dcmread(report)
    del ds.Rows, ds.Columns, ds.PixelData
    ds.save_as(report)
    np.testing.assert_array_equal(read_image(tmp_path / "a").array[..., 0], values)
    with pytest.raises(InputError, match=r"report\.dcm is a Basic Text SR Storage, not an image"):
        read_image(report)


def test_find_images_lists_a_series_as_its_folder(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.int16)
    write_series(tmp_path / "b", values, AXIAL, [0, 0, 2])
    for name in ("x1", "x2"):  # radiographs: one file a series, no suffix
        dicom(tmp_path / "a" / name, values[0], generate_uid())
    (tmp_path / "b" / "LICENSE").write_text("text")
    assert find_images(tmp_path) == [tmp_path / "a" / "x1", tmp_path / "a" / "x2", tmp_path / "b"]


def test_damaged_dicom_files_are_listed_and_named_when_read(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (3, 4, 6), dtype=np.int16)
    write_series(tmp_path / "a", values, AXIAL, [0, 0, 2])
    write_series(tmp_path / "b", values, AXIAL, [0, 0, 2])
    (tmp_path / "b" / "000.dcm").write_bytes((tmp_path / "b" / "000.dcm").read_bytes()[:200])
    (tmp_path / "c.dcm").write_bytes(b"")
    assert find_images(tmp_path) == [tmp_path / "a", tmp_path / "b", tmp_path / "c.dcm"]
    with pytest.raises(InputError, match=r"000\.dcm"):
        read_image(tmp_path / "b")
    with pytest.raises(InputError, match=r"c\.dcm cannot be read"):
        read_image(tmp_path / "c.dcm")
