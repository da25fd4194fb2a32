"""SAMed on the tiny backbone: parity with SAM's decoder, published counts, losses by hand, training and saving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from samsans import zoo
from samsans.backbones import LoadReport, Sam, add_lora, load_backbone
from samsans.backbones.sam import build_network
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.methods.adapted.samed import Samed
from samsans.methods.adapted.samed_config import SamedConfig
from samsans.ops.labels import winners
from samsans.types import Batch, Embedding, Prompt
from slice_methods import check_learns, check_round_trip, check_step, make, toy, unlabelled

VARIANTS: list[dict[str, Any]] = [
    {"preset": "paper"},
    {"preset": "small"},
    {"preset": "small", "model__layers": 4},
    {"preset": "scratch"},
    {"preset": "paper", "backbone__train": "none"},
]


@pytest.mark.parametrize("objects", [1, 3, 7])
def test_shapes_and_no_labels_to_predict(objects: int) -> None:
    method = make("samed", objects=objects).eval()
    batch = Batch(torch.randn(2, 3, 64, 64), None, ("x", "y"), tuple("abcdefg"[:objects]))
    assert method(batch).shape == (2, objects + 1, 16, 16)
    logits = method.predict(batch)
    assert (logits.shape, logits.dtype) == ((2, objects, 64, 64), torch.float32)
    assert not logits.requires_grad


def test_four_classes_with_sams_tokens_equal_sams_decoder() -> None:
    sam = load_backbone(BackboneConfig(name="tiny")).double()
    features = torch.randn(2, 32, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(torch.zeros(2, 0, 32, dtype=torch.float64), sam.dense_default(), torch.arange(2))
    one, three = (sam.decode(Embedding(features), prompt, multimask).logits for multimask in (False, True))
    tokens = sam.model.mask_decoder.mask_tokens.weight.detach().clone()
    method = Samed(sam, 3, SamedConfig()).double()
    with torch.no_grad():
        method.decoder.class_tokens.weight.copy_(tokens)
    torch.testing.assert_close(method.decode(features), torch.cat([one, three], 1), atol=1e-12, rtol=1e-10)


def counts(decoder: str, layers: int = 2) -> tuple[int, int]:
    """All and trained parameters at 512 px, r = 4, K = 9; on the meta device, shapes only."""
    network = build_network(zoo.BACKBONES["sam-vit-b"].architecture, 512)
    sam = Sam(network, name="sam-vit-b", from_scratch=False, report=LoadReport("nothing", 0))
    sam._base_hash = "of no weights"
    add_lora(sam, LoraConfig(decoder=["q", "v"] if decoder == "lora" else []))
    parameters = list(Samed(sam, 8, SamedConfig(decoder=decoder, layers=layers)).parameters())  # type: ignore[arg-type]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def test_counts_are_the_published_ones_less_what_is_never_used() -> None:
    iou_head = (256 * 256 + 256) * 2 + 256 * 9 + 9
    points = 5 * 256  # four kinds of point, and "no point"
    masks = (4 * 4 + 4) + 2 * 4 + (4 * 16 * 4 + 16) + 2 * 16 + (16 * 256 + 256)  # of the prompt encoder
    assert iou_head == 133_897
    assert points + masks + 256 == 6_220
    unused = iou_head + points + masks
    fourier = 2 * 128  # a parameter in transformers, where the original has a buffer; frozen
    assert counts("trained") == (92_192_469 - unused + fourier, 4_913_621 - unused)


def test_counts_of_the_small_variant_and_of_further_layers() -> None:
    total, trained = counts("trained")
    transformer, adapters = 3_291_264, 23_552
    assert counts("lora") == (total + adapters, trained - transformer + adapters)
    block = 1_579_520
    assert counts("trained", 6) == (total + 4 * block, trained + 4 * block)
    assert counts("lora", 4) == (total + adapters + 2 * block, trained - transformer + adapters + 2 * block)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_reach_all_that_is_trained_and_nothing_else_moves(variant: dict[str, Any]) -> None:
    check_step(make("samed", **variant), toy())


def test_what_is_trained() -> None:
    names = {n for n, p in make("samed", "small", model__layers=3).named_parameters() if p.requires_grad}
    whole = [n for n in names if "lora_" not in n]
    assert "default_prompt" in names
    assert {n.split(".")[1] for n in whole if n.startswith("decoder.")} == {
        "iou_token",
        "class_tokens",
        "upscale_conv1",
        "upscale_layer_norm",
        "upscale_conv2",
        "hypernetworks",
        "transformer",
    }
    assert {n.split(".")[3] for n in whole if "transformer" in n} == {"2"}  # the block that starts from random numbers
    adapted = {n.split(".lora_")[0] for n in names if "lora_" in n and n.startswith("decoder.")}
    assert len(adapted) == 2 * (2 * 3 + 1)  # q and v of three attentions in each of SAM's two blocks, and the last one
    assert not [n for n in names if n.startswith("backbone.") and "lora_" not in n]


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_starts_from_sam(preset: str) -> None:
    sam = load_backbone(BackboneConfig(name="tiny"))
    method = make("samed", preset).eval()
    images = toy().images
    torch.testing.assert_close(method.backbone.encode(images).features, sam.encode(images).features)
    assert torch.equal(method.default_prompt, sam.model.prompt_encoder.no_mask_embed.weight[0])


def test_loss_by_hand() -> None:
    method = make("samed", objects=8)
    nothing = torch.zeros(2, 8, 64, 64, dtype=torch.bool)
    batch = Batch(torch.zeros(2, 3, 64, 64), nothing, ("x", "y"), tuple("abcdefgh"))
    losses = method.loss(torch.zeros(2, 9, 16, 16), batch)
    assert float(losses["ce"]) == pytest.approx(2.197225, abs=1e-5)
    assert float(losses["dice"]) == pytest.approx(0.975610, abs=1e-5)
    assert float(losses["loss"]) == pytest.approx(0.2 * 2.197225 + 0.8 * 0.975610, abs=1e-5)


def test_loss_compares_with_the_small_labels_only() -> None:
    method, batch = make("samed"), toy()
    assert batch.masks is not None
    unread = batch.masks.clone()
    unread[:, :, 1] = False  # row 1 of 64 is none of the 16 that are read: 0, 4, 8, 13, ...
    unread[:, 0, 1] = True
    logits = torch.randn(2, 4, 16, 16)
    changed = dataclasses.replace(batch, masks=unread)
    assert torch.equal(method.loss(logits, batch)["loss"], method.loss(logits, changed)["loss"])
    seen = dataclasses.replace(batch, masks=batch.masks.roll(1, 1))
    assert not torch.equal(method.loss(logits, batch)["loss"], method.loss(logits, seen)["loss"])


def test_prediction_is_the_highest_of_the_enlarged_class_maps() -> None:
    method, batch = make("samed").eval(), toy(3)
    maps = torch.nn.functional.interpolate(method(batch), (64, 64), mode="bilinear", align_corners=False)
    logits = method.predict(unlabelled(batch))
    background = torch.zeros_like(logits[:, :1])
    torch.testing.assert_close(torch.cat([background, logits], 1).softmax(1), maps.softmax(1))
    assert torch.equal(winners(logits), torch.stack([maps.argmax(1) == k for k in (1, 2, 3)], 1))


@pytest.mark.parametrize("preset", ["paper", "small", "scratch"])
def test_learns(preset: str) -> None:
    check_learns(make("samed", preset), toy(), lr=1e-2 if preset == "small" else 3e-3)


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_saves_what_was_trained(preset: str, tmp_path: Path) -> None:
    check_round_trip(make("samed", preset), make("samed", preset), toy(), tmp_path / "weights.safetensors")


def test_merged_adapters_answer_the_same() -> None:
    method, batch = make("samed", "small").eval(), unlabelled(toy())
    plain = method.predict(batch)
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = method.predict(batch)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    method.finish()
    torch.testing.assert_close(method.predict(batch), adapted, atol=1e-5, rtol=1e-4)
    assert not [name for name, _ in method.named_parameters() if "lora_" in name]


def test_the_seed_decides_and_the_global_state_stays() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (make("samed", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["decoder.class_tokens.weight"], other["decoder.class_tokens.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__decoder": "lora"}, "adapters in the decoder"),
        ({"preset": "small", "backbone__train": "none"}, "adapters in the decoder"),
        ({"lora__decoder": ["q"]}, "trained as a whole"),
        ({"model__layers": 1}, "at least the 2"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("samed", **options)


def test_training_needs_masks() -> None:
    method, batch = make("samed"), unlabelled(toy())
    with pytest.raises(InputError, match="without masks"):
        method.loss(method(batch), batch)
