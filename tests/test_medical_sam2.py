"""Medical SAM 2: templates are SAM 2's own memories, banks, tasks, episodes, gradients, sorted memory, videos."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medical_sam2_tools import CHANNELS, GRID, SIDE, batch, eager, make, part, rand, target
from samsans import config as configuration
from samsans.backbones.sam2_video import ObjectPrompt, Tracker
from samsans.errors import InputError
from samsans.methods.episodes import upsample
from samsans.methods.medical_sam2.config import BANKS, PRESETS
from samsans.methods.medical_sam2.model import MedicalSam2, Output
from samsans.methods.medical_sam2.support import TemplateBank
from samsans.types import Batch


@pytest.fixture(scope="module")
def method() -> MedicalSam2:
    return eager()


# -- templates --------------------------------------------------------------------------------------------------------


def test_templates_by_hand(method: MedicalSam2) -> None:
    spatial, pointers = rand(2, 3, 2, GRID**2, 64), rand(2, 3, 2, CHANNELS, seed=1)  # two images, three pairs each
    made = method.templates(spatial, pointers)
    assert made.places == 3 * GRID**2
    assert made.tokens.shape == (3 * GRID**2 + 6, 4, 64)
    assert made.positions is not None
    for b, k, n in ((0, 0, 0), (1, 2, 0), (1, 1, 1)):
        rows = made.tokens[:, 2 * b + n]
        assert torch.equal(rows[k * GRID**2 : (k + 1) * GRID**2], spatial[b, k, n])
        assert torch.equal(rows[made.places + 2 * k : made.places + 2 * k + 2].flatten(), pointers[b, k, n])
    places = made.positions[: made.places].unflatten(0, (3, -1))
    assert all(torch.equal(own, method.backbone.spatial_positions(0)) for own in places)
    ages = method.backbone.pointer_positions(torch.ones(1))
    torch.testing.assert_close(made.positions[made.places :, 0], ages.expand(6, -1))


@torch.no_grad()
def test_a_template_is_what_sam2_remembers_of_a_frame_with_this_mask(method: MedicalSam2) -> None:
    head = method.backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias
    before = head.clone()
    head.fill_(100)  # SAM 2 believes in the given mask
    try:
        pair, one, bank = batch(1), target(), method.encode_support(batch(1))
        assert pair.masks is not None
        given = {n: ObjectPrompt(mask=pair.masks[0, n]) for n in range(2)}
        exact = Tracker(method.backbone, 2, multimask=False, masks="transformers")  # the mask as it is
        tracker = Tracker(method.backbone, 2, multimask=False)  # the pointer of the single mask token
        exact.step(pair.images[0], given)
        tracker.step(pair.images[0], given)
        for n in range(2):
            spatial, kept = exact.conditioning[n][0].spatial, tracker.conditioning[n][0]
            torch.testing.assert_close(spatial, bank.spatial[0, n].bfloat16())
            torch.testing.assert_close(kept.pointer, bank.pointers[0, n], rtol=0, atol=1e-5)
            tracker.conditioning[n][0] = dataclasses.replace(kept, spatial=bank.spatial[0, n])
        want = upsample(tracker.step(one.images[0]).logits[None], SIDE)
        torch.testing.assert_close(method.predict(one, bank), want, rtol=0, atol=1e-5)
    finally:
        head.copy_(before)


def test_pairs_are_encoded_alone_and_their_order_says_nothing(method: MedicalSam2) -> None:
    whole, one = method.encode_support(batch(3)), target()
    assert whole.spatial.shape == (3, 2, GRID**2, 64)
    assert whole.pointers.shape == (3, 2, CHANNELS)
    joined = TemplateBank.concat([method.encode_support(part(batch(3), slice(i, i + 1))) for i in range(3)])
    assert joined.ids == whole.ids
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(joined.tensors[name], tensor, rtol=0, atol=1e-5)
    logits = method.predict(one, whole)
    torch.testing.assert_close(method.predict(one, whole.select([2, 0, 1])), logits, rtol=0, atol=1e-5)
    assert (method.predict(one, whole.select([0])) - logits).abs().max() > 1e-4


def test_several_objects_and_images_equal_single_runs(method: MedicalSam2) -> None:
    pairs, two = batch(2), target(2)
    together = method.predict(two, method.encode_support(pairs))
    assert together.shape == (2, 2, SIDE, SIDE)
    assert together.dtype == torch.float32
    for b in range(2):
        for n in range(2):
            bank = method.encode_support(part(pairs, slice(None), slice(n, n + 1)))
            one = Batch(two.images[b : b + 1], None, ("x",), bank.objects)
            torch.testing.assert_close(method.predict(one, bank)[0, 0], together[b, n], rtol=0, atol=1e-5)
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-4


def test_one_bank_for_each_image_and_banks_that_are_chosen(method: MedicalSam2) -> None:
    two = target(2)
    banks = [method.encode_support(batch(k, seed=k)) for k in (1, 3)]
    each = method.predict(two, banks)
    for i, bank in enumerate(banks):
        alone = method.predict(dataclasses.replace(two, images=two.images[i : i + 1], ids=("x",)), bank)
        torch.testing.assert_close(each[i : i + 1], alone, rtol=0, atol=1e-5)
    seen = []
    chosen = method.predict(two, lambda features: seen.append(features.shape) or banks)
    assert torch.equal(chosen, each)
    assert seen == [(2, CHANNELS, GRID, GRID)]


# -- banks and tasks --------------------------------------------------------------------------------------------------


def test_cached_supports_equal_uncached(method: MedicalSam2, tmp_path: Path) -> None:
    bank, one = method.encode_support(batch(2)), target()
    logits = method.predict(one, bank)
    assert torch.equal(logits, method.predict(one, method.encode_support(batch(2))))
    stored = method.load_support(str(bank.save(tmp_path / "task.safetensors")))
    assert torch.equal(logits, method.predict(one, stored))
    with pytest.raises(InputError, match="support bank made by weights"):
        make(seed=3).load_support(str(tmp_path / "task.safetensors"))


def test_another_mask_is_another_task_and_back_is_exact(method: MedicalSam2) -> None:
    pairs, one = batch(2), target()
    assert pairs.masks is not None
    first = method.encode_support(pairs)
    second = method.encode_support(dataclasses.replace(pairs, masks=pairs.masks.flip(1)))
    before, other = method.predict(one, first), method.predict(one, second)
    assert (before - other).abs().max() > 1e-4
    torch.testing.assert_close(other.flip(1), before, rtol=0, atol=1e-5)
    assert torch.equal(before, method.predict(one, first))


def test_finish_merges_the_adapters() -> None:
    merged = make(backbone__train="lora").eval()
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * rand(*parameter.shape))
    bank = merged.encode_support(batch(2))
    before = merged.predict(target(), bank)
    merged.finish()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged.predict(target(), bank.require(merged.fingerprint())), before, rtol=0, atol=1e-4)


# -- episodes ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_leave_one_out_equals_supports_without_the_target(method: MedicalSam2) -> None:
    episode = dataclasses.replace(batch(3), targets=torch.tensor([2, 0]))
    together = method(episode).logits
    assert together.shape == (2, 2, SIDE, SIDE)
    for row, (own, others) in enumerate(((2, [0, 1]), (0, [1, 2]))):
        assert episode.masks is not None
        bank = method.encode_support(Batch(episode.images[others], episode.masks[others], ("p", "q"), ("a", "b")))
        alone = method.predict(Batch(episode.images[own : own + 1], None, ("t",), ("a", "b")), bank)
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({}, ("vision_encoder", "mask_decoder.iou", "mask_decoder.pred_obj", "prompt_encoder.mask_embed")),
        ({"model__scores": 0.0}, ("vision_encoder", "mask_decoder")),
        ({"backbone__train": "lora"}, ("lora", "mask_decoder.iou")),
        ({"backbone__train": "lora", "lora__memory": ["q"], "model__scores": 0.0}, ("memory_attention.*lora",)),
    ],
    ids=["all", "without scores", "lora", "lora in the memory"],
)
def test_gradients_reach_what_is_trained_and_nothing_frozen(options: dict[str, Any], reached: tuple[str, ...]) -> None:
    trained = make(**options).train()
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    episode = batch(3)
    assert episode.masks is not None
    episode.masks[0, 0] = False  # an object that is not there
    losses = trained.loss(trained(episode), episode)
    losses["loss"].backward()
    assert ("iou" in losses) == (trained.config.scores > 0)
    wrong = [name for name, p in trained.named_parameters() if (p.grad is not None) != p.requires_grad]
    assert wrong == []
    moved = [name for name, p in trained.named_parameters() if p.grad is not None and p.grad.any()]
    always = ("memory_encoder", "memory_attention", "object_pointer_proj", "mask_downsample", "memory_temporal")
    for wanted in (*always, *reached, "no_object_pointer", "occlusion", "temporal_positional"):
        assert any(all(piece in name for piece in wanted.split(".*")) for name in moved), wanted
    frozen_attention = "lora__memory" in options
    assert any("memory_attention" in n and "lora" not in n for n in moved) != frozen_attention
    assert {id(p) for group in trained.stages(None)[0].groups for p in group.parameters} == {  # type: ignore[arg-type]
        id(p) for p in trained.parameters() if p.requires_grad
    }


def test_nothing_to_train_is_no_stage() -> None:
    still = make(backbone__train="none")
    assert not still.stages(None)  # type: ignore[arg-type]
    assert still.predict(target(), still.encode_support(batch(1))).shape == (1, 2, SIDE, SIDE)


def test_the_loss_by_hand() -> None:
    method = make(model__bce=0.5, model__scores=2.0)
    truth = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.bool)
    truth[0, 0, :32] = True
    truth[0, 1, :, :16] = True
    logits = torch.where(truth, 20.0, -20.0)
    logits[0, 0, :16] = -20  # half of the object is missed: an IoU of 1 / 2
    output = Output(logits, torch.tensor([[0.75, 1.0], [0.3, 0.4]]), torch.tensor([[0.0, 50], [-50, -50]]))
    parts = method.loss(output, Batch(torch.zeros(2, 3, SIDE, SIDE), truth, ("x", "y"), ("a", "b")))
    assert parts["iou"].item() == pytest.approx((0.25 + 0) / 2)
    assert parts["there"].item() == pytest.approx(0.6931 / 4, abs=1e-4)
    assert parts["bce"].item() == pytest.approx(20 * (16 * SIDE) / truth.numel(), rel=1e-3)
    assert parts["dice"].item() == pytest.approx((1 / 3 + 0 + 0 + 0) / 4, abs=1e-3)
    whole = parts["dice"] + 0.5 * parts["bce"] + 2 * (parts["iou"] + parts["there"])
    assert parts["loss"].item() == pytest.approx(whole.item())


def two_squares(images: int, seed: int) -> Batch:
    """A bright square and a dark one, each in another quarter."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(images, 2, SIDE, SIDE, dtype=torch.bool)
    for i in range(images):
        for n, quarter in enumerate(torch.randperm(4, generator=generator)[:2].tolist()):
            down, right = (
                torch.randint(0, 8, (2,), generator=generator) + 32 * torch.tensor(divmod(quarter, 2))
            ).tolist()
            masks[i, n, down : down + 24, right : right + 24] = True
    noise = 0.1 * torch.randn(images, 3, SIDE, SIDE, generator=generator)
    return Batch(noise + masks[:, :1].float() - masks[:, 1:].float(), masks, tuple("uvwxyz"[:images]), ("a", "b"))


def dice(found: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return 2 * (found & masks).sum((0, 2, 3)) / (found.sum((0, 2, 3)) + masks.sum((0, 2, 3)))


def test_it_learns_to_find_what_the_mask_of_a_template_shows() -> None:
    learner = make().train()
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    torch.manual_seed(0)  # dropout in the memory attention
    for seed in range(20):
        optimizer.param_groups[0]["lr"] = 1e-3 * (seed + 1) / 20
        optimizer.zero_grad()
        episode = two_squares(4, seed)
        learner.loss(learner(episode), episode)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    learner.eval()
    shown, unseen = two_squares(1, 100), two_squares(3, 101)
    assert shown.masks is not None
    assert unseen.masks is not None
    found = learner.predict(dataclasses.replace(unseen, masks=None), learner.encode_support(shown)) > 0
    own, other = (dice(found, masks) for masks in (unseen.masks, unseen.masks.flip(1)))
    assert own.min() > 0.6, own
    assert other.max() < 0.2, other
    assert learner.gauges(unseen)["rel_answer"] > 0.8
    nothing = dataclasses.replace(unseen, masks=torch.zeros_like(unseen.masks[:, :1]))
    assert learner.gauges(nothing) == {}
    assert "episodes.synthetic" in str(learner.gauge_warning({"rel_answer": 0.01}, step=200, warmup=100))
    assert learner.gauge_warning({"rel_answer": 0.01}, step=50, warmup=100) is None
    assert learner.gauge_warning({"rel_answer": 0.8}, step=200, warmup=100) is None


# -- configuration and errors -----------------------------------------------------------------------------------------


def test_presets_are_configurations_and_import_no_torch() -> None:
    for preset in PRESETS:
        made = configuration.from_dict({}, method="medical_sam2", preset=preset)
        assert made.backbone.name.startswith("sam2")
        assert made.backbone.train == "all"
    code = "import sys; import samsans.methods.medical_sam2.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clear_errors(method: MedicalSam2) -> None:
    assert method.needs.supports
    assert method.views == BANKS
    assert make(model__bank="recent").views == ("recent", "sorted", "none")
    for size in (0, 7):
        with pytest.raises(InputError, match=f"model.size {size}"):
            make(model__size=size)
    with pytest.raises(InputError, match="no support pairs"):
        method.predict(target())
    with pytest.raises(InputError, match="no support pairs"):
        method.follow(("a", "b")).step(target())
    with pytest.raises(InputError, match="without masks"):
        method.encode_support(target())
    with pytest.raises(InputError, match="an episode of one image"):
        method(batch(1))
    with pytest.raises(InputError, match="backbone of family sam"):
        make(backbone__name="tiny")
