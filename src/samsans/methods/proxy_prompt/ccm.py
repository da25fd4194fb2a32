"""Contextual Colorization Module: target and context streams, halved four times, become the proxy prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenLinear(nn.Module):
    """A linear layer over the token axis, ``T -> T / 2`` (decision D-09), started as the mean of two neighbours."""

    def __init__(self, height: int, width: int, channels: int, *, horizontal: bool, init: str) -> None:
        super().__init__()
        tokens = height * width
        self.linear = nn.Linear(tokens, tokens // 2)
        if init == "average":
            order = neighbours(height, width, horizontal=horizontal)
            with torch.no_grad():
                nn.init.normal_(self.linear.weight, std=1e-3)
                nn.init.zeros_(self.linear.bias)
                self.linear.weight.scatter_add_(1, order.T.contiguous(), torch.full((tokens // 2, 2), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.linear(x.transpose(1, 2)).transpose(1, 2)
        weight, bias = self.linear.weight, self.linear.bias
        return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x)  # without transposed copies


class PairMerge(nn.Module):
    """Two neighbouring tokens concatenated and mapped ``2C -> C`` (decision D-09): fewer parameters, any resolution."""

    order: Tensor

    def __init__(self, height: int, width: int, channels: int, *, horizontal: bool, init: str) -> None:
        super().__init__()
        self.register_buffer("order", neighbours(height, width, horizontal=horizontal), persistent=False)
        self.linear = nn.Linear(2 * channels, channels)
        if init == "average":
            with torch.no_grad():
                nn.init.normal_(self.linear.weight, std=1e-3)
                nn.init.zeros_(self.linear.bias)
                self.linear.weight += torch.eye(channels).repeat(1, 2) / 2

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.order
        return self.linear(torch.cat([x[:, first], x[:, second]], dim=-1))


def neighbours(height: int, width: int, *, horizontal: bool) -> Tensor:
    """``(2, T / 2)`` int64: the two row-major tokens that make each token of the halved row-major grid."""
    grid = torch.arange(height * width).reshape(height, width)
    pairs = (grid[:, ::2], grid[:, 1::2]) if horizontal else (grid[::2], grid[1::2])
    return torch.stack([pair.flatten() for pair in pairs])


PROJECTIONS = {"token_linear": TokenLinear, "pair_merge": PairMerge}


class Attend(nn.Module):
    """``LN(x + CrossAttn(q=x, kv=c))``, then ``LN(x + FFN(x))``: post-norm, no position encoding (decision D-10)."""

    def __init__(self, channels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(channels)
        self.ffn1 = nn.Linear(channels, ffn)
        self.ffn2 = nn.Linear(ffn, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = self.norm1(x + self._read(x, other))
        return self.norm2(x + self.ffn2(F.relu(self.ffn1(x), inplace=True)))

    def _read(self, x: Tensor, other: Tensor) -> Tensor:
        """What ``self.attention(x, other, other)`` gives, which would copy its arguments to put tokens first."""
        own, width = self.attention, x.shape[-1]
        weights, biases = own.in_proj_weight, own.in_proj_bias
        query = F.linear(x, weights[:width], biases[:width]).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
        both = F.linear(other, weights[width:], biases[width:]).unflatten(-1, (2, own.num_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)
        return own.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ColorBlock(nn.Module):
    """Halve both streams, colour the target with the context, then let the context read the updated target."""

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        horizontal: bool,
        projection: str,
        init: str,
        heads: int,
        ffn: int,
        attend: bool,
    ) -> None:
        super().__init__()
        project = PROJECTIONS[projection]
        self.attend = attend
        self.project_context = project(height, width, channels, horizontal=horizontal, init=init)
        if attend:
            self.project_target = project(height, width, channels, horizontal=horizontal, init=init)
            self.color = Attend(channels, heads, ffn)
            self.reverse = Attend(channels, heads, ffn)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = self.project_context(c)
        if self.attend:
            x = self.project_target(x)
            x = self.color(x.repeat_interleave(len(c) // len(x), dim=0), c)
            c = self.reverse(c, x)
        return x, c


class Ccm(nn.Module):
    """Four blocks, tokens ``T -> T / 16`` on a row-major grid; the last context stream is the prompt.

    Odd blocks join horizontal neighbours, even blocks vertical ones (decision D-09).  ``enabled=False`` pools the
    context 4x4 instead (decision D-30); ``proj_only`` keeps only the projections of the context.
    """

    def __init__(
        self,
        grid: int,
        channels: int,
        *,
        enabled: bool = True,
        projection: str = "token_linear",
        proj_init: str = "average",
        proj_only: bool = False,
        heads: int = 8,
        ffn: int = 2048,
    ) -> None:
        super().__init__()
        self.grid, self.enabled = grid, enabled
        self.blocks = nn.ModuleList()
        height = width = grid
        for index in range(4 if enabled else 0):
            horizontal = index % 2 == 0
            self.blocks.append(
                ColorBlock(
                    height,
                    width,
                    channels,
                    horizontal=horizontal,
                    projection=projection,
                    init=proj_init,
                    heads=heads,
                    ffn=ffn,
                    attend=not proj_only,
                )
            )
            height, width = (height, width // 2) if horizontal else (height // 2, width)

    def forward(self, target: Tensor, context: Tensor) -> Tensor:
        """Prompt tokens from row-major streams.

        Args:
            target: ``(P, T, C)`` features of each prompt's target; or ``(B, T, C)`` of B targets whose prompts, as many
                of each, follow each other.
            context: ``(P, T, C)`` what was read from the supports.

        Returns:
            ``(P, T / 16, C)``.
        """
        if not self.enabled:
            maps = context.transpose(1, 2).unflatten(2, (self.grid, self.grid))
            return F.avg_pool2d(maps, 4).flatten(2).transpose(1, 2)
        for block in self.blocks:
            target, context = block(target, context)
        return context
