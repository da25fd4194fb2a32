"""H-SAM as a whole: shapes, ablations, gradients, start, losses, views, weights on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samsans import config as configuration
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.hsam.config import CmattnConfig, HsamConfig
from samsans.methods.hsam.model import HSam, Output, stage2_weight
from samsans.methods.weights import load_weights, save_weights, stored_names, trained_names
from samsans.ops.labels import class_labels, shrink_labels
from samsans.ops.losses import cross_entropy, softmax_dice_loss
from samsans.types import Batch

VIEWS = ("stage1", "stage2", "logit_mean", "prob_mean")
# Table 11: learnable mask attention, hierarchical pixel decoder, CMAttn; and the plain two stages it leaves out
TABLE_11 = {
    "none": {"stages": 1},
    "lma": {"pixel_decoder": "plain", "cmattn.mode": "off"},
    "lma, hpd": {"cmattn.mode": "off"},
    "hpd": {"mask_attention": "off", "cmattn.mode": "off"},
    "hpd, cm": {"mask_attention": "off"},
    "cm": {"mask_attention": "off", "pixel_decoder": "plain"},
    "lma, cm": {"pixel_decoder": "plain"},
    "lma, hpd, cm": {},
    "plain two stages": {"mask_attention": "off", "pixel_decoder": "plain", "cmattn.mode": "off"},
    "binary": {"mask_attention": "binary"},  # Table 5
}


def make(preset: str = "paper", objects: int = 2, **options: Any) -> HSam:
    settings = {"backbone.name": "tiny", "backbone.input_size": 64}
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    names = tuple(f"class{k}" for k in range(objects))
    return build(configuration.from_dict(settings, method="hsam", preset=preset), names)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(images: int = 2, objects: int = 2, side: int = 64, seed: int = 0) -> Batch:
    labels = random(images, objects + 1, side // 8, side // 8, seed=seed + 1).argmax(1)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks = torch.nn.functional.one_hot(labels, objects + 1).permute(0, 3, 1, 2)[:, 1:].bool()
    ids, names = (tuple(f"{what}{i}" for i in range(n)) for what, n in (("image", images), ("class", objects)))
    return Batch(random(images, 3, side, side, seed=seed).sigmoid(), masks, ids, names)


def step(method: HSam, given: Batch) -> dict[str, float]:
    """One optimiser step; every trained parameter must have a gradient."""
    torch.manual_seed(0)
    method.train()
    (stage,) = method.stages(configuration.RunConfig())
    parameters = [p for group in stage.groups for p in group.parameters]
    losses = method.loss(method(given), given)
    losses["loss"].backward()
    trained = {id(p) for p in parameters}
    for name, parameter in method.named_parameters():
        assert (id(parameter) in trained) == parameter.requires_grad, name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    torch.optim.AdamW(parameters, 1e-3).step()
    return {name: value.item() for name, value in losses.items()}


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "side"), [({}, 48), ({}, 80), ({"backbone__name": "scratch"}, 64)])
@torch.no_grad()
def test_other_sides_and_patches_end_at_full_size(options: dict[str, Any], side: int) -> None:
    method = make("scratch", backbone__input_size=side, **options).eval()
    output = method(batch(side=side))
    assert method.backbone.patch == (8 if options else 16)
    assert output.logits_low.shape == (2, 3, 4 * method.backbone.grid, 4 * method.backbone.grid)
    assert output.logits_full is not None
    assert output.logits_full.shape == (2, 3, side, side)
    assert method.predict(batch(side=side)).shape == (2, 2, side, side)


# -- ablations, gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE_11)
def test_every_ablation_learns(row: str) -> None:  # Table 11, check 3
    method = make(**{f"model__{key.replace('.', '__')}": value for key, value in TABLE_11[row].items()})
    losses = step(method, batch())
    assert losses["loss"] > step(method, batch())["loss"]
    one = row == "none"
    assert method.views == (("stage1",) if one else VIEWS)
    assert set(losses) == ({"loss", "stage1"} if one else {"loss", "stage1", "stage2"})
    output = method.eval()(batch())
    assert (output.logits_full is None) == one
    if not one:
        assert output.logits_full.shape == (2, 3, 64, 64)
        assert bool(output.gate.any()) == ("cm" in row or row == "binary")
    assert method.predict(batch()).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("paper", {}),
        ("released", {}),
        ("scratch", {}),
        ("scratch", {"backbone__train": "none"}),
        ("paper", {"model__cmattn__gate": "sigmoid", "model__cmattn__normalise": "none"}),
        ("paper", {"model__cmattn__noise": "inverse_freq", "objects": 4}),
        ("paper", {"model__embed_noise": 0.0, "model__cmattn__noise": "off", "objects": 1}),
    ],
)
def test_presets_and_options_learn(preset: str, options: dict[str, Any]) -> None:
    method, given = make(preset, **options), batch(objects=options.get("objects", 2))
    step(method, given)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert all(name.startswith("backbone.") for name in frozen)
    if preset == "scratch" and not options:
        assert frozen == {"backbone.model.shared_image_embedding.positional_embedding"}


def test_stage2_teaches_stage1() -> None:  # check 7
    method = make().train()
    output = method(batch())
    assert output.logits_full is not None
    output.logits_full.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in method.stage1.hypernetworks.parameters())


def test_adapters_start_at_nothing_and_the_base_stays() -> None:  # checks 2 and 3
    method, given = make(), batch()
    with torch.no_grad():
        bare = make(backbone__train="none").backbone.encode(given.images).features
        assert torch.equal(method.backbone.encode(given.images).features, bare)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    positions = method.backbone.image_pe.clone()
    step(method, given)
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
        if "lora_" in name:
            assert bool(parameter.grad.any()) == ("lora_B" in name), name
    assert torch.equal(method.backbone.image_pe, positions)
    with torch.no_grad():
        assert not torch.equal(method.backbone.encode(given.images).features, bare)


@pytest.mark.parametrize("rank", [1, 4, 8, 16])
def test_ranks_of_the_adapters(rank: int) -> None:  # Table 10; 4 D r weights a block
    method = make(lora__rank=rank, lora__alpha=float(rank))
    adapters = {name: p for name, p in method.named_parameters() if "lora_" in name}
    assert {p.shape for p in adapters.values()} == {(rank, 32), (32, rank)}
    for block in range(2):
        of_block = [p.numel() for name, p in adapters.items() if f"layers.{block}." in name]
        assert sum(of_block) == 4 * 32 * rank
    assert len(adapters) == 8  # q and v of both blocks, A and B each
    before = {name: p.detach().clone() for name, p in adapters.items()}
    step(method, batch())
    step(method, batch())
    assert not any(torch.equal(p, before[name]) for name, p in adapters.items())


# -- what is computed --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_gates_of_the_three_modes() -> None:  # check 9
    given = batch()
    for mode in ("released", "off", "paper"):
        gate = make(model__cmattn__mode=mode).eval()(given).gate
        assert gate is not None
        if mode == "paper":
            torch.testing.assert_close(gate.mean((1, 2, 3)), torch.ones(2))
            assert gate.std() > 0
        else:
            assert torch.equal(gate, torch.full((2, 1, 4, 4), float(mode == "released")))


@torch.no_grad()
def test_stage2_sees_the_embedding_doubled_as_released() -> None:
    method = make("released").eval()
    features = method.backbone.encode(batch().images).features
    seen = []
    handle = method.stage2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.decode(features)
    handle.remove()
    assert torch.equal(seen[0], 2 * (features + method.dense[:, None, None]))


@torch.no_grad()
def test_training_noise() -> None:  # section 7 of the specification
    method = make(model__cmattn__mode="released", model__mask_dropout=0.0).train()
    features = random(64, 32, 4, 4)
    noise = (method._noisy(features) - features).flatten()
    assert float(noise.std() / (features.max() - features.min())) == pytest.approx(0.2, rel=0.02)
    assert not torch.equal(method(batch()).logits_full, method(batch()).logits_full)
    assert torch.equal(method(batch()).logits_low, method(batch()).logits_low)  # stage 1 sees none
    method.eval()
    assert torch.equal(method._noisy(features), features)
    assert torch.equal(method(batch()).logits_full, method(batch()).logits_full)


@torch.no_grad()
def test_noise_follows_the_labels_of_the_positions() -> None:
    method = make(model__cmattn__dropout=0.0, model__embed_noise=0.0, model__mask_dropout=0.0).train()
    given, seen = batch(), []
    method.cmattn.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    method(given)
    labels = class_labels(given.masks)
    assert given.masks.shape[-1] == 64
    assert torch.equal(seen[0], labels[:, 8::16, 8::16].flatten(1))  # the pixels at the centres of 4 x 4 patches
    resized = torch.nn.functional.interpolate(labels[:, None].float(), (4, 4), mode="nearest-exact")
    assert torch.equal(seen[0], resized.flatten(1).long())
    assert labels.unique().tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="without masks"):
        method(dataclasses.replace(given, masks=None))


def test_loss_is_the_weighted_sum_of_both_stages() -> None:
    method, given = make().eval(), batch()
    labels = class_labels(given.masks)
    output = Output(random(2, 3, 16, 16), random(2, 3, 64, 64, seed=1))
    small = shrink_labels(labels, 16)
    first = 0.1 * cross_entropy(output.logits_low, small) + 0.9 * softmax_dice_loss(output.logits_low, small)
    second = 0.1 * cross_entropy(output.logits_full, labels) + 0.9 * softmax_dice_loss(output.logits_full, labels)
    for epoch, passed in ((0, 0.0), (0, 0.97), (10, 10.5), (299, 299.99)):
        method.schedule(passed, 0.5)
        losses = method.loss(output, given)
        weight = stage2_weight(epoch)
        torch.testing.assert_close(losses["loss"], (1 - weight) * first + weight * second)
        torch.testing.assert_close(losses["stage1"], first)
        torch.testing.assert_close(losses["stage2"], second)
    with pytest.raises(InputError, match="without masks"):
        method.loss(output, dataclasses.replace(given, masks=None))


def test_weight_epochs_follow_the_share_of_the_run() -> None:
    method = make("scratch")
    for used, epoch in ((0.0, 0), (0.5, 150), (0.999, 299)):
        method.schedule(7.0, used)
        assert method.epoch == epoch


# -- answers -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_views() -> None:
    method, given = make().eval(), batch()
    output = method(given)
    first = torch.nn.functional.interpolate(output.logits_low, (64, 64), mode="bilinear", align_corners=False)
    second = output.logits_full
    assert second is not None
    mean = (first.softmax(1) + second.softmax(1)) / 2
    expected = {
        "stage1": first,
        "stage2": second,
        "logit_mean": (first + second) / 2,
        "prob_mean": mean.log(),
    }
    assert method.views == tuple(expected)
    for view, logits in expected.items():
        found = method.predict(given, view=view)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, logits[:, 1:] - logits[:, :1], rtol=1e-4, atol=1e-5)
    assert torch.equal(method.predict(given), method.predict(given, view="logit_mean"))
    assert torch.equal(make(model__ensemble="stage2").eval().predict(given), method.predict(given, view="stage2"))
    with pytest.raises(InputError, match=r"no view 'both'.*stage1, stage2, logit_mean, prob_mean"):
        method.predict(given, view="both")
    with pytest.raises(InputError, match="no view 'stage2'"):
        make(model__stages=1).predict(given, view="stage2")
    assert set(method.timer.reset()) == {"encode", "decode"}


@torch.no_grad()
def test_mean_of_probabilities_is_stable() -> None:
    method = make()
    low = 500 * random(1, 3, 16, 16)
    full = 500 * random(1, 3, 64, 64, seed=1)
    answer = method.answer(Output(low, full), "prob_mean")
    assert answer.isfinite().all()
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(1, 64, 64))
    torch.testing.assert_close(
        method.answer(Output(low / 500, full / 500), "prob_mean").exp().sum(1), torch.ones(1, 64, 64)
    )


@torch.no_grad()
def test_bfloat16_autocast() -> None:
    method, given = make().eval(), batch()
    exact = method(given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method(given)
        answer = method.predict(given)
        losses = method.loss(rough, given)
    assert rough.prior.dtype == rough.gate.dtype == answer.dtype == losses["loss"].dtype == torch.float32
    torch.testing.assert_close(rough.prior, exact.prior, rtol=0, atol=0.05)
    assert float((answer - method.predict(given)).abs().mean()) < 0.05


# -- runs --------------------------------------------------------------------------------------------------------------


def test_pixel_counts_travel_with_the_weights(tmp_path: Path) -> None:
    method = make()
    method.observe(torch.tensor([1000, 10, 20]))
    step(method, batch())
    path = save_weights(method, tmp_path / "weights.safetensors")
    again = make()
    for parameter in again.parameters():
        parameter.data.zero_()
    load_weights(again, path)
    assert again.cmattn.pixels.tolist() == [1000, 10, 20]
    torch.testing.assert_close(again.cmattn.deviations, torch.tensor([0.0, 0.35, 0.2]))
    assert not any("deviations" in name for name in method.state_dict())  # they follow from the pixels
    for name, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    given = batch(seed=3)
    assert torch.equal(method.eval().predict(given), again.eval().predict(given))
    assert "cmattn.pixels" in trained_names(method)
    assert set(stored_names(method)) == set(method.state_dict())  # a random base is on no disk
    make("released").observe(torch.tensor([1000, 10, 20]))  # nothing to remember


@torch.no_grad()
def test_finish_changes_no_answer() -> None:
    method, given = make().eval(), batch()
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    before = method.predict(given)
    method.finish()
    assert not any("lora_" in name for name, _ in method.named_parameters())
    torch.testing.assert_close(method.predict(given), before, rtol=1e-4, atol=1e-4)


def test_seed_decides_the_start() -> None:
    one, same, other = (make(seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("stage2.class_tokens.weight", "stage1.class_tokens.weight", "cmattn.score.weight"):
        assert not torch.equal(one[name], other[name])
    state = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_configurations() -> None:
    with pytest.raises(InputError, match=r"model.stages is 3.*1 or 2"):
        make(model__stages=3)
    with pytest.raises(InputError, match="trained as a whole"):
        make(lora__decoder=["q"])


@pytest.mark.parametrize(
    ("option", "wrong", "edge"),
    [
        ("stage1_start", 1.2, 0.0),
        ("stage1_start", 1.0, 0.0),
        ("stage1_start", -0.1, 0.0),
        ("stage1_decay", -2.0, 1.0),
        ("stage1_decay", 0.0, 1.0),
        ("stage1_decay", 1.01, 1.0),
        ("embed_noise", -1.0, 0.0),
        ("embed_noise", float("inf"), 0.0),
        ("mask_dropout", 1.5, 0.0),
        ("cmattn.dropout", 1.0, 0.0),
        ("cmattn.dropout", float("nan"), 0.0),
        ("ce", -0.1, 0.0),
        ("dice", -0.1, 0.0),
        ("weight_epochs", 0, 1),
    ],
)
def test_numbers_out_of_range(option: str, wrong: float, edge: float) -> None:
    key = f"model__{option.replace('.', '__')}"
    with pytest.raises(InputError, match=rf"model\.{option} is {wrong}\. Expected"):
        make(**{key: wrong})
    make(**{key: edge})


def test_needs_and_defaults() -> None:
    assert HSam.needs.exclusive
    assert not HSam.needs.supports
    assert HsamConfig().cmattn == CmattnConfig()
