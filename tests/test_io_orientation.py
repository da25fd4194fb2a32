"""Canonical slices: the same picture however the volume is stored, and the exact way back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from samsans.errors import InputError
from samsans.io import Orientation
from samsans.types import Volume

ALL_48 = list(itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3)))


def marked(shape: tuple[int, int, int] = (3, 4, 5), spacing: tuple[float, float, float] = (1.0, 1.1, 1.2)) -> Volume:
    """A RAS volume, array axes (S, A, R), every voxel different, with two channels."""
    array = np.arange(2 * np.prod(shape)).reshape(*shape, 2)
    return Volume(array, np.diag([*spacing[::-1], 1.0]))


def stored(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same volume in space, its array axes permuted, then flipped."""
    assert volume.affine is not None
    array = volume.array.transpose(*axes, 3)
    steps, origin = volume.affine[:3, 2::-1][:, list(axes)], volume.affine[:3, 3]  # columns in array axis order
    for axis in range(3):
        if flips[axis]:
            array = np.flip(array, axis)
            origin = origin + steps[:, axis] * (array.shape[axis] - 1)
            steps = steps * np.where(np.arange(3) == axis, -1, 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps[:, ::-1], origin
    return Volume(array, affine)


@pytest.mark.parametrize(("axes", "flips"), ALL_48)
@pytest.mark.parametrize("spacing", [(1.0, 1.1, 1.2), (1.0, 4.0, 1.2), (1.0, 1.0, 4.0)])
def test_all_48_orientations_give_the_same_slices_and_come_back(
    axes: tuple[int, ...], flips: tuple[bool, ...], spacing: tuple[float, float, float]
) -> None:
    volume = marked(spacing=spacing)
    reference, turned = Orientation.of(volume), stored(volume, axes, flips)
    orientation = Orientation.of(turned)
    np.testing.assert_array_equal(orientation.to_slices(turned.array), reference.to_slices(volume.array))
    assert orientation.spacing == pytest.approx(reference.spacing)
    assert orientation.plane == reference.plane
    np.testing.assert_array_equal(orientation.from_slices(orientation.to_slices(turned.array)), turned.array)
    labels = turned.array[..., 0]
    np.testing.assert_array_equal(orientation.from_slices(orientation.to_slices(labels)), labels)


@settings(max_examples=60, deadline=None)
@given(
    tilt=st.tuples(*[st.floats(-20, 20)] * 3),
    which=st.sampled_from(ALL_48),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
)
def test_oblique_grids_behave_the_same(
    tilt: tuple[float, ...], which: tuple[tuple[int, ...], tuple[bool, ...]], spacing: tuple[float, float, float]
) -> None:
    largest, second = sorted(spacing)[:0:-1]
    if abs(largest / second - 1.5) < 1e-6:
        return  # on the threshold itself, rounding decides
    straight = marked(spacing=spacing)
    assert straight.affine is not None
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    volume = Volume(straight.array, turn @ straight.affine)
    turned = stored(volume, *which)
    expected = Orientation.of(straight).to_slices(straight.array)
    orientation = Orientation.of(turned)
    np.testing.assert_array_equal(orientation.to_slices(turned.array), expected)
    np.testing.assert_array_equal(orientation.from_slices(expected), turned.array)


def picture(orientation: Orientation, volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RAS direction in which the slice, row and column index of the canonical array grow."""
    assert volume.affine is not None
    points = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), axis=-1)[..., ::-1]
    world = orientation.to_slices(points @ volume.affine[:3, :3].T)
    return tuple(np.round(world[i] - world[0, 0, 0], 6) for i in [(1, 0, 0), (0, 1, 0), (0, 0, 1)])  # type: ignore


@pytest.mark.parametrize(
    ("slice_axis", "plane", "slices", "rows", "columns"),
    [
        (0, "axial", (0, 0, 1), (0, -1, 0), (-1, 0, 0)),  # up = anterior, left = right
        (1, "coronal", (0, -1, 0), (0, 0, -1), (-1, 0, 0)),  # up = superior, left = right
        (2, "sagittal", (1, 0, 0), (0, 0, -1), (0, -1, 0)),  # up = superior, left = anterior
    ],
)
def test_radiological_convention(
    slice_axis: int, plane: str, slices: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    volume = marked(spacing=(1, 1, 1))
    orientation = Orientation.of(volume, slice_axis)
    assert orientation.plane == plane
    found = picture(orientation, volume)
    np.testing.assert_array_equal(found, [slices, rows, columns])
    assert np.dot(np.cross(found[2], found[1]), found[0]) == 1  # right-handed: never a mirrored patient


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("axes", "flips"), ALL_48[::5])
def test_planes_of_the_patient_by_name(plane: str, axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = marked(spacing=(4, 1, 1))
    turned = stored(volume, axes, flips)
    reference, orientation = Orientation.of(volume, plane), Orientation.of(turned, plane)  # type: ignore[arg-type]
    assert reference.axes[0] == ["axial", "coronal", "sagittal"].index(plane)
    assert orientation.plane == reference.plane == plane
    np.testing.assert_array_equal(orientation.to_slices(turned.array), reference.to_slices(volume.array))


def test_axes_as_text_and_planes_without_geometry() -> None:
    volume = marked()
    for axis, text in enumerate(("0", "1", "2")):
        assert Orientation.of(volume, text) == Orientation.of(volume, axis)  # type: ignore[arg-type]
        ungrounded = Volume(volume.array)
        assert Orientation.of(ungrounded, text) == Orientation.of(ungrounded, axis)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"coronal slices.*states no place in the patient.*0, 1, 2 or auto"):
        Orientation.of(Volume(volume.array), "coronal")
    for bad in ("3", "Axial", "oblique"):
        with pytest.raises(InputError, match="auto, axial, coronal, sagittal, 0, 1, 2"):
            Orientation.of(volume, bad)  # type: ignore[arg-type]


def test_auto_chooses_the_slice_axis() -> None:
    assert Orientation.of(marked(spacing=(1, 1, 1))).plane == "axial"
    assert Orientation.of(marked(spacing=(1, 1.4, 1))).plane == "axial"
    assert Orientation.of(marked(spacing=(1, 1.6, 1))).plane == "coronal"
    assert Orientation.of(marked(spacing=(1, 2, 2))).plane == "axial"  # two large: none stands out
    assert Orientation.of(marked(shape=(3, 4, 1), spacing=(6, 1, 1))).plane == "sagittal"  # one slice
    assert Orientation.of(marked(spacing=(1, 1.1, 4))).spacing == (4, 1, 1.1)


def test_images_without_geometry_stay_as_they_are() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert Orientation.of(Volume(array[..., None])).axes == (0, 1, 2)
    np.testing.assert_array_equal(Orientation.of(Volume(array[..., None])).to_slices(array), array)
    coronal = Orientation.of(Volume(array[..., None]), 1)
    np.testing.assert_array_equal(coronal.to_slices(array), array.transpose(1, 0, 2))
    np.testing.assert_array_equal(coronal.from_slices(coronal.to_slices(array)), array)


def test_slices_are_contiguous_and_unknown_axes_refused() -> None:
    volume = marked()
    assert Orientation.of(volume, 2).to_slices(volume.array).flags.c_contiguous
    with pytest.raises(InputError, match="slice_axis is 3"):
        Orientation.of(volume, 3)
