"""Proxy Prompt as a whole on the tiny backbone: the numerical checks that need a backbone, episodes, banks, tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from samsans import config as configuration
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.proxy_prompt.model import ProxyPrompt, _resemblance
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Batch, Embedding

SMALL = {
    "backbone.name": "tiny",
    "backbone.train": "lora",
    "model.csm.encoder.dim": 32,
    "model.csm.encoder.depth": 1,
    "model.ccm.ffn": 32,
    "model.scan": "chunked",
}


def make(**options: Any) -> ProxyPrompt:
    preset = options.pop("preset", "paper")
    settings = SMALL | {key.replace("__", "."): value for key, value in options.items()}
    method = build(configuration.from_dict(settings, method="proxy_prompt", preset=preset), ("a", "b"))
    return method.double()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(images: int = 4, objects: int = 2, seed: int = 0, **changes: Any) -> Batch:
    masks = rand(images, objects, 64, 64, seed=seed + 1) > 0.5
    ids = tuple(f"image{i}" for i in range(images))
    names = tuple("abcdef"[:objects])
    return dataclasses.replace(Batch(rand(images, 3, 64, 64, seed=seed), masks, ids, names), **changes)


def spread(method: ProxyPrompt) -> ProxyPrompt:
    """Random LoRA: at the start B is zero and the adapters do nothing."""
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return method


@pytest.fixture(scope="module")
def method() -> ProxyPrompt:
    return spread(make()).eval()


def test_shapes_and_cached_supports_equal_uncached(method: ProxyPrompt) -> None:  # checks 13, 14
    supports, targets = batch(3), rand(2, 3, 64, 64, seed=9)
    bank = method.encode_support(supports)
    assert bank.keys.shape == (3, 16, 32)
    assert bank.values.shape == (3, 16, 2, 32)
    logits = method.predict(Batch(targets, None, ("x", "y"), bank.objects), bank)
    assert logits.shape == (2, 2, 64, 64)
    again = method.predict(Batch(targets, None, ("x", "y"), bank.objects), method.encode_support(supports))
    assert torch.equal(logits, again)
    features = method.backbone.encode(targets).features
    tokens, _ = method.prompt(features, bank.keys.double(), bank.values.double())
    assert tokens.shape == (4, 1, 32)
    assert method.decode(Embedding(features), tokens, tokens).shape == (2, 2, 16, 16)


def test_pairs_are_encoded_independently_and_banks_join(method: ProxyPrompt) -> None:  # check 12
    whole = method.encode_support(batch(3))
    every = batch(3)
    assert every.masks is not None
    single = [
        method.encode_support(
            Batch(every.images[i : i + 1], every.masks[i : i + 1], every.ids[i : i + 1], every.objects)
        )
        for i in range(3)
    ]
    joined = SupportBank.concat(single)
    assert joined.ids == whole.ids
    torch.testing.assert_close(joined.values, whole.values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(joined.keys, whole.keys, atol=1e-6, rtol=1e-6)
    assert torch.equal(whole.select([2, 0]).keys, whole.keys[[2, 0]])


def test_switching_the_task_and_back_is_exact(method: ProxyPrompt) -> None:  # check 23
    targets = Batch(rand(1, 3, 64, 64, seed=9), None, ("x",), ("a", "b"))
    first, second = method.encode_support(batch(2)), method.encode_support(batch(2, seed=5))
    before = method.predict(targets, first)
    other = method.predict(targets, second)
    assert not torch.equal(before, other)
    assert torch.equal(before, method.predict(targets, first))


def test_one_bank_for_each_image_equals_single_runs(method: ProxyPrompt) -> None:
    banks = [method.encode_support(batch(k, seed=k)) for k in (1, 3)]
    images = rand(2, 3, 64, 64, seed=9)
    both = method.predict(Batch(images, None, ("x", "y"), ("a", "b")), banks)
    for i, bank in enumerate(banks):
        alone = method.predict(Batch(images[i : i + 1], None, ("x",), ("a", "b")), bank)
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_leave_one_out_equals_supports_without_the_target(method: ProxyPrompt) -> None:
    episode = batch(4, targets=torch.tensor([2]))
    with torch.no_grad():
        together = method(episode).logits
        others = [0, 1, 3]
        assert episode.masks is not None
        bank = method.encode_support(
            Batch(episode.images[others], episode.masks[others], tuple("xyz"), episode.objects)
        )
        alone = method.predict(Batch(episode.images[2:3], None, ("t",), episode.objects), bank)
    torch.testing.assert_close(together.float(), alone, atol=1e-4, rtol=1e-4)


def test_without_selection_and_colorization_the_prompt_ignores_the_target() -> None:  # check 27
    blind = make(model__csm__selective=False, model__ccm__enabled=False).eval()
    bank = blind.encode_support(batch(3))
    keys, values = bank.keys.double(), bank.values.double()
    prompts = [
        blind.prompt(blind.backbone.encode(rand(1, 3, 64, 64, seed=s)).features, keys, values)[0] for s in (1, 2)
    ]
    assert torch.equal(*prompts)
    seeing = make(model__csm__selective=False).eval()
    prompts = [
        seeing.prompt(seeing.backbone.encode(rand(1, 3, 64, 64, seed=s)).features, keys, values)[0] for s in (1, 2)
    ]
    assert (prompts[0] - prompts[1]).abs().max() > 1e-6


@pytest.mark.parametrize("encoder", ["vim", "vit_b"])
def test_the_mask_channel_is_connected(encoder: str) -> None:  # check 28
    connected = make(model__csm__encoder__name=encoder).eval()
    images, features = rand(1, 3, 64, 64), rand(1, 32, 4, 4)
    empty, full = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.no_grad():
        difference = connected.context(images, empty, features) - connected.context(images, full, features)
    assert difference.abs().max() > 1e-4


def test_gradients_reach_what_is_trained_and_nothing_frozen() -> None:  # checks 16, 17
    fresh = make()
    fresh.train()
    episode = batch(3)
    losses = fresh.loss(fresh(episode), episode)
    losses["loss"].backward()
    for name, parameter in fresh.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if "lora_A" in name:
            assert not parameter.grad.any(), name  # B is zero at the first step
    assert not fresh.backbone.model.training, "the frozen base stays in evaluation mode"
    again = spread(fresh)
    again.zero_grad()
    again.loss(again(episode), episode)["loss"].backward()
    assert all(p.grad.any() for n, p in again.named_parameters() if "vision_encoder" in n and "lora_A" in n)


def test_a_backbone_trained_whole_leaves_no_parameter_without_gradient() -> None:
    whole = make(preset="scratch", backbone__train="all", model__ccm__ffn=32)
    whole.train()
    episode = batch(3)
    whole.loss(whole(episode), episode)["loss"].backward()
    missing = [n for n, p in whole.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert any(p.requires_grad for p in whole.backbone.model.vision_encoder.parameters())


def test_adapted_model_starts_as_the_base() -> None:  # check 17
    adapted, base = make(), make(backbone__train="none")
    images = rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = adapted.backbone.encode(images).features, base.backbone.encode(images).features
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_finish_merges_the_adapters_and_keeps_the_fingerprint(tmp_path: Path) -> None:
    merged = spread(make()).eval()
    episode = batch(3)
    bank = merged.encode_support(episode)
    path = bank.save(tmp_path / "task.safetensors")
    target = Batch(rand(1, 3, 64, 64, seed=9), None, ("x",), ("a", "b"))
    before = merged.predict(target, bank)
    merged.finish()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged.predict(target, merged.load_support(str(path))), before, atol=1e-5, rtol=1e-5)


def test_a_task_file_of_other_weights_or_another_kind_is_refused(method: ProxyPrompt, tmp_path: Path) -> None:
    path = method.encode_support(batch(2)).save(tmp_path / "task.safetensors")
    assert method.load_support(str(path)).ids == ("image0", "image1")
    with pytest.raises(InputError, match="support bank made by weights"):
        make(seed=3).load_support(str(path))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="format None"):
        SupportBank.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file")
    with pytest.raises(InputError, match="no readable task file"):
        SupportBank.load(tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="same objects"):
        SupportBank.concat([method.encode_support(batch(1)), method.encode_support(batch(1, objects=1))])


def test_padded_support_tokens_are_never_read(method: ProxyPrompt) -> None:  # decision D-02
    supports = batch(2)
    padded = dataclasses.replace(supports, valid=torch.tensor([[64, 40], [64, 64]]))
    bank = method.encode_support(padded)
    assert bank.visible[0].reshape(4, 4).tolist() == [[True, True, True, False]] * 4
    assert bank.visible[1].all()
    target = Batch(rand(1, 3, 64, 64, seed=9), None, ("x",), ("a", "b"))
    noise = torch.where(bank.visible[..., None], bank.keys, torch.full_like(bank.keys, 1e3))
    first, second = (method.predict(target, b) for b in (bank, dataclasses.replace(bank, keys=noise)))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(first, method.predict(target, method.encode_support(supports)), atol=1e-6)


def test_clear_errors() -> None:
    with pytest.raises(InputError, match="grid that halves twice"):
        make(backbone__input_size=96)
    tiny = make().eval()
    with pytest.raises(InputError, match="no support pairs"):
        tiny.predict(batch(1))
    with pytest.raises(InputError, match="an episode of one image"):
        tiny(batch(1))
    with pytest.raises(InputError, match="without masks"):
        tiny.encode_support(batch(2, masks=None))


def test_gauges_see_whether_the_prompt_depends_on_the_mask(method: ProxyPrompt) -> None:
    gauges = method.gauges(batch(4))
    assert set(gauges) == {"rel_values", "rel_context", "rel_prompt"}
    assert all(value > 0 for value in gauges.values())
    alone = batch(4, objects=1)
    assert set(method.gauges(alone)) == set(gauges)
    assert alone.masks is not None
    alone.masks.zero_()  # the object is in no image: there is nothing to listen to
    assert method.gauges(alone) == {}
    resembling = _resemblance(torch.ones(2, 2, 4, 8))
    assert float(resembling) == 1.0
    assert float(_resemblance(torch.stack([torch.ones(2, 4, 8), -torch.ones(2, 4, 8)], dim=1))) == 0.0
    assert "--preset scratch" in str(method.gauge_warning({"rel_prompt": 0.01}, step=200, warmup=100))
    assert method.gauge_warning({"rel_prompt": 0.01}, step=50, warmup=100) is None
    assert method.gauge_warning({"rel_prompt": 0.3}, step=200, warmup=100) is None
    direct = make(model__direct=True)  # the context enters the decoder too
    assert direct.gauge_warning({"rel_prompt": 0.01, "rel_context": 0.4}, step=200, warmup=100) is None
    told = direct.gauge_warning({"rel_prompt": 0.01, "rel_context": 0.01}, step=200, warmup=100)
    assert "--preset" not in str(told)  # it is in use


def test_paper_counts_of_trained_parameters() -> None:  # check 15, section 3: 45,086,067 with ViT-H, 23,846,771 merged
    for projection, expected in (("token_linear", 45_086_067), ("pair_merge", 23_846_771)):
        with torch.device("meta"):
            from samsans.methods.proxy_prompt.bridge import Bridge
            from samsans.methods.proxy_prompt.ccm import Ccm
            from samsans.methods.proxy_prompt.context import build_context_encoder

            parts = [
                build_context_encoder("vim", grid=64, patch=16),
                Bridge(256, 192),
                Ccm(64, 256, projection=projection, proj_init="default"),
            ]
        assert sum(p.numel() for part in parts for p in part.parameters()) + 655_360 + 23_552 == expected


@pytest.mark.parametrize(
    "options",
    [
        {"model__csm__bridge": False},
        {"model__csm__selective": False},
        {"model__csm__bridge": False, "model__csm__selective": False, "model__ccm__enabled": False},
        {"model__ccm__enabled": False},
        {"model__ccm__proj_only": True},
        {"model__ccm__projection": "pair_merge"},
        {"model__ccm__proj_init": "default"},
        {"model__csm__cbam_scope": "per_object"},
        {"model__csm__cbam_scope": "folded", "model__csm__folded_objects": 2},
        {"model__csm__cbam_residual": False},
        {"model__csm__encoder__name": "vit_b"},
        {"model__csm__encoder__name": "resnet50"},
        {"model__csm__encoder__cls": "none"},
        {"model__csm__image_gain": 0.1, "model__csm__mask_gain": 3.0, "model__csm__fsup_gain": 0.1},
        {"model__support_grad": False},
        {"model__mask_contrast": 0.5},
        {"model__direct": True, "model__bce": 1.0},
    ],
    ids=lambda options: ",".join(key.removeprefix("model__") for key in options),
)
def test_every_ablation_trains_and_predicts(options: dict[str, Any]) -> None:
    ablated = make(**options)
    ablated.train()
    episode = batch(3, targets=torch.tensor([0, 2]))
    loss = ablated.loss(ablated(episode), episode)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    ablated.eval()
    bank = ablated.encode_support(episode)
    logits = ablated.predict(Batch(episode.images[:1], None, ("x",), episode.objects), bank)
    assert logits.shape == (1, 2, 64, 64)
    assert torch.isfinite(logits).all()
