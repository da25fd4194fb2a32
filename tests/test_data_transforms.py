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

from samsans.data.transforms import MEAN, STD, Preprocess, inside, normalize
from samsans.errors import InputError


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
    out = normalize(image[None], torch.tensor([[16, 32]]))
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
