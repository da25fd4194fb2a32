"""Methods that see volumes, from array or file to the label map on its grid: against whole-volume oracles."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from level_method import LEVELS, ORGANS, Levels, Prompted, segmenter
from samsans import cli
from samsans import config as configuration
from samsans.data.grids import Grid
from samsans.errors import InputError
from samsans.inference.volumes import native_slices
from samsans.types import ClassInfo, Volume
from threshold_method import segmenter as slice_segmenter
from volume_method import volume_set

DISC_CUP = (ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,)))


def blobs(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Smooth intensities between 0 and 1 with pieces of each organ, ``(D, H, W)`` float32."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    waves = [np.sin(k * np.pi * (a + rng.random())) for k, a in zip((2, 3, 4), (z, y, x), strict=True)]
    return ((sum(waves) + 3) / 6).astype(np.float32)


def nearest(image: np.ndarray) -> np.ndarray:
    return np.abs(image[..., None] - np.array(LEVELS)).argmin(-1)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (2, 1, 1)) -> Volume:
    z, y, x = spacing
    return Volume(array[..., None], np.diag([x, y, z, 1.0]))


@pytest.mark.parametrize("shape", [(7, 11, 9), (2, 11, 5), (1, 4, 4)])
def test_voxels_are_what_is_nearest(shape: tuple[int, int, int]) -> None:
    image = blobs(shape)
    model = segmenter()
    made = model.predict(volume(image))
    np.testing.assert_array_equal(made.labels, nearest(image))
    assert made.labels.dtype == np.uint8
    assert {batch.images.shape[1:] for batch in model.method.seen} == {(1, 3, 8, 8)}
    assert model.method.seen[0].ids[0] == "image"
    assert model.method.seen[0].objects == ("liver", "spleen")
    assert {"read", "model", "restore"} <= made.seconds.keys()


def test_pictures_are_volumes_of_one_slice() -> None:
    image = blobs((1, 12, 10))[0]
    made = segmenter(spacing=(1, 1, 1)).predict(image)
    assert made.labels.shape == (1, 12, 10)
    np.testing.assert_array_equal(made.labels[0], nearest(image))


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted"),
    [
        ((7, 11, 9), (2, 1, 1), (2, 0.8, 1.3)),
        ((7, 11, 9), (2, 1, 1), (1.1, 1, 1)),
        ((7, 20, 21), (1, 1, 1), (2.3, 1.5, 1.5)),
        ((6, 12, 12), (5, 1, 1), (2, 1, 1)),  # slices far apart: the nearest is taken
        ((9, 12, 12), (2, 1, 1), (5, 1, 1)),
        ((3, 6, 6), (4, 2, 2), (3, 1, 1)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_label_maps_are_those_of_all_scores_at_once(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
    batch_size: int,
) -> None:
    """Scores of the whole resampled volume, brought back along one axis after the other; then the highest wins."""
    image = blobs(shape)
    grid = Grid.of(shape, spacing, wanted)
    small = torch.from_numpy(grid.to_target(image[None]))
    scores = 1 / (0.01 + (small - torch.tensor(LEVELS)[:, None, None, None]).abs())  # (K, d, h, w)
    flat = torch.nn.functional.interpolate(scores.transpose(0, 1), shape[1:], mode="bilinear").transpose(0, 1)
    if grid.order_z == 0:
        source = ((np.arange(shape[0]) + 0.5) * flat.shape[1] / shape[0]).astype(int)
        full = flat[:, source]
    else:
        full = torch.nn.functional.interpolate(flat.flatten(2).mT, shape[0], mode="linear").mT.unflatten(2, shape[1:])
    model = segmenter(spacing=wanted)
    streamed = list(native_slices(iter(scores.unbind(1)), grid, shape[0]))
    torch.testing.assert_close(torch.stack(streamed, 1), full, rtol=1e-5, atol=1e-5)
    made = model.predict(volume(image, spacing), probabilities=True, batch_size=batch_size)
    top = full.sort(0, descending=True).values
    sure = (top[0] - top[1] > 1e-4 * top[0]).numpy()
    np.testing.assert_array_equal(made.labels[sure], full.argmax(0).numpy()[sure])
    assert sure.mean() > 0.95
    assert made.probabilities is not None
    assert made.probabilities.dtype == np.float16
    np.testing.assert_allclose(made.probabilities, (full / full.sum(0))[1:].numpy(), atol=1e-3)


def test_scores_of_equal_height_are_background_and_of_none_have_no_probability() -> None:
    class Silent(Levels):
        def predict(self, batch, support=None):  # type: ignore[no-untyped-def]
            return super().predict(batch) * 0

    made = segmenter(Silent(LEVELS)).predict(volume(blobs((3, 8, 8))), probabilities=True)
    assert not made.labels.any()
    assert made.probabilities is not None
    assert not made.probabilities.any()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_the_same_volume_stored_in_any_of_48_ways(axes: tuple[int, int, int]) -> None:
    image = blobs((6, 10, 9))
    model = segmenter(Levels(LEVELS, sided=True), spacing=(1.5, 1, 1.2))
    affine = np.array([[-1.0, 0.1, 0, 3], [-0.1, -1.0, 0, 5], [0, 0, 2.0, -7], [0, 0, 0, 1]])  # oblique
    wanted = model.predict(Volume(image[..., None], affine)).labels
    assert set(np.unique(wanted)) == {0, 1, 2}
    for flips in itertools.product((False, True), repeat=3):
        there = np.eye(4)
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):  # array axis `old` is stored as `new`
            column = 2 - new
            there[:3, column] = 0
            there[2 - old, column] = -1 if flip else 1
            there[2 - old, 3] = image.shape[old] - 1 if flip else 0
        back = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
        stored = image.transpose(axes)[back]
        made = model.predict(Volume(np.ascontiguousarray(stored)[..., None], affine @ there)).labels
        np.testing.assert_array_equal(made, wanted.transpose(axes)[back])


def test_objects_asked_for_alone_and_largest_pieces() -> None:
    image = np.zeros((3, 9, 9), np.float32)
    image[:, :4, :4] = image[0, 8, 8] = 0.4
    image[1, 6, 6] = 0.9
    model = segmenter()
    made = model.predict(volume(image), objects=["liver"], probabilities=True)
    np.testing.assert_array_equal(made.labels, np.where(image == np.float32(0.4), 1, 0))
    assert made.probabilities is not None
    assert made.probabilities.shape == (1, 3, 9, 9)
    kept = model.predict(volume(image), largest_component=True).labels
    assert kept[0, 8, 8] == 0
    assert (kept == 1).sum() == 48
    assert kept[1, 6, 6] == 2


def test_nested_objects_come_out_whole() -> None:
    image = np.zeros((3, 8, 8), np.float32)
    image[1, 2:6, 2:6], image[1, 3, 3] = 0.4, 0.9
    model = segmenter(classes=DISC_CUP)
    made = model.predict(volume(image), probabilities=True)
    assert made.labels[1, 3, 3] == 2
    assert made.probabilities is not None
    assert (made.probabilities[0] >= made.probabilities[1]).all()
    disc = model.predict(volume(image), objects=["disc"]).labels
    np.testing.assert_array_equal(disc[1, 2:6, 2:6], 1)


def test_mirroring() -> None:
    image = blobs((3, 8, 8))
    plain, sided = segmenter(), segmenter(Levels(LEVELS, sided=True))
    wanted = plain.predict(volume(image), probabilities=True).probabilities
    assert len(plain.method.seen) == 1
    np.testing.assert_allclose(plain.predict(volume(image), probabilities=True, mirror=True).probabilities, wanted)
    assert len(plain.method.seen) == 9
    assert segmenter(mirror=True).mirror(None)
    assert not segmenter(mirror=True).mirror(False)
    sided.config.patches.mirror = True
    made = sided.predict(volume(image), probabilities=True)
    assert len(sided.method.seen) == 8
    np.testing.assert_allclose(made.probabilities, wanted, atol=1e-3)  # both sides count the same: a common factor
    assert len({batch.images.sum((0, 1, 2, 3)).argmax().item() for batch in sided.method.seen}) == 2
    with pytest.raises(InputError, match="it sees slices"):
        slice_segmenter().predict(np.zeros((8, 8)), [(np.zeros((8, 8)), np.ones((8, 8), int))], mirror=True)


@pytest.mark.parametrize("mirror", [False, True])
def test_methods_with_true_prompts_see_the_masks_of_their_windows(mirror: bool) -> None:
    image, spacing = blobs((5, 11, 9)), (2.0, 1.0, 1.0)
    truth = Volume((nearest(image)).astype(np.uint8), volume(image).affine)
    model = segmenter(Prompted(LEVELS))
    made = model.predict(volume(image, spacing), labels=truth, mirror=mirror)
    np.testing.assert_array_equal(made.labels, truth.array)
    for batch in model.method.seen:
        assert batch.masks is not None
        assert batch.masks.dtype == torch.bool
        np.testing.assert_array_equal(batch.masks[:, 0], nearest(batch.images[:, 0].numpy()) == 1)
    with pytest.raises(InputError, match="no true mask"):
        model.predict(volume(image))


def test_folders(tmp_path: Path) -> None:
    image, folder = blobs((5, 9, 11)), tmp_path / "in"
    folder.mkdir()
    affine = np.array([[0, 1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(image.T, affine), folder / f"{name}.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"nothing")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), affine), folder / "two.nii.gz")
    model, out, told = segmenter(), tmp_path / "out", []
    manifest = model.predict_folder(folder, out, probabilities=True, on_progress=told.append)
    assert set(manifest.records) == {"a", "b"}
    assert set(manifest.failures) == {"bad", "two"}
    assert [p.done for p in told] == [1, 2, 3, 4]
    written = nibabel.load(out / "a.nii.gz")
    np.testing.assert_array_equal(written.affine, affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, nearest(image))
    assert (out / "probabilities" / "a_spleen.nii.gz").is_file()
    about = json.loads((out / "manifest.json").read_text())
    assert about["options"]["mirror"] is False
    assert about["patches"]["spacing"] == [2, 1, 1]
    assert "mirror: false" in (out / "config.yaml").read_text()
    assert {"read", "model", "restore", "write"} <= manifest.seconds.keys()
    again = model.predict_folder(folder, out, probabilities=True)
    assert set(again.skipped) == {"a", "b"}
    with pytest.raises(InputError, match="other weights, supports or options"):
        model.predict_folder(folder, out, probabilities=True, mirror=True)
    with pytest.raises(InputError, match="other weights, supports or options"):
        segmenter(overlap=0.25).predict_folder(folder, out, probabilities=True)
    with pytest.raises(InputError, match="it sees slices"):
        slice_segmenter().predict_folder(folder, tmp_path / "other", mirror=False)


def test_a_method_that_answers_in_another_shape_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"gave \(1, 3, 3, 8, 8\), not \(1, 2, 3, 8, 8\)"):
        segmenter(classes=ORGANS[:1]).predict(volume(blobs((3, 8, 8))))


def test_what_cannot_be_shown() -> None:
    with pytest.raises(InputError, match="an image with pixels"):
        segmenter().predict(Volume(np.zeros((0, 4, 4, 1), np.float32)))
    with pytest.raises(InputError, match="2 channels"):
        segmenter().predict(Volume(np.zeros((3, 4, 4, 2), np.float32)))


@pytest.mark.parametrize("intensity", ["ct", "zscore"])
def test_voxels_that_are_not_finite_spoil_no_others(intensity: str) -> None:
    image = blobs((3, 8, 8))
    holes = np.zeros(image.shape, bool)
    holes[0, 0, :3] = True
    broken = np.where(holes, np.array([np.nan, np.inf, -np.inf])[np.arange(8) % 3], image)
    filled = np.where(holes, image[~holes].min(), image)
    model = segmenter(intensity=intensity)
    made, wanted = (model.predict(volume(v.astype(np.float32))).labels for v in (broken, filled))
    np.testing.assert_array_equal(made, wanted)
    assert len(np.unique(wanted)) > 1
    with pytest.raises(InputError, match="no finite value"):
        model.predict(volume(np.full((3, 8, 8), np.nan, np.float32)))


def test_windows_a_batch() -> None:
    assert segmenter().batch_size(None) == 16
    assert segmenter(size=(9, 512, 512)).batch_size(7) == 7
    model = segmenter(size=(26, 256, 256))
    model.preprocess = type("P", (), {"input_size": 256})()
    assert model.batch_size(None) == 1


TINY = ("--backbone", "tiny", "--input-size", "32", "--train.pictures_every", "0", "--train.accelerator", "cpu")
SMALL = (
    "--model.widths",
    "[8,8,8,8]",
    "--model.fusions",
    "0",
    "--model.queries",
    "4",
    "--train.steps",
    "2",
    "--patches.size",
    "[4,32,32]",
)


@pytest.mark.parametrize("prompts", ["generated", "gt"])
def test_masksam_from_the_command_line(tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, out, report = volume_set(tmp_path / "data"), tmp_path / "run", tmp_path / "out", tmp_path / "report"
    split = ("--split.val", "0.25", "--split.test", "0.25", "--model.prompts", prompts)
    train = ("train", "masksam", data, "-o", run, "--preset", "scratch", *TINY, *SMALL, *split)
    assert cli.main([str(a) for a in train]) == 0
    planned = configuration.load(run / "config.yaml").patches
    assert planned.size == [4, 32, 32]
    assert planned.spacing == [3.0, 1.0, 1.0]
    predict = ("predict", str(run), "-i", str(data), "-o", str(out), "--split", "test", "--device", "cpu")
    assert cli.main([*predict, "--mirror", "--probabilities"]) == 0
    options = json.loads((out / "manifest.json").read_text())["options"]
    assert options["mirror"] is True
    assert cli.main([*predict, "--no-mirror"]) == 2
    assert "other weights, supports or options" in capsys.readouterr().err
    (made,) = [path for path in out.rglob("*.nii.gz") if "probabilities" not in path.parts]
    image = nibabel.load(next((data / "images").glob(made.name)))
    assert nibabel.load(made).shape == image.shape
    np.testing.assert_array_equal(nibabel.load(made).affine, image.affine)
    soft = [np.asarray(nibabel.load(p).dataobj) for p in sorted((out / "probabilities").rglob("*.nii.gz"))]
    assert len(soft) == 2
    assert np.min(soft) >= 0
    assert np.max(np.sum(soft, 0)) <= 1.001
    assert cli.main(["evaluate", str(out), str(data), "-o", str(report)]) == 0
    assert json.loads((report / "summary.json").read_text())["n"] == 1
