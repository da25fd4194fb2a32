"""Files of several label maps of one image: names, grid, what comes back, what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from samsans import io
from samsans.errors import InputError
from samsans.io import samples as files
from samsans.types import ClassInfo, Volume


def oblique() -> np.ndarray:
    a, b = np.deg2rad(20), np.deg2rad(-35)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([0.7, -0.8, 3.1])
    affine[:3, 3] = (-40.5, 12.25, 7)
    return affine


def draws(count: int = 5, shape: tuple[int, int, int] = (3, 6, 4)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (count, *shape)).astype(np.int64)


@pytest.fixture
def image(tmp_path: Path) -> Volume:
    """A scan on an oblique grid as a scanner writes it: qform and sform, scaled values."""
    values = np.random.default_rng(1).normal(size=(4, 6, 3)).astype(np.float32)
    scan = nibabel.Nifti1Image(values, oblique())
    scan.header.set_xyzt_units("mm", "sec")
    scan.set_qform(oblique(), 1)
    scan.set_sform(oblique(), 2)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    return io.read_image(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_nifti_holds_samples_on_its_last_axis(tmp_path: Path, image: Volume, ending: str, count: int) -> None:
    samples = draws(count)
    written = files.write_beside(tmp_path / f"case{ending}", samples, image)
    assert written == (tmp_path / "case_samples.nii.gz",)
    raw = nibabel.load(written[0])
    assert raw.get_data_dtype() == np.uint8
    assert raw.shape == (4, 6, 3, count) or count == 1
    assert np.array_equal(np.asarray(raw.dataobj).reshape(4, 6, 3, count).transpose(3, 2, 1, 0), samples)
    assert np.array_equal(raw.affine, image.affine)
    source = nibabel.load(image.path)
    for form in ("get_sform", "get_qform"):
        assert np.array_equal(getattr(raw.header, form)(coded=True)[0], getattr(source.header, form)(coded=True)[0])
        assert getattr(raw.header, form)(coded=True)[1] == getattr(source.header, form)(coded=True)[1]
    back = io.read_samples(tmp_path / f"case{ending}", count)
    assert back.array.dtype == np.uint8
    assert np.array_equal(back.array, samples)
    assert back.affine is not None
    assert np.array_equal(back.affine, image.affine)


def test_oblique_grid_without_a_header(tmp_path: Path) -> None:
    samples = draws()
    like = Volume(samples[0], oblique())
    io.write_samples(tmp_path / "a_samples.nii.gz", samples, like)
    back = io.read_samples(tmp_path / "a.nii.gz", 5)
    assert np.array_equal(back.array, samples)
    assert back.affine is not None
    assert np.allclose(back.affine, oblique(), atol=1e-6)


@pytest.mark.parametrize("ending", [".png", ".tif", ".nrrd", ".mha"])
def test_other_formats_hold_one_sample_a_file(tmp_path: Path, ending: str) -> None:
    if ending == ".mha":
        pytest.importorskip("SimpleITK")
    samples = draws(3, (1, 6, 4) if ending == ".png" else (3, 6, 4))
    written = files.write_beside(tmp_path / f"site.1{ending}", samples)
    assert [p.name for p in written] == [f"site.1_sample{k:02d}{ending}" for k in range(3)]
    assert np.array_equal(io.read_samples(tmp_path / f"site.1{ending}", 3).array, samples)
    with pytest.raises(InputError, match="sample02"):
        io.read_samples(tmp_path / f"site.1{ending}", 2)
    with pytest.raises(InputError, match="sample03"):
        io.read_samples(tmp_path / f"site.1{ending}", 4)


def test_names() -> None:
    assert files.sample_files("a/b.png", 101)[-1] == Path("a/b_sample100.png")
    assert files.sampled_case("a/b_sample00") == files.sampled_case("a/b_samples") == "a/b"
    assert files.sampled_case("a/b_sample1") is None
    assert files.sampled_case("_samples") is None
    assert files.map_file("probabilities", "site/b.nii.gz", "left lung") == Path(
        "probabilities/site/b_left_lung.nii.gz"
    )


@pytest.mark.parametrize("output", ["site/b.nii.gz", "b.nii", "a.b.png", "c.tif"])
def test_prediction_names_its_files_so(output: str) -> None:
    from samsans.inference.outputs import files_beside

    parts = [*files.sample_files(output, 3)]
    parts += [files.map_file(folder, output, "left lung") for folder in ("probabilities", "entropy")]
    named = files_beside(output, (ClassInfo("left lung", 1, (1,)),), False, 3)
    assert [Path(name) for name in named] == parts


def test_refused(tmp_path: Path, image: Volume) -> None:
    with pytest.raises(InputError, match="one file a sample"):
        io.write_samples(tmp_path / "a.png", draws(), None)
    with pytest.raises(InputError, match="grid"):
        io.write_samples(tmp_path / "a.nii.gz", draws(5, (3, 6, 5)), image)
    with pytest.raises(InputError, match="integers"):
        io.write_samples(tmp_path / "a.nii.gz", draws().astype(np.float32), image)
    with pytest.raises(InputError, match="does not exist"):
        io.read_samples(tmp_path / "b.nii.gz", 5)
    files.write_beside(tmp_path / "a.nii.gz", draws(), image)
    with pytest.raises(InputError, match="holds 5 maps"):
        io.read_samples(tmp_path / "a.nii.gz", 4)
    assert not (tmp_path / "a.png").exists()
