"""Methods that follow objects from frame to frame: order of slices, labels, views, geometry, live videos, folders."""

from __future__ import annotations

import csv
import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from following_method import fading, following
from samsans import api, cli, io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.errors import InputError
from samsans.inference import Segmenter, VideoSegmenter, predict_video
from samsans.inference.video_folders import find_videos, predict_videos
from samsans.types import Progress
from threshold_method import DISC_CUP, dice


def colour(image: np.ndarray) -> np.ndarray:
    """``(..., 3)`` of grey."""
    return np.repeat(image[..., None], 3, axis=-1)


def pair(images: np.ndarray, masks: np.ndarray, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(colour(images[index]), masks[index])]


def names(model: Segmenter) -> list[tuple[str, str]]:
    """Who saw which slice or frame, in order."""
    return [(who, id.rpartition("#")[2]) for who, id, _ in model.method.seen]


def shown_labels(model: Segmenter) -> list[int]:
    """The slices that labels were shown with."""
    return [int(id.rpartition("#")[2]) for _, id, labels in model.method.seen if labels]


# -- images and volumes -----------------------------------------------------------------------------------------------


def test_a_volume_is_followed_from_the_middle_outwards() -> None:
    images, masks = fading(7, darker=8)
    model = following()
    made = model.predict(images, pair(images, masks, 3), batch_size=4)
    order = [("start", f"00{i}") for i in (3, 4, 5, 6)] + [("branch", f"00{i}") for i in (2, 1, 0)]
    assert names(model) == order
    assert np.mean(made.labels == masks) > 0.98
    alone = model.predict(images, pair(images, masks, 3), view="alone", batch_size=4)
    assert model.method.batches == [(4, ("support_1",)), (3, ("support_1",))]
    assert np.mean(alone.labels == masks) < 0.96  # they grow too dark, and too bright
    assert len(names(model)) == 7


def test_both_ways_go_on_from_the_start_slice() -> None:
    images, masks = fading(6, darker=8)
    model = following()
    made = model.predict(colour(images), pair(images, masks, 3)).labels
    video = VideoSegmenter(model, pair(images, masks, 3))
    forwards = [video.step(colour(image)).labels for image in images[3:]]
    video.reset()
    backwards = [video.step(colour(image)).labels for image in images[3::-1]]
    assert np.array_equal(made[3:], np.stack(forwards))
    assert np.array_equal(made[3::-1], np.stack(backwards))


def test_labels_say_where_to_start_and_are_shown_once() -> None:
    images, masks = fading(7, darker=8)
    model = following(first_label=True)
    made = model.predict(images, labels=masks)
    assert [id for _, id in names(model)] == ["002", "003", "004", "005", "006", "001", "000"]  # the largest objects
    assert shown_labels(model) == [2]
    assert np.mean(made.labels == masks) > 0.98
    one = np.zeros_like(masks)
    one[2] = masks[2]
    assert np.array_equal(model.predict(images, labels=one).labels, made.labels)
    model.method.seen.clear()
    part = masks.copy()
    part[:5][part[:5] == 2] = 0  # nothing of the cup: fewer objects, though a larger disc
    model.predict(images, labels=part)
    assert shown_labels(model) == [5]


def test_without_an_object_in_the_labels_nothing_is_found() -> None:
    images, masks = fading(3)
    model = following(first_label=True)
    made = model.predict(images, labels=np.zeros_like(masks), probabilities=True)
    assert not made.labels.any()
    assert made.probabilities is not None
    assert not made.probabilities.any()
    assert model.method.seen == []
    with pytest.raises(InputError, match=r"image has no true mask.*labels of one of its slices or frames"):
        model.predict(images)
    with pytest.raises(InputError, match="needs no prompt"):
        following().predict(images, pair(images, masks, 0), labels=masks)


def test_an_image_is_a_video_of_one_frame() -> None:
    images, masks = fading(3)
    model = following()
    for index in range(3):
        alone = model.predict(colour(images[index]), pair(images, masks, 1), view="alone")
        assert np.array_equal(model.predict(colour(images[index]), pair(images, masks, 1)).labels, alone.labels)
        assert model.method.seen == []  # there is nothing to follow
        frame = VideoSegmenter(model, pair(images, masks, 1)).step(colour(images[index]))
        assert np.array_equal(frame.labels[None], alone.labels)
        assert names(model) == [("start", "image")]
        model.method.seen.clear()


def test_own_view_and_unknown_views() -> None:
    model = following()
    assert (model.views, model.own_view) == (("follow", "alone"), "follow")
    assert (model.follows(None), model.follows("alone")) == (True, False)
    model.method.own_view = "alone"
    assert model.own_view == "alone"
    images, masks = fading(2)
    for used in (lambda: model.predict(images, pair(images, masks, 0), view="x"), lambda: _video(model, view="x")):
        with pytest.raises(InputError, match="view 'x'"):
            used()


def _video(model: Segmenter, **options: Any) -> VideoSegmenter:
    images, masks = fading(7)
    return VideoSegmenter(model, pair(images, masks, 3), **options)


def test_turned_volumes_are_followed_alike(tmp_path: Path) -> None:
    images, masks = fading(7, darker=8)
    turn, _ = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(0).standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag([1.0, 1.2, 4.0])
    affine[:3, 3] = [-40.5, 13.25, 7.125]
    shown = np.zeros_like(masks)
    shown[4] = masks[4]
    straight = {"image": nibabel.Nifti1Image(images.T, affine), "mask": nibabel.Nifti1Image(shown.T, affine)}
    model, want = following(first_label=True), None
    turns = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    for axes, signs in [((0, 1, 2), (1, 1, 1)), *turns[1::7]]:
        to = np.column_stack([axes, signs])
        for name, image in straight.items():
            nibabel.save(image.as_reoriented(to), tmp_path / f"{name}.nii.gz")
        model.method.seen.clear()
        made = model.predict(tmp_path / "image.nii.gz", labels=tmp_path / "mask.nii.gz")
        made.save(tmp_path / "out.nii.gz")
        a, b = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("image", "out"))
        for field in ("srow_x", "srow_y", "srow_z", "pixdim", "quatern_b", "qoffset_x"):
            assert a.header[field].tobytes() == b.header[field].tobytes(), field
        found = np.asarray(b.dataobj)
        want = found if want is None else want
        assert np.array_equal(found, nibabel.orientations.apply_orientation(want, to)), (axes, signs)
        assert len(model.method.seen) == 7
    assert want is not None
    assert dice(want.T > 0, masks > 0) > 0.95


# -- frames as they come ----------------------------------------------------------------------------------------------


def test_what_is_followed_lives_from_step_to_run() -> None:
    images, masks = fading(8, darker=8)
    film = [colour(image) for image in images]
    model = following()
    stream = VideoSegmenter(model, pair(images, masks, 0))
    mixed = [stream.step(film[0]), *stream.run(film[1:4]), stream.step(film[4]), *stream.run(film[5:])]
    whole = list(VideoSegmenter(model, pair(images, masks, 0), batch_size=4).run(film))
    for a, b, truth in zip(mixed, whole, masks, strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert np.mean(a.labels == truth) > 0.95
        assert a.quality == b.quality
        assert a.quality is not None
        assert 0 < a.quality[1] < a.quality[0] < 1
        assert a.supports == ("support_1",)
    lost = VideoSegmenter(model, pair(images, masks, 0)).step(film[7]).labels
    assert not np.array_equal(lost, mixed[7].labels)
    stream.reset()
    assert np.array_equal(stream.step(film[7]).labels, lost)
    cup = next(VideoSegmenter(model, pair(images, masks, 0), objects=["cup"]).run(film))
    assert cup.quality == whole[0].quality[1:]  # type: ignore[index]


def test_another_task_begins_anew() -> None:
    images, masks = fading(8, darker=8)
    model, film = following(), [colour(image) for image in images]
    first, second = pair(images, masks, 0), pair(images, masks, 7)
    stream = VideoSegmenter(model, first)
    begun = stream.run(film)
    next(begun)
    before = next(begun).labels
    stream.switch(second)
    switched = stream.step(film[7]).labels
    assert np.array_equal(switched, VideoSegmenter(model, second).step(film[7]).labels)
    assert not np.array_equal(switched, VideoSegmenter(model, first).step(film[7]).labels)
    went_on = [before, *(result.labels for result in begun)]  # with what it began with
    assert np.array_equal(np.stack(went_on), np.stack([r.labels for r in VideoSegmenter(model, first).run(film)][1:]))


def test_the_first_labelled_frame_starts_it() -> None:
    images, masks = fading(6, darker=8)
    model, film = following(first_label=True), [colour(image) for image in images]
    stream = VideoSegmenter(model)
    results = [stream.step(film[0]), stream.step(film[1], np.zeros_like(masks[1]))]
    assert [(r.labels.any(), r.areas, r.quality) for r in results] == [(False, (0, 0), None)] * 2
    assert model.method.seen == []
    followed = [stream.step(film[2], masks[2]), *stream.run(film[3:])]
    for result, truth in zip(followed, masks[2:], strict=True):
        assert np.mean(result.labels == truth) > 0.98
    with pytest.raises(InputError, match=r"labels of a second frame.*reset"):
        stream.step(film[5], masks[5])
    stream.reset()
    again = list(stream.run(film, {2: masks[2]}))
    assert np.array_equal(np.stack([r.labels for r in again[2:]]), np.stack([r.labels for r in followed]))
    with pytest.raises(InputError, match=r"labels of the size \(40, 47\) for a frame of \(40, 48\)"):
        VideoSegmenter(model).step(film[0], masks[0, :, 1:])
    with pytest.raises(InputError, match="it needs none"):
        VideoSegmenter(following(), pair(images, masks, 0)).step(film[0], masks[0])


def test_memory_is_flat() -> None:
    held: list[int] = []
    model = following()
    model.method.seen = type("Nothing", (), {"append": lambda *_: None})()

    def film(count: int) -> Iterator[np.ndarray]:
        for number in range(count):
            if number in (60, count - 1):
                held.append(tracemalloc.get_traced_memory()[0])
            yield np.full((40, 48, 3), number % 200, np.uint8)

    tracemalloc.start()
    assert sum(1 for _ in _video(model).run(film(300))) == 300
    tracemalloc.stop()
    assert held[1] - held[0] < 239 * 40 * 48 / 2  # of 239 more frames less than half their label maps alone


# -- folders ----------------------------------------------------------------------------------------------------------


def frames(folder: Path, images: np.ndarray, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"f_{number:03d}.png")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def written(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def test_a_half_done_video_is_begun_anew(tmp_path: Path) -> None:
    images, masks = fading(6, darker=8)
    video, support = frames(tmp_path / "in/seq", images, first=3), pair(images, masks, 0)

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    out, whole, model = tmp_path / "out", tmp_path / "whole", following()
    with pytest.raises(KeyboardInterrupt):
        predict_video(model, video, out, support=support, on_progress=stop)
    assert len(written(out)) == 3
    assert not (out / "seq.csv").exists()
    seen: list[Progress] = []
    model = following()
    resumed = predict_video(model, video, out, support=support, on_progress=seen.append)
    assert len(model.method.seen) == 6
    assert [p.done for p in seen] == [1, 2, 3, 4, 5, 6]
    uninterrupted = predict_video(following(), video, whole, support=support)
    assert written(out) == written(whole)
    assert table(out / "seq.csv") == table(whole / "seq.csv")
    assert set(resumed.records["seq"].seconds) == set(uninterrupted.records["seq"].seconds)
    qualities = [float(row["disc quality"]) for row in table(out / "seq.csv")]
    assert len(set(qualities)) > 1
    assert all(0 < quality < 1 for quality in qualities)
    again = following()
    assert predict_video(again, video, out, support=support).skipped == ("seq",)
    assert again.method.seen == []
    alone = predict_video(following(), video, tmp_path / "alone", support=support, view="alone")
    assert {row["disc quality"] for row in table(tmp_path / "alone/seq.csv")} == {""}
    assert alone.about["options"]["view"] == "alone"
    with pytest.raises(InputError, match="other weights, supports or options"):
        predict_video(following(), video, out, support=support, view="alone")


def labelled(tmp_path: Path, numbers: tuple[int, ...], empty: tuple[int, ...] = ()) -> Path:
    """A data set of one video of six frames, of which some have label maps, and some of these show nothing."""
    images, masks = fading(6, darker=8)
    frames(tmp_path / "data/images/p1/seq", images)
    (tmp_path / "data/labels/p1/seq").mkdir(parents=True)
    for number in (*numbers, *empty):
        mask = masks[number] * (number not in empty)
        Image.fromarray(mask).save(tmp_path / f"data/labels/p1/seq/f_{number:03d}.png")
    return tmp_path / "data"


def test_the_first_label_of_a_data_set(tmp_path: Path) -> None:
    data, out = labelled(tmp_path, (2, 4), empty=(1,)), tmp_path / "out"
    dataset = replace(find_cases(DataConfig(path=str(data))), classes=DISC_CUP)
    model = following(first_label=True)
    manifest = predict_videos(model, find_videos(model, dataset, True), out)
    assert not manifest.failures
    assert [(id, labels) for _, id, labels in model.method.seen] == [("p1/seq", n == 2) for n in (2, 3, 4, 5)]
    _, masks = fading(6, darker=8)
    for number, row in enumerate(table(out / "p1/seq.csv")):
        made = io.read_labels(out / row["file"]).array[0]
        assert np.mean(made == masks[number] * (number >= 2)) > 0.98
        assert (row["disc quality"] == "") == (number < 2)
    given = following(first_label=True)
    predict_videos(given, find_videos(given, data / "images", True), tmp_path / "given", labels=data / "labels")
    assert written(tmp_path / "given") == written(out)
    one = data / "labels/p1/seq/f_004.png"
    predict_video(given, data / "images/p1/seq", tmp_path / "one", labels=one)
    assert [(row["disc present"]) for row in table(tmp_path / "one/seq.csv")] == ["0"] * 4 + ["1"] * 2


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    data, model = labelled(tmp_path, (2, 4)), following(first_label=True)
    video, out = data / "images/p1/seq", tmp_path / "out"
    with pytest.raises(InputError, match="seq has no true mask"):
        predict_video(model, video, out)
    with pytest.raises(InputError, match="no label maps at"):
        predict_video(model, video, out, labels=tmp_path / "nothing")
    assert not out.exists()
    (data / "labels/p1/seq/f_002.png").rename(data / "labels/p1/seq/f_077.png")
    (data / "labels/p1/seq/f_004.png").unlink()
    assert "frame 77" in predict_video(model, video, out, labels=data / "labels/p1/seq").failures["seq"]
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(data / "labels/p1/seq/f_077.png")
    assert "no true mask" in predict_video(model, video, out, labels=data / "labels/p1/seq").failures["seq"]
    images, masks = fading(6)
    with pytest.raises(InputError, match="needs no prompt"):
        predict_video(following(), video, out, support=pair(images, masks, 0), labels=data / "labels")


def test_other_labels_are_another_video(tmp_path: Path) -> None:
    data, model = labelled(tmp_path, (2,)), following(first_label=True)
    options = {"labels": data / "labels/p1/seq"}
    predict_video(model, data / "images/p1/seq", tmp_path / "out", **options)
    assert predict_video(model, data / "images/p1/seq", tmp_path / "out", **options).skipped == ("seq",)
    before = written(tmp_path / "out")
    _, masks = fading(6)
    Image.fromarray(np.where(masks[2] == 2, 2, 0).astype(np.uint8)).save(data / "labels/p1/seq/f_002.png")
    assert predict_video(model, data / "images/p1/seq", tmp_path / "out", **options).skipped == ()
    assert written(tmp_path / "out") != before


def test_folders_of_volumes_and_their_labels(tmp_path: Path) -> None:
    images, masks = fading(7, darker=8)
    shown = np.zeros_like(masks)
    shown[3] = masks[3]
    for name, array in (("images/a", images), ("labels/a", masks), ("one/a", shown)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1, 1, 3, 1])), tmp_path / f"{name}.nii.gz")
    model = following(first_label=True)
    own = model.predict_folder(tmp_path / "images", tmp_path / "own", labels=tmp_path / "labels")
    assert shown_labels(model) == [2]
    one = model.predict_folder(tmp_path / "images", tmp_path / "out", labels=tmp_path / "one")
    assert shown_labels(model) == [2, 3]
    for manifest in (own, one):
        made = io.read_labels(manifest.outputs["a"]).array
        assert np.mean(made == masks) > 0.98
    (tmp_path / "one/a.nii.gz").rename(tmp_path / "one/b.nii.gz")
    with pytest.raises(InputError, match="a has no true mask"):
        model.predict_folder(tmp_path / "images", tmp_path / "none", labels=tmp_path / "one")


def test_the_command_with_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path, (2,))
    monkeypatch.setattr(api, "load", lambda *_, **__: following(first_label=True))

    def run(*argv: Any) -> int:
        return cli.main(["predict", "RUN", *map(str, argv)])

    assert run("-i", data, "-o", tmp_path / "own", "--video") == 0
    given = ("--labels", data / "labels/p1/seq", "--video")
    assert run("-i", data / "images/p1/seq", "-o", tmp_path / "given", *given) == 0
    assert list(written(tmp_path / "given").values()) == list(written(tmp_path / "own").values())
    assert run("-i", data / "images/p1/seq", "-o", tmp_path / "no", "--video") == 2
    assert "seq has no true mask" in capsys.readouterr().err
