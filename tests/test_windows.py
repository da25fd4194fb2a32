"""Sliding windows: starts and weights by hand, streamed sums against a naive mean over the whole volume, mirroring."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from samsans.errors import InputError
from samsans.inference.windows import Windows, gaussian, mirrored, padding, starts


@pytest.mark.parametrize(
    ("length", "patch", "overlap", "wanted"),
    [
        (9, 4, 0.5, (0, 2, 3, 5)),  # halves to even of 0, 1.667, 3.333, 5
        (4, 4, 0.5, (0,)),
        (5, 4, 0.5, (0, 1)),
        (104, 9, 0.5, tuple(round(i * 95 / 22) for i in range(23))),
        (7, 2, 0.5, (0, 1, 2, 3, 4, 5)),
        (9, 4, 0.0, (0, 2, 5)),  # 2.5 is rounded to 2
        (12, 4, 0.0, (0, 4, 8)),
        (3, 1, 0.5, (0, 0, 1, 2, 2)),
        (13, 10, 0.9, (0, 1, 2, 3)),  # 10 (1 - 0.9) is 0.99999...: no fifth window
    ],
)
def test_starts(length: int, patch: int, overlap: float, wanted: tuple[int, ...]) -> None:
    assert starts(length, patch, overlap) == wanted


@given(st.integers(1, 40), st.integers(0, 60), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]))
def test_windows_cover_the_axis_in_order(patch: int, more: int, overlap: float) -> None:
    found = starts(patch + more, patch, overlap)
    assert found[0] == 0
    assert found[-1] == more
    assert all(0 <= after - before <= patch for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("patch", [(4, 16, 16), (9, 12, 20), (1, 7, 2)])
def test_weights_are_those_of_a_filtered_point(patch: tuple[int, int, int]) -> None:
    point = torch.zeros(patch, dtype=torch.float64)
    point[tuple(p // 2 for p in patch)] = 1
    filtered = ndimage.gaussian_filter(point.numpy(), [p / 8 for p in patch], mode="constant")
    wanted = torch.from_numpy(10 * filtered / filtered.max())
    weights = gaussian(patch)
    assert weights.max() == 10
    assert weights.min() > 0
    torch.testing.assert_close(weights.double(), wanted.clamp_min(wanted[wanted > 0].min()), rtol=1e-4, atol=1e-12)


def score(windows: Tensor) -> Tensor:
    """Scores ``(B, 3, T, H, W)`` that depend on where in its window a voxel lies."""
    t, h, w = (torch.linspace(0.5, 1.5, n) for n in windows.shape[2:])
    place = t[:, None, None] * h[:, None] ** 2 * w**3
    grey = windows.mean(1, keepdim=True)
    return torch.cat([grey.square(), grey.abs() * place, place.expand_as(grey)], 1)


def naive(volume: Tensor, patch: tuple[int, int, int], overlap: float) -> Tensor:
    """The weighted mean ``(K, d, h, w)``, everything held at once, in float64."""
    size = volume.shape[1:]
    total = torch.zeros(3, *size, dtype=torch.float64)
    seen = torch.zeros(size, dtype=torch.float64)
    weights = gaussian(patch).double()
    axes = [starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    for corner in itertools.product(*axes):
        part = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        total[(slice(None), *part)] += score(volume[(slice(None), *part)][None])[0].double() * weights
        seen[part] += weights
    return total / seen


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(0, 9), st.integers(0, 7), st.integers(0, 7)),
    st.sampled_from([0.0, 0.5, 0.7]),
    st.integers(1, 7),
)
def test_streamed_sums_are_the_mean_over_windows(
    patch: tuple[int, int, int], more: tuple[int, int, int], overlap: float, batch_size: int
) -> None:
    d, h, w = (p + m for p, m in zip(patch, more, strict=True))
    volume = torch.randn(2, d, h, w, generator=torch.Generator().manual_seed(0))
    streamed = list(Windows((d, h, w), patch, overlap, batch_size).slide(volume, score))
    assert len(streamed) == d
    torch.testing.assert_close(torch.stack(streamed, 1), naive(volume, patch, overlap).float(), rtol=1e-5, atol=1e-5)


def test_one_window_is_the_direct_answer() -> None:
    volume = torch.randn(1, 4, 16, 12)
    streamed = torch.stack(list(Windows((4, 16, 12), (4, 16, 12)).slide(volume, score)), 1)
    torch.testing.assert_close(streamed, score(volume[None])[0], rtol=1e-6, atol=1e-6)


def test_thin_volumes_are_padded_on_both_sides() -> None:
    volume = torch.randn(1, 3, 4, 9)
    patch = (6, 8, 8)
    assert padding((3, 4, 9), patch) == (0, 0, 2, 2, 1, 2)
    shown = torch.zeros(1, 6, 8, 9)
    shown[:, 1:4, 2:6] = volume
    streamed = torch.stack(list(Windows((3, 4, 9), patch).slide(volume, score)), 1)
    torch.testing.assert_close(streamed, naive(shown, patch, 0.5)[:, 1:4, 2:6].float(), rtol=1e-5, atol=1e-5)


def test_windows_come_in_full_batches_over_the_depth() -> None:
    sizes = []

    def counted(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return score(windows)

    windows = Windows((9, 6, 6), (4, 4, 4), 0.5, batch_size=5)
    assert len(windows.places) == 16
    assert len(list(windows.slide(torch.randn(1, 9, 6, 6), counted))) == 9
    assert sizes == [5, 5, 5, 1]


def test_mirroring_is_the_mean_over_eight_flips() -> None:
    windows = torch.randn(2, 1, 3, 4, 5)
    axes = [a for n in range(4) for a in itertools.combinations((2, 3, 4), n)]
    assert len(axes) == 8
    wanted = torch.stack([score(windows.flip(a)).flip(a) for a in axes]).mean(0)
    torch.testing.assert_close(mirrored(score)(windows), wanted)
    assert not torch.allclose(wanted, score(windows))


def test_mirroring_changes_nothing_where_the_method_does_not_know_directions() -> None:
    windows = torch.randn(2, 1, 3, 4, 5)
    torch.testing.assert_close(mirrored(lambda w: w.square() + 1)(windows), windows.square() + 1)


class Alive(TorchDispatchMode):
    """Counts the bytes of what is computed, as long as it lives, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, Tensor):
                self.enter(value.untyped_storage())
        return made

    def enter(self, storage: Any) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.leave, storage._cdata, storage.nbytes())

    def leave(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def state(size: tuple[int, int, int], patch: tuple[int, int, int], classes: int) -> int:
    """Most bytes alive while the slices of a volume leave one by one, the volume itself not counted."""
    volume = torch.zeros(1, *size)
    with Alive() as alive:
        alive.known.add(volume.untyped_storage()._cdata)
        windows = Windows(size, patch)
        for finished in windows.slide(volume, lambda w: w.expand(-1, classes, -1, -1, -1)):
            assert finished.shape == (classes, *size[1:])
    return alive.most


def test_memory_does_not_grow_with_the_depth() -> None:
    short, long = state((12, 24, 24), (4, 16, 16), 5), state((96, 24, 24), (4, 16, 16), 5)
    assert short == long
    voxel, plane = 4, 24 * 24
    sums, weights, windows = 5 * 4 * plane, 4 * plane, 2 * 4 * 16 * 16  # windows: one, and the weights of its voxels
    assert long <= voxel * (sums + weights + windows + 3 * 5 * plane)  # what is being added, and a slice that left
    assert long >= voxel * (sums + weights)


@pytest.mark.parametrize(("patch", "overlap"), [((0, 4, 4), 0.5), ((4, 4, 4), 1.0), ((4, 4, 4), -0.1)])
def test_windows_that_cover_nothing(patch: tuple[int, int, int], overlap: float) -> None:
    with pytest.raises(InputError, match="overlap"):
        Windows((9, 9, 9), patch, overlap)
