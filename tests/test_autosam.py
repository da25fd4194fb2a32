"""Both methods called AutoSAM on the tiny backbone: parts against SAM's own, losses by hand, training and saving."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samsans import config as configuration
from samsans.backbones import load_backbone
from samsans.config import BackboneConfig
from samsans.errors import InputError
from samsans.methods.adapted.autosam import AutoSam
from samsans.methods.adapted.class_heads import CnnHead, TokenHead, fourier
from samsans.methods.adapted.prompt_network import PromptNetwork
from samsans.methods.classes import central_labels, foreground_dice_loss
from samsans.types import Batch, Embedding, Needs, Prompt
from slice_methods import check_learns, check_round_trip, check_step, make, toy, unlabelled

DENSE: dict[str, Any] = {"model__width": 8}
TOKENS: dict[str, Any] = {"preset": "class_tokens"}
CNN: dict[str, Any] = {"preset": "class_tokens", "model__prompt": "cnn_head"}
KINDS = [DENSE, TOKENS, CNN]
VARIANTS: list[dict[str, Any]] = [
    *KINDS,
    DENSE | {"backbone__train": "lora"},
    DENSE | {"preset": "scratch"},
    TOKENS | {"preset": "scratch", "model__prompt": "class_tokens"},
    CNN | {"preset": "scratch"},
    TOKENS | {"backbone__train": "lora", "lora__decoder": []},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("objects", [1, 3])
def test_shapes_and_no_labels_to_predict(kind: dict[str, Any], objects: int) -> None:
    method = make("autosam", objects=objects, **kind).eval()
    assert method.needs == Needs(exclusive=kind is not DENSE)
    batch = unlabelled(toy(2, objects))
    assert method(batch).shape == ((2, objects, 64, 64) if kind is DENSE else (2, objects + 1, 16, 16))
    logits = method.predict(batch)
    assert (logits.shape, logits.dtype) == ((2, objects, 64, 64), torch.float32)
    assert not logits.requires_grad


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_reach_all_that_is_trained_and_nothing_else_moves(variant: dict[str, Any]) -> None:
    check_step(make("autosam", **variant), toy())


def test_what_is_trained() -> None:
    def trained(**kind: Any) -> set[str]:
        return {name.split(".")[0] for name, p in make("autosam", **kind).named_parameters() if p.requires_grad}

    assert trained(**DENSE) == {"prompts"}
    assert trained(**TOKENS) == trained(**CNN) == {"head"}
    assert trained(**DENSE, preset="scratch") == {"prompts", "backbone"}


@pytest.mark.parametrize("kind", [TOKENS, CNN, DENSE | {"preset": "scratch"}], ids=str)
def test_learns(kind: dict[str, Any]) -> None:
    check_learns(make("autosam", **kind), toy())


def test_learns_to_prompt_a_frozen_network() -> None:
    """One that knows nothing: random numbers on a 4 x 4 grid can be told little."""
    check_learns(make("autosam", **DENSE), toy(), share=0.95)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_saves_what_was_trained(kind: dict[str, Any], tmp_path: Path) -> None:
    made, again = make("autosam", **kind), make("autosam", **kind)
    for buffer in again.head.buffers() if kind is not DENSE else ():
        buffer.zero_()  # what is random and not trained is stored all the same
    check_round_trip(made, again, toy(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_needs_masks(kind: dict[str, Any]) -> None:
    method, batch = make("autosam", **kind), unlabelled(toy())
    with pytest.raises(InputError, match="without masks"):
        method.loss(method(batch), batch)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_seed_decides_and_the_global_state_stays(kind: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()
    one, two = (make("autosam", seed=1, **kind).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)


# -- dense prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "grid"), [(64, 4), (80, 5), (240, 15), (256, 16)])
def test_prompts_have_the_grid_of_the_embedding(side: int, grid: int) -> None:
    prompts = PromptNetwork(32, 2, 8)(torch.randn(1, 3, side, side))
    assert prompts.shape == (1, 2, 32, grid, grid)
    assert prompts.abs().max() < 1


def test_small_patches_have_a_finer_grid() -> None:
    assert PromptNetwork(32, 2, 8, patch=8)(torch.randn(1, 3, 64, 64)).shape == (1, 2, 32, 8, 8)


def test_prompts_start_small_enough_to_learn_from() -> None:
    """No saturated tanh."""
    assert PromptNetwork(32, 3, 32)(toy().images).abs().mean() < 0.7


def test_one_batch_of_prompts_equals_one_prompt_at_a_time() -> None:
    method, batch = make("autosam", **DENSE).double().eval(), toy()
    images = batch.images.double()
    embedding, dense = method.backbone.encode(images), method.prompts(images)
    together = method.decode(embedding, dense, 64)
    for image in range(2):
        for item in range(3):
            alone = Embedding(embedding.features[image : image + 1])
            prompt = Prompt(torch.zeros(1, 0, 32, dtype=torch.float64), dense[image, item][None], torch.tensor([0]))
            logits = method.backbone.decode(alone, prompt).logits
            logits = nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
            torch.testing.assert_close(together[image, item], logits[0, 0].float(), atol=1e-5, rtol=1e-5)


def test_every_object_has_a_prompt_of_its_own() -> None:
    method, batch = make("autosam", **DENSE).eval(), unlabelled(toy())
    before = method.predict(batch)
    with torch.no_grad():
        method.prompts.head.bias[32:64] += 1.0  # of the second of three objects
    after = method.predict(batch)
    assert [torch.equal(before[:, item], after[:, item]) for item in range(3)] == [True, False, True]


def test_dense_loss_by_hand_with_objects_that_overlap() -> None:
    method = make("autosam", objects=2, **DENSE)
    masks = torch.zeros(1, 2, 64, 64, dtype=torch.bool)
    masks[0, 0, :32] = True  # 2048 pixels
    masks[0, 1, :16] = True  # 1024 of them
    batch = Batch(torch.zeros(1, 3, 64, 64), masks, ("x",), ("a", "b"))
    losses = method.loss(torch.zeros(1, 2, 64, 64), batch)
    dice = 1 - ((2048 + 1) / (2048 + 2048 + 1) + (1024 + 1) / (2048 + 1024 + 1)) / 2
    assert float(losses["bce"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(losses["dice"]) == pytest.approx(dice, abs=1e-6)
    assert float(losses["loss"]) == pytest.approx(math.log(2) + dice, abs=1e-6)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        make("autosam", model__width=12)
    sam = load_backbone(BackboneConfig(name="tiny"))
    sam.patch = 4
    with pytest.raises(InputError, match="patches of 4 px"):
        AutoSam(sam, 1, 8)
    for kind in (TOKENS, CNN):
        with pytest.raises(InputError, match="trained as a whole"):
            make("autosam", backbone__train="lora", **kind)


# -- heads ------------------------------------------------------------------------------------------------------------


def test_class_tokens_equal_the_librarys_transformer_asked_once_a_class() -> None:
    decoder = load_backbone(BackboneConfig(name="tiny")).model.mask_decoder.double()
    theirs, head = copy.deepcopy(decoder), TokenHead(decoder, 3).double()
    features = torch.randn(2, 32, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = head(features)
    for image in range(2):
        for item in range(3):
            tokens, keys = theirs.transformer(
                point_embeddings=torch.cat([head.iou_tokens[item], head.mask_tokens[item]])[None, None],
                image_embeddings=features[image : image + 1],
                image_positional_embeddings=fourier(head.frequencies, 4),
                attention_similarity=None,
            )
            upscaled = theirs.upscale_conv1(keys[:, 0].transpose(1, 2).reshape(1, 32, 4, 4))
            upscaled = theirs.upscale_conv2(nn.functional.gelu(theirs.upscale_layer_norm(upscaled)))
            weights = theirs.output_hypernetworks_mlps[0](tokens[0, 0, 1])
            wanted = torch.einsum("c,chw->hw", weights, nn.functional.gelu(upscaled)[0])
            torch.testing.assert_close(maps[image, item], wanted, atol=1e-12, rtol=1e-9)


def test_classes_do_not_see_each_other() -> None:
    method, batch = make("autosam", **TOKENS).eval(), unlabelled(toy())
    before = method(batch)
    with torch.no_grad():
        method.head.mask_tokens[2] += 1.0
    changed = [not torch.equal(before[:, k], method(batch)[:, k]) for k in range(4)]
    assert changed == [False, False, True, False]


def test_positions_are_sams_with_a_matrix_of_their_own() -> None:
    sam = load_backbone(BackboneConfig(name="tiny", input_size=80))
    matrix = sam.model.shared_image_embedding.positional_embedding.detach()
    torch.testing.assert_close(fourier(matrix, 5), sam.image_pe, atol=1e-5, rtol=1e-5)
    method = make("autosam", **TOKENS)
    assert not torch.allclose(fourier(method.head.frequencies, 4), method.backbone.image_pe)


def test_random_iou_tokens_are_never_trained() -> None:
    method = make("autosam", **TOKENS)
    assert method.head.iou_tokens.shape == (4, 1, 32)
    assert not method.head.iou_tokens.requires_grad
    assert not [name for name, p in method.named_parameters() if p.requires_grad and "iou" in name]


def test_convolutional_head_has_the_published_channels() -> None:
    head = CnnHead(256, 9)
    shapes = [tuple(m.weight.shape) for m in head if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert shapes == [
        (256, 256, 1, 1),
        (256, 256, 1, 1),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
        (256, 128, 2, 2),
        (128, 128, 3, 3),
        (128, 128, 3, 3),
        (128, 64, 2, 2),
        (64, 64, 3, 3),
        (9, 64, 1, 1),
    ]
    assert head(torch.randn(1, 256, 4, 4)).shape == (1, 9, 16, 16)


def test_dice_of_the_objects_by_hand() -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]])
    loss = foreground_dice_loss(torch.zeros(1, 3, 2, 2), labels)  # p = 1/3
    assert float(loss) == pytest.approx((10 / 31 + 4 / 13) / 2, abs=1e-6)
    never = torch.zeros(1, 3, 2, 2)
    never[:, 2] = -1e4  # an absent object of no probability has loss 0, and does not count
    assert float(foreground_dice_loss(never, labels)) == pytest.approx(1 - (2 + 1) / (1 + 2 + 1), abs=1e-6)
    perfect = nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 1e4
    assert float(foreground_dice_loss(perfect, labels)) == 0.0


def test_dice_sums_over_the_batch() -> None:
    logits = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    p, truth = logits.double().softmax(1), nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).double()
    terms = [
        1 - (2 * float((p[:, k] * truth[:, k]).sum()) + 1) / (float((p[:, k] ** 2).sum() + truth[:, k].sum()) + 1)
        for k in (1, 2, 3)
    ]
    assert float(foreground_dice_loss(logits, labels)) == pytest.approx(sum(terms) / 3, abs=1e-6)


def test_loss_of_the_heads_is_at_the_size_of_the_maps() -> None:
    """Of slices of 256 pixels, enlarged to 1024, that is their own size and their own labels; here 16 and 64."""
    method, draw = make("autosam", **TOKENS), torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 4, 16, 16, generator=draw), torch.randint(4, (2, 16, 16), generator=draw)
    large = nn.functional.interpolate(labels[:, None].float(), (64, 64), mode="nearest").long()
    masks = large == torch.tensor([1, 2, 3]).view(3, 1, 1)
    assert torch.equal(central_labels(masks, 16), labels)
    batch = dataclasses.replace(toy(), masks=masks)
    wanted = nn.functional.cross_entropy(logits, labels) + foreground_dice_loss(logits, labels)
    torch.testing.assert_close(method.loss(logits, batch)["loss"], wanted)
    assert configuration.from_dict({}, method="autosam", preset="class_tokens").backbone.via == 256
