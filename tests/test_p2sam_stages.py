"""P2SAM: its two stages, the cache of the second, its weights, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from p2sam_method import SIDE, batch, begin, count, encodes, learn, make, random, ready
from samsans import config as configuration
from samsans.errors import InputError
from samsans.methods import build, weights
from samsans.methods.draws import all_annotations

# -- the two stages (section 17) ---------------------------------------------------------------------------------------


def test_what_stage_one_teaches() -> None:
    method, config = make()
    stage = begin(method, config, 0)
    gradients = learn(method, stage, 1)
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained  # nothing is trained in vain: several devices wait for every gradient
    model = "backbone.model."
    never = (
        "mlps.0.",
        "iou_prediction_head",
        "point_embed",
        "encoder.mask_embed",
        "not_a_point",
        "positional",
        "base_layer",
    )
    assert not any(part in name for part in never for name in trained)
    flat = {name for name, gradient in gradients.items() if not gradient.any()}
    assert all("lora_A" in name or name.endswith("k_proj.bias") for name in flat), flat
    assert f"{model}prompt_encoder.no_mask_embed.weight" in gradients
    assert f"{model}mask_decoder.iou_token.weight" in gradients
    assert "weights.learnt" in gradients
    assert {n for n in trained if n.startswith(f"{model}vision_encoder")} == {n for n in trained if "lora_" in n}
    assert [group.decay for group in stage.groups] == [False, True]
    assert [group.eps for group in stage.groups] == [None, 1e-4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"injection": "dense"},
        {"injection": "dense", "dense_residual": True},
        {"posterior": True},
        {"set_loss": 3},
    ],
)
def test_stage_two_leaves_sam_and_the_mask_weights(options: dict[str, Any]) -> None:
    method, config = make(**options)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    stage = begin(method, config, 1)
    assert stage.groups[0].lr_scale == pytest.approx(1e-2)
    gradients = learn(method, stage, lr=0.1)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    allowed = ("prompter.", "posterior.", "prompted")
    assert all(name.startswith(allowed) for name in changed), changed
    assert changed - {"prompted"} <= gradients.keys()
    assert gradients.keys() == {name for name, p in method.named_parameters() if p.requires_grad}
    assert ("prompter.fusion.layers.3.weight" in changed) == (options.get("injection") == "dense")
    assert ("posterior.head.weight" in changed) == bool(options.get("posterior"))


def test_a_backbone_from_nothing_is_trained_whole_in_stage_one_alone() -> None:
    settings = {"backbone": {"name": "tiny", "input_size": SIDE, "train": "all"}}
    config = configuration.from_dict(settings, method="p2sam", preset="paper")
    method = build(config, ("lesion",))
    stage = begin(method, config, 0)
    gradients = learn(method, stage, 1)
    assert gradients.keys() == {name for name, p in method.named_parameters() if p.requires_grad}
    assert "backbone.model.vision_encoder.patch_embed.projection.weight" in gradients
    stage = begin(method, config, 1)
    assert count(p for p in method.parameters() if p.requires_grad) == count(stage.groups[0].parameters)


def test_stages_follow_the_configuration() -> None:
    method, config = make(stage2_share=0.25, stage2_images=500, stage2_from="last")
    first, second = method.stages(config)
    assert (first.share, second.share) == (0.75, 0.25)
    assert (first.images, second.images) == (None, 500)
    assert (first.selects, second.selects, second.begins) == ("dice", "ged", "last")
    method, config = make("reference")
    assert [s.selects for s in method.stages(config)] == ["dice", "last"]
    assert method.stages(config)[1].groups[0].lr_scale == pytest.approx(1e-3)
    method, config = make(prompts=False)
    assert [s.share for s in method.stages(config)] == [1.0]
    assert method.prompter is None
    method, config = make(prompts=False, assembling=False)
    assert len(method.stages(config)[0].groups) == 1


def test_losses_by_configuration() -> None:
    shown = batch()
    for options, stage, names in (
        ({}, 0, {"bce", "focal", "dice"}),
        ({}, 1, {"bce", "focal", "dice"}),
        ({"loss": "reference"}, 0, {"ce", "focal", "dice"}),
        ({"loss": "reference"}, 1, {"ce", "focal", "dice", "norms"}),
        ({"posterior": True}, 0, {"bce", "focal", "dice"}),
        ({"posterior": True}, 1, {"bce", "focal", "dice", "kl"}),
        ({"set_loss": 3}, 0, {"bce", "focal", "dice"}),
        ({"set_loss": 3}, 1, {"set"}),
    ):
        method, config = make(**options)  # type: ignore[arg-type]
        begin(method, config, stage)
        output = method(shown)
        assert output.logits.shape == (2, 3 if "set" in names else 1, SIDE, SIDE)
        assert output.maps.shape == (2, 8, 16, 16)
        assert output.target.any(dim=2).any(dim=1).all()  # never the empty annotation
        terms = method.loss(output, shown)
        assert terms.keys() == {"loss", *names}
        torch.testing.assert_close(terms["loss"], sum(terms[name] for name in names))
    method, config = make(bce=2.0, focal=0.0, dice=0.5)
    terms = method.loss(method(shown), shown)
    torch.testing.assert_close(terms["loss"], 2 * terms["bce"] + 0.5 * terms["dice"])


def test_one_annotator_is_enough() -> None:
    shown = dataclasses.replace(batch(), annotations=None, drawn=None)
    assert torch.equal(all_annotations(shown), shown.masks)  # type: ignore[arg-type]
    method, _ = make()
    assert torch.equal(method(shown).target, shown.masks[:, 0])  # type: ignore[index]


# -- the cache of stage 2 ----------------------------------------------------------------------------------------------


def test_stage_two_encodes_each_slice_once_and_nothing_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[list[float]] = []
    for gigabytes, expected in ((1.0, 5), (0.0, 12)):
        method, config = make(cache_gb=gigabytes)
        begin(method, config, 1)
        seen = encodes(method, monkeypatch)
        losses.append([])
        for step, shown in enumerate((batch(3), batch(3, first=1), batch(3, first=2), batch(3))):
            torch.manual_seed(step)
            losses[-1].append(float(method.loss(method(shown), shown)["loss"].detach()))
        assert sum(seen) == expected
    assert losses[0] == losses[1]


def test_augmented_images_and_stage_one_are_never_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    method, config = make()
    seen = encodes(method, monkeypatch)
    begin(method, config, 1)
    method(batch())
    for number, augmented in ((0, False), (1, True)):
        begin(method, config, number, augmented)
        seen.clear()
        for _ in range(2):
            method(batch())
        assert seen == [2, 2]


def test_dropout_of_adapters_ends_with_stage_one() -> None:
    settings = {"backbone": {"name": "tiny", "input_size": SIDE}, "lora": {"dropout": 0.5}}
    config = configuration.from_dict(settings, method="p2sam", preset="paper")
    method = build(config, ("lesion",))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "lora_B" in name:
                parameter.copy_(random(*parameter.shape))
    found = []
    for number in (0, 1):
        begin(method, config, number, augmented=True)
        torch.manual_seed(0)
        found.append([method.features(batch()) for _ in range(2)])
    assert not torch.equal(*found[0])
    assert torch.equal(*found[1])


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"injection": "dense", "snapshots": [10, 50]}])
def test_weights_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    method, config = make(**options)
    shown = batch(annotated=False)
    names = weights.stored_names(method)
    learn(method, begin(method, config, 0), 1)
    learn(method, begin(method, config, 1, augmented=True), 1)
    method.schedule(0.0, 0.8)
    weights.save_weights(method, tmp_path / "a.safetensors", names=names)
    samples = method.eval().sample(shown, [1, 2], 4)
    other, _ = make(seed=5, **options)
    weights.load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other.eval().sample(shown, [1, 2], 4), samples)
    other.finish()
    assert not any("lora_" in name for name, _ in other.named_parameters())
    torch.testing.assert_close(other.sample(shown, [1, 2], 4), samples, rtol=0, atol=1e-4)
    assert set(other.timer.seconds) == {"encode", "prompt", "decode"}


def test_what_is_refused() -> None:
    config = make()[1]
    with pytest.raises(InputError, match=r"2 objects \(cup, disc\) for p2sam.*data\.classes"):
        build(config, ("cup", "disc"))
    for options, message in (({"lora": {"decoder": ["q"]}}, r"lora\.decoder"), ({"train": {"lr": 0.0}}, r"train\.lr")):
        settings = {"backbone": {"name": "tiny", "input_size": SIDE}} | options
        with pytest.raises(InputError, match=message):
            build(configuration.from_dict(settings, method="p2sam", preset="paper"), ("lesion",))
    method = ready()
    for seeds, number in (([1], 2), ([1, 2], 0)):
        with pytest.raises(InputError, match="seeds for 2 images"):
            method.sample(batch(annotated=False), seeds, number)


def test_building_leaves_the_random_state_and_follows_the_seed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    states: Sequence[dict[str, Tensor]] = [make(seed=seed)[0].state_dict() for seed in (2, 2, 3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["prompter.generator.head.weight"], states[2]["prompter.generator.head.weight"])
