"""MaskSAM as a method on the tiny backbone: what is trained, symmetries, prompts from the truth, saving, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samsans import config as configuration
from samsans.errors import InputError
from samsans.methods import build, complete
from samsans.methods.masksam.adapters import DMlp
from samsans.methods.masksam.model import MaskSam
from samsans.types import Batch, Needs
from slice_methods import check_learns, check_round_trip, check_step, unlabelled

OBJECTS = ("a", "b")
TINY: dict[str, Any] = {
    "backbone.name": "tiny",
    "backbone.input_size": 64,
    "patches.size": [3, 64, 64],
    "model.widths": [8, 8, 4, 4],
    "model.fusions": 0,
    "model.queries": 5,
    "model.stem": 4,
    "model.matching.points": 256,
}
SMALL: dict[str, Any] = {  # the stem enlarges patches
    "model__upsample": 2,
    "patches__size": [3, 16, 16],
    "model__widths": [16, 8],
    "model__fusions": 2,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "corrected"},
    {"preset": "released"},
    {"preset": "corrected", "model__output_cnn": False, **SMALL},
    {"model__mask_prompt": "logits", "model__box_norm": "none"},
    {"model__prompts": "gt"},
    {"model__prompts": "gt", "model__gt_mask_prompt": True},
    {"backbone__train": "lora"},
    {"backbone__attention": "naive", "backbone__checkpointing": True, "model__query_batch": 2},
]


def make(preset: str = "scratch", objects: int = 2, **options: Any) -> MaskSam:
    settings = TINY | {key.replace("__", "."): value for key, value in options.items()}
    return build(configuration.from_dict(settings, method="masksam", preset=preset), ("a", "b", "c", "d")[:objects])


def toy(method: MaskSam, batch: int = 2, seed: int = 0) -> Batch:
    """Patches of noise with a bright corner, in all slices, and a dark square, in all but the first."""
    side = method.side
    masks = torch.zeros(batch, 2, method.depth, side, side, dtype=torch.bool)
    masks[:, 0, :, : side // 3, : side // 2] = True
    masks[:, 1, 1:, side // 2 :, side // 2 : -2] = True
    noise = torch.randn(batch, 1, *masks.shape[2:], generator=torch.Generator().manual_seed(seed))
    images = 0.2 * noise + 2.0 * masks[:, :1] - 2.0 * masks[:, 1:]
    return Batch(images, masks, tuple(f"patch{i}" for i in range(batch)), OBJECTS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # the loss looks at random points


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_reach_all_that_is_trained_and_nothing_else_moves(variant: dict[str, Any]) -> None:
    method = make(**variant)
    check_step(method, toy(method))
    frozen = [p for p in method.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert not method.backbone.model.shared_image_embedding.positional_embedding.requires_grad


@pytest.mark.parametrize("variant", VARIANTS[:4], ids=str)
def test_shapes_and_no_labels_to_predict(variant: dict[str, Any]) -> None:
    method = make(**variant).eval()
    assert method.needs == Needs(volumes=True, exclusive=True)
    batch, side = unlabelled(toy(method)), method.side
    output = method(batch)
    assert output.class_logits.shape == (6, 5, 4)
    assert output.mask_logits.shape == output.auxiliary_logits.shape == (6, 5, side, side)
    assert output.boxes.shape == (6, 5, 4)
    assert (output.depth, output.identity) == (3, False)
    scores = method.predict(batch)
    assert (scores.shape, scores.dtype) == ((2, 3, 3, side, side), torch.float32)
    assert not scores.requires_grad
    assert scores.min() >= 0
    assert scores.max() <= 5
    assert set(method.timer.seconds) == {"encode", "prompt", "decode"}


def test_what_is_trained() -> None:
    def trained(**options: Any) -> set[str]:
        return {name.partition(".")[0] for name, p in make(**options).named_parameters() if p.requires_grad}

    own = {"stem", "encoder", "generator", "decoder"}
    assert trained(preset="corrected") == own | {"enlarge"}
    assert trained(preset="corrected", model__output_cnn=False) == own
    assert trained() == own | {"backbone"}
    assert trained(preset="corrected", model__prompts="gt", model__output_cnn=False) == own - {"generator"}


def test_learns() -> None:
    method = make()
    check_learns(method, toy(method, 1), share=0.85)


def test_learns_around_a_frozen_network() -> None:
    """One that knows nothing: random numbers can be told little."""
    method = make("corrected", **SMALL, model__output_cnn=False)
    check_learns(method, toy(method, 1), share=0.95)


def test_saves_what_was_trained(tmp_path: Path) -> None:
    made, again = (make("corrected", **SMALL, model__output_cnn=False) for _ in range(2))
    check_round_trip(made, again, toy(made), tmp_path / "weights.safetensors")


def test_queries_at_a_time_and_recomputing_change_nothing() -> None:
    one = make()
    batch = toy(one)
    for options in ({"model__query_batch": 2}, {"backbone__checkpointing": True}, {"backbone__attention": "naive"}):
        two = make(**options)
        two.load_state_dict(one.state_dict())
        grads = []
        for method in (one, two):
            method.zero_grad()
            output = method(batch)
            (output.mask_logits.square().mean() + output.class_logits.square().mean()).backward()
            grads.append(method.stem[0][0].weight.grad.clone())
        torch.testing.assert_close(one.predict(batch), two.predict(batch), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_slices_are_alike_where_nothing_mixes_them() -> None:
    """With all that reaches along depth set to nothing, shuffled slices give shuffled answers."""
    method = make("corrected").eval()
    for module in method.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, ::2] = 0
        if isinstance(module, DMlp):
            for layer in (module.widen, module.narrow):
                layer.weight.zero_()
                layer.bias.zero_()
    batch, order = unlabelled(toy(method)), torch.tensor([2, 0, 1])
    shuffled = Batch(batch.images[:, :, order], None, batch.ids, OBJECTS)
    torch.testing.assert_close(method.predict(shuffled), method.predict(batch)[:, :, order], atol=1e-5, rtol=1e-4)


def test_patches_do_not_see_each_other() -> None:
    method = make("corrected").eval()
    batch = unlabelled(toy(method, 3))
    single = Batch(batch.images[1:2], None, batch.ids[1:2], OBJECTS)
    torch.testing.assert_close(method.predict(batch)[1:2], method.predict(single), atol=1e-5, rtol=1e-4)


def test_the_released_order_is_another_network() -> None:
    one, two = make("corrected"), make("released")
    two.load_state_dict(one.state_dict())
    batch = unlabelled(toy(one))
    assert not torch.allclose(one.predict(batch), two.predict(batch), atol=1e-4)


def test_prompts_from_the_truth() -> None:
    method = make(model__prompts="gt").eval()
    assert method.needs.labels_at_predict
    batch = toy(method)
    output = method(batch)
    assert (output.auxiliary_logits, output.boxes, output.identity) == (None, None, True)
    assert set(method.loss(output, batch)) == {"loss", "classes", "mask", "dice"}
    assert method.predict(batch).shape == (2, 3, 3, 64, 64)
    moved = Batch(batch.images, batch.masks.roll(9, -1), batch.ids, OBJECTS)
    assert not torch.equal(method.predict(moved), method.predict(batch))
    with pytest.raises(InputError, match="without masks"):
        method.predict(unlabelled(batch))


def test_training_needs_masks() -> None:
    method = make()
    batch = unlabelled(toy(method))
    with pytest.raises(InputError, match="without masks"):
        method.loss(method(batch), batch)


def test_the_seed_decides_and_the_global_state_stays() -> None:
    state = torch.random.get_rng_state()
    one, two = (make(seed=1).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_precision() -> None:
    method = make()
    batch = toy(method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(method(batch), batch)["loss"]
        scores = method.predict(batch)
    loss.backward()
    assert loss.isfinite()
    assert scores.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_images_of_several_channels() -> None:
    method = make(data__channels=[0, 1, 2])
    assert method.predict(Batch(torch.randn(1, 3, 3, 64, 64), None, ("x",), OBJECTS)).shape == (1, 3, 3, 64, 64)


def test_the_scratch_backbone_with_its_preset() -> None:
    settings = {"patches.size": [2, 64, 64], "model.queries": 3}
    method = build(configuration.from_dict(settings, method="masksam", preset="scratch"), OBJECTS)
    assert (method.backbone.grid, method.generator.token_grid) == (8, (8, 16))
    assert method.predict(Batch(torch.randn(1, 1, 2, 64, 64), None, ("x",), OBJECTS)).shape == (1, 3, 2, 64, 64)


@pytest.mark.parametrize(("objects", "queries"), [(1, 8), (3, 8), (4, 10), (15, 32)])
def test_queries_follow_the_objects_where_they_are_open(objects: int, queries: int) -> None:
    settings = {**TINY, "model.queries": None}
    config = configuration.from_dict(settings, method="masksam", preset="scratch")
    names = [f"object {number}" for number in range(objects)]
    assert complete(config, names).model.queries == queries
    assert complete(complete(config, names), names[:1]).model.queries == queries
    assert build(config, names).queries == queries
    assert configuration.from_dict({}, method="masksam", preset="corrected").model.queries == 24


def test_final_masks_teach_the_generator_by_its_tokens_alone() -> None:
    """Check 3: boxes and masks are prompts without gradient; what they are made by learns from losses of their own."""
    method = make("corrected", **SMALL, model__output_cnn=False)
    batch = toy(method)
    heads = {"tokens": method.generator.tokens, "boxes": method.generator.boxes, "masks": method.generator.masks}
    for terms, taught in (
        (("classes", "mask", "dice"), {"tokens"}),
        (("l1", "giou"), {"boxes"}),
        (("aux_mask", "aux_dice"), {"masks"}),
    ):
        method.zero_grad(set_to_none=True)
        loss = method.loss(method(batch), batch)
        sum(loss[term] for term in terms).backward()
        learns = {name for name, head in heads.items() if any(p.grad is not None for p in head.parameters())}
        assert learns == taught


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patches__size": None}, "patches.size is not known"),
        ({"patches__size": [3, 64, 32]}, r"patches.size \[3, 64, 32\]"),
        ({"patches__size": [3, 32, 32]}, "backbone.input_size 32"),
        ({"model__queries": 2}, "model.queries 2 for 3 classes"),
        ({"model__widths": [16, 16]}, "4 widths, one for each doubling"),
        ({"model__fusions": 1}, "at most 0 fusions"),
        ({**SMALL, "model__upsample": 3, "patches__size": [3, 8, 8], "model__output_cnn": True}, "an output network"),
        ({"model__upsample": 5, "patches__size": [3, 2, 2]}, "5 doublings to 64 px"),
    ],
    ids=str,
)
def test_what_no_network_can_be_made_of(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(**options)


def test_patches_of_another_size() -> None:
    method = make()
    with pytest.raises(InputError, match=r"Patches of shape \(1, 1, 4, 64, 64\)"):
        method.predict(Batch(torch.zeros(1, 1, 4, 64, 64), None, ("x",), OBJECTS))
