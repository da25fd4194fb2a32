"""Objects and mask values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samsans.data.classes import (
    class_masks,
    compose,
    disjoint_classes,
    infer_classes,
    named_classes,
    painted,
    read_classes,
    value_counts,
    write_classes,
)
from samsans.errors import InputError
from samsans.types import ClassInfo

DISC_CUP = named_classes({"disc": [1, 2], "cup": [2]})
ORGANS = named_classes({"a": [1], "b": [2], "c": [3]})


def test_masks_may_overlap() -> None:
    labels = np.array([[0, 1, 2]])
    np.testing.assert_array_equal(class_masks(labels, DISC_CUP), [[[0, 1, 1]], [[0, 0, 1]]])
    assert class_masks(labels, ()).shape == (0, 1, 3)


def test_exclusive_objects_compete_by_logit() -> None:
    logits = np.array([[[2.0, 1, -1, -1]], [[1.0, 3, -2, 0.5]], [[-1.0, 2, -3, 0.4]]])
    np.testing.assert_array_equal(compose(logits, ORGANS), [[1, 2, 0, 2]])


def test_the_inner_object_is_painted_on_the_outer_one() -> None:
    logits = np.array([[[9.0, 9, -1, -1]], [[0.1, -1, 0.1, -1]]])
    np.testing.assert_array_equal(compose(logits, DISC_CUP), [[2, 1, 2, 0]])
    flipped = compose(logits[::-1], named_classes({"cup": [2], "disc": [1, 2]}))
    np.testing.assert_array_equal(flipped, [[1, 2, 1, 0]])


def test_three_nested_regions() -> None:
    regions = named_classes({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})
    logits = np.array([[[5.0, 5, 5]], [[-1.0, 4, 4]], [[-1.0, -1, 0.1]]])
    np.testing.assert_array_equal(compose(logits, regions), [[1, 2, 3]])
    assert [c.values for c in painted(regions)] == [(1, 2, 3), (2, 3), (3,)]


@given(arrays(np.int64, (2, 3, 4), elements=st.integers(0, 3)))
def test_compose_and_painted_give_back_the_masks_of_a_label_map(labels: np.ndarray) -> None:
    regions = named_classes({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})
    masks = class_masks(labels, regions)
    again = compose(np.where(masks, 1.0, -1.0), regions)
    np.testing.assert_array_equal(class_masks(again, painted(regions)), masks)


def test_many_labels_need_two_bytes_and_maps_must_be_as_many_as_objects() -> None:
    many = tuple(ClassInfo(f"c{i}", i, (i,)) for i in range(1, 301))
    logits = np.full((300, 1, 1), -1.0)
    logits[299] = 1
    assert compose(logits, many).dtype == np.uint16
    assert compose(logits, many)[0, 0] == 300
    with pytest.raises(InputError, match="300 logit maps for 3 objects"):
        compose(logits, ORGANS)


def test_objects_are_inferred_from_values() -> None:
    assert infer_classes({0, 255})[0] == (ClassInfo("foreground", 1, (255,)),)
    assert infer_classes({1})[0] == (ClassInfo("foreground", 1, (1,)),)
    named, text = infer_classes({0, 4, 2})
    assert [(c.name, c.label, c.values) for c in named] == [("class_1", 1, (2,)), ("class_2", 2, (4,))]
    assert "2, 4" in text
    assert infer_classes({0})[0] == ()


def test_grey_levels_of_a_jpeg_mask_are_one_object() -> None:
    (info,), text = infer_classes([*range(8), *range(248, 256)])
    assert (info.values[0], info.values[-1]) == (128, 255)
    assert "grey levels" in text
    labels_with_void, _ = infer_classes([*range(20), 255])
    assert len(labels_with_void) == 20


def test_an_object_needs_a_value() -> None:
    with pytest.raises(InputError, match="'x' has no mask value"):
        named_classes({"x": []})


@given(arrays(st.sampled_from([np.uint8, np.int16, np.int64, np.uint64]), (3, 5), elements=st.integers(0, 100)))
def test_value_counts_agree_with_numpy(labels: np.ndarray) -> None:
    values, counts = np.unique(labels, return_counts=True)
    assert value_counts(labels) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_value_counts_of_few_values_far_apart() -> None:
    assert value_counts(np.array([-5, 10**12, -5])) == {-5: 2, 10**12: 1}
    assert value_counts(np.zeros(0, np.uint8)) == {}


def test_classes_file(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "classes.json", DISC_CUP)
    assert read_classes(path) == DISC_CUP
    path.write_text('{"classes": [{"name": "x"}]}')
    with pytest.raises(InputError, match="holds no list of objects"):
        read_classes(path)


def test_disjoint_classes() -> None:
    assert disjoint_classes(DISC_CUP) == (ClassInfo("disc", 1, (1,)), ClassInfo("cup", 2, (2,)))
    assert disjoint_classes(ORGANS) == ORGANS
    assert disjoint_classes(()) == ()
    nested = named_classes({"inner": [3], "whole": [1, 2, 3, 4], "middle": [2, 3], "other": [9]})
    assert [c.values for c in disjoint_classes(nested)] == [(3,), (1, 4), (2,), (9,)]
