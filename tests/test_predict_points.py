"""Inference with points: a stream of slices, what is kept on disk, geometry."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from discs_method import LESION, SIDE, Plain, bright, disc, kept, run_config, segmenter
from sampling_method import segmenter as unprompted
from samsans import io
from samsans.errors import InputError
from samsans.inference import Segmenter
from samsans.inference.points import prompted
from samsans.inference.prompt_cache import PromptCache
from samsans.types import Points, Volume
from threshold_method import dice

CLICKS = np.array([[4, 10, 20], [8, 5, 6]])


def shown(labels: np.ndarray) -> list[int]:
    return [t for t, part in enumerate(labels) if part.any()]


# -- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
@pytest.mark.parametrize("n", [0, 1, 2, 11])
def test_every_slice_is_encoded_and_judged_once(batch_size: int, n: int) -> None:
    model = segmenter(neighbours=n)
    made = model.predict(bright(11), points=CLICKS, batch_size=batch_size)
    expected = [t for t in range(11) if abs(t - 4) <= n or abs(t - 8) <= n]
    assert shown(made.labels) == expected
    assert sum(model.method.encoded) == model.method.judged == 11
    assert model.method.decoded == len(expected)
    np.testing.assert_array_equal(made.labels[4] == 2, disc(32, 32, 10, 20, 3) | (n >= 4) * disc(32, 32, 5, 6, 3))
    assert {"encode", "prompt", "decode", "prepare", "model", "restore"} <= set(made.seconds)


def test_memory_does_not_grow_with_depth() -> None:
    model = segmenter(neighbours=2)
    runner = model.runner(4)
    held: list[int] = []

    def watch() -> None:
        parts = {
            f.untyped_storage().data_ptr(): f.untyped_storage()
            for e in runner._waiting
            if (f := e.features) is not None
        }
        held.append(sum(storage.nbytes() for storage in parts.values()))

    model.method.watch = watch
    volume = Volume(bright(60)[..., None])
    job = model.open("a", volume, None, ())
    rows = [np.array([[10.0, 10.0, 1.0]])] * 60
    done = next(runner.run([prompted(job, rows, False)], model.target(model.supports(None, None), None)))
    assert shown(done.labels) == list(range(60))
    one = 3 * SIDE * SIDE * 4
    assert max(held) <= 2 * one  # of those that wait; 2n + 1 and a batch with those that are encoded now
    assert model.method.encoded == [4] * 15


def test_only_what_both_slices_let_through() -> None:
    volume = bright(7)
    volume[2] = 0  # nothing is salient there
    volume[4, :, 16:] = 0
    model = segmenter(neighbours=2)
    labels = model.predict(volume, points=[[2, 8, 8], [3, 8, 24], [5, 8, 8]]).labels
    assert shown(labels) == [1, 3, 4, 5, 6]
    assert [labels[t, 8, 8] for t in range(7)] == [0, 0, 0, 2, 2, 2, 2]
    assert [labels[t, 8, 24] for t in range(7)] == [0, 2, 0, 2, 0, 2, 0]


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_points_do_not_pass_a_gap(batch_size: int) -> None:
    model = segmenter(neighbours=2)
    job = model.open("a", Volume(bright(7)[..., None]), None, ())
    rows = [np.zeros((0, 3)) for _ in range(7)]
    rows[3] = np.array([[10.0, 10.0, 1.0]])
    runner = model.runner(batch_size)
    asked = prompted(job, rows, False, places=(1, 2, 3, 4, 8, 9, 10))
    done = next(runner.run([asked], model.target(model.supports(None, None), None)))
    assert shown(done.labels) == [1, 2, 3]


def test_no_points_no_mask() -> None:
    made = segmenter().predict(bright(5), points=[], probabilities=True)
    assert not made.labels.any()
    assert made.probabilities is not None
    assert not made.probabilities.any()
    assert segmenter(empty="raw").predict(np.zeros((3, 32, 32), np.uint8), points=[[1, 5, 5]]).labels[1].any()


@pytest.mark.parametrize("method", ["none", "plain"])
def test_without_a_prior_points_are_taken_as_they_are(method: str) -> None:
    model = segmenter(distill="none")
    if method == "plain":
        model = Segmenter(Plain(), run_config(), LESION, device="cpu")
    dark = np.zeros((5, 32, 32), np.uint8)
    labels = model.predict(dark, points=[[1, 8, 8], [3, 8, 20], [3, 24, 20]], point_labels=[1, 1, 0]).labels
    assert shown(labels) == [1, 3]
    np.testing.assert_array_equal(labels[3] == 2, disc(32, 32, 8, 20, 3))


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_kept_and_used_again(tmp_path: Path) -> None:
    volume = bright(11)
    volume[:, 25:] = 60
    cold = segmenter(tmp_path)
    first = cold.predict(volume, points=CLICKS, probabilities=True, batch_size=2)
    assert len(kept(tmp_path)) == 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    warm = segmenter(tmp_path)
    again = warm.predict(volume, points=CLICKS, probabilities=True, batch_size=2)
    assert warm.method.judged == warm.method.distil.counts["slices"] == 0
    assert warm.method.encoded == [2, 2, 2, 2, 1]  # not the first two slices: nobody pointed near them
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    none = segmenter(tmp_path).predict(volume, points=CLICKS, probabilities=True, batch_size=2, cache=False)
    bare = segmenter().predict(volume, points=CLICKS, probabilities=True)
    for made in (again, none, bare):
        np.testing.assert_array_equal(made.labels, first.labels)
        np.testing.assert_array_equal(made.probabilities, first.probabilities)


def test_what_depends_on_what(tmp_path: Path) -> None:
    volume = bright(9)
    segmenter(tmp_path).predict(volume, points=CLICKS)
    for change, judged in (
        ({"points": [[4, 10, 21]]}, 0),
        ({"points": CLICKS, "point_labels": [1, 0]}, 0),
        ({"model": {"tau": 0.4}}, 0),
        ({"model": {"neighbours": 1}}, 0),
        ({"model": {"cap": 1}}, 0),
        ({"data": {"window": [0, 200]}}, 9),
        ({"data": {"slice_axis": "1"}}, 32),
        ({"volume": volume[::-1]}, 9),
    ):
        count = len(kept(tmp_path))
        model = segmenter(tmp_path, data=change.get("data"), **change.get("model", {}))
        options = {k: v for k, v in change.items() if k == "point_labels"}
        model.predict(change.get("volume", volume), points=change.get("points", CLICKS), **options)
        assert model.method.judged == judged, change
        assert len(kept(tmp_path)) == count + (1 if judged == 0 else 2), change


def test_what_is_damaged_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume, run = bright(9), tmp_path
    expected = segmenter(run).predict(volume, points=CLICKS).labels
    files = sorted((run / "cache").iterdir(), key=lambda p: p.stat().st_size)
    good = {p: p.read_bytes() for p in files}
    other = good[files[1]].replace(files[1].stem.encode(), files[0].stem.encode())

    def flipped(data: bytes) -> bytes:
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    for bad in (b"", b"nothing", good[files[0]][:-5], flipped(good[files[0]]), other):
        files[0].write_bytes(bad)
        files[1].write_bytes(flipped(good[files[1]]))
        caplog.clear()
        model = segmenter(run)
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(model.predict(volume, points=CLICKS).labels, expected)
        assert model.method.judged == 9
        assert [f"{p} cannot be used and is made again" in caplog.text for p in files] == [True, True]
        again = segmenter(run)
        again.predict(volume, points=CLICKS)
        assert again.method.judged == again.method.distil.counts["slices"] == 0
    arrays = load_file(files[1])
    save_file(arrays, files[1])  # the right arrays, of which nobody says what they are
    files[0].unlink()
    model = segmenter(run)
    model.predict(volume, points=CLICKS)
    assert model.method.judged == 9


def test_other_weights_than_those_of_the_run(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    model.method.scale = torch.nn.Parameter(torch.ones(1))
    model.cache = PromptCache(tmp_path / "cache", model.method)
    volume = bright(5)
    model.predict(volume, points=[[1, 4, 4]])
    assert len(kept(tmp_path)) == 2
    with torch.no_grad():
        model.method.scale.mul_(2)
    model.predict(volume, points=[[1, 4, 4]])
    assert (model.method.judged, len(kept(tmp_path))) == (10, 2)


def test_a_run_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert segmenter(tmp_path).predict(bright(5), points=[[1, 4, 4]]).labels.any()
    assert "are not kept" in caplog.text


# -- geometry ---------------------------------------------------------------------------------------------------------


def tilted(array: np.ndarray, order: tuple[int, int, int], flips: tuple[int, int, int]) -> Volume:
    """A volume ``(z, y, x)`` in RAS, 10 degrees oblique, stored with its axes in another order and direction."""
    angle = np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.2, 4.0])
    stored = array.transpose(order)
    columns = affine[:3, 2::-1][:, order]  # world direction of each stored array axis
    origin = affine[:3, 3].copy()
    for axis, flip in enumerate(flips):
        if flip:
            origin += columns[:, axis] * (stored.shape[axis] - 1)
            columns[:, axis] *= -1
            stored = np.flip(stored, axis)
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = columns[:, ::-1], origin
    return Volume(np.ascontiguousarray(stored)[..., None], out)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_points_follow_the_axes(order: tuple[int, int, int], flips: tuple[int, int, int], tmp_path: Path) -> None:
    array = bright(6, 40, 56)
    volume = tilted(array, order, flips)
    at = np.array([3, 12, 41])

    def stored(point: np.ndarray) -> np.ndarray:
        moved = point[list(order)]
        return np.where(flips, np.array(volume.shape) - 1 - moved, moved)

    model = segmenter(neighbours=1)
    labels = model.predict(volume, points=[stored(at)]).labels
    back = np.zeros_like(labels)
    back = np.flip(labels, [i for i, f in enumerate(flips) if f]).transpose(np.argsort(order))
    assert shown(back) == [2, 3, 4]
    y, x = np.argwhere(back[3]).mean(0)
    assert abs(y - 12) < 0.6
    assert abs(x - 41) < 0.6
    rows, columns = np.mgrid[:40, :56]
    true = np.hypot((rows - 12) * SIDE / 40, (columns - 41) * SIDE / 56) <= 3
    assert dice(back[3] > 0, true) > 0.93
    file = io.write_points(tmp_path / "p.mrk.json", Points(stored(at)[None].astype(float), np.ones(1, int)), volume)
    np.testing.assert_array_equal(model.predict(volume, points=file).labels, labels)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_pixels_of_a_picture(resize: str) -> None:
    config = run_config(distill="none")
    config.backbone.resize = resize
    model = Segmenter(segmenter(distill="none").method, config, LESION, device="cpu")
    picture = bright(1, 64, 96)[0]
    for points in ([[70, 20]], [[0, 20, 70]], Points(np.array([[0.0, 20, 70]]), np.ones(1, np.int64))):
        labels = model.predict(picture, points=points).labels[0]
        y, x = np.argwhere(labels).mean(0)
        assert abs(y - 20) < 1.2
        assert abs(x - 70) < 1.2


@pytest.mark.parametrize(
    ("points", "labels", "said"),
    [
        (None, None, "has no points and spd is prompted with points"),
        ([[1, 2]], None, r"points of shape \(1, 2\)"),
        ([[1, 2, 3, 4]], None, "shape"),
        ("nowhere.csv", None, "no file of points"),
        ([[1, 2, 40]], None, "1 of 1 points lie outside the image"),
        ([[1, 2, np.nan]], None, "no numbers"),
        ([[1, 2, 3]], [2], "one 0 or 1 each"),
        ([[1, 2, 3]], [1, 1], "one 0 or 1 each"),
        ({"x": 1}, None, "given as dict"),
        (Points(np.zeros((1, 3)), np.ones(1, int)), [1], "their own"),
    ],
)
def test_points_that_cannot_be_used(points: object, labels: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        segmenter().predict(bright(3), points=points, point_labels=labels)


def test_a_method_that_takes_no_points(tmp_path: Path) -> None:
    model = unprompted()
    with pytest.raises(InputError, match="takes no points"):
        model.predict(np.zeros((8, 8), np.uint8), points=[[1, 1]])
    Image.fromarray(bright(1)[0]).save(tmp_path / "a.png")
    for told in ({"points": "{stem}.csv"}, {"prompt_noise": "L2"}, {"prompt_mode": "hard"}):
        with pytest.raises(InputError, match="takes no points"):
            model.predict_folder(tmp_path, tmp_path / "out", **told)
    assert not (tmp_path / "out").exists()
