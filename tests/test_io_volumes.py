"""NIfTI, NRRD and MetaImage: values, grids and headers survive; SimpleITK is the oracle."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from samsans.errors import InputError
from samsans.io import read_image, read_labels, write_image, write_labels
from samsans.types import Volume

ENDINGS = ["nii", "nii.gz", "nrrd", "mha"]
DTYPES = [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RNG = np.random.default_rng(1)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Oblique grids of any handedness; float32 numbers, which NIfTI holds exactly."""
    angles = draw(st.tuples(*[st.floats(-180, 180, width=32)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.25, 8, width=32)] * 3))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * signs
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500, width=32)] * 3))
    return affine.astype(np.float32).astype(np.float64)


def oracle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array ``(z, y, x[, c])`` and RAS affine as SimpleITK reads them."""
    image = sitk.ReadImage(str(path))
    steps = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, image.GetOrigin()
    return sitk.GetArrayFromImage(image), LPS @ affine


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=25, deadline=None)
@given(
    affine=affines(),
    values=st.sampled_from(DTYPES).flatmap(
        lambda t: hnp.arrays(t, (2, 3, 4), elements={"min_value": 0, "max_value": 200})
    ),
)
def test_round_trip_and_oracle(
    tmp_path_factory: pytest.TempPathFactory, ending: str, affine: np.ndarray, values: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("v") / f"a.{ending}"
    volume = read_image(write_image(path, values, Volume(values[..., None], affine)))
    assert volume.array.dtype == values.dtype
    np.testing.assert_array_equal(volume.array[..., 0], values)
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-12)
    array, itk_affine = oracle(path)
    np.testing.assert_array_equal(array, values)
    np.testing.assert_allclose(volume.affine, itk_affine, rtol=0, atol=2e-3)  # ITK makes NIfTI directions orthonormal

    again = write_labels(path.with_name(f"b.{ending}"), values.astype(int), volume)
    labels = read_labels(again)
    np.testing.assert_array_equal(labels.array, values.astype(int))
    np.testing.assert_array_equal(labels.affine, volume.affine)  # bit for bit


@pytest.mark.parametrize("source", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("target", ["nii.gz", "nrrd", "mha"])
@settings(max_examples=8, deadline=None)
@given(affine=affines())
def test_converting_keeps_the_physical_grid(
    tmp_path_factory: pytest.TempPathFactory, source: str, target: str, affine: np.ndarray
) -> None:
    folder = tmp_path_factory.mktemp("c")
    values = RNG.integers(0, 5, (2, 3, 4))
    image = read_image(write_image(folder / f"a.{source}", values, Volume(values[..., None], affine)))
    labels = read_labels(write_labels(folder / f"b.{target}", values, image))
    np.testing.assert_array_equal(labels.array, values)
    np.testing.assert_allclose(labels.affine, affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_channels_are_last_and_come_back(tmp_path: Path, ending: str) -> None:
    values = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume = read_image(write_image(tmp_path / f"a.{ending}", values, Volume(values, affine)))
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_array_equal(volume.affine, affine)
    labels = read_labels(write_labels(tmp_path / f"b.{ending}", values[..., 0] > 0, volume))
    np.testing.assert_array_equal(labels.array, values[..., 0] > 0)
    np.testing.assert_array_equal(labels.affine, affine)
    with pytest.raises(InputError, match="5 channels"):
        read_labels(tmp_path / f"a.{ending}")


def nifti(path: Path, values: np.ndarray, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int]) -> Path:
    image = nibabel.Nifti1Image(values, None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (2, 1), (4, 4)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_labels_keep_the_header_of_the_grid(tmp_path: Path, codes: tuple[int, int], kind: type) -> None:
    affine = np.array([[0, 0, 2.5, -3], [-1, 0, 0, 4], [0, 0.7, 0, 5], [0, 0, 0, 1]])
    image = kind(RNG.normal(size=(4, 3, 2, 2)).astype(np.float32), None)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"], image.header["descrip"] = 900, b"scanner"
    image.header.set_intent("estimate")
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    written = nibabel.load(write_labels(tmp_path / "b.nii.gz", volume.array[..., 0] > 0, volume))
    before, after = nibabel.load(tmp_path / "a.nii.gz").header, written.header
    assert type(written) is kind
    geometry = ["sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"]
    for field in [*geometry, "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "descrip"]:
        np.testing.assert_array_equal(before[field], after[field], err_msg=field)
    np.testing.assert_array_equal(before["pixdim"][:4], after["pixdim"][:4])
    assert after.get_data_shape() == (4, 3, 2)
    assert after.get_data_dtype() == np.uint8
    assert (float(after["cal_max"]), int(after["intent_code"])) == (0, 0)
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert volume.header["cal_max"] == 900  # the source's header is left alone


def test_scaled_nifti_is_read_scaled_and_labels_are_not_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_image(tmp_path / "a.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array[..., 0].T, nibabel.load(tmp_path / "a.nii").get_fdata())
    labels = np.full(volume.shape, 7)
    np.testing.assert_array_equal(read_labels(write_labels(tmp_path / "b.nii", labels, volume)).array, labels)


def test_forms_that_disagree_warn_with_both(tmp_path: Path) -> None:
    values = np.zeros((4, 3, 2), np.uint8)
    path = nifti(tmp_path / "a.nii", values, np.eye(4), np.diag([1.0, 1.0, 2.0, 1.0]), (1, 1))
    with pytest.warns(UserWarning, match=r"a\.nii: sform and qform differ by up to 1 mm.*sform \[\[.*qform \[\["):
        np.testing.assert_array_equal(read_image(path).affine, np.eye(4))
    path = nifti(tmp_path / "b.nii", values, np.eye(4), np.diag([1.0, 1.0, 2.0, 1.0]), (1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)


def test_rgb_2d_and_vector_nifti(tmp_path: Path) -> None:
    rgb = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = 9
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.nii").array[1, 2, 3], [0, 9, 0])
    flat = RNG.integers(0, 9, (4, 3), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(flat, np.eye(4)), tmp_path / "flat.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "flat.nii").array[0, :, :, 0], flat.T)
    vector = RNG.integers(0, 9, (4, 3, 2, 1, 3), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(vector, np.eye(4)), tmp_path / "vector.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "vector.nii").array[1, 2, 3], vector[3, 2, 1, 0])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 2, 3), np.int16), np.eye(4)), tmp_path / "five.nii")
    with pytest.raises(InputError, match="at most one of channels"):
        read_image(tmp_path / "five.nii")


@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "left-anterior-superior"])
def test_nrrd_spaces(tmp_path: Path, space: str) -> None:
    header = {
        "space": space,
        "space directions": [[0, 2.0, 0], [1.0, 0, 0], [0, 0, 3.0]],
        "space origin": [10, 20, 30],
        "kinds": ["domain"] * 3,
        "space units": ["mm"] * 3,
        "Segment0_Name": "liver",
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((4, 3, 2), np.int16), header)
    volume = read_image(tmp_path / "a.nrrd")
    signs = {"left-posterior-superior": (-1, -1, 1), "RAS": (1, 1, 1), "left-anterior-superior": (-1, 1, 1)}[space]
    assert volume.affine is not None
    np.testing.assert_array_equal(volume.affine @ [1, 0, 0, 1], [10 * signs[0], 22 * signs[1], 30, 1])
    np.testing.assert_allclose(volume.affine, oracle(tmp_path / "a.nrrd")[1])
    assert volume.spacing == (3, 1, 2)
    kept = nrrd.read_header(str(write_labels(tmp_path / "b.nrrd", np.zeros(volume.shape, int), volume)))
    for field in ("space", "space directions", "space origin", "kinds", "space units"):
        np.testing.assert_array_equal(kept[field], volume.header[field], err_msg=field)
    assert "Segment0_Name" not in kept


def test_nrrd_channels_first_detached_and_without_geometry(tmp_path: Path) -> None:
    values = RNG.integers(0, 9, (5, 4, 3, 2), dtype=np.int16)
    header = {
        "space": "left-posterior-superior",
        "space directions": [[np.nan] * 3, [2.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]],
        "space origin": [0, 0, 0],
        "kinds": ["vector", "domain", "domain", "domain"],
    }
    nrrd.write(str(tmp_path / "a.nhdr"), values, header)
    volume = read_image(tmp_path / "a.nhdr")
    np.testing.assert_array_equal(volume.array, values.transpose(3, 2, 1, 0))
    assert volume.spacing == (3, 2, 2)
    copy = write_image(tmp_path / "b.nrrd", volume.array, volume)
    np.testing.assert_array_equal(nrrd.read(str(copy))[0], values)
    np.testing.assert_array_equal(read_image(copy).affine, volume.affine)
    nrrd.write(str(tmp_path / "c.nrrd"), values[0])
    assert read_image(tmp_path / "c.nrrd").affine is None
    nrrd.write(str(tmp_path / "d.nrrd"), values[0], {"spacings": [1.0, 2.0, 3.0]})
    assert read_image(tmp_path / "d.nrrd").spacing == (3, 2, 1)


def test_another_grid_than_the_header_wins(tmp_path: Path) -> None:
    values = np.zeros((2, 3, 4), np.uint8)
    for ending in ENDINGS:
        volume = read_image(write_image(tmp_path / f"a.{ending}", values, Volume(values[..., None], np.eye(4))))
        moved = Volume(volume.array, np.diag([1.0, 2.0, 3.0, 1.0]), volume.path, volume.header)
        result = read_labels(write_labels(tmp_path / f"b.{ending}", values, moved))
        np.testing.assert_array_equal(result.affine, moved.affine)


@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_volumes_are_named(tmp_path: Path, ending: str) -> None:
    path = write_image(tmp_path / f"half.{ending}", RNG.normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"half\.{ending} cannot be read"):
        read_image(path)


def test_values_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    values = np.zeros((2, 3, 4), np.float32)
    values[0, 0, :3] = np.nan, np.inf, 0.5
    path = write_image(tmp_path / "a.nii.gz", values)
    with pytest.raises(InputError, match=r"a\.nii\.gz holds 2 NaN or infinite values of 24.*nan_to_num"):
        read_image(path)
    with pytest.raises(InputError, match="2 NaN"):
        read_labels(path)
    with pytest.raises(InputError, match="1 values that are not whole"):
        read_labels(write_image(path, np.nan_to_num(values, posinf=0)))
    whole = read_labels(write_image(path, np.array([[[-1.0, 0.0, 300.0]]])))
    assert whole.array.dtype == np.int16
    np.testing.assert_array_equal(whole.array, [[[-1, 0, 300]]])


def test_flat_grids_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", np.zeros((4, 3, 2), np.uint8), np.diag([1.0, 1.0, 0.0, 1.0]), np.eye(4), (1, 0))
    with pytest.raises(InputError, match="voxels have no volume"):
        read_image(path)


def test_shape_mismatch_names_both(tmp_path: Path) -> None:
    like = Volume(np.zeros((2, 3, 4, 1)), np.eye(4), Path("scan.nii.gz"))
    with pytest.raises(InputError, match=r"\(2, 4, 3\).*\(2, 3, 4\) of scan\.nii\.gz"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 4, 3), int), like)
    assert list(tmp_path.iterdir()) == []


def test_label_dtypes_are_small(tmp_path: Path) -> None:
    for value, dtype in ((1, "uint8"), (256, "uint16"), (70000, "uint32"), (-1, "int16"), (-40000, "int32")):
        labels = np.full((1, 2, 3), value, np.int64)
        assert read_labels(write_labels(tmp_path / "a.nii.gz", labels)).array.dtype == dtype
    with pytest.raises(InputError, match="Renumber"):
        write_labels(tmp_path / "a.nii.gz", np.full((1, 2, 3), 2**40))


def test_float16_maps_are_stored_as_float32(tmp_path: Path) -> None:
    maps = RNG.random((2, 3, 4, 2)).astype(np.float16)
    for ending in ENDINGS:
        result = read_image(write_image(tmp_path / f"a.{ending}", maps)).array
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, maps)


def test_missing_simpleitk_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r'pip install "samsans\[itk\]"'):
        read_image(tmp_path / "a.mha")
