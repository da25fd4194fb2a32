"""Label maps of exclusive classes: golden values, SciPy and NumPy as oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samsans.ops.labels import class_labels, corner_aligned, shrink_labels, winners


@pytest.mark.parametrize("objects", [1, 8, 300])
def test_class_labels_undo_one_hot(objects: int) -> None:
    labels = torch.randint(0, objects + 1, (2, 24, 20), generator=torch.Generator().manual_seed(0))
    masks = torch.nn.functional.one_hot(labels, objects + 1).permute(0, 3, 1, 2)[:, 1:].bool()
    found = class_labels(masks)
    assert found.dtype == torch.int64
    assert torch.equal(found, labels)


def test_corner_aligned_golden_indices() -> None:  # check 13
    index = corner_aligned(512, 128)
    assert index[[0, 1, 2, 31, 32, 42, 43, 126, 127]].tolist() == [0, 4, 8, 125, 129, 169, 173, 507, 511]
    assert corner_aligned(224, 56)[[31, 54, 55]].tolist() == [126, 219, 223]
    assert corner_aligned(7, 7).tolist() == list(range(7))
    assert corner_aligned(9, 1).tolist() == [0]


@given(size=st.integers(2, 700), wanted=st.integers(2, 200))
@settings(max_examples=100, deadline=None)
def test_corner_aligned_is_rounding_with_both_ends_kept(size: int, wanted: int) -> None:
    index = corner_aligned(size, wanted)
    exact = np.arange(wanted) * (size - 1) / (wanted - 1)
    assert index[0] == 0
    assert index[-1] == size - 1
    assert (np.abs(index.numpy() - exact) <= 0.5 + 1e-9).all()


@pytest.mark.parametrize(("side", "small"), [(512, 128), (224, 56), (64, 16), (512, 32), (224, 14)])
def test_shrink_labels_equals_scipy_zoom(side: int, small: int) -> None:
    labels = torch.randint(0, 9, (2, side, side), generator=torch.Generator().manual_seed(1))
    expected = np.stack([ndimage.zoom(label, small / side, order=0) for label in labels.numpy()])
    assert np.array_equal(shrink_labels(labels, small).numpy(), expected)
    assert torch.equal(shrink_labels(labels, side), labels)


def test_winners_are_the_argmax_and_the_first_of_equals() -> None:
    logits = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))
    best = np.concatenate([np.zeros((2, 1, 9, 9)), logits.numpy()], 1).argmax(1)
    assert np.array_equal(class_labels(winners(logits)).numpy(), best)
    ties = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)  # background 0, second and third alike
    assert winners(ties).flatten().tolist() == [False, True, False]
    assert not winners(torch.zeros(2, 4, 4)).any()
