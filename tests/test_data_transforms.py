"""From slices to the squares networks see, and back."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from samsans.config import from_dict
from samsans.data.transforms import MEAN, STD, Preprocess, aligned, inside, spline
from samsans.errors import InputError
from samsans.ops.labels import corner_aligned


def rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def shown(array: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """A single slice with its own levels."""
    return preprocess.image(array, preprocess.levels(array[None]))


def test_an_8_bit_picture_of_the_right_size_is_unchanged() -> None:
    array = rgb(24, 24)
    image = shown(array, Preprocess(24))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), array.transpose(2, 0, 1))


def test_reduction_is_antialiased_as_in_pillow() -> None:
    array = rgb(60, 90)
    oracle = np.asarray(Image.fromarray(array).resize((20, 20), Image.Resampling.BILINEAR))
    image = shown(array, Preprocess(20))
    assert np.abs(image.numpy().transpose(1, 2, 0).astype(int) - oracle).max() <= 1


def test_padding_keeps_the_shape_and_is_zero_after_normalising() -> None:
    preprocess = Preprocess(32, resize="pad")
    image = shown(np.full((10, 20, 3), 200, np.uint8), preprocess)
    assert preprocess.valid(10, 20) == (16, 32)
    out = preprocess.normalize(image[None], torch.tensor([[16, 32]]))
    assert out[0, :, 16:].abs().max() == 0
    expected = torch.tensor([(200 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(out[0, :, 0, 0], expected)
    assert not preprocess.labels(np.ones((1, 10, 20), bool))[0, 16:].any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 33))
def test_masks_are_sampled_at_pixel_centres(height: int, width: int, side: int) -> None:
    masks = np.random.default_rng(height * width).random((2, height, width)) < 0.5
    rows, columns = ([math.floor((i + Fraction(1, 2)) * n / side) for i in range(side)] for n in (height, width))
    oracle = np.array([[[m[r, c] for c in columns] for r in rows] for m in masks])
    np.testing.assert_array_equal(Preprocess(side).labels(masks).numpy(), oracle)


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["squash", "pad"]))
def test_restored_logits_have_the_size_of_the_slice(height: int, width: int, resize: str) -> None:
    preprocess = Preprocess(16, resize=resize)  # type: ignore[arg-type]
    valid = preprocess.valid(height, width)
    assert 1 <= min(valid) <= max(valid) == 16
    logits = torch.full((2, 16, 16), -5.0)
    logits[:, : valid[0], : valid[1]] = 3.0
    restored = preprocess.restore(logits, torch.tensor(valid), (height, width))
    assert restored.shape == (2, height, width)
    torch.testing.assert_close(restored, torch.full_like(restored, 3.0))


def test_a_ramp_survives_there_and_back() -> None:
    ramp = np.repeat(np.linspace(0, 255, 64)[None, :, None], 64, 0).astype(np.uint8)
    preprocess = Preprocess(128)
    back = preprocess.restore(shown(ramp, preprocess).float(), (128, 128), (64, 64))
    assert np.abs(back[0].numpy() - ramp[..., 0]).max() < 3


def test_levels() -> None:
    preprocess = Preprocess(8)
    volume = np.arange(1000, dtype=np.int16).reshape(10, 10, 10, 1)
    low, high = preprocess.levels(volume)
    np.testing.assert_allclose([low[0], high[0]], np.percentile(volume, (1, 99)), rtol=1e-6)
    assert [v.tolist() for v in preprocess.levels(rgb(5, 5)[None])] == [[0], [255]]
    assert [v.tolist() for v in Preprocess(8, window=(-100, 300)).levels(volume)] == [[-100], [300]]
    dim = np.arange(100, dtype=np.uint8).reshape(4, 5, 5, 1)
    assert preprocess.levels(dim)[1][0] < 100, "an 8-bit volume is shown by its own percentiles"


def test_levels_by_channel_of_volumes_and_shared_by_pictures() -> None:
    array = np.zeros((4, 5, 5, 3), np.float32)
    array[..., 1] = np.arange(100).reshape(4, 5, 5)
    _, high = Preprocess(8).levels(array)
    assert high.shape == (3,)
    assert high[1] > 90
    assert high[0] < 1
    assert Preprocess(8).levels(array[:1])[1].shape == (1,)


def test_constant_and_non_finite_values_give_finite_pictures() -> None:
    array = np.full((3, 6, 6, 1), 7.0, np.float32)
    array[0, 0, 0] = np.nan
    array[0, 1, 1] = np.inf
    preprocess = Preprocess(6)
    image = preprocess.image(array[0], preprocess.levels(array))
    assert image[0, 0, 0] == image[0, 1, 1] == 0


def test_window() -> None:
    array = np.array([[[-500.0], [0.0], [100.0], [200.0], [900.0]]])
    array = np.repeat(array, 5, 0)
    image = shown(array, Preprocess(5, window=(0, 200)))
    assert image[0, 0].tolist() == [0, 0, 128, 255, 255]


def test_channels() -> None:
    four = np.stack([np.full((4, 4), v, np.uint8) for v in (10, 20, 30, 40)], -1)
    with pytest.raises(InputError, match="the image has 4 channels"):
        shown(four, Preprocess(4))
    picked = Preprocess(4, window=(0, 255), channels=(3, 0, 1))
    assert shown(four, picked)[:, 0, 0].tolist() == [40, 10, 20]
    one = Preprocess(4, window=(0, 255), channels=(2,))
    assert shown(four, one)[:, 0, 0].tolist() == [30, 30, 30]
    with pytest.raises(InputError, match="numbers from 0 to 3"):
        shown(four, Preprocess(4, window=(0, 255), channels=(4,)))


def test_inside() -> None:
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, :2, :3] = True
    assert torch.equal(inside(torch.tensor([[2, 3]]), 4), expected)


def test_statistics() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 3, 3)
    unit = Preprocess(3, statistics="unit").normalize(images)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit[0, 1, 2], torch.tensor([0.0, 0.2, 1.0]))
    sam = Preprocess(3).normalize(images)[0, :, 0]
    expected = [[-2.117904, -1.244539, 2.248919], [-2.035714, -1.142857, 2.428571], [-1.804444, -0.915556, 2.64]]
    torch.testing.assert_close(sam, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    for preprocess in (Preprocess(3), Preprocess(3, statistics="unit")):
        cut = preprocess.normalize(images, torch.tensor([[2, 3]]))
        assert cut[:, :, 2].abs().max() == 0
        assert torch.equal(cut[:, :, :2], preprocess.normalize(images)[:, :, :2])


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize(("height", "width", "side"), [(23, 40, 16), (16, 9, 33), (12, 12, 12)])
def test_linear_is_as_it_was(resize: str, height: int, width: int, side: int) -> None:
    """Frozen: published numbers of other methods rest on it."""
    array = rgb(height, width)
    preprocess = Preprocess(side, resize)  # type: ignore[arg-type]
    tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float()
    scale = side / max(height, width)
    h, w = (side, side) if resize == "squash" else (int(height * scale + 0.5), int(width * scale + 0.5))
    if (h, w) != (height, width):
        tensor = torch.nn.functional.interpolate(tensor[None], (h, w), mode="bilinear", antialias=True)[0]
    expected = torch.zeros(3, side, side, dtype=torch.uint8)
    expected[:, :h, :w] = tensor.round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(shown(array, preprocess), expected)
    logits = torch.randn(2, side, side)
    back = torch.nn.functional.interpolate(logits[None, :, :h, :w], (height, width), mode="bilinear")[0]
    assert torch.equal(preprocess.restore(logits, (h, w), (height, width)), back)


@pytest.mark.parametrize(("size", "wanted"), [((61, 47), (32, 32)), ((20, 33), (50, 41)), ((9, 1), (4, 3))])
def test_splines_are_those_of_scipy(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((2, *size)).astype(np.float32)
    factors = [m / n for n, m in zip(size, wanted, strict=True)]
    oracle = np.stack([ndimage.zoom(v, factors, order=3) for v in values])
    out = spline(values, wanted)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, oracle, atol=1e-6)


def test_the_last_row_and_column_are_not_lost() -> None:
    values = np.random.default_rng(0).random((1, 512, 512)).astype(np.float32) + 1
    oracle = ndimage.zoom(values[0], 224 / 512, order=3)
    assert not oracle[-1].any(), "SciPy's edge case is gone: the note in the docstring of spline may go too"
    out = spline(values, (224, 224))[0]
    np.testing.assert_allclose(out[:-1, :-1], oracle[:-1, :-1], atol=1e-6)
    np.testing.assert_allclose(out[[0, 0, -1, -1], [0, -1, 0, -1]], values[0][[0, 0, -1, -1], [0, -1, 0, -1]], 1e-5)


def test_aligned_labels() -> None:  # check 13 of the specification
    index = aligned(512, 128)
    assert index[[0, 1, 2, 31, 32, 42, 43, 126, 127]].tolist() == [0, 4, 8, 125, 129, 169, 173, 507, 511]
    assert aligned(224, 56)[[31, 54, 55]].tolist() == [126, 219, 223]
    assert aligned(5, 1).tolist() == [0]


@given(st.integers(1, 300), st.integers(2, 300))
def test_aligned_is_rounding_and_the_same_where_sizes_are(size: int, wanted: int) -> None:
    oracle = [math.floor(Fraction(i * (size - 1), wanted - 1) + Fraction(1, 2)) for i in range(wanted)]
    assert aligned(size, wanted).tolist() == oracle == corner_aligned(size, wanted).tolist()
    assert aligned(size, size).tolist() == list(range(size))


def test_spline_pictures_masks_and_results() -> None:
    array = rgb(20, 31)
    preprocess = Preprocess(16, resampling="spline")
    oracle = np.stack([ndimage.zoom(array[..., c].astype(float), (16 / 20, 16 / 31), order=3) for c in range(3)])
    assert oracle.min() < 0, "splines overshoot"
    np.testing.assert_array_equal(shown(array, preprocess).numpy(), oracle.clip(0, 255).round())
    masks = array.transpose(2, 0, 1) > 99
    expected = masks[:, aligned(20, 16)[:, None], aligned(31, 16)]
    np.testing.assert_array_equal(preprocess.labels(masks).numpy(), expected)
    logits = torch.randn(3, 16, 16)
    back = preprocess.restore(logits, (16, 16), (20, 31))
    assert torch.equal(back.argmax(0), logits.argmax(0)[aligned(16, 20)[:, None], aligned(16, 31)])
    same = rgb(16, 16)
    np.testing.assert_array_equal(shown(same, preprocess).numpy(), same.transpose(2, 0, 1))


def test_splines_and_padding() -> None:
    preprocess = Preprocess(32, resize="pad", resampling="spline", via=16)
    array = rgb(10, 20)[..., :1]
    image = shown(array, preprocess)
    small = ndimage.zoom(array[..., 0].astype(float), (8 / 10, 16 / 20), order=3, mode="mirror")
    large = ndimage.zoom(small, 2, order=3, mode="mirror").clip(0, 255).round()
    assert image.shape == (3, 32, 32)
    np.testing.assert_array_equal(image[2, :16].numpy(), large)
    assert not image[:, 16:].any()
    restored = preprocess.restore(torch.randn(1, 32, 32), (16, 32), (10, 20))
    assert restored.shape == (1, 10, 20)


@pytest.mark.parametrize("resampling", ["linear", "spline"])
def test_via_shows_no_more_than_the_small_side(resampling: str) -> None:
    array = 90 + rgb(64, 64)[..., :1] // 4  # far from black and white, which splines overshoot
    masks = array.transpose(2, 0, 1) > 120
    through = Preprocess(48, via=12, resampling=resampling)  # type: ignore[arg-type]
    first = Preprocess(12, resampling=resampling)  # type: ignore[arg-type]
    second = Preprocess(48, resampling=resampling)  # type: ignore[arg-type]
    two = second.image(shown(array, first)[0, :, :, None].numpy(), (np.zeros(1), np.full(1, 255.0)))
    assert (shown(array, through).int() - two.int()).abs().max() <= 1, "but for the rounding in between"
    assert torch.equal(through.labels(masks), second.labels(first.labels(masks).numpy()))
    assert through.valid(64, 64) == (48, 48)


def test_levels_of_each_slice() -> None:
    """Each slice from its smallest to its largest value, by channel; a picture's three channels share theirs."""
    own = Preprocess(8, stretch="slice")
    ramp = np.arange(64.0).reshape(8, 8, 1)
    volume = np.stack([ramp, 500 - 2 * ramp, np.ones_like(ramp)])
    assert own.levels(volume) is None
    rising, falling, flat = (own.image(part, None)[1] for part in volume)
    assert rising.flatten().tolist() == [round(i * 255 / 63) for i in range(64)]
    assert torch.equal(falling, rising.flip(0, 1))
    assert not flat.any()
    colour = rgb(8, 8)
    colour[..., 0] //= 2
    low, high = int(colour.min()), int(colour.max())
    expected = ((colour.astype(np.float32) - low) * np.float32(255 / (high - low))).round().transpose(2, 0, 1)
    np.testing.assert_allclose(own.image(colour, None).numpy(), expected, atol=1)


def test_from_a_run_configuration() -> None:
    plain = from_dict({})
    assert Preprocess.of(plain, 1024) == Preprocess(1024)
    config = from_dict(
        {
            "data": {"window": [-125.0, 275.0], "channels": [2]},
            "backbone": {"resize": "pad", "statistics": "unit", "resampling": "spline", "via": 224},
        }
    )
    assert Preprocess.of(config, 512) == Preprocess(512, "pad", (-125.0, 275.0), (2,), "unit", "spline", 224)
    assert Preprocess.of(config, 512, predicting=True).via == 224
    config.backbone.via_predict = 128
    assert Preprocess.of(config, 512, predicting=True).via == 128
    assert Preprocess.of(config, 512).via == 224
    config.data.window, config.data.levels = None, "slice"
    assert Preprocess.of(config, 512).stretch == "slice"
    for window, levels in (([0.0, 1.0], "slice"), ([0.0], "volume")):
        config.data.window, config.data.levels = window, levels  # type: ignore[assignment]
        with pytest.raises(InputError, match=rf"data\.window is .*, data\.levels {levels}"):
            Preprocess.of(config, 512)
    config.data.window, config.data.levels = None, "volume"
    config.backbone.via = 0
    with pytest.raises(InputError, match="via 0 pixels"):
        Preprocess.of(config, 512)
