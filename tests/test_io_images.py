"""PNG, JPEG, BMP and TIFF: every mode, exact values, clear refusals."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from samsans.errors import InputError
from samsans.io import content_hash, output_suffix, read_image, read_labels, write_image, write_labels
from samsans.palette import PALETTE

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(path: Path, depth: int, colour: int, rows: list[bytes], width: int) -> Path:
    """A PNG made by hand, for depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_grey_and_rgb_are_exact(tmp_path: Path, ending: str) -> None:
    for values in (GREY, RGB):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(values).save(path)
        volume = read_image(path)
        assert volume.array.dtype == np.uint8
        np.testing.assert_array_equal(volume.array, values.reshape(1, 5, 7, -1))
        assert volume.affine is None
        assert volume.unit == "px"


def test_jpeg_is_what_pillow_decodes_and_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").array[0], np.asarray(Image.open(tmp_path / "a.jpg")))
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert read_image(tmp_path / "c.jpg").array.shape == (1, 5, 7, 3)


def test_16_bit_grey_keeps_all_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    volume = read_image(tmp_path / "a.png")
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array[0, :, :, 0], values)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_is_refused_not_truncated(tmp_path: Path, colour: int, channels: int) -> None:
    row = RNG.integers(0, 2**16, 3 * channels).astype(">u2").tobytes()
    path = png(tmp_path / "a.png", 16, colour, [row, row], 3)
    with pytest.raises(InputError, match=r"16 bits per channel.*TIFF"):
        read_image(path)


def test_rgb_16_bit_tiff_is_read_in_full(tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], values)


def test_one_bit_is_black_and_white_as_image_and_0_1_as_labels(tmp_path: Path) -> None:
    mask = GREY > 127
    Image.fromarray(mask).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack")
    for name in ("a.png", "lzw.tif", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0, :, :, 0], mask * 255)
        np.testing.assert_array_equal(read_labels(tmp_path / name).array[0], mask)


@pytest.mark.parametrize("depth", [2, 4])
def test_small_depths_keep_raw_label_values(tmp_path: Path, depth: int) -> None:
    values = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    rows = [bytes(np.packbits(np.unpackbits(r.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :])) for r in values]
    path = png(tmp_path / "a.png", depth, 0, rows, 4)
    np.testing.assert_array_equal(read_labels(path).array[0], values)
    np.testing.assert_array_equal(read_image(path).array[0, :, :, 0], values * (255 // (2**depth - 1)))


def test_palette_gives_colours_as_image_and_indices_as_labels(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    for name in ("a.png", "a.tif", "a.bmp"):
        image.save(tmp_path / name)
    image.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for name in ("a.png", "a.tif", "a.bmp", "lzw.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0, 1, 0], [40, 50, 60])
        np.testing.assert_array_equal(read_labels(tmp_path / name).array[0], indices)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_alpha_is_dropped_where_constant_and_refused_where_not(tmp_path: Path, ending: str) -> None:
    for values in (GREY[:, :, None], RGB):
        opaque = np.dstack([values, np.full((5, 7), 200, np.uint8)])
        Image.fromarray(opaque).save(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}").array[0], values)
        opaque[2, 3, -1] = 0
        Image.fromarray(opaque).save(tmp_path / f"b.{ending}")
        with pytest.raises(InputError, match="transparent in places"):
            read_image(tmp_path / f"b.{ending}")


def test_exif_orientation_is_not_applied_and_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    with pytest.warns(UserWarning, match="EXIF orientation"):
        volume = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.array[0, :, :, 0], GREY)


def test_rgb_masks_are_collapsed_when_grey_and_refused_when_coloured(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "grey.png").array[0], GREY)
    Image.fromarray(RGB).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match=r"colour\.png has 3 channels that differ"):
        read_labels(tmp_path / "colour.png")


def test_tiff_pages_are_slices_and_planes_are_channels(tmp_path: Path) -> None:
    stack = RNG.integers(-5, 9, (4, 5, 7), dtype=np.int16)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif").array[..., 0], stack)
    assert output_suffix(tmp_path / "pages.tif") == ".tif"
    tifffile.imwrite(tmp_path / "imagej.tif", stack.astype(np.uint16), imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "imagej.tif").array[0, :, :, 2], stack[2].astype(np.uint16))
    assert output_suffix(tmp_path / "imagej.tif") == ".png"
    Image.fromarray(GREY).save(
        tmp_path / "lzw.tif", compression="tiff_lzw", save_all=True, append_images=[Image.fromarray(255 - GREY)]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "lzw.tif").array[1, :, :, 0], 255 - GREY)
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as tif:
        tif.write(GREY)
        tif.write(GREY[:3])
    with pytest.raises(InputError, match="several sizes"):
        read_image(tmp_path / "sizes.tif")
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((2, 3, 4, 5), np.uint8), photometric="minisblack", metadata={"axes": "TZYX"}
    )
    with pytest.raises(InputError, match="axes TZYX"):
        read_image(tmp_path / "five.tif")


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0, :, :, 0], 255 - GREY)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").array[0], GREY)
    mask = GREY > 127
    tifffile.imwrite(tmp_path / "bool.tif", mask)  # tifffile states white is zero for bool
    Image.fromarray(~mask).save(tmp_path / "lzw.tif", compression="tiff_lzw", tiffinfo={262: 0})
    for name in ("bool.tif", "lzw.tif"):
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert tif.pages.first.photometric == 0
        np.testing.assert_array_equal(read_labels(tmp_path / name).array[0], mask)
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0, :, :, 0], ~mask * 255)


def test_png_label_maps_are_palette_images_in_our_colours(tmp_path: Path) -> None:
    labels = np.array([[[0, 1, 2], [3, 20, 255]]])
    path = write_labels(tmp_path / "a.png", labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels[0])
        rgb = np.asarray(image.convert("RGB"))
    assert [tuple(rgb[0, i]) for i in range(3)] == list(PALETTE[:3])
    np.testing.assert_array_equal(read_labels(path).array, labels)
    path = write_labels(tmp_path / "b.png", labels * 256)
    np.testing.assert_array_equal(read_labels(path).array, labels * 256)


@settings(max_examples=40, deadline=None)
@given(
    values=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.float32]),
        st.tuples(*[st.integers(1, 4)] * 4),
        elements={"min_value": 0, "max_value": 100},
    )
)
def test_tiff_round_trip(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("t") / "a.tif"
    result = read_image(write_image(path, values)).array
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)


def test_what_png_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 slices"):
        write_labels(tmp_path / "a.png", np.zeros((2, 3, 3), int))
    with pytest.raises(InputError, match="float32"):
        write_image(tmp_path / "a.png", np.zeros((1, 3, 3), np.float16))
    with pytest.raises(InputError, match="uint32"):
        write_labels(tmp_path / "a.png", np.full((1, 3, 3), 70000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_truncated_files_are_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"half.{ending}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=rf"half\.{ending} cannot be read.*Copy it again"):
            read_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(path)


def test_content_hash_sees_the_picture_not_the_file(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "b.bmp")
    Image.fromarray(255 - GREY).save(tmp_path / "c.png")
    assert content_hash(tmp_path / "a.png") == content_hash(tmp_path / "b.bmp")
    assert content_hash(tmp_path / "a.png") != content_hash(tmp_path / "c.png")
