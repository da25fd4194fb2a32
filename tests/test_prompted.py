"""The prompted baselines: prompts from the truth, everything mode, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samsans import config as configuration
from samsans.config import BackboneConfig, RunConfig
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.prompted import prompts, proposals
from samsans.methods.prompted.config import PRESETS, PromptedConfig
from samsans.methods.prompted.given import box_around
from samsans.methods.prompted.model import ABSENT, Prompted
from samsans.types import Batch, Embedding, Masks, Prompt


def run(**model: object) -> RunConfig:
    tiny = BackboneConfig(name="tiny", train="none")
    return RunConfig(method="prompted", backbone=tiny, model=PromptedConfig(**model))  # type: ignore[arg-type]


def batch(seed: int = 0) -> Batch:
    """Three images, two objects; the second object is absent from image 1."""
    masks = torch.zeros(3, 2, 64, 64, dtype=torch.bool)
    masks[:, 0, 10:31, 20:41] = True
    masks[0, 1, 40:44, 5:9] = True
    masks[2, 1, 50, 60] = True
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Batch(images, masks, ("a", "b", "c"), ("disc", "cup"))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_configurations(preset: str) -> None:
    made = configuration.from_dict({"data.path": "x"}, method="prompted", preset=preset)
    assert made.train.steps == 0
    assert made.backbone.train == "none"
    kind = preset.removeprefix("given_")
    assert made.model.prompt == (kind if kind in ("point", "everything") else "box")
    assert made.model.source == ("points" if preset.startswith("given_") else "mask")


def test_configuration_imports_no_torch() -> None:
    code = "import sys; import samsans.methods.prompted.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tight_box_holds_the_outermost_pixels() -> None:
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[2, 5] = mask[7, 3] = True
    assert prompts.tight_box(mask).tolist() == [3, 2, 5, 7]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 80))
def test_jittered_box_stays_a_box_inside_the_image(seed: int, jitter: int) -> None:
    box = torch.tensor([3.0, 2.0, 30.0, 20.0])
    x0, y0, x1, y1 = prompts.jittered(box, jitter, (24, 40), np.random.default_rng(seed)).tolist()
    assert 0 <= x0 <= x1 <= 39
    assert 0 <= y0 <= y1 <= 23
    if jitter <= 2:
        assert max(abs(a - b) for a, b in zip((x0, y0, x1, y1), box.tolist(), strict=True)) <= jitter


def test_random_point_is_inside_and_reaches_every_pixel() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1, 2] = mask[6, 0] = mask[6, 1] = True
    drawn = {tuple(prompts.random_point(mask, prompts.generator(s, "a")).int().tolist()) for s in range(60)}
    assert drawn == {(2, 1), (0, 6), (1, 6)}


def test_point_grid_is_the_centres_of_a_partition() -> None:
    assert prompts.point_grid(2, (4, 8)).tolist() == [[1.5, 0.5], [5.5, 0.5], [1.5, 2.5], [5.5, 2.5]]


def test_boxes_and_stability_by_hand() -> None:
    logits = torch.full((2, 4, 6), -5.0)
    logits[0, 1:3, 2:5] = 3.0
    logits[1, 0, 0], logits[1, 0, 1] = 3.0, 0.5
    assert proposals.boxes(logits > 0).tolist() == [[2, 1, 5, 3], [0, 0, 2, 1]]
    assert proposals.stability(logits, 1.0).tolist() == [1.0, 0.5]
    assert proposals.stability(logits[:1] * 0 - 9, 1.0).tolist() == [0.0]


def test_suppression_keeps_the_better_of_two_boxes() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 5, 10]])
    kept = proposals.suppress(boxes, torch.tensor([0.5, 0.9, 0.1, 0.7]), 0.7)
    assert kept.tolist() == [1, 3, 2]
    assert proposals.suppress(boxes[:0], torch.zeros(0), 0.7).tolist() == []


def test_overlap_is_iou() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.random((5, 8, 8)) > 0.5, rng.random((3, 8, 8)) > 0.5
    truth[2] = False
    got = proposals.overlap(torch.from_numpy(found).float() - 0.5, torch.from_numpy(truth).float())
    want = [[(f & t).sum() / max((f | t).sum(), 1) for f in found] for t in truth]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("options", [{"prompt": "box"}, {"prompt": "point"}, {"prompt": "point", "multimask": True}])
def test_one_batch_is_the_same_as_one_image_and_object_at_a_time(options: dict[str, object]) -> None:
    method, given = build(run(**options), ("disc", "cup")), batch()
    together = method.predict(given)
    assert together.shape == (3, 2, 64, 64)
    assert together.dtype == torch.float32
    assert (together[1, 1] == ABSENT).all()
    for image in range(3):
        for item in range(2):
            masks = given.masks[image : image + 1, item : item + 1]
            alone = Batch(given.images[image : image + 1], masks, (given.ids[image],), (given.objects[item],))
            torch.testing.assert_close(method.predict(alone)[0, 0], together[image, item], atol=1e-4, rtol=1e-4)


def test_jitter_and_seed_change_the_box_and_nothing_else_does() -> None:
    given = batch()
    plain, same = (build(run(box_jitter=j), ()).predict(given) for j in (0, 0))
    moved, moved_again, other = (build(run(box_jitter=9, seed=s), ()).predict(given) for s in (0, 0, 1))
    assert torch.equal(plain, same)
    assert torch.equal(moved, moved_again)
    assert not torch.equal(plain, moved)
    assert not torch.equal(moved, other)


def test_nothing_in_view_is_nothing_found_and_decodes_nothing() -> None:
    given = batch()
    blank = Batch(given.images, torch.zeros_like(given.masks), given.ids, given.objects)
    method = build(run(), ())
    assert (method.predict(blank) == ABSENT).all()
    assert set(method.timer.seconds) == {"encode"}


class Oracle(torch.nn.Module):
    """A backbone that answers a point with three discs around it, the middle one believed in most."""

    grid, base_hash = 16, "0"

    def encode(self, images: torch.Tensor) -> Embedding:
        return Embedding(torch.zeros(len(images), 8, 16, 16))

    def embed_prompts(self, image_index: torch.Tensor, *, points: torch.Tensor, point_labels: torch.Tensor) -> Prompt:
        return Prompt(points, torch.zeros(1), image_index)

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool = False) -> Masks:
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        away = ((x - prompt.sparse[:, 0, 0, None, None]) ** 2 + (y - prompt.sparse[:, 0, 1, None, None]) ** 2).sqrt()
        logits = torch.stack([(radius - away) * 100 for radius in (4, 8, 12)], 1)
        return Masks(logits, torch.tensor([0.9, 0.95, 0.5]).expand(len(away), 3))


def test_everything_finds_the_best_overlapping_proposal() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    masks = torch.stack([(x - 20) ** 2 + (y - 28) ** 2 < r * r for r in (8, 4, 0)])[None]
    config = PromptedConfig(prompt="everything", grid_points=8, point_batch=7, min_stability=0.9)
    given = Batch(torch.zeros(1, 3, 64, 64), masks, ("a",), ("large", "small", "none"))
    found = Prompted(Oracle(), config).predict(given) > 0  # type: ignore[arg-type]
    for item in (0, 1):
        iou = (found[0, item] & masks[0, item]).sum() / (found[0, item] | masks[0, item]).sum()
        assert iou > 0.75  # the grid is half a pixel off the centre
    assert not found[0, 2].any()


def test_everything_on_a_network_and_without_any_proposal() -> None:
    given = batch()
    loose = build(run(prompt="everything", grid_points=4, min_iou=-1e9, min_stability=0.0), ()).predict(given)
    assert (loose[1, 1] == ABSENT).all()
    assert (loose[0, 0] > ABSENT).any()
    strict = build(run(prompt="everything", grid_points=4, min_iou=1e9), ()).predict(given)
    assert (strict == ABSENT).all()


def test_padding_is_never_prompted() -> None:
    given = batch()
    seen = []
    oracle = Oracle()
    oracle.embed_prompts = lambda index, **kw: seen.append(kw["points"]) or Oracle.embed_prompts(oracle, index, **kw)
    valid = torch.tensor([[48, 64]] * 3)
    padded = Batch(given.images, given.masks, given.ids, given.objects, valid=valid)
    Prompted(oracle, PromptedConfig(prompt="everything", grid_points=4)).predict(padded)  # type: ignore[arg-type]
    assert torch.cat(seen)[..., 1].max() < 48


def test_it_trains_nothing_and_needs_the_truth() -> None:
    method = build(run(), ("disc", "cup"))
    assert method.needs.labels_at_predict
    assert not method.needs.supports
    assert tuple(method.stages(run())) == ()
    assert not any(p.requires_grad for p in method.parameters())
    with pytest.raises(InputError, match="nothing to train"):
        method.loss(None, batch())
    given = batch()
    with pytest.raises(InputError, match="no true mask"):
        method.predict(Batch(given.images, None, given.ids, given.objects))


# -- prompts that are given -------------------------------------------------------------------------------------------


def given_batch() -> Batch:
    """Four images: two points, none, one outside point alone, one point."""
    points = ([[10.0, 20.0, 1], [30.0, 24.0, 1]], [], [[5.0, 5.0, 0]], [[40.0, 41.0, 1]])
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tensors = tuple(torch.tensor(own, dtype=torch.float32).reshape(-1, 3) for own in points)
    return Batch(images, None, ("a", "b", "c", "d"), ("tube",), points=tensors)


def test_box_around_points_is_wider_by_its_margin_and_stays_inside() -> None:
    points = torch.tensor([[100.0, 200, 1], [140, 180, 1], [5, 5, 0]])
    assert box_around(points, 512).tolist() == [90, 170, 150, 210]
    assert box_around(torch.tensor([[12.5, 25, 1]]), 64).tolist() == [11.25, 23.75, 13.75, 26.25]
    assert box_around(torch.tensor([[1.0, 510, 1]]), 512).tolist() == [0, 500, 11, 511]


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_given_prompts_decode_each_image_by_its_own_points(prompt: str) -> None:
    method, given = build(run(source="points", prompt=prompt), ("tube",)), given_batch()
    assert method.needs.points
    assert not method.needs.labels_at_predict
    together = method.predict(given)
    assert together.shape == (4, 1, 64, 64)
    assert (together[1:3] == ABSENT).all()
    for i in (0, 3):
        assert (together[i] > ABSENT).all()
        alone = Batch(given.images[i : i + 1], None, ("x",), ("tube",), points=given.points[i : i + 1])
        torch.testing.assert_close(method.predict(alone)[0], together[i], atol=1e-4, rtol=1e-4)


def test_given_points_are_those_sam_is_shown() -> None:
    """One point as given is the same as a mask of that one pixel drawn at random."""
    given = given_batch()
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[0, 0, 41, 40] = True
    drawn = build(run(prompt="point"), ("tube",)).predict(Batch(given.images[3:], mask, ("d",), ("tube",)))
    shown = build(run(source="points", prompt="point"), ("tube",)).predict(given)[3:]
    torch.testing.assert_close(shown, drawn, atol=1e-5, rtol=1e-5)


def test_given_prompts_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(InputError, match="2 objects"):
        build(run(source="points", prompt="point"), ("disc", "cup"))
    with pytest.raises(InputError, match="everything"):
        build(run(source="points", prompt="everything"), ("tube",))
    method = build(run(source="points", prompt="point"), ("tube",))
    assert tuple(method.stages(run())) == ()
    with pytest.raises(InputError, match="nothing to train"):
        method.loss(None, given_batch())
    with pytest.raises(InputError, match="no points for a"):
        method.predict(Batch(given_batch().images, None, ("a", "b", "c", "d"), ("tube",)))
