"""The largest piece of every object: by hand, and against a flood fill."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from samsans.inference.components import largest_components
from samsans.types import ClassInfo

ORGANS = (ClassInfo("a", 1, (1,)), ClassInfo("b", 2, (2,)))
DISC_CUP = (ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,)))
NESTED = (ClassInfo("c", 3, (7,)), ClassInfo("a", 1, (5, 6, 7)), ClassInfo("b", 2, (6, 7)))


def drawn(text: str) -> np.ndarray:
    """One slice, a line a row."""
    return np.array([[[int(letter) for letter in line] for line in text.split()]], np.uint8)


def test_strays_are_taken_off_by_hand() -> None:
    labels = drawn("1100000 1100022 0010022 0000000 1000200")
    want = drawn("1100000 1100022 0010022 0000000 0000000")  # a corner connects
    kept = largest_components(labels, ORGANS)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, want)
    assert labels[0, 4, 0] == 1  # a copy
    np.testing.assert_array_equal(
        largest_components(labels, ORGANS[:1]), drawn("1100000 1100022 0010022 0000000 0000200")
    )


def test_pieces_are_connected_across_slices() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, :2, :2] = labels[1, 2, 2] = labels[2, 3, 3] = 1  # 4 + 1 + 1, by corners
    labels[0, 0, 3] = labels[1, 0, 3] = labels[2, 0, 3] = 1  # 3
    want = labels.copy()
    want[:, 0, 3] = 0
    np.testing.assert_array_equal(largest_components(labels, ORGANS), want)


def test_a_cup_neither_cuts_its_disc_nor_leaves_a_hole() -> None:
    cut = drawn("01210 01210 01210 00000 11000")  # the rim alone would be two pieces of 3
    np.testing.assert_array_equal(largest_components(cut, DISC_CUP), drawn("01210 01210 01210 00000 00000"))
    stray = drawn("111111 122111 111121 111111")
    np.testing.assert_array_equal(largest_components(stray, DISC_CUP), drawn("111111 122111 111111 111111"))
    larger = drawn("11110000 12110222 11110222")  # the larger cup is in the smaller piece of disc
    np.testing.assert_array_equal(largest_components(larger, DISC_CUP), drawn("11110000 12110000 11110000"))


def test_three_objects_inside_each_other() -> None:
    labels = drawn("1111111 1223131 1232111 1111111 0000000 3330000")
    np.testing.assert_array_equal(
        largest_components(labels, NESTED), drawn("1111111 1223111 1232111 1111111 0000000 0000000")
    )


def test_nothing_to_take_off() -> None:
    empty = np.zeros((2, 3, 4), np.uint16)
    np.testing.assert_array_equal(largest_components(empty, ORGANS), empty)
    assert largest_components(empty, ORGANS).dtype == np.uint16
    assert largest_components(empty, ()).shape == (2, 3, 4)


def flooded(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask by flood fill, the first in the array among equals."""
    left, best = {tuple(p) for p in np.argwhere(mask)}, set()
    for seed in map(tuple, np.argwhere(mask)):
        piece, edge = set(), [seed] if seed in left else []
        while edge:
            voxel = edge.pop()
            if voxel in left:
                left.remove(voxel)
                piece.add(voxel)
                edge += [tuple(np.add(voxel, s)) for s in itertools.product((-1, 0, 1), repeat=3)]
        best = piece if len(piece) > len(best) else best
    out = np.zeros(mask.shape, bool)
    for voxel in best:
        out[voxel] = True
    return out


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 5)] * 3), st.floats(0.1, 0.7))
def test_against_a_flood_fill(seed: int, shape: tuple[int, int, int], share: float) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, 3, shape) * (rng.random(shape) < share)).astype(np.uint8)
    apart = largest_components(labels, ORGANS)
    for label in (1, 2):
        np.testing.assert_array_equal(apart == label, flooded(labels == label))
    inside = largest_components(labels, DISC_CUP)
    disc = flooded(labels > 0)
    np.testing.assert_array_equal(inside > 0, disc)
    np.testing.assert_array_equal(inside == 2, flooded((labels == 2) & disc))
    np.testing.assert_array_equal(largest_components(inside, DISC_CUP), inside)
