"""Where following begins: with the wanted objects, as the method sees their labels; single images need no beginning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from following_method import fading, following
from samsans import io
from samsans.errors import InputError
from samsans.inference import VideoSegmenter, predict_video
from samsans.inference.manifest import Manifest


def colour(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1)


def cup_apart() -> tuple[np.ndarray, np.ndarray]:
    """Images of disc and cup; the labels show the disc's rim in frames 0 to 2, the cup alone from frame 3 on."""
    images, masks = fading(6, darker=8)
    masks[:3][masks[:3] == 2] = 0
    masks[3:][masks[3:] == 1] = 0
    return images, masks


def specks() -> tuple[np.ndarray, np.ndarray]:
    """Images of 40 x 48 for a method of 32 x 32; labels of frame 0 show one pixel that is not sampled."""
    images, masks = fading(4, darker=8)
    segmenter = following(first_label=True)
    rows = segmenter.preprocess.sample(np.arange(40)[:, None] * np.ones((1, 48), int))[:, 0]
    masks[0] = 0
    masks[0, min(set(range(40)) - set(rows.tolist())), 24] = 2
    return images, masks


def frames(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


def steps(model: object) -> list[tuple[str, bool]]:
    return [(id.rpartition("#")[2], labels) for _, id, labels in model.method.seen]  # type: ignore[attr-defined]


def test_an_object_asked_for_alone_says_where_to_start(tmp_path: Path) -> None:
    images, masks = cup_apart()
    model = following(first_label=True)
    made = model.predict(images, labels=masks, objects=["cup"])
    assert ("003", True) in steps(model)
    assert np.mean((made.labels[3:] == 2) == (masks[3:] == 2)) > 0.98
    live = VideoSegmenter(model, objects=["cup"])
    results = [live.step(colour(image), labels if n <= 3 else None) for n, (image, labels) in
               enumerate(zip(images, masks, strict=True))]  # fmt: skip
    assert [bool(r.areas[0]) for r in results] == [False] * 3 + [True] * 3
    video = frames(tmp_path / "seq", images)
    out = tmp_path / "out"
    labels = frames(tmp_path / "labels/seq", masks).parent
    assert not predict_video(model, video, out, labels=labels, objects=["cup"]).failures
    found = [io.read_labels(file).array.any() for file in sorted((out / "seq").glob("*.png"))]
    assert found == [False] * 3 + [True] * 3


def test_an_object_that_vanishes_in_the_size_of_the_method_begins_nothing(tmp_path: Path) -> None:
    images, masks = specks()
    model = following(first_label=True)
    live = VideoSegmenter(model)
    assert live.step(colour(images[0]), masks[0]).areas == (0, 0)
    assert live.step(colour(images[1]), masks[1]).areas[1] > 0  # the labels are still wanted
    model.method.seen.clear()
    only = np.where(np.arange(4)[:, None, None] == 0, masks, 0)
    assert not model.predict(images, labels=only).labels.any()
    assert model.method.seen == []
    video, labels = frames(tmp_path / "seq", images), frames(tmp_path / "labels/seq", masks).parent
    manifest = predict_video(model, video, tmp_path / "out", labels=labels)
    assert not manifest.failures
    assert steps(model)[0] == ("seq", True)
    assert len(steps(model)) == 3
    lone = tmp_path / "lone/seq"
    lone.mkdir(parents=True)
    (labels / "seq/000.png").rename(lone / "000.png")
    failed = predict_video(model, video, tmp_path / "none", labels=lone.parent).failures
    assert "seq has no true mask" in failed["seq"]


def test_single_images_go_in_batches(tmp_path: Path) -> None:
    images, masks = fading(5)
    model, support = following(), [(colour(fading(3)[0][1]), masks[1])]
    folder = frames(tmp_path / "in", images)
    manifest = model.predict_folder(folder, tmp_path / "out", support=support, batch_size=4)
    assert [size for size, _ in model.method.batches] == [4, 1]
    assert model.method.seen == []
    for image, output in zip(images, manifest.outputs.values(), strict=True):
        alone = VideoSegmenter(model, support).step(colour(image))
        assert np.array_equal(io.read_labels(output).array[0], alone.labels)


def test_no_pairs_are_no_bank() -> None:
    images, masks = fading(3)
    bank = following().encode_support([(colour(images[0]), masks[0])])
    with pytest.raises(InputError, match="no support pairs"):
        bank.select([])


def test_single_images_with_their_own_labels_are_told_of(tmp_path: Path) -> None:
    images, masks = fading(3)
    model = following(first_label=True)
    folder, labels = frames(tmp_path / "in", images), frames(tmp_path / "labels", masks)
    manifest = model.predict_folder(folder, tmp_path / "out", labels=labels)
    assert "note: each of 3 single images was prompted with its own label" in manifest.text()
    assert "--video" in Manifest.load(tmp_path / "out").about["note"]
    assert "note" not in following().predict_folder(folder, tmp_path / "other", support=[(images[0], masks[0])]).text()
