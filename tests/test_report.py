"""The report page and its pictures."""

from __future__ import annotations

import base64
import io as streams
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samsans import io
from samsans.errors import InputError
from samsans.metrics import evaluate, pictures
from samsans.metrics.report import number
from samsans.palette import PALETTE, color
from samsans.types import Volume

AFFINE = np.diag([0.7, 0.7, 5.0, 1.0])


class Page(HTMLParser):
    """Tags, their attributes and all text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Five volumes of two objects with images; one class has a hostile name, one case lacks it."""
    rng = np.random.default_rng(0)
    for i in range(5):
        drawn = np.zeros((4, 24, 30), np.uint8)
        drawn[1:3, 5:15, 4:12] = 1
        drawn[2, 5:15, 16:26] = 2 * (i != 3)
        for folder, labels in (("ref", drawn), ("pred", np.roll(drawn, i, axis=1))):
            io.write_labels(tmp_path / folder / f"case{i}.nii.gz", labels, like=Volume(labels, AFFINE))
        image = rng.normal(100, 30, drawn.shape).astype(np.float32)
        io.write_image(tmp_path / "images" / f"case{i}.nii.gz", image, like=Volume(image[..., None], AFFINE))
    classes = [{"name": "left <b>$x", "label": 1, "values": [1]}, {"name": "right", "label": 2, "values": [2]}]
    (tmp_path / "pred" / "classes.json").write_text(json.dumps({"classes": classes}))
    manifest = {"model": {"name": "tiny <i>"}, "versions": {"torch": "2"}, "files": [{"a": 1}] * 3}
    (tmp_path / "pred" / "manifest.json").write_text(json.dumps(manifest))
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", images=tmp_path / "images", bootstrap=50)
    return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_one_file_needs_nothing_else(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    assert any(a.get("name") == "viewport" for t, a in page.tags if t == "meta")


def test_says_what_counts(page: Page) -> None:
    assert "Convention: default" in page.text
    assert "left out of the means and counted" in page.text
    assert "HD95 [mm]" in page.text
    assert "NSD at 2 mm" in page.text
    assert "tiny <i>" in page.text
    assert "3 entries" in page.text


def test_names_are_text_not_markup(page: Page) -> None:
    assert "left <b>$x" in page.text
    assert not any(tag == "i" for tag, _ in page.tags)
    plots = [t for t, _ in page.tags if t == "svg"]
    assert len(plots) == 2


def test_best_median_worst(page: Page) -> None:
    images = [a for t, a in page.tags if t == "img"]
    assert [a["alt"] for a in images[1::2]] == [f"prediction and reference of case{i}" for i in (0, 2, 4)]
    for attributes in images:
        payload = (attributes["src"] or "").split(",", 1)[1]
        picture = Image.open(streams.BytesIO(base64.b64decode(payload)))
        assert picture.size == (330, 264)  # 30 x 24 voxels, 11 times
    assert "slice 3 of 4" in page.text
    assert "no image given" not in page.text


def test_ids_are_unique(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_without_images_or_distances(tmp_path: Path) -> None:
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[0, 2:5, 2:5] = 1
    io.write_labels(tmp_path / "ref" / "a.png", labels)
    io.write_labels(tmp_path / "pred" / "a.png", np.zeros_like(labels))
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert summary.mean["hd95_mm"] is None
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "no image given" in text
    assert "no interval" in text
    assert "holds no manifest.json" in text
    assert re.search(r"HD95 \[px\]</span><b>–</b>", text)


def test_images_named_by_the_manifest(tmp_path: Path) -> None:
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[0, 2:5, 2:5] = 1
    for folder in ("ref", "pred", "pred/probabilities"):
        io.write_labels(tmp_path / folder / "a.png", labels)
    image = tmp_path / "elsewhere.png"
    Image.fromarray(np.full((9, 9), 90, np.uint8)).save(image)
    record = {"input": [str(image)], "output": "a.png"}
    (tmp_path / "pred" / "manifest.json").write_text(json.dumps({"method": "m", "cases": {"a": record}}))
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert summary.provenance == {"method": "m", "cases": 1}
    assert not summary.skipped["predictions_without_reference"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "no image given" not in text
    assert "The only case" in text
    (tmp_path / "pred" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")


def test_number() -> None:
    assert number(None, "dice") == "–"
    assert number(0.98765, "dice") == "0.988"
    assert number(12.345, "hd95_mm") == "12.35" or number(12.345, "hd95_mm") == "12.34"


# pictures


def test_overlay_colours() -> None:
    image = np.full((300, 300, 3), 100, np.uint8)
    labels = np.zeros((300, 300), np.uint8)
    labels[50:150, 50:150] = 2
    result = pictures.overlay(image, labels, labels > 0)
    assert result.shape == (300, 300, 3)
    assert tuple(result[50, 100]) == PALETTE[2]  # contour, inside
    assert tuple(result[49, 100]) == (255, 255, 255)  # reference, just outside: both are seen
    assert tuple(result[10, 10]) == (100, 100, 100)
    np.testing.assert_allclose(result[100, 100], 0.68 * 100 + 0.32 * np.array(PALETTE[2]), atol=1)
    assert (image == 100).all()


def test_overlay_is_large_enough_to_see() -> None:
    image, labels = np.zeros((40, 64, 3), np.uint8), np.zeros((40, 64), np.int64)
    assert pictures.overlay(image, labels).shape == (280, 448, 3)
    assert pictures.overlay(np.zeros((1, 3000, 3), np.uint8), np.zeros((1, 3000), int)).shape == (1, 3000, 3)


def test_overlay_refuses() -> None:
    with pytest.raises(InputError, match="uint8"):
        pictures.overlay(np.zeros((4, 4, 3)), np.zeros((4, 4), int))
    with pytest.raises(InputError, match="one grid"):
        pictures.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int))


def test_to_rgb() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_rgb(colour), colour[..., :3])
    ramp = np.linspace(-1000, 1000, 10000, dtype=np.float32).reshape(100, 100, 1)
    grey = pictures.to_rgb(ramp)
    assert (grey.min(), grey.max()) == (0, 255)
    assert abs(int(grey[50, 0, 0]) - 127) <= 2
    focus = np.zeros((100, 100), bool)
    focus[50:60] = True  # values about 0 .. 200
    near = pictures.to_rgb(ramp, focus)
    assert near[20, 0, 0] == 0
    assert near[90, 0, 0] == 255
    assert pictures.to_rgb(np.full((3, 3, 1), 7, np.int16)).shape == (3, 3, 3)


def test_square_pixels() -> None:
    assert pictures.square_pixels(np.zeros((10, 10), np.int32), (2.0, 1.0), smooth=False).shape == (20, 10)
    assert pictures.square_pixels(np.zeros((10, 10, 3), np.uint8), (1.0, 1.5), smooth=True).shape == (10, 15, 3)


def test_palette() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 21
    assert color(0) == (0, 0, 0)
    assert color(1) == color(21) == PALETTE[1]
    assert color(20) == PALETTE[20]
