"""The real files: geometry, label values and alignment as their sources state them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from samsans.errors import InputError
from samsans.io import Orientation, find_images, read_image, read_labels, write_labels

VOLUMES = [
    "sct_spinalcord_mri/t1/t1w.nii.gz",
    "sct_spinalcord_mri/t2/t2.nii.gz",
    "totalseg_examples/example_ct.nii.gz",
    "totalseg_examples/example_ct_sm.nii.gz",
    "msd_spleen_crop/ct_scan/sub-spleen2/ct/sub-spleen2_ct.nii.gz",
    "msd_hippocampus/imagesTr/hippocampus_007.nii.gz",
    "pyradiomics_lesions/brain1_image.nrrd",
]


@pytest.mark.parametrize("name", VOLUMES)
def test_values_and_grid_are_those_of_simpleitk_and_labels_keep_the_grid(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    volume = read_image(shared_data / name)
    image = sitk.ReadImage(str(shared_data / name))
    np.testing.assert_array_equal(volume.array[..., 0], sitk.GetArrayFromImage(image))
    assert volume.affine is not None
    for index in [(0, 0, 0), (5, 0, 0), (0, 5, 0), (3, 4, 5)]:
        expected = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=1e-4)
    labels = (volume.array[..., 0] > volume.array.mean()).astype(np.uint8)
    for ending in ("nii.gz", "nrrd", "mha"):
        written = write_labels(tmp_path / f"a.{ending}", labels, volume)
        result = sitk.ReadImage(str(written))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(result), labels)
        np.testing.assert_allclose(result.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(result.GetSpacing(), image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(result.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_array_equal(read_labels(written.with_name("a.nrrd")).shape, volume.shape)


@pytest.mark.parametrize("name", VOLUMES[:-1])
def test_nifti_headers_are_kept_bit_for_bit(shared_data: Path, tmp_path: Path, name: str) -> None:
    volume = read_image(shared_data / name)
    path = write_labels(tmp_path / "a.nii.gz", np.ones(volume.shape, int), volume)
    before, after = nibabel.load(shared_data / name).header, nibabel.load(path).header
    for field in (
        *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"),
        *("qoffset_x", "qoffset_y", "qoffset_z", "pixdim", "xyzt_units", "dim"),
    ):
        assert before[field].tobytes() == after[field].tobytes(), field
    assert after.get_data_dtype() == np.uint8


def test_nrrd_header_is_kept(shared_data: Path, tmp_path: Path) -> None:
    volume = read_image(shared_data / "pyradiomics_lesions/brain1_image.nrrd")
    labels = read_labels(shared_data / "pyradiomics_lesions/brain1_label.nrrd")
    np.testing.assert_array_equal(labels.affine, volume.affine)
    kept = nrrd.read_header(str(write_labels(tmp_path / "a.nrrd", labels.array, volume)))
    for field in ("space", "space directions", "space origin", "kinds", "sizes"):
        np.testing.assert_array_equal(kept[field], volume.header[field], err_msg=field)


def test_an_unshifted_origin_is_taken_as_the_file_states_it(shared_data: Path) -> None:
    whole = read_image(shared_data / "totalseg_examples/example_ct.nii.gz")
    part = read_image(shared_data / "totalseg_examples/example_ct_sm.nii.gz")
    np.testing.assert_array_equal(part.array, whole.array[82:112])
    np.testing.assert_array_equal(part.affine, whole.affine)


def test_dicom_slices_lie_on_their_nrrd_masks(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dcmqi_ct3slice"
    volume = read_image(folder / "ct-3slice")
    assert [path.name for path in volume.header] == ["03.dcm", "02.dcm", "01.dcm"]
    assert folder / "ct-3slice" in find_images(folder)
    for name in ("liver", "spine", "heart"):
        mask = read_labels(folder / f"{name}_seg.nrrd")
        np.testing.assert_allclose(volume.affine, mask.affine, atol=1e-5)
        copy = read_labels(write_labels(tmp_path / "a.nii.gz", mask.array, volume))
        np.testing.assert_allclose(copy.affine, mask.affine, atol=1e-4)
    liver = read_labels(folder / "liver_seg.nrrd").array > 0
    ct = volume.array[..., 0]
    assert 40 < np.median(ct[liver]) < 160  # HU of a liver
    assert ct[liver].std() < ct[::-1][liver].std()  # the other order puts the mask on other tissue
    with pytest.raises(InputError, match="not an image"):
        read_image(folder / "liver.dcm")


@pytest.mark.parametrize("name", ["t1/t1w", "t2/t2"])
def test_both_scans_of_a_patient_give_the_same_view(shared_data: Path, name: str) -> None:
    volume = read_image(shared_data / f"sct_spinalcord_mri/{name}.nii.gz")
    cord = read_labels(shared_data / f"sct_spinalcord_mri/{name}_seg-manual.nii.gz")
    np.testing.assert_array_equal(cord.affine, volume.affine)
    orientation = Orientation.of(volume)
    slices = orientation.to_slices(cord.array)
    assert orientation.plane == "axial"
    assert (slices.sum(axis=(1, 2)) > 0).mean() > 0.9  # the cord runs through the slices
    assert slices.sum(axis=(1, 2)).max() < 200  # and is small in each
    np.testing.assert_array_equal(orientation.from_slices(slices), cord.array)


def test_label_values(shared_data: Path) -> None:
    def values(name: str) -> list[int]:
        return np.unique(read_labels(shared_data / name).array).tolist()

    assert values("chase_db1/Image_01L_1stHO.png") == [0, 1]
    assert values("usgra_nerve_us/masks/0010.png") == [0, 1, 2]
    assert values("msd_hippocampus/labelsTr/hippocampus_007.nii.gz") == [0, 1, 2]
    assert values("sct_spinalcord_mri/t2/t2_seg-manual_labeled.nii.gz") == [0, 2, 3, 4, 5]
    assert values("pyradiomics_lesions/brain1_label.nrrd") == [0, 1]
    assert len(values("lidc_crops4/training/3/label0_.jpg")) > 2  # JPEG noise: the data set decides the threshold
