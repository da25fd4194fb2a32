"""The fast encoder blocks against those of transformers (eager), forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from samsans import architectures
from samsans.backbones import attention
from samsans.backbones.adapters import SplitQkv
from samsans.backbones.sam import build_network
from samsans.backbones.start import initialise

WINDOWED, GLOBAL = 0, 1


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch):
    """The library's eager softmax works in float32 even on float64 input; let the oracle keep its precision."""
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def blocks(side: int, dtype: torch.dtype, heads: int = 2) -> nn.ModuleList:
    """One windowed and one global block of ViT-B's geometry (head width 64, window 14), few heads, random tables."""
    arch = dataclasses.replace(
        architectures.VIT_B, hidden=64 * heads, heads=heads, mlp=64, depth=2, global_blocks=(GLOBAL,)
    )
    layers = initialise(build_network(arch, side, "naive"), 0).vision_encoder.layers
    generator = torch.Generator().manual_seed(1)
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_()
        if "rel_pos" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
        elif "qkv" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return layers.to(dtype)


def tokens(side: int, dtype: torch.dtype, width: int = 128, batch: int = 1) -> torch.Tensor:
    grid = side // 16
    return torch.randn(batch, grid, grid, width, generator=torch.Generator().manual_seed(2)).to(dtype)


def outputs_and_gradients(layer, block, x):
    x = x.clone().requires_grad_()
    out = block(layer, x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
    return out.detach(), torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("kind", [WINDOWED, GLOBAL], ids=["windowed", "global"])
@pytest.mark.parametrize(
    ("side", "dtype", "tolerance"),
    [
        (256, torch.float64, 1e-10),
        (512, torch.float64, 1e-10),
        (1024, torch.float64, 1e-10),
        (256, torch.float32, 1e-4),
        (512, torch.float32, 1e-4),
        (1024, torch.float32, 1e-4),
    ],
)
def test_equals_eager(side, dtype, tolerance, kind):
    heads = 1 if side == 1024 else 2
    layer = blocks(side, dtype, heads)[kind]
    assert (layer.window_size == 14) == (kind == WINDOWED)
    x = tokens(side, dtype, 64 * heads)
    want, want_gradients = outputs_and_gradients(layer, lambda layer, x: layer(x), x)
    got, gradients = outputs_and_gradients(layer, attention.encoder_block, x)
    assert want.std() > 0.1
    assert (got - want).abs().max() <= tolerance
    for ours, theirs in zip(gradients, want_gradients, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))
    with torch.no_grad():  # the additive form
        assert (attention.encoder_block(layer, x) - want).abs().max() <= tolerance


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", [WINDOWED, GLOBAL])
def test_batches_equal_eager(kind, batch):
    layer = blocks(256, torch.float64)[kind]
    x = tokens(256, torch.float64, batch=batch)
    with torch.no_grad():
        torch.testing.assert_close(attention.encoder_block(layer, x), layer(x), rtol=0, atol=1e-10)


def test_folded_and_additive_forms_agree():
    layer = blocks(512, torch.float64)[GLOBAL].attn
    query, key, value = torch.randn(3, 2, 2, 1024, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    positions = attention.relative_logits(query, layer.rel_pos_h, layer.rel_pos_w, (32, 32))
    folded = attention.folded_attention(query, key, value, positions, layer.scale)
    biased = attention.biased_attention(query, key, value, positions, layer.scale)
    torch.testing.assert_close(folded, biased, rtol=0, atol=1e-12)


def test_relative_logits_by_hand():
    rows, columns, d = 2, 3, 4
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 1, rows * columns, d, generator=generator)
    table_h, table_w = torch.randn(3, d, generator=generator), torch.randn(5, d, generator=generator)
    by_row, by_column = attention.relative_logits(query, table_h, table_w, (rows, columns))
    for r in range(rows):
        for c in range(columns):
            q = query[0, 0, r * columns + c]
            for k in range(rows):
                torch.testing.assert_close(by_row[0, 0, r * columns + c, k], q @ table_h[r - k + rows - 1])
            for k in range(columns):
                torch.testing.assert_close(by_column[0, 0, r * columns + c, k], q @ table_w[c - k + columns - 1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_round_trip_and_padding(batch, height, width, window):
    x = torch.randn(batch, height, width, 3)
    pad = torch.tensor([7.0, 8.0, 9.0])
    windows = attention.to_windows(x, pad, window)
    assert windows.shape[1:] == (window, window, 3)
    back = attention.from_windows(windows, window, height, width)
    assert torch.equal(back, x)
    assert back.is_contiguous()  # a linear layer reads it
    assert (windows == pad).all(-1).sum() == windows[..., 0].numel() - x[..., 0].numel()


def test_works_with_split_projections():
    layer = blocks(256, torch.float64)[WINDOWED]
    x = tokens(256, torch.float64)
    with torch.no_grad():
        want = layer(x)
        layer.attn.qkv = SplitQkv(layer.attn.qkv)
        torch.testing.assert_close(attention.encoder_block(layer, x), want, rtol=0, atol=1e-10)


def test_without_relative_positions_or_bias():
    layer = blocks(256, torch.float64)[WINDOWED]
    layer.attn.use_rel_pos = False
    layer.attn.qkv.bias = None
    x = tokens(256, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention.encoder_block(layer, x), layer(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [WINDOWED, GLOBAL])
@pytest.mark.parametrize("gradient", [False, True])
def test_bfloat16_autocast_is_as_good_as_the_librarys(kind, gradient):
    layer = blocks(256, torch.float32)[kind]
    x = tokens(256, torch.float32)
    with torch.set_grad_enabled(gradient):
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            theirs, ours = layer(x), attention.encoder_block(layer, x)
    error = (ours - exact).abs().mean()
    assert ours.dtype == torch.float32
    assert error <= 1.1 * (theirs - exact).abs().mean()
    assert error <= 0.02 * exact.abs().mean()


def test_checkpointing_gives_the_same_gradients():
    layer = blocks(256, torch.float64)[GLOBAL]
    x = tokens(256, torch.float64)
    plain = outputs_and_gradients(layer, attention.encoder_block, x)
    recomputed = outputs_and_gradients(
        layer, lambda layer, x: checkpoint(attention.encoder_block, layer, x, use_reentrant=False), x
    )
    for ours, theirs in zip((plain[0], *plain[1]), (recomputed[0], *recomputed[1]), strict=True):
        assert torch.equal(ours, theirs)
