"""The numerical checks of Proxy Prompt's parts, each against a naive form (numbers are those of the checks list)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.proxy_prompt import selective
from samsans.methods.proxy_prompt.bridge import Bridge, Cbam, ResBlock
from samsans.methods.proxy_prompt.ccm import Ccm, neighbours
from samsans.methods.proxy_prompt.selective import (
    mean_readout,
    merge_partials,
    partial_readout,
    selective_logits,
    selective_readout,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_weights(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """``(B, T, K * A)`` softmax of ``-|k - q|^2 / sqrt(C)`` over every support token."""
    flat = keys.flatten(0, 1)
    distance = (query[:, :, None] - flat).square().sum(-1)
    return torch.softmax(-distance / flat.shape[-1] ** 0.5, dim=-1)


def test_map_is_the_negative_distance_and_its_columns_sum_to_one() -> None:  # checks 1, 2
    query, keys = rand(2, 5, 8), rand(7, 8, seed=1)
    weights = torch.softmax(selective_logits(query, keys), dim=-1)
    torch.testing.assert_close(weights, naive_weights(query, keys[None]), atol=1e-14, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=torch.float64), atol=1e-14, rtol=0)
    assert not torch.allclose(weights.sum((0, 1)), torch.ones(7, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_streaming_equals_one_softmax(pairs: int, tokens: int, seed: int) -> None:  # check 6
    query, keys, values = rand(2, 3, 4, seed=seed), rand(pairs, tokens, 4, seed=seed + 1), rand(pairs, tokens, 5)
    expected = naive_weights(query, keys) @ values.flatten(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selective, "CHUNK", 1 + seed)  # pair by pair, or several at once
        found = selective_readout(query, keys, values)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_augmented_attention_equals_the_map() -> None:  # check 6
    query, keys, values = rand(1, 5, 8), rand(2, 6, 8, seed=1), rand(2, 6, 8, seed=2)
    flat = keys.flatten(0, 1)
    q = torch.cat([2 * query[0], torch.ones(5, 1, dtype=torch.float64)], -1)[None]
    k = torch.cat([flat, -flat.square().sum(-1, keepdim=True)], -1)[None]
    expected = F.scaled_dot_product_attention(q, k, values.flatten(0, 1)[None], scale=8**-0.5)
    torch.testing.assert_close(selective_readout(query, keys, values), expected, atol=1e-13, rtol=0)


def test_a_common_shift_of_keys_and_queries_changes_nothing() -> None:  # check 3
    query, keys, values, shift = rand(1, 5, 8), rand(2, 6, 8, seed=1), rand(2, 6, 3), rand(8, seed=3) * 10
    moved = selective_readout(query + shift, keys + shift, values)
    torch.testing.assert_close(moved, selective_readout(query, keys, values), atol=1e-12, rtol=0)


def test_centring_keeps_float32_precise_under_a_large_offset() -> None:
    query, keys, values = rand(1, 64, 256), rand(2, 64, 256, seed=1), rand(2, 64, 4)
    exact = selective_readout(query, keys, values)
    rounded = selective_readout((query + 5).float(), (keys + 5).float(), values.float())
    assert (rounded - exact).abs().max() < 2e-5


def test_order_and_repetition_of_pairs() -> None:  # checks 4, 5
    query, keys, values = rand(1, 5, 8), rand(3, 6, 8, seed=1), rand(3, 6, 3)
    once = selective_readout(query, keys, values)
    order = [2, 0, 1]
    torch.testing.assert_close(selective_readout(query, keys[order], values[order]), once, atol=1e-13, rtol=0)
    twice = selective_readout(query, keys.repeat(2, 1, 1), values.repeat(2, 1, 1))
    torch.testing.assert_close(twice, once, atol=1e-13, rtol=0)
    some = [0, 0, 1, 2]
    assert (selective_readout(query, keys[some], values[some]) - once).abs().max() > 1e-3


def test_an_image_finds_itself() -> None:  # check 7
    features = 4 * rand(1, 16, 8)
    weights = torch.softmax(selective_logits(features, features[0]), dim=-1)[0]
    assert torch.equal(weights.argmax(-1), torch.arange(16))


def test_readout_is_a_weighted_mean() -> None:  # check 8
    query, keys, values = rand(1, 5, 8), rand(2, 6, 8, seed=1), rand(2, 6, 3)
    out = selective_readout(query, keys, values)
    flat = values.flatten(0, 1)
    assert (out >= flat.amin(0) - 1e-12).all()
    assert (out <= flat.amax(0) + 1e-12).all()
    constant = torch.full_like(values, 2.5)
    torch.testing.assert_close(selective_readout(query, keys, constant), torch.full_like(out, 2.5))


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_leave_one_out_equals_a_bank_without_that_pair(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective, "CHUNK", chunk)
    query, keys, values = rand(3, 5, 8), rand(3, 6, 8, seed=1), rand(3, 6, 4)
    together = selective_readout(query, keys, values, exclude=torch.arange(3))
    for i in range(3):
        others = [j for j in range(3) if j != i]
        alone = selective_readout(query[i : i + 1], keys[others], values[others])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-13, rtol=0)
    mean = mean_readout(values, 3, torch.arange(3))
    torch.testing.assert_close(mean[1], values[[0, 2]].mean(0))


def test_partials_of_any_subset_merge_exactly() -> None:
    query, keys, values = rand(2, 5, 8), rand(4, 6, 8, seed=1), rand(4, 6, 3)
    parts = [partial_readout(query, keys[j], values[j]) for j in range(4)]
    subset = [3, 1]
    merged = merge_partials([parts[j] for j in subset]).finish()
    torch.testing.assert_close(merged, selective_readout(query, keys[subset], values[subset]), atol=1e-13, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_streamed_gradients_equal_autograd_of_the_naive_form(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective, "CHUNK", chunk)
    tensors = [rand(2, 5, 8), rand(3, 6, 8, seed=1), rand(3, 6, 4, seed=2)]
    grads = []
    for form in ("streamed", "naive"):
        query, keys, values = (t.clone().requires_grad_() for t in tensors)
        out = (
            selective_readout(query, keys, values)
            if form == "streamed"
            else naive_weights(query, keys) @ values.flatten(0, 1)
        )
        grads.append(torch.autograd.grad(out.square().sum(), (query, keys, values)))
    for ours, naive in zip(*grads, strict=True):
        torch.testing.assert_close(ours, naive, atol=1e-10, rtol=1e-10)


# -- bridge -----------------------------------------------------------------------------------------------------------


def test_parameter_counts_of_the_bridge() -> None:  # check 15
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(ResBlock(448, 256)) == 2_654_976
    assert count(ResBlock(256, 256)) == 1_180_160
    assert count(Cbam(256)) == 8_563
    assert count(Bridge(256, 192)) == 3_843_699
    assert count(ResBlock(256 + 768, 256)) == 5_309_184
    assert count(ResBlock(256 + 1024, 256)) == 6_488_832


def textbook_cbam(module: Cbam, x: torch.Tensor) -> torch.Tensor:
    channel = torch.sigmoid(module.mlp(x.mean((2, 3))) + module.mlp(x.amax((2, 3))))
    x = x * channel[:, :, None, None]
    maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return x * torch.sigmoid(module.spatial(maps))


@pytest.mark.parametrize("scope", ["joint", "per_object", "folded"])
def test_cbam_of_one_object_is_the_textbook_one(scope: str) -> None:  # check 11
    module = Cbam(32, scope=scope).double()
    x = rand(3, 1, 32, 6, 6)
    torch.testing.assert_close(module(x)[:, 0], textbook_cbam(module, x[:, 0]), atol=1e-15, rtol=0)


def test_cbam_joint_talks_per_object_does_not() -> None:  # checks 9, 10
    torch.manual_seed(0)
    joint, alone = Cbam(32).double(), Cbam(32, scope="per_object").double()
    x = rand(2, 3, 32, 6, 6)
    single = torch.cat([alone(x[:, n : n + 1]) for n in range(3)], 1)
    torch.testing.assert_close(alone(x), single, atol=1e-15, rtol=0)
    assert (joint(x) - torch.cat([joint(x[:, n : n + 1]) for n in range(3)], 1)).abs().max() > 1e-4
    order = [2, 0, 1]
    torch.testing.assert_close(joint(x[:, order]), joint(x)[:, order], atol=1e-15, rtol=0)
    copies = x[:, :1].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(joint(copies), joint(x[:, :1]).expand_as(copies), atol=1e-15, rtol=0)


def test_folded_cbam_says_how_many_objects_it_takes() -> None:
    with pytest.raises(InputError, match="folded for 2"):
        Cbam(32, scope="folded", folded_objects=2)(torch.zeros(1, 3, 32, 4, 4))


def test_bridge_never_mixes_support_pairs() -> None:  # check 12
    bridge = Bridge(32, 12).double()
    features, context = rand(3, 32, 4, 4), rand(3, 2, 12, 4, 4, seed=1)
    alone = torch.cat([bridge(features[k : k + 1], context[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(bridge(features, context), alone, atol=1e-14, rtol=0)


# -- colorization -----------------------------------------------------------------------------------------------------


def test_parameter_counts_of_the_ccm() -> None:  # check 15
    with torch.device("meta"):
        pair_merge = Ccm(64, 256, projection="pair_merge", proj_init="default")
        token_linear = Ccm(64, 256, proj_init="default")
    assert sum(p.numel() for p in pair_merge.parameters()) == 11_571_200
    assert sum(p.numel() for p in token_linear.parameters()) == 32_810_496


@pytest.mark.parametrize("projection", ["token_linear", "pair_merge"])
def test_averaging_start_is_average_pooling(projection: str) -> None:  # check 18
    ccm = Ccm(8, 4, projection=projection, proj_only=True).double()
    for name, parameter in ccm.named_parameters():
        if name.endswith("weight"):  # remove the noise, keep the averages
            parameter.data[parameter.data.abs() < 0.1] = 0
            parameter.data[parameter.data != 0] = 0.5
    context = rand(2, 64, 4)
    pooled = F.avg_pool2d(context.transpose(1, 2).unflatten(2, (8, 8)), 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ccm(context, context), pooled, atol=1e-15, rtol=0)
    off = Ccm(8, 4, enabled=False)
    torch.testing.assert_close(off(context, context), pooled, atol=1e-15, rtol=0)


def test_token_counts_and_neighbours() -> None:  # check 14
    ccm = Ccm(16, 32, ffn=64, heads=4)
    seen: list[int] = []
    for block in ccm.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out[1].shape[1]))
    assert ccm(torch.zeros(3, 256, 32), torch.zeros(3, 256, 32)).shape == (3, 16, 32)
    assert seen == [128, 64, 32, 16]
    assert neighbours(2, 4, horizontal=True).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert neighbours(2, 4, horizontal=False).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
