"""SAM 2 prompted on the first frame: what it is told, what follows, what it refuses, and the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import samsans
from samsans import cli, io
from samsans import config as configuration
from samsans.backbones.sam2_video import ABSENT
from samsans.data.phantoms import write
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.episodes import upsample
from samsans.methods.tracked.config import PRESETS
from samsans.methods.tracked.model import Tracked, centre_point, prompt_of
from samsans.types import Batch

SIDE = 64
OBJECTS = ("disc", "cup")


def make(there: float = 100, **model: Any) -> Tracked:
    """On weights whose object score is about this much for all that is not given as a mask."""
    settings = {"backbone.name": "sam2-tiny-test", **{f"model.{key}": value for key, value in model.items()}}
    method = build(configuration.from_dict(settings, method="tracked"), OBJECTS)
    with torch.no_grad():
        method.backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(there)
    return method


def frame(number: int, masks: torch.Tensor | None = None) -> Batch:
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))
    return Batch(images, masks, (f"video/{number}",), OBJECTS)


def shown(cup: bool = True) -> torch.Tensor:
    """Masks in whole cells of the decoder's output."""
    masks = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 0, 8:32, 12:44] = True
    masks[0, 1, 16:24, 20:28] = cup
    return masks


def test_presets_are_configurations_and_import_no_torch() -> None:
    for preset in PRESETS:
        made = configuration.from_dict({}, method="tracked", preset=preset)
        assert made.train.steps == 0
        assert made.backbone.name.startswith("sam2")
        assert made.model.prompt == ("mask" if preset == "paper" else preset)
    code = "import sys; import samsans.methods.tracked.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_centre_is_the_pixel_farthest_from_all_that_is_outside() -> None:
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[2:7, 3:8] = True
    assert centre_point(mask).tolist() == [5, 4]
    mask[2:7, 3:4] = False  # four columns are left: six pixels are as far, of the two in their middle the first
    assert centre_point(mask).tolist() == [5, 4]
    corner = torch.zeros(9, 12, dtype=torch.bool)
    corner[:5, :3] = True  # what lies beyond the image is outside
    assert centre_point(corner).tolist() == [1, 2]
    ring = torch.ones(9, 9, dtype=torch.bool)
    ring[3:6, 3:6] = False
    assert ring[tuple(centre_point(ring).int().flip(0).tolist())]
    single = torch.zeros(9, 12, dtype=torch.bool)
    single[8, 11] = True
    assert centre_point(single).tolist() == [11, 8]


def test_prompts_of_a_mask() -> None:
    mask = shown()[0, 0]
    assert prompt_of(mask, "mask").mask is mask
    box = prompt_of(mask, "box").box
    assert box is not None
    assert box.tolist() == [12, 8, 43, 31]
    point = prompt_of(mask, "point")
    assert point.points is not None
    assert point.labels is not None
    assert (point.points.shape, point.labels.tolist()) == ((1, 2), [1])


@pytest.mark.parametrize("prompt", ["mask", "box", "point"])
def test_following_is_sam2_itself(prompt: str) -> None:
    method = make(prompt=prompt)
    follower = method.follow(OBJECTS)
    images = [frame(i).images[0] for i in range(4)]
    said = {n: prompt_of(shown()[0, n], prompt) for n in range(2)}
    alone = method.backbone.propagate(iter(images), {0: said})
    for i, want in enumerate(alone):
        got = follower.step(frame(i, shown() if i == 0 else None))
        assert got.shape == (1, 2, SIDE, SIDE)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, upsample(want.logits[None], SIDE), rtol=0, atol=1e-4)
        assert follower.quality is not None
        torch.testing.assert_close(follower.quality, want.iou, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in method.parameters())


def test_a_mask_is_its_own_answer() -> None:
    method = make()
    follower = method.follow(OBJECTS)
    found = follower.step(frame(0, shown())) > 0
    different = (found != shown()).sum((2, 3))[0].tolist()
    assert max(different) <= 12, different  # of the decoder's size and back: three pixels are cut at each corner
    assert follower.quality is not None
    assert follower.quality.tolist() == [1, 1]


@pytest.mark.parametrize("prompt", ["mask", "box", "point"])
def test_an_image_is_a_video_of_one_frame(prompt: str) -> None:
    method = make(prompt=prompt)
    masks = torch.cat([shown(), shown(cup=False), shown().roll(8, 2)])
    images = torch.cat([frame(i).images for i in range(3)])
    together = method.predict(Batch(images, masks, ("a", "b", "c"), OBJECTS))
    assert together.shape == (3, 2, SIDE, SIDE)
    assert (together[1, 1] == ABSENT).all()
    for i in range(3):
        alone = method.follow(OBJECTS).step(Batch(images[i : i + 1], masks[i : i + 1], ("x",), OBJECTS))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_what_the_first_frame_does_not_show_is_never_found() -> None:
    method = make()
    follower, nothing = method.follow(OBJECTS), method.follow(OBJECTS)
    for i in range(3):
        logits = follower.step(frame(i, shown(cup=False) if i == 0 else None))
        assert (logits[0, 1] == ABSENT).all()
        assert follower.quality is not None
        assert follower.quality.isnan().tolist() == [False, True]
        blank = torch.zeros_like(shown())
        assert (nothing.step(frame(i, blank if i == 0 else None)) == ABSENT).all()


@pytest.mark.parametrize(("memories", "remembers"), [("most", True), ("none", False)])
def test_frames_between_are_remembered_or_not(memories: str, remembers: bool) -> None:
    method = make(memories=memories)
    answers = []
    for between in (1, 2):
        follower = method.follow(OBJECTS)
        follower.step(frame(0, shown()))
        follower.step(frame(between))
        answers.append(follower.step(frame(3)))
    assert bool((answers[0] - answers[1]).abs().max() > 1e-6) == remembers


def test_a_branch_goes_on_by_itself() -> None:
    method = make()
    follower = method.follow(OBJECTS)
    follower.step(frame(0, shown()))
    back = follower.branch()
    forwards = [follower.step(frame(i)) for i in (1, 2)]
    backwards = [back.step(frame(i)) for i in (3, 4)]
    for order, got in (((1, 2), forwards), ((3, 4), backwards)):
        fresh = method.follow(OBJECTS)
        fresh.step(frame(0, shown()))
        assert all(torch.equal(fresh.step(frame(i)), one) for i, one in zip(order, got, strict=True))


def test_the_object_score_leaves_out_or_not() -> None:
    gated, open_ = make(there=-100), make(there=-100, gate_by_object_score=False)
    for method in (gated, open_):
        follower = method.follow(OBJECTS)
        follower.step(frame(0, shown()))
        assert bool((follower.step(frame(1)) == ABSENT).all()) == (method is gated)


def test_memory_does_not_grow() -> None:
    follower = make().follow(OBJECTS)
    sizes = []
    for i in range(24):
        follower.step(frame(i, shown() if i == 0 else None))
        tracker = follower.tracker
        kept = [memory for part in (tracker.conditioning, tracker.recent) for own in part for memory in own]
        sizes.append((len(kept), sum(memory.spatial is not None for memory in kept)))
    assert sizes[-1] == (2 * 16, 2 * 7)
    assert sizes[-1] == sizes[-8]


def test_it_trains_nothing_and_needs_the_truth_once() -> None:
    method = make()
    assert method.needs.first_label
    assert not method.needs.labels_at_predict
    assert method.follows()
    assert tuple(method.stages(configuration.from_dict({}, method="tracked"))) == ()
    with pytest.raises(InputError, match="nothing to train"):
        method.loss(None, frame(0, shown()))
    with pytest.raises(InputError, match="video/0 has no true mask"):
        method.follow(OBJECTS).step(frame(0))
    with pytest.raises(InputError, match="has no true mask"):
        method.predict(frame(0))
    with pytest.raises(InputError, match="backbone of family sam"):
        build(configuration.from_dict({"backbone.name": "tiny"}, method="tracked"), OBJECTS)


def test_the_commands_on_videos_and_a_volume(tmp_path: Path) -> None:
    data = write("video", tmp_path / "data", n=2, size=64, difficulty=0.0)
    tiny = ("--backbone", "sam2-tiny-test", "--model.prompt", "mask", "--data.path", data)
    run = tmp_path / "run"
    assert cli.main([str(part) for part in ("train", "tracked", data, "-o", run, *tiny)]) == 0
    videos = ("-i", data, "--labels", data / "masks", "-o", tmp_path / "masks", "--video")
    assert cli.main([str(part) for part in ("predict", run, *videos, "--device", "cpu")]) == 0
    first, *others = sorted((data / "images/video-0000").glob("*.png"))
    found = io.read_labels(tmp_path / "masks/video-0000" / first.name).array
    truth = io.read_labels(data / "masks/video-0000" / first.name).array
    assert (found > 0).sum() > 100
    assert (found != truth).mean() < 0.05
    assert all((tmp_path / "masks/video-0000" / frame.name).is_file() for frame in others)
    model, labels = samsans.load(run, device="cpu"), np.zeros((4, 64, 64), np.uint8)
    labels[1] = truth  # the slice that shows most, outwards from which the others are followed
    labels[3, 30:34, 30:34] = 1
    volume = np.stack([io.read_image(first).array[0]] * 4)
    segmented = model.predict(volume, labels=labels).labels
    assert (segmented[1] != truth).mean() < 0.05
    with pytest.raises(InputError, match="has no true mask"):
        model.predict(volume)
