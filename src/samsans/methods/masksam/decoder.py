"""SAM's mask decoder with adapters across slices, and a class token for every query (section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.methods.masksam.adapters import DConv, DMlp
from samsans.methods.masksam.encoder import SCALE, Conv3d, ConvBlock, doubling
from samsans.methods.masksam.prompt_generator import Prompts

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam

MIXED = 64  # channels of the output network


class LayerAdapters(nn.Module):
    """Those of one layer of the two-way transformer: after each of its three attentions, and beside its MLP."""

    def __init__(self, width: int, depth: int, zero_init: bool) -> None:
        super().__init__()
        self.tokens = DMlp(width, depth, skip=True, zero_init=zero_init)
        self.read = DMlp(width, depth, skip=True, zero_init=zero_init)
        self.mlp = DMlp(width, depth, skip=False, zero_init=zero_init)
        self.image = DConv(width, skip=True, zero_init=zero_init)


class Decoder(nn.Module):
    """The trained parts inside SAM's mask decoder, and the way through both; SAM itself is handed in.

    Queries do not see each other; every one sees its own patch, all slices of it.

    Args:
        backbone: SAM.
        depth: T.
        classes: K, background included.
        zero_init: Adapters start as nothing.
    """

    def __init__(self, backbone: Sam, depth: int, classes: int, *, zero_init: bool) -> None:
        super().__init__()
        width, layers = backbone.channels, backbone.model.config.mask_decoder_config.num_hidden_layers
        self.slice_embedding = nn.Parameter(torch.zeros(depth, width, backbone.grid, backbone.grid))
        self.layers = nn.ModuleList(LayerAdapters(width, depth, zero_init) for _ in range(layers))
        self.final = DMlp(width, depth, skip=True, zero_init=zero_init)
        self.class_token = nn.Parameter(torch.randn(width))  # N(0, 1), as SAM's tokens
        self.classes = nn.Linear(width, classes + 1)

    def forward(self, backbone: Sam, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Answers about an embedding ``(B, C, T, g, g)``.

        Returns mask logits ``(B, Q, T, 4g, 4g)`` and class logits ``(B, Q, T, K + 1)``.
        """
        decoder, (batch, queries, depth) = backbone.model.mask_decoder, prompts.boxes.shape[:3]
        sparse, dense = self.embed(backbone, prompts)
        fixed = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        added = self.class_token.expand(batch * queries, depth, 1, -1)
        if prompts.tokens is not None:
            added = added + prompts.tokens.flatten(0, 1)[:, :, None]
        tokens = torch.cat([fixed.expand(batch * queries, depth, -1, -1), sparse, added], 2)
        image = flat(embedding.transpose(1, 2)).contiguous()[:, None] + flat(dense).unflatten(0, (batch, queries))
        places = flat((backbone.image_pe + self.slice_embedding)[None])
        tokens, image = self.two_way(decoder.transformer, tokens, image.flatten(0, 1), places)
        masks = single_mask(decoder, tokens[:, :, 1], image.unflatten(2, (backbone.grid, -1)))
        return masks.unflatten(0, (batch, queries)), self.classes(tokens[:, :, -1]).unflatten(0, (batch, queries))

    def embed(self, backbone: Sam, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """SAM's embeddings of boxes ``(B Q, T, 2, C)`` and masks ``(B Q, T, C, g, g)``."""
        leading = prompts.boxes.shape[0] * prompts.boxes.shape[1], prompts.boxes.shape[2]
        boxes = prompts.boxes.flatten(0, 2)
        masks = None if prompts.masks is None else prompts.masks.flatten(0, 2)[:, None]
        made = backbone.embed_prompts(torch.arange(len(boxes), device=boxes.device), boxes=boxes, masks=masks)
        dense = made.dense
        if masks is not None and prompts.shown is not None:
            dense = torch.where(prompts.shown.flatten()[:, None, None, None], dense, backbone.dense_default())
        dense = dense.expand(len(boxes), -1, -1, -1)
        return made.sparse.unflatten(0, leading), dense.unflatten(0, leading)

    def two_way(self, transformer: Any, tokens: Tensor, image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer with adapters: tokens ``(n, T, N, C)`` and image ``(n, T, g g, C)``, both new.

        places: ``(1, T, g g, C)``.  The tokens as given are their own places.
        """
        q, k, at = tokens, image, tokens
        own: Any
        for layer, own in zip(transformer.layers, self.layers, strict=True):
            if layer.skip_first_layer_pe:
                q = own.tokens(layer.self_attn(query=q, key=q, value=q)[0])
            else:
                q = q + own.tokens(layer.self_attn(query=q + at, key=q + at, value=q)[0])
            q = layer.layer_norm1(q)
            read = layer.cross_attn_token_to_image(query=q + at, key=k + places, value=k)[0]
            q = layer.layer_norm2(q + own.read(read))
            q = layer.layer_norm3(q + layer.mlp(q) + SCALE * own.mlp(q))
            read = layer.cross_attn_image_to_token(query=k + places, key=q + at, value=q)[0]
            side = self.slice_embedding.shape[-1]
            k = layer.layer_norm4(k + own.image(read.unflatten(2, (side, side))).flatten(2, 3))
        read = transformer.final_attn_token_to_image(query=q + at, key=k + places, value=k)[0]
        return transformer.layer_norm_final_attn(q + self.final(read)), k


def flat(maps: Tensor) -> Tensor:
    """``(n, T, C, g, g)`` as tokens ``(n, T, g g, C)``."""
    return maps.flatten(3).transpose(2, 3)


def single_mask(decoder: Any, token: Tensor, image: Tensor) -> Tensor:
    """SAM's single mask, ``(n, T, 4g, 4g)`` logits, of its token ``(n, T, C)`` and image ``(n, T, g, g, C)``."""
    maps = decoder.upscale_conv1(image.flatten(0, 1).movedim(-1, 1))
    maps = decoder.activation(decoder.upscale_layer_norm(maps))
    maps = decoder.activation(decoder.upscale_conv2(maps))
    weights = decoder.output_hypernetworks_mlps[0](token.flatten(0, 1))
    return torch.einsum("nc,nchw->nhw", weights, maps).unflatten(0, token.shape[:2])


class OutputNetwork(nn.Sequential):
    """Masks of all queries, its channels, enlarged: ``(B, Q, T, h, w)`` to ``(B, Q, T, h 2^n, w 2^n)`` (section 4)."""

    def __init__(self, queries: int, doublings: int) -> None:
        steps = [doubling(MIXED, MIXED) for _ in range(doublings)]
        super().__init__(ConvBlock(queries, MIXED), *steps, Conv3d(MIXED, queries))


class Enlarge(nn.Module):
    """Masks brought bilinearly to the side SAM saw, and from there to that of the patch (section 8.4).

    Args:
        seen: Side that SAM sees, in pixels.
        side: That of the patch.
    """

    def __init__(self, seen: int, side: int) -> None:
        super().__init__()
        self.seen, self.side = seen, side

    def forward(self, masks: Tensor) -> Tensor:
        """``(B, Q, T, h, h)`` to ``(B, Q, T, side, side)``."""
        small, leading = masks.shape[-1], masks.shape[:-2]
        if small == self.side < self.seen:
            return blurred(masks, small / (4 * self.seen))
        flat = masks.flatten(0, -3)[:, None]
        for side in dict.fromkeys((self.seen, self.side)):
            flat = F.interpolate(flat, (side, side), mode="bilinear", align_corners=False)
        return flat[:, 0].unflatten(0, leading)


def blurred(masks: Tensor, share: float) -> Tensor:
    """``[share, 1 - 2 share, share]`` along rows and columns, borders repeated.

    With 1/16 it is what enlarging fourfold and shrinking again come to, both bilinear.
    """
    for axis in (-1, -2):
        size = masks.shape[axis]
        before = torch.cat([masks.narrow(axis, 0, 1), masks.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([masks.narrow(axis, 1, size - 1), masks.narrow(axis, size - 1, 1)], axis)
        masks = (1 - 2 * share) * masks + share * (before + after)
    return masks
