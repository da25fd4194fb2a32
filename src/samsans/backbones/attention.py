"""SAM's image encoder blocks, exactly and faster: same weights, same result, other order of work.

Three rewrites of the block of ``transformers`` (whose own, naive form stays available as the oracle):

* **Real tokens only.**  SAM pads the token grid to whole windows *before* projecting to queries, keys and values
  (256 tokens become 784 at 256 px).  A padded token is zero, so its projection is the bias: we project the real tokens
  and fill in the bias.
* **Fused attention.**  SAM's relative-position term of query ``(r, c)`` and key ``(r', c')`` is
  ``q . Rh[r, r'] + q . Rw[c, c']``.  It folds exactly into longer queries and keys,
  ``q' = [q / sqrt(d), q Rh[r], q Rw[c]]`` and ``k' = [k, onehot(r'), onehot(c')]``, so that ``q' . k'`` is the whole
  logit and no ``N x N`` tensor is ever stored.  Where nothing is to be learnt, a CPU is faster with the term as an
  additive bias, computed for 256 queries at a time (measured: 0.63 of the folded form's time at 4096 tokens).
* **Output projection of real tokens only**, for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256  # queries at a time in the additive form


def encoder_block(layer: Any, x: Tensor) -> Tensor:
    """One block of SAM's image encoder, ``(B, g, g, width)`` to the same shape.

    ``layer`` is a ``SamVisionLayer`` of ``transformers``: its parameters are used, its ``forward`` is not.
    """
    x = x + attention(layer.attn, layer.layer_norm1(x), layer.window_size)
    return x + layer.mlp(layer.layer_norm2(x))


def attention(attn: Any, x: Tensor, window: int) -> Tensor:
    """Multi-head attention with decomposed relative positions (SAM, appendix A), in windows unless ``window`` is 0.

    attn: a ``SamVisionAttention``; its ``qkv`` may be any module that maps ``width`` to ``3 width`` channels per token
        and has a ``bias`` that is its output for a zero token (LoRA included).
    x: ``(B, H, W, width)``.  Returns the same shape.
    """
    _, height, width, channels = x.shape
    qkv = attn.qkv(x)
    if window:
        qkv = to_windows(qkv, attn.qkv.bias, window)
    rows, columns = qkv.shape[1:3]
    # (windows, heads, tokens, d) each
    query, key, value = qkv.reshape(len(qkv), rows * columns, 3, attn.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
    out = fused_attention(attn, query, key, value, (rows, columns))
    out = out.transpose(1, 2).reshape(-1, rows, columns, channels)
    if window:
        out = from_windows(out, window, height, width)
    return attn.proj(out)


def fused_attention(attn: Any, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Softmax attention over the tokens of ``grid`` (rows, columns) with relative positions, by fused kernels.

    query, key, value: ``(n, heads, tokens, d)``.  Returns ``(n, heads, tokens, d)``.
    """
    dropout = attn.dropout if attn.training else 0.0
    if not attn.use_rel_pos:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=attn.scale)
    positions = relative_logits(query, attn.rel_pos_h, attn.rel_pos_w, grid)
    if query.device.type == "cpu" and not positions[0].requires_grad:  # a bias with gradient has no fused kernel
        return biased_attention(query, key, value, positions, attn.scale, dropout)
    return folded_attention(query, key, value, positions, attn.scale, dropout)


def folded_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor], scale: float, dropout: float = 0.0
) -> Tensor:
    """Relative positions folded into longer queries and keys; ``positions`` as from ``relative_logits``."""
    by_row, by_column = positions
    grid = by_row.shape[-1], by_column.shape[-1]
    n, heads, tokens, d = query.shape
    extra = -(d + sum(grid)) % 8  # fused GPU kernels want head widths in multiples of eight
    zeros = query.new_zeros(1).expand(n, heads, tokens, extra)
    query = torch.cat([query * scale, by_row.to(query.dtype), by_column.to(query.dtype), zeros], -1)
    where = key_positions(grid, extra, key.dtype, key.device)
    key = torch.cat([key, where.expand(n, heads, -1, -1)], -1)
    value = F.pad(value, (0, sum(grid) + extra))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)[..., :d]


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor], scale: float, dropout: float = 0.0
) -> Tensor:
    """Relative positions as an additive bias, ``CHUNK`` queries at a time; arguments of ``folded_attention``."""
    chunks = []
    for part, by_row, by_column in zip(query.split(CHUNK, 2), *(p.split(CHUNK, 2) for p in positions), strict=True):
        bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
        chunks.append(F.scaled_dot_product_attention(part, key, value, attn_mask=bias, dropout_p=dropout, scale=scale))
    return torch.cat(chunks, 2)


def relative_logits(query: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Relative-position logits of every query against every key row and every key column.

    query: ``(n, heads, rows * columns, d)``, unscaled.  table_h, table_w: ``(2 rows - 1, d)``, ``(2 columns - 1, d)``.
    Returns ``(n, heads, tokens, rows)`` and ``(n, heads, tokens, columns)``.
    """
    rows, columns = grid
    query = query.unflatten(2, grid)
    by_row = torch.einsum("nahwd,hkd->nahwk", query, table_h[offsets(rows, query.device)])
    by_column = torch.einsum("nahwd,wkd->nahwk", query, table_w[offsets(columns, query.device)])
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def offsets(size: int, device: torch.device) -> Tensor:
    """``(size, size)`` int64: row of a relative-position table for query ``i`` and key ``j``, ``i - j + size - 1``."""
    steps = torch.arange(size, device=device)
    return steps[:, None] - steps[None, :] + size - 1


def key_positions(grid: tuple[int, int], extra: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(tokens, rows + columns + extra)``: one-hot row and column of every token, then zeros."""
    rows, columns = grid
    row = torch.eye(rows, dtype=dtype, device=device)[:, None].expand(-1, columns, -1)
    column = torch.eye(columns, dtype=dtype, device=device)[None].expand(rows, -1, -1)
    return F.pad(torch.cat([row, column], -1).flatten(0, 1), (0, extra))


def to_windows(x: Tensor, pad: Tensor | None, window: int) -> Tensor:
    """Cut ``(B, H, W, c)`` into ``(B * windows, window, window, c)``; the grid is filled up with ``pad`` ``(c,)``."""
    batch, height, width, channels = x.shape
    below, right = -height % window, -width % window
    if below or right:
        fill = x.new_zeros(channels) if pad is None else pad.to(x.dtype)
        if right:
            x = torch.cat([x, fill.expand(batch, height, right, channels)], 2)
        if below:
            x = torch.cat([x, fill.expand(batch, below, width + right, channels)], 1)
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(0, 2)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo ``to_windows``, leaving out the padding: ``(B * windows, window, window, c)`` to ``(B, H, W, c)``."""
    down, across = -(-height // window), -(-width // window)
    x = x.unflatten(0, (-1, down, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :height, :width].contiguous()  # else a linear layer takes row by row, with a copy of its weights each
