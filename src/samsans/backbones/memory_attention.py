"""SAM 2's memory attention, exactly and faster: same weights, same result, in another order of work.

* Until the first memory is read every object sees the same image: that much is computed once an image.
* A rotary position is one complex product with a table that is made once; the library makes it for every frame.

The library's own form stays available as the oracle (``backbone.attention: naive``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_table(network: Any) -> Tensor:
    """``(T, C / 2, 2)`` float32: cosine and sine by which each token turns each pair of channels.

    ``network`` is a ``Sam2VideoMemoryAttention`` of ``transformers``.
    """
    cosines, sines = network.rotary_emb(network.layer_norm.weight, network.position_ids)
    return torch.stack([cosines[0, :, ::2], sines[0, :, ::2]], -1)  # the library repeats each for its pair


def attend_memories(network: Any, x: Tensor, keys: Tensor, values: Tensor, table: Tensor, pointers: int) -> Tensor:
    """What ``network``, a ``Sam2VideoMemoryAttention`` of ``transformers``, makes of tokens and memories.

    x: ``(N, T, C)``, or ``(1, T, C)`` of the one image that every memory is read for, positions included.  keys,
    values: ``(N, M, 64)``.  table: from ``rotary_table``.  pointers: the last so many memories do not turn; the others
    are whole grids.  Returns ``(N, T, C)``.
    """
    turns = torch.view_as_complex(table)
    if network.training:  # dropout is drawn for each object
        x = x.expand(len(keys), -1, -1)
    for layer in network.layers:
        normed = layer.layer_norm1(x)
        x = x + layer.dropout1(_attention(layer.self_attn, normed, normed, normed, turns, 0))
        normed = layer.layer_norm2(x)
        x = x + layer.dropout2(_attention(layer.cross_attn_image, normed, keys, values, turns, pointers))
        hidden = layer.dropout(layer.activation(layer.linear1(layer.layer_norm3(x))))
        x = x + layer.dropout3(layer.linear2(hidden))
    return network.layer_norm(x)


def _attention(layer: Any, x: Tensor, keys: Tensor, values: Tensor, turns: Tensor, still: int) -> Tensor:
    """Attention of ``(N or 1, T, C)`` to ``(N, M, .)`` with rotary positions, of all keys but the last ``still``."""
    query, key, value = (
        projection(part).unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)
        for projection, part in ((layer.q_proj, x), (layer.k_proj, keys), (layer.v_proj, values))
    )
    query = _turned(query, turns).expand(len(key), -1, -1, -1)
    moving = key.shape[2] - still
    if moving == key.shape[2]:
        key = _turned(key, turns)
    elif moving:
        key = torch.cat([_turned(key[:, :, :moving], turns), key[:, :, moving:]], 2)
    dropout = layer.dropout_p if layer.training else 0.0
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=layer.scaling)
    return layer.o_proj(out.transpose(1, 2).flatten(2))


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """``(N, heads, n T, d)`` with every pair of channels turned, in float32; the grids follow each other."""
    pairs = x.float().unflatten(-1, (-1, 2)).unflatten(2, (-1, len(turns)))
    turned = torch.view_as_complex(pairs.contiguous()) * turns
    return torch.view_as_real(turned).flatten(-2).flatten(2, 3).to(x.dtype)
