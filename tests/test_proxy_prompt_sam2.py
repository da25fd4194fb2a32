"""Proxy Prompt on SAM 2, single frames: the prompt as memory, several objects at once, gradients, banks, tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from proxy_sam2 import SIDE, SMALL, batch, make, rand, read, spread, target
from samsans import config as configuration
from samsans.backbones.sam2_network import sine_positions
from samsans.errors import InputError
from samsans.methods.proxy_prompt.memory import PromptMemory
from samsans.methods.proxy_prompt.model import ProxyPrompt
from samsans.methods.proxy_prompt.pairs import read_pairs, segment_draws
from samsans.types import Batch, Embedding


@pytest.fixture(scope="module")
def method() -> ProxyPrompt:
    return spread(make()).eval()


# -- the prompt as memory ---------------------------------------------------------------------------------------------


def test_split_by_hand() -> None:  # decision D-13
    method = make()
    assert method.memory is not None
    assert not list(method.memory.parameters())
    prompts = rand(3, 4, 128)
    tokens = method.memory.tokens(prompts)
    assert tokens.shape == (8, 3, 64)
    for n in range(3):
        for i in range(4):
            assert torch.equal(tokens[2 * i, n], prompts[n, i, :64])
            assert torch.equal(tokens[2 * i + 1, n], prompts[n, i, 64:])
    assert not method.memory.positions.any()


def test_sizes_of_the_paper() -> None:  # check 14: 256 prompt tokens of 256 channels
    config = configuration.from_dict(SMALL, method="proxy_prompt").model
    assert PromptMemory(64, 256, config).tokens(rand(2, 256, 256)).shape == (1024, 2, 64)
    linear = PromptMemory(64, 256, dataclasses.replace(config, mem_map="linear", mem_pos="sine16"))
    assert linear.tokens(rand(2, 256, 256)).shape == (256, 2, 64)
    assert linear.positions.shape == (256, 1, 64)
    placed = PromptMemory(64, 256, dataclasses.replace(config, mem_pos="sine16"))
    assert placed.positions.shape == (1024, 1, 64)
    assert torch.equal(placed.positions[:, 0].unflatten(0, (256, 4))[:, 3], sine_positions(16, 64))


@torch.no_grad()
def test_only_positions_that_differ_matter(method: ProxyPrompt) -> None:  # checks 19, 20
    embedding, tokens, context = read(method, target().images, method.encode_support(batch(2)))
    assert method.memory is not None
    tokens, zero = tokens * 3, method.memory.positions
    want = method.decode(embedding, tokens, context)
    flipped = method.decode(embedding, tokens.flip(1), context)
    torch.testing.assert_close(flipped, want, rtol=0, atol=1e-5)
    try:
        method.memory.positions = zero + rand(64)
        torch.testing.assert_close(method.decode(embedding, tokens, context), want, rtol=0, atol=1e-5)
        method.memory.positions = zero + 5 * rand(*zero.shape)
        assert (method.decode(embedding, tokens, context) - want).abs().max() > 1e-3
    finally:
        method.memory.positions = zero


@torch.no_grad()
def test_several_objects_and_images_equal_single_runs(method: ProxyPrompt) -> None:  # check 21
    bank = method.encode_support(batch(2))
    embedding, tokens, context = read(method, target(2).images, bank)
    together = method.decode(embedding, tokens, context)
    assert together.shape == (2, 2, 32, 32)
    for b in range(2):
        alone = Embedding(embedding.features[b : b + 1], tuple(part[b : b + 1] for part in embedding.high_res))
        for n in range(2):
            row = slice(2 * b + n, 2 * b + n + 1)
            single = method.decode(alone, tokens[row], context[row])
            torch.testing.assert_close(single[0, 0], together[b, n], rtol=0, atol=1e-5)
    assert (together[0, 0] - together[0, 1]).abs().max() > 1e-4
    assert (together[0] - together[1]).abs().max() > 1e-4


# -- banks and tasks --------------------------------------------------------------------------------------------------


def test_cached_supports_equal_uncached(method: ProxyPrompt, tmp_path: Path) -> None:  # check 13
    bank = method.encode_support(batch(3))
    assert bank.keys.shape == (3, 64, 128)
    assert bank.values.shape == (3, 64, 2, 128)
    logits = method.predict(target(2), bank)
    assert logits.shape == (2, 2, SIDE, SIDE)
    assert torch.equal(logits, method.predict(target(2), method.encode_support(batch(3))))
    stored = method.load_support(str(bank.save(tmp_path / "task.safetensors")))
    assert torch.equal(logits, method.predict(target(2), stored))


def test_another_bank_is_another_task_and_back_is_exact(method: ProxyPrompt) -> None:  # check 23
    first, second = method.encode_support(batch(2)), method.encode_support(batch(2, seed=5))
    before = method.predict(target(), first)
    assert (before - method.predict(target(), second)).abs().max() > 1e-5
    assert torch.equal(before, method.predict(target(), first))
    each = method.predict(target(2), [first, second])
    torch.testing.assert_close(
        each[:1], method.predict(dataclasses.replace(target(2), images=target(2).images[:1]), first)
    )


@torch.no_grad()
def test_draws_of_pairs_equal_their_banks(method: ProxyPrompt) -> None:
    bank, one = method.encode_support(batch(3)), target()
    embedding = method.backbone.encode(one.images)
    draws = [(0, 1), (2,)]
    found = segment_draws(method, embedding, read_pairs(method, embedding.features, bank), draws, 2)
    for draw, logits in zip(draws, found, strict=True):
        torch.testing.assert_close(logits[None], method.predict(one, bank.select(draw)), rtol=0, atol=1e-5)


def test_finish_merges_the_adapters() -> None:
    merged = spread(make()).eval()
    bank = merged.encode_support(batch(2))
    before = merged.predict(target(), bank)
    merged.finish()
    torch.testing.assert_close(merged.predict(target(), bank), before, rtol=0, atol=1e-4)


# -- training ---------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_prompt_the_adapters_and_the_context_encoder() -> None:  # check 16
    trained = spread(make())
    trained.train()
    episode = batch(3)
    trained.loss(trained(episode), episode)["loss"].backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    reached = [
        name for name, parameter in trained.named_parameters() if parameter.grad is not None and parameter.grad.any()
    ]
    for part in ("context_encoder", "bridge", "ccm", "vision_encoder", "mask_decoder"):
        assert any(part in name for name in reached), part
    assert all(n in reached for n, p in trained.named_parameters() if "vision_encoder" in n and p.requires_grad)
    assert not any("memory_attention" in name for name in reached)  # decision D-16
    prompts = rand(2, 4, 128).requires_grad_()
    trained.decode(trained.backbone.encode(target().images), prompts, prompts).mean().backward()
    assert prompts.grad is not None
    assert prompts.grad.flatten(1).any(1).all()
    adapted = spread(make(lora__memory=["q", "v"]))
    adapted.loss(adapted(episode), episode)["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if "memory_attention" in n)


def test_leave_one_out_equals_supports_without_the_target(method: ProxyPrompt) -> None:
    episode = dataclasses.replace(batch(3), targets=torch.tensor([2]))
    assert episode.masks is not None
    with torch.no_grad():
        together = method(episode).logits
    bank = method.encode_support(Batch(episode.images[:2], episode.masks[:2], ("x", "y"), episode.objects))
    alone = method.predict(Batch(episode.images[2:], None, ("t",), episode.objects), bank)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "scratch", "backbone__train": "all"},
        {"backbone__train": "none"},
        {"model__mem_map": "linear"},
        {"model__mem_map": "linear", "model__mem_pos": "sine16"},
        {"model__mem_pos": "sine16"},
        {"model__memory_mode": "proxy_plus_bank"},
        {"model__memory_mode": "proxy_first_frame"},
        {"model__direct": True},
        {"model__ccm__enabled": False},
    ],
    ids=lambda options: ",".join(f"{key.removeprefix('model__')}={value}" for key, value in options.items()),
)
def test_every_choice_trains_and_predicts(options: dict[str, Any]) -> None:
    chosen = make(**({"model__ccm__ffn": 32} | options))
    chosen.train()
    episode = batch(3)
    loss = chosen.loss(chosen(episode), episode)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    missing = [n for n, p in chosen.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    chosen.eval()
    logits = chosen.predict(target(), chosen.encode_support(episode))
    assert logits.shape == (1, 2, SIDE, SIDE)
    assert torch.isfinite(logits).all()


def test_twenty_steps_of_training_fall() -> None:
    learner = make(backbone__train="all", model__ccm__projection="pair_merge")
    learner.train()
    images = 0.1 * rand(4, 3, SIDE, SIDE)
    masks = torch.zeros(4, 1, SIDE, SIDE, dtype=torch.bool)
    for i in range(4):
        masks[i, 0, 20 + 10 * i : 70 + 10 * i, 30:80] = True
    images = images + 2.0 * masks
    episode = Batch(images, masks, tuple("wxyz"), ("a",))
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            loss = learner.loss(learner(episode), episode)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0], losses


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("mem_map", "linear"), ("mem_pos", "sine16"), ("memory_mode", "proxy_plus_bank"), ("gate_by_object_score", True)],
)
def test_sam_has_no_memory(name: str, value: str) -> None:
    with pytest.raises(
        InputError, match=rf"model.{name} {value} for tiny.*a SAM 2.*\n?.*Leave model.{name} at its default"
    ):
        make(backbone__name="tiny", backbone__input_size=64, **{f"model__{name}": value})
    assert make(backbone__name="tiny", backbone__input_size=64).memory is None
