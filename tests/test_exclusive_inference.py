"""Objects of which a pixel has one, views, largest pieces and slice axes: what ``Segmenter`` makes of them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from nearest_method import ORGANS, nearest
from samsans import config as configuration
from samsans import methods
from samsans.data.classes import write_classes
from samsans.errors import InputError
from samsans.inference import Segmenter, load
from samsans.methods.weights import save_weights
from samsans.types import ClassInfo, Needs
from threshold_method import DISC_CUP, picture

GREYS = np.repeat(
    np.array([[0, 100, 140, 230]], np.uint8), 4, 0
)  # nearest of 0, 0.4, 0.9: background, liver 2x, spleen
LEVELS = (0.0, 0.4, 0.9)
NESTED = (20 / 255, 120 / 255, 220 / 255)  # background, rim of the disc, cup: as in ``picture``


def test_the_highest_logit_decides() -> None:
    assert nearest(LEVELS, size=4).predict(GREYS).labels[0, 0].tolist() == [0, 1, 1, 2]


def test_an_object_asked_for_alone_gets_no_pixel_that_another_wins() -> None:
    model = nearest(LEVELS, size=4)
    batch = torch.tensor(GREYS / 255).expand(1, 3, 4, 4).float()
    logits = model.method.predict(type("B", (), {"images": batch}))
    assert (logits[0, 1, 0] > 0).tolist() == [False, False, True, True]  # the third pixel could be spleen, too
    made = model.predict(GREYS, objects=["spleen"], probabilities=True)
    assert [c.name for c in made.classes] == ["spleen"]
    assert made.labels[0, 0].tolist() == [0, 0, 0, 2]
    assert made.probabilities is not None
    soft = torch.cat([torch.zeros(1, 1, 4, 4), logits], 1).softmax(1)
    np.testing.assert_allclose(made.probabilities[0, 0], soft[0, 2], atol=1e-3)


def test_probabilities_are_those_of_a_softmax() -> None:
    made = nearest(LEVELS, size=4).predict(GREYS, probabilities=True)
    assert made.probabilities is not None
    score = -100 * (GREYS[0] / 255 - np.array(LEVELS)[:, None]) ** 2
    want = np.exp(score) / np.exp(score).sum(0)
    np.testing.assert_allclose(made.probabilities[:, 0, 0], want[1:], atol=1e-3)


@pytest.mark.parametrize("resampling", ["linear", "spline"])
def test_nested_objects_learned_as_rim_and_cup_come_out_whole(resampling: str) -> None:
    image, mask = picture(1)
    model = nearest(NESTED, DISC_CUP, size=48)
    model.config.backbone.resampling = resampling
    model = Segmenter(model.method, model.config, DISC_CUP, device="cpu")
    both = model.predict(image, probabilities=True)
    assert np.mean(both.labels[0] == mask) > 0.97
    disc = model.predict(image, objects=["disc"]).labels
    cup = model.predict(image, objects=["cup"]).labels
    np.testing.assert_array_equal(disc > 0, both.labels > 0)
    np.testing.assert_array_equal(cup == 2, both.labels == 2)
    assert both.probabilities is not None
    assert (both.probabilities[0] >= both.probabilities[1]).all()  # a disc holds its cup
    assert both.probabilities[0, 0][mask == 2].min() > 0.9


def test_views(tmp_path: Path) -> None:
    model = nearest(LEVELS, size=4)
    assert model.views == ("swapped", "nothing")
    assert model.predict(GREYS, view="swapped").labels[0, 0].tolist() == [0, 2, 2, 1]
    assert not model.predict(GREYS, view="nothing").labels.any()
    with pytest.raises(InputError, match=r"view 'other'.*swapped, nothing"):
        model.predict(GREYS, view="other")
    Image.fromarray(GREYS).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="view 'other'"):
        model.predict_folder(tmp_path / "a.png", tmp_path / "out", view="other")
    assert not (tmp_path / "out").exists()
    model.predict_folder(tmp_path / "a.png", tmp_path / "out", view="swapped")
    assert np.asarray(Image.open(tmp_path / "out" / "a.png"))[0].tolist() == [0, 2, 2, 1]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["view"] == "swapped"
    assert "view: swapped" in (tmp_path / "out" / "config.yaml").read_text()
    assert model.predict_folder(tmp_path / "a.png", tmp_path / "out", view="swapped").skipped == ("a",)
    with pytest.raises(InputError, match="other weights, supports or options"):
        model.predict_folder(tmp_path / "a.png", tmp_path / "out")
    model.method.views = ()
    with pytest.raises(InputError, match="it gives one answer"):
        model.predict(GREYS, view="swapped")


def test_largest_components(tmp_path: Path) -> None:
    volume = np.zeros((4, 8, 8), np.uint8)
    volume[:3, :3, :3] = 100
    volume[3, 6:, 6:] = 100
    volume[:, 0, 7] = 230
    volume[2, 5, 1] = 230
    model = nearest(LEVELS, size=8)
    every = model.predict(volume[..., None], spacing=(2, 1, 1), probabilities=True)
    made = model.predict(volume[..., None], spacing=(2, 1, 1), probabilities=True, largest_component=True)
    want = every.labels.copy()
    want[3, 6:, 6:] = want[2, 5, 1] = 0
    assert every.labels[3, 7, 7] == 1
    np.testing.assert_array_equal(made.labels, want)
    np.testing.assert_array_equal(made.probabilities, every.probabilities)

    nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([1.0, 1, 2, 1])), tmp_path / "v.nii.gz")
    manifest = model.predict_folder(tmp_path / "v.nii.gz", tmp_path / "out", largest_component=True)
    assert not manifest.failures
    written = np.asarray(nibabel.load(tmp_path / "out" / "v.nii.gz").dataobj)
    assert [(written == v).sum() for v in (1, 2)] == [27, 4]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["largest_component"] is True
    with pytest.raises(InputError, match="other weights, supports or options"):
        model.predict_folder(tmp_path / "v.nii.gz", tmp_path / "out")


class LargestFloat(TorchDispatchMode):
    """Remembers the most elements that a floating-point tensor had."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.most = max(self.most, value.numel())
        return made


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(("largest_component", "most"), [(False, 4), (True, 12)])
def test_no_volume_of_logits_is_ever_held(exclusive: bool, largest_component: bool, most: int) -> None:
    classes = tuple(ClassInfo(f"object_{k}", k, (k,)) for k in range(1, 9))
    model = nearest([k / 10 for k in range(9)], classes, size=32)
    model.method.needs = Needs(exclusive=exclusive)
    options: dict[str, Any] = {"batch_size": 4, "largest_component": largest_component}
    side, peaks, tensors = 64, [], []
    for depth in (24, 96):
        volume = np.random.default_rng(0).integers(0, 255, (depth, side, side, 1), np.uint8)
        with LargestFloat() as floats:
            model.predict(volume, **options)
        tensors.append(floats.most)
        tracemalloc.start()
        model.predict(volume, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert tensors[0] == tensors[1] <= max(4 * 9 * 32 * 32, 9 * side * side)
    assert (peaks[1] - peaks[0]) / (72 * side * side) < most  # bytes a voxel; 8 objects in float32 would be 32


def samed(**values: Any) -> Segmenter:
    """SAMed with random weights on two blocks of 64 x 64 pixels."""
    options = {"backbone.name": "tiny", "backbone.input_size": 64, "backbone.via": None} | values
    config = configuration.from_dict(options, method="samed", preset="paper")
    return Segmenter(methods.build(config, [c.name for c in ORGANS]), config, ORGANS, device="cpu")


def test_one_embedding_a_slice_for_all_classes() -> None:
    model, seen = samed(), []
    encode = model.method.backbone.encode
    model.method.backbone.encode = lambda images, *rest: seen.append(len(images)) or encode(images, *rest)
    model.predict(np.random.default_rng(0).integers(0, 255, (7, 20, 24), np.uint8), batch_size=3)
    assert seen == [3, 3, 1]


def test_slice_axis_of_a_run_may_be_overridden(tmp_path: Path) -> None:
    model = samed(**{"data.slice_axis": "axial"})
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(configuration.dump(model.config))
    write_classes(tmp_path / "classes.json", ORGANS)
    save_weights(model.method, tmp_path / "model" / "last.safetensors")
    volume = np.random.default_rng(0).integers(0, 255, (3, 5, 6), np.uint8)
    found = {}
    for axis in (None, "axial", "coronal", "2"):
        opened = load(tmp_path, device="cpu", slice_axis=axis)
        assert opened.config.data.slice_axis == axis or (axis is None and opened.config.data.slice_axis == "axial")
        seen: list[str] = []
        predict = opened.method.predict

        def watch(batch: Any, bank: Any, seen: list[str] = seen, predict: Any = predict) -> torch.Tensor:
            seen.extend(batch.ids)
            return predict(batch, bank)

        opened.method.predict = watch
        found[axis] = opened.predict(volume, spacing=(1, 1, 1)).labels
        assert len(seen) == {None: 3, "axial": 3, "coronal": 5, "2": 6}[axis]
    np.testing.assert_array_equal(found[None], found["axial"])
    with pytest.raises(InputError, match="slice_axis is 'oblique'"):
        load(tmp_path, slice_axis="oblique")
    with pytest.raises(InputError, match="no place in the patient"):
        load(tmp_path, device="cpu").predict(volume)
