"""Context encoders of Proxy Prompt (first step of the CSM): an image and its mask to a map of features.

All are trained from scratch, take four channels (RGB and one object's mask) and give one vector per patch.  Vision
Mamba is the paper's; ViT-B/16 and ResNet-50 are the arms of its ablation (Tables 5 and 13).
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from samsans.errors import InputError
from samsans.ops import selective_scan

if TYPE_CHECKING:
    from samsans.methods.proxy_prompt.config import ProxyPromptConfig

CONTEXT_ENCODERS = {
    "vim": "samsans.methods.proxy_prompt.context:VisionMamba",
    "vit_b": "samsans.methods.proxy_prompt.context:VisionTransformer",
    "resnet50": "samsans.methods.proxy_prompt.context:ResNet50Context",
}


def build_context_encoder(name: str, *, grid: int, patch: int, **options: Any) -> nn.Module:
    """The encoder ``name`` for images of ``grid * patch`` pixels a side; ``options`` go to its constructor.

    Every encoder maps ``(B, 4, S, S)`` float to ``(B, out_channels, grid, grid)``.
    Raises InputError for an unknown name.
    """
    if name not in CONTEXT_ENCODERS:
        raise InputError(f"context encoder {name!r}", f"one of {', '.join(CONTEXT_ENCODERS)}")
    module, _, attribute = CONTEXT_ENCODERS[name].partition(":")
    encoder: nn.Module = getattr(importlib.import_module(module), attribute)(grid=grid, patch=patch, **options)
    return encoder


def context_encoder_of(config: ProxyPromptConfig, grid: int, patch: int) -> nn.Module:
    """The encoder that ``config.csm.encoder`` describes; only Vision Mamba has sizes to choose."""
    encoder = config.csm.encoder
    if encoder.name == "resnet50":
        return build_context_encoder("resnet50", grid=grid, patch=patch)
    if encoder.name == "vit_b":
        return build_context_encoder("vit_b", grid=grid, patch=patch, checkpoint=encoder.checkpointing)
    return build_context_encoder(
        "vim",
        grid=grid,
        patch=patch,
        dim=encoder.dim,
        depth=encoder.depth,
        d_state=encoder.d_state,
        d_conv=encoder.d_conv,
        expand=encoder.expand,
        cls=encoder.cls,
        drop_path=encoder.drop_path,
        checkpoint=encoder.checkpointing,
        scan=config.scan,
    )


def _check_input(x: Tensor, channels: int, side: int) -> None:
    if x.ndim != 4 or tuple(x.shape[1:]) != (channels, side, side):
        raise InputError(
            f"context encoder input of shape {tuple(x.shape)}",
            f"(B, {channels}, {side}, {side})",
            "Stack image and mask along the channels and resize them to the model's input side",
        )


def _no_decay(*parameters: Tensor) -> None:
    """Mark parameters that the optimiser must not decay."""
    for parameter in parameters:
        parameter._no_weight_decay = True  # type: ignore[attr-defined]


class VisionMamba(nn.Module):
    """Vision Mamba (Vim-Ti), bidirectional, without classification head; 7,752,960 parameters at 1024 px, patch 16.

    grid: patches a side.  patch: pixels a side of a patch.  dim: channels out.  d_state: states per channel.
    d_conv: taps of the depthwise convolution.  expand: inner width over ``dim``.
    cls: ``middle`` puts a class token halfway along the sequence as a global register and drops it from the output
        (decision D-04); ``none`` has none.
    drop_path: chance of skipping the last block, growing linearly from 0 at the first (decision D-05: 0).
    checkpoint: recompute the blocks in the backward pass to save memory.  scan: backend of ``selective_scan``.
    """

    def __init__(
        self,
        grid: int,
        patch: int,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        in_channels: int = 4,
        cls: str = "middle",
        drop_path: float = 0.0,
        checkpoint: bool = False,
        scan: str = "auto",
    ) -> None:
        super().__init__()
        if cls not in ("middle", "none"):
            raise InputError(f"cls {cls!r}", "middle or none")
        self.grid, self.side, self.in_channels, self.out_channels = grid, grid * patch, in_channels, dim
        self.checkpoint = checkpoint
        self.patch_embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cls == "middle" else None
        self.positions = nn.Parameter(torch.zeros(1, grid**2 + (cls == "middle"), dim))
        self.blocks = nn.ModuleList(
            _Block(dim, depth, d_state, d_conv, expand, drop_path * i / max(depth - 1, 1), scan) for i in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)

        nn.init.normal_(self.patch_embed.weight, std=self.patch_embed.weight[0].numel() ** -0.5)  # LeCun
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]
        for parameter in (self.positions, *([] if self.cls_token is None else [self.cls_token])):
            nn.init.trunc_normal_(parameter, std=0.02)
            _no_decay(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, S, S)`` float to ``(B, dim, grid, grid)``."""
        _check_input(x, self.in_channels, self.side)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        middle = tokens.shape[1] // 2
        if self.cls_token is not None:
            cls = self.cls_token.expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, :middle], cls, tokens[:, middle:]], 1)
        tokens = self.encode(tokens.to(self.positions.dtype) + self.positions)
        if self.cls_token is not None:
            tokens = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def encode(self, tokens: Tensor) -> Tensor:
        """The blocks and the final norm alone: ``(B, L, dim)`` float32 to the same shape."""
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                tokens = recompute(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.norm(tokens)


class _Block(nn.Module):
    """Pre-norm residual block; the residual stream stays in float32."""

    def __init__(
        self, dim: int, depth: int, d_state: int, d_conv: int, expand: int, drop_path: float, scan: str
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = BidirectionalMamba(dim, depth, d_state, d_conv, expand, scan)

    def forward(self, x: Tensor) -> Tensor:
        update = self.mixer(self.norm(x))
        if self.training and self.drop_path > 0:
            keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
            update = update * keep / (1 - self.drop_path)
        return x + update


class BidirectionalMamba(nn.Module):
    """Vim's "v2" mixer: one projection, two scans with their own weights, averaged and gated."""

    def __init__(self, dim: int, depth: int, d_state: int, d_conv: int, expand: int, scan: str) -> None:
        super().__init__()
        inner, rank = dim * expand, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.forward_scan = _Direction(inner, rank, d_state, d_conv, False, scan)
        self.backward_scan = _Direction(inner, rank, d_state, d_conv, True, scan)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(depth)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, dim)`` to ``(B, L, dim)``."""
        u, z = self.in_proj(x).chunk(2, -1)
        y = (self.forward_scan(u) + self.backward_scan(u)) * F.silu(z)
        return self.out_proj(y * 0.5)


class _Direction(nn.Module):
    """Causal convolution and selective scan in one direction; with ``reverse``, from the last token to the first."""

    def __init__(self, inner: int, rank: int, d_state: int, d_conv: int, reverse: bool, scan: str) -> None:
        super().__init__()
        self.reverse, self.scan, self.sizes = reverse, scan, (rank, d_state, d_state)
        self.padding = (0, 0, 0, d_conv - 1) if reverse else (0, 0, d_conv - 1, 0)
        self.conv = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        _no_decay(self.A_log, self.D)

        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():  # softplus(bias) is log-uniform in [1e-3, 1e-1]
            dt = torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, u: Tensor) -> Tensor:
        """``(B, L, inner)`` to ``(B, L, inner)``."""
        x = F.silu(self.convolve(u))
        low, b, c = self.x_proj(x).split(self.sizes, -1)
        dt = F.softplus(self.dt_proj(low).to(self.D.dtype))  # float32 under autocast
        A = -torch.exp(self.A_log)
        return selective_scan(x, dt, A, b, c, self.D, reverse=self.reverse, backend=self.scan)

    def convolve(self, u: Tensor) -> Tensor:
        """Depthwise convolution that sees this and the ``d_conv - 1`` tokens before it in scan order.

        Two forms of the same that torch runs faster on a CPU: a two-dimensional convolution of height 1, which reads
        channels-last memory, and the bias apart, whose gradient is then a plain sum.
        """
        weight = self.conv.weight.flip(-1) if self.reverse else self.conv.weight
        image = F.pad(u, self.padding).transpose(1, 2).unsqueeze(2)
        image = F.conv2d(image, weight.unsqueeze(2), groups=len(weight))
        return image.squeeze(2).transpose(1, 2) + self.conv.bias  # type: ignore[operator]


class VisionTransformer(nn.Module):
    """ViT-B/16 (transformers' own), class token dropped; 88,990,464 parameters at 1024 px with four channels."""

    def __init__(
        self,
        grid: int,
        patch: int,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 4,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        self.grid, self.side, self.in_channels, self.out_channels = grid, grid * patch, in_channels, dim
        config = ViTConfig(
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * dim,
            image_size=self.side,
            patch_size=patch,
            num_channels=in_channels,
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        if checkpoint:
            self.vit.gradient_checkpointing_enable({"use_reentrant": False})
        _no_decay(self.vit.embeddings.position_embeddings, self.vit.embeddings.cls_token)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, S, S)`` float to ``(B, dim, grid, grid)``."""
        _check_input(x, self.in_channels, self.side)
        tokens = self.vit(x).last_hidden_state[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class ResNet50Context(nn.Module):
    """ResNet-50 (transformers' own) without its last stage: stride 16; 8,546,432 parameters with four channels."""

    def __init__(self, grid: int, patch: int = 16, in_channels: int = 4) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        if patch != 16:
            raise InputError(f"patch {patch} for ResNet-50", "16, the stride of its third stage", "Use vim or vit_b")
        self.grid, self.side, self.in_channels, self.out_channels = grid, grid * patch, in_channels, 1024
        config = ResNetConfig(num_channels=in_channels, hidden_sizes=[256, 512, 1024], depths=[3, 4, 6])
        self.resnet = ResNetModel(config)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, S, S)`` float to ``(B, 1024, grid, grid)``."""
        _check_input(x, self.in_channels, self.side)
        return self.resnet(x).last_hidden_state
