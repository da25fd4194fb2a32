"""A volume may be stored with any axes and any tilt: the label map is the same in the patient."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from samsans import config as configuration
from samsans import methods
from samsans.inference import Segmenter
from samsans.types import ClassInfo

CLASSES = tuple(ClassInfo(name, label, (label,)) for label, name in enumerate(("liver", "spleen", "aorta"), 1))
ALL_48 = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
HEADER = ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d")


def segmenter(method: str, slice_axis: str) -> Segmenter:
    """A method with random weights on two blocks of 64 x 64 pixels."""
    values = {"backbone.name": "tiny", "backbone.input_size": 64, "backbone.via": None, "data.slice_axis": slice_axis}
    config = configuration.from_dict(values, method=method, preset="paper")
    return Segmenter(methods.build(config, [c.name for c in CLASSES]), config, CLASSES, device="cpu")


def volume(path: Path, tilt: tuple[float, float]) -> nibabel.Nifti1Image:
    """A volume ``(i, j, k)`` of thick slices along k; ``tilt`` degrees about x and y."""
    rng = np.random.default_rng(0)
    i, j, k = np.mgrid[:22, :26, :6]
    smooth = np.sin(i / 4) * np.cos(j / 5 + k / 3) * 400 + rng.normal(0, 40, i.shape)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xy", tilt, degrees=True).as_matrix() @ np.diag([0.9, 1.1, 4.0])
    affine[:3, 3] = [-30.5, 12.25, 7.125]
    image = nibabel.Nifti1Image(smooth.astype(np.int16), affine)
    nibabel.save(image, path)
    return image


@pytest.mark.parametrize(
    ("method", "slice_axis", "ways"),
    [("hsam", "auto", ALL_48), ("samed", "auto", ALL_48), ("hsam", "coronal", ALL_48[1::7])],
)
def test_all_48_ways_to_store_a_tilted_volume_give_one_label_map(
    tmp_path: Path, method: str, slice_axis: str, ways: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    model = segmenter(method, slice_axis)
    canonical = model.predict(_saved(volume(tmp_path / "canonical.nii", (0, 0)), tmp_path / "canonical.nii"))
    want = canonical.labels.transpose(2, 1, 0)  # (i, j, k)
    counts = np.bincount(want.ravel(), minlength=4)
    assert (counts > 0).sum() >= 2, counts
    source = volume(tmp_path / "tilted.nii", (20, -20))
    to_source = np.linalg.inv(source.affine)
    for axes, signs in ways:
        turned = source.as_reoriented(np.column_stack([axes, signs]))
        path = _saved(turned, tmp_path / "turned.nii")
        model.predict(path, batch_size=6).save(tmp_path / "labels.nii")
        made, given = nibabel.load(tmp_path / "labels.nii"), nibabel.load(path)
        for name in HEADER:
            assert made.header[name].tobytes() == given.header[name].tobytes(), (name, axes, signs)
        index = np.stack(np.indices(made.shape), -1)
        places = nibabel.affines.apply_affine(to_source @ made.affine, index)  # by geometry alone
        assert np.abs(places - places.round()).max() < 1e-3
        i, j, k = np.moveaxis(places.round().astype(int), -1, 0)
        np.testing.assert_array_equal(np.asarray(made.dataobj), want[i, j, k], err_msg=f"{axes} {signs}")


def _saved(image: nibabel.Nifti1Image, path: Path) -> Path:
    nibabel.save(image, path)
    return path
