"""Hiera's blocks, the image encoder of SAM 2, exactly and faster: same weights, same result, real tokens only.

SAM 2 too fills the grid up to whole windows *before* projecting to queries, keys and values (at 256 px the third stage
computes 784 tokens for 256).  Padding is zero, so its projection is the bias: we project the real tokens and fill in
the bias, and we project only real tokens back.  The library's own block stays available as the oracle.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from samsans.backbones.attention import from_windows, to_windows


def hiera_block(block: Any, x: Tensor) -> Tensor:
    """One block of Hiera, ``(B, H, W, width)``; where a stage begins, H and W halve and the width doubles.

    ``block`` is a ``Sam2MultiScaleBlock`` of ``transformers``: its parameters are used, its ``forward`` is not.
    """
    normed = block.layer_norm1(x)
    if block.dim != block.dim_out:
        x = pool(block.proj(normed), block.query_stride)
    x = x + hiera_attention(block.attn, normed, block.window_size, block.query_stride)
    return x + block.mlp(block.layer_norm2(x))


def hiera_attention(attn: Any, x: Tensor, window: int, stride: Any) -> Tensor:
    """Multi-head attention in windows (none if ``window`` is 0), queries pooled by ``stride`` where it is set.

    attn: a ``Sam2MultiScaleAttention``; its ``qkv`` may be any module with a ``bias`` that is its output for a zero
        token (LoRA included).  x: ``(B, H, W, width)``.  Returns ``(B, H', W', width')``.
    """
    height, width = x.shape[1:3]
    qkv = attn.qkv(x)
    if window:
        qkv = to_windows(qkv, attn.qkv.bias, window)
    query, key, value = qkv.chunk(3, -1)
    if stride:
        query = pool(query, stride)
        height, width, window = height // stride[0], width // stride[1], window // stride[0]
    rows, columns = query.shape[1:3]
    query, key, value = (part.flatten(1, 2).unflatten(-1, (attn.num_attention_heads, -1)).transpose(1, 2)
                         for part in (query, key, value))  # fmt: skip
    out = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
    out = out.transpose(1, 2).flatten(2).unflatten(1, (rows, columns))
    if window:
        out = from_windows(out, window, height, width)
    return attn.proj(out)


def pool(x: Tensor, stride: Any) -> Tensor:
    """Largest value of every ``stride`` cell of ``(B, H, W, c)``; unchanged where there is no stride."""
    if not stride:
        return x
    return F.max_pool2d(x.permute(0, 3, 1, 2), tuple(stride), tuple(stride)).permute(0, 2, 3, 1)
