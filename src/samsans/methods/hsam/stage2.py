"""Stage 2 of H-SAM: a two-way transformer whose attention a prior multiplies, and the hierarchical pixel decoder.

``B`` images, ``K`` classes with background, ``T = g * g`` positions, ``C`` channels.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm

from samsans.errors import InputError
from samsans.methods.class_decoder import read_maps

MaskAttention = Literal["learnable", "binary", "off"]


class Attention(nn.Module):
    """Multi-head attention of width ``width`` through ``inner`` channels, which a prior may weigh or restrict."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, prior: Tensor | None = None) -> Tensor:
        """``(B, n, width)`` read by queries ``(B, n, width)`` from keys and values ``(B, m, width)``.

        prior: ``(B, n, m)``.  Floats multiply the attention after its softmax, which is not normalised again (Eq. 3);
        where bools are false nothing is read (Mask2Former).
        """
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        prior = None if prior is None else prior.unsqueeze(1)
        if prior is None or prior.dtype == torch.bool:
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=prior)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            read = (scores.softmax(-1, dtype=torch.float32) * prior).to(v.dtype) @ v
        return self.out_proj(read.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Masked token-to-image attention, token self-attention, MLP, masked image-to-token attention, in this order.

    Each norm follows its own part and is numbered as in SAM.  As in SAM, the self-attention of the ``first`` block has
    neither positions nor residual.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.token_to_image = Attention(width, width, heads)
        self.self_attention = Attention(width, width, heads)
        self.image_to_token = Attention(width, width, heads)
        self.mlp = SamFeedForward(width, mlp, width, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, tokens_pe: Tensor, image: Tensor, image_pe: Tensor, priors: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, K, C)`` and image ``(B, T, C)`` after the block; ``priors``: ``(B, K, T)`` and ``(B, T, K)``."""
        placed = image + image_pe
        read = self.token_to_image(tokens + tokens_pe, placed, image, priors[0])
        tokens = self.norm2(tokens + self.dropout(read))
        if self.first:
            tokens = self.norm1(self.self_attention(tokens, tokens, tokens))
        else:
            query = tokens + tokens_pe
            tokens = self.norm1(tokens + self.self_attention(query, query, tokens))
        tokens = self.norm3(tokens + self.mlp(tokens))
        read = self.image_to_token(placed, tokens + tokens_pe, tokens, priors[1])
        return tokens, self.norm4(image + read)


class Stage2(nn.Module):
    """The second decoder: K class tokens without IoU token, all weights drawn (PyTorch's defaults, tokens N(0, 1)).

    Args:
        classes: K; channel k of the prior belongs to token k.
        width, heads, mlp: C, and the sizes of the transformer.
        patch: Pixels a position; the pixel decoder ends at ``S = g * patch``.
        mask_attention: What the prior does to both cross-attentions of both blocks.
        dropout: After the masked token-to-image attention.
        hierarchical: Join the features of stage 1 and go on to full size; else end at ``4g`` (ablation).

    Raises:
        InputError: ``patch`` is not 8, 16, 32, ...
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int = 256,
        heads: int = 8,
        mlp: int = 2048,
        patch: int = 16,
        mask_attention: MaskAttention = "learnable",
        dropout: float = 0.2,
        hierarchical: bool = True,
    ) -> None:
        super().__init__()
        self.mask_attention = mask_attention
        self.class_tokens = nn.Embedding(classes, width)
        self.layers = nn.ModuleList(Block(width, heads, mlp, dropout, first=i == 0) for i in range(2))
        self.final_attention = Attention(width, width // 2, heads)
        self.final_norm = nn.LayerNorm(width)
        self.upscale = nn.Sequential(
            *_double(width, width // 4), nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU()
        )
        self.pixel_decoder = pixel_decoder(width, patch) if hierarchical else None
        depth, channels = (5, width // patch) if hierarchical else (3, width // 8)
        self.hypernetworks = nn.ModuleList(SamFeedForward(width, width, channels, depth) for _ in range(classes))

    def forward(self, features: Tensor, positions: Tensor, prior: Tensor, upscaled: Tensor) -> Tensor:
        """``Z2``: ``(B, K, S, S)`` logits, ``(B, K, 4g, 4g)`` without the hierarchical pixel decoder.

        features: ``(B, C, g, g)``, enhanced, dense prompt added.  positions: ``(1, C, g, g)``.  prior: ``(B, K, T)``.
        upscaled: ``(B, C / 8, 4g, 4g)`` of stage 1.
        """
        tokens, image = self.transform(features, positions, prior)
        maps = self.upscale(image.mT.unflatten(2, features.shape[-2:]))
        if self.pixel_decoder is not None:
            maps = self.pixel_decoder(torch.cat([maps, upscaled], 1))
        return read_maps(self.hypernetworks, tokens, maps)

    def transform(self, features: Tensor, positions: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """The masked two-way transformer: final class tokens ``(B, K, C)`` and image ``(B, T, C)``."""
        tokens = tokens_pe = self.class_tokens.weight.expand(len(features), -1, -1)
        image, image_pe = features.flatten(2).mT, positions.flatten(2).mT
        priors = self._priors(prior)
        for block in self.layers:
            tokens, image = block(tokens, tokens_pe, image, image_pe, priors)
        read = self.final_attention(tokens + tokens_pe, image + image_pe, image)
        return self.final_norm(tokens + read), image

    def _priors(self, prior: Tensor) -> tuple[Tensor | None, ...]:
        """What weighs or restricts token-to-image and image-to-token attention."""
        if self.mask_attention == "off":
            return None, None
        if self.mask_attention == "binary":
            return binary_mask(prior), binary_mask(prior.mT)
        return prior, prior.mT


def binary_mask(prior: Tensor) -> Tensor:
    """Mask2Former's mask of a prior ``(B, n, m)``: above 0.5 (our decision); a row with nothing above is all open."""
    allowed = prior > 0.5
    return allowed | ~allowed.any(-1, keepdim=True)


def pixel_decoder(width: int, patch: int) -> nn.Sequential:
    """``(B, C / 4, 4g, 4g)``, stage 2's features before stage 1's, to ``(B, C / patch, S, S)``.

    Two doublings at SAM's patch of 16.  For another patch as many as lead to S (our decision), so that stage 2 always
    answers every pixel: one at 8, three at 32.
    """
    levels = patch.bit_length() - 3
    if levels < 1 or patch != 4 << levels:
        raise InputError(
            f"patches of {patch} pixels", "8, 16 or 32: the pixel decoder doubles", "Set model.pixel_decoder=plain"
        )
    channels = [width // 4 >> level for level in range(levels + 1)]
    pairs = itertools.pairwise(channels)
    return nn.Sequential(*(layer for before, after in pairs for layer in _double(before, after)))


def _double(before: int, after: int) -> tuple[nn.Module, ...]:
    """Twice the side: transposed convolution, LayerNorm over channels, GELU."""
    norm = SamLayerNorm(after, eps=1e-6, data_format="channels_first")
    return nn.ConvTranspose2d(before, after, 2, 2), norm, nn.GELU()
