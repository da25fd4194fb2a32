"""SAM's mask decoder with one token a class: what H-SAM (stage 1), SAMed and AutoSAM have in common.

``K`` classes, background included, ``T = g * g`` positions; the modules are those of ``transformers``' SAM decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward

Order = Literal["sam", "cross_first"]


@dataclass(frozen=True)
class ClassMaps:
    """What a class decoder makes of ``B`` images.

    logits: ``(B, K, 4g, 4g)``.  tokens: ``(B, K, C)`` final class tokens.  image: ``(B, T, C)`` final image features.
    upscaled: ``(B, C / 8, 4g, 4g)`` features that the logits are read from.
    """

    logits: Tensor
    tokens: Tensor
    image: Tensor
    upscaled: Tensor


class ClassDecoder(nn.Module):
    """SAM's mask decoder whose ``K`` mask tokens stand for K classes; all maps are returned, no IoU is predicted.

    Starts from SAM: transformer, IoU token (it takes part in attention), upscaling and the first four hypernetworks;
    class tokens N(0, 1) and further hypernetworks are drawn (section 6 of the specification; what the published loader
    does in effect).

    Args:
        decoder: ``SamModel.mask_decoder``; its modules are taken over.
        classes: K.
        order: ``sam`` (token self-attention before token-to-image attention), or ``cross_first``, the order of the
            code that H-SAM released.
    """

    def __init__(self, decoder: Any, classes: int, order: Order = "sam") -> None:
        super().__init__()
        self.order = order
        width = decoder.hidden_size
        self.transformer = decoder.transformer
        self.iou_token = decoder.iou_token
        self.class_tokens = nn.Embedding(classes, width)
        self.upscale_conv1 = decoder.upscale_conv1
        self.upscale_layer_norm = decoder.upscale_layer_norm
        self.upscale_conv2 = decoder.upscale_conv2
        heads = list(decoder.output_hypernetworks_mlps)[:classes]
        heads += [SamFeedForward(width, width, width // 8, 3) for _ in range(classes - len(heads))]
        self.hypernetworks = nn.ModuleList(heads)
        self.requires_grad_(True)

    def forward(self, features: Tensor, positions: Tensor) -> ClassMaps:
        """Class maps of image features ``(B, C, g, g)``, dense prompt added, at positions ``(1, C, g, g)``."""
        batch, channels, side, _ = features.shape
        tokens = torch.cat([self.iou_token.weight, self.class_tokens.weight]).expand(batch, 1, -1, -1)
        tokens, image = two_way(self.transformer, tokens, features, positions, self.order)
        classes, image = tokens[:, 0, 1:], image[:, 0]
        upscaled = self.upscale(image.transpose(1, 2).reshape(batch, channels, side, side))
        return ClassMaps(read_maps(self.hypernetworks, classes, upscaled), classes, image, upscaled)

    def upscale(self, image: Tensor) -> Tensor:
        """``(B, C, g, g)`` to ``(B, C / 8, 4g, 4g)``."""
        half = nn.functional.gelu(self.upscale_layer_norm(self.upscale_conv1(image)))
        return nn.functional.gelu(self.upscale_conv2(half))


def read_maps(hypernetworks: nn.ModuleList, tokens: Tensor, upscaled: Tensor) -> Tensor:
    """``Z[k] = <MLP_k(token_k), features>`` of every pixel: ``(B, K, h, w)`` of tokens ``(B, K, C)``."""
    weights = torch.stack([mlp(tokens[:, k]) for k, mlp in enumerate(hypernetworks)], 1)
    return (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])


def two_way(
    transformer: Any, tokens: Tensor, features: Tensor, positions: Tensor, order: Order = "sam"
) -> tuple[Tensor, Tensor]:
    """SAM's two-way transformer over its own modules, in SAM's order of attentions or with cross-attention first.

    tokens: ``(B, 1, n, C)``, also their own positions.  features, positions: ``(B, C, g, g)`` and ``(1, C, g, g)``.
    Each norm follows its own attention, in whatever order; the first block's self-attention has neither positions nor
    residual.  Returns tokens ``(B, 1, n, C)`` and image ``(B, 1, T, C)``.
    """
    queries, queries_pe = tokens, tokens
    keys, keys_pe = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (features, positions))
    for block in transformer.layers:
        steps = [_self_attention, _token_to_image]
        for step in steps if order == "sam" else reversed(steps):
            queries = step(block, queries, queries_pe, keys, keys_pe)
        queries = block.layer_norm3(queries + block.mlp(queries))
        read, _ = block.cross_attn_image_to_token(query=keys + keys_pe, key=queries + queries_pe, value=queries)
        keys = block.layer_norm4(keys + read)
    read, _ = transformer.final_attn_token_to_image(query=queries + queries_pe, key=keys + keys_pe, value=keys)
    return transformer.layer_norm_final_attn(queries + read), keys


def _self_attention(block: Any, queries: Tensor, queries_pe: Tensor, keys: Tensor, keys_pe: Tensor) -> Tensor:
    if block.skip_first_layer_pe:
        return block.layer_norm1(block.self_attn(query=queries, key=queries, value=queries)[0])
    placed = queries + queries_pe
    return block.layer_norm1(queries + block.self_attn(query=placed, key=placed, value=queries)[0])


def _token_to_image(block: Any, queries: Tensor, queries_pe: Tensor, keys: Tensor, keys_pe: Tensor) -> Tensor:
    read, _ = block.cross_attn_token_to_image(query=queries + queries_pe, key=keys + keys_pe, value=keys)
    return block.layer_norm2(queries + read)
