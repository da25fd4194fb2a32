"""SAM's mask decoder, prompted by one token or one vector a draw, and the weighted sum of its masks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.methods.class_decoder import read_maps, two_way

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam

UNUSED = re.compile(r"shared_image_embedding|prompt_encoder\.(?!no_mask_embed)|.*iou_prediction_head|.*mlps\.0\.")


def mask_maps(decoder: Any, features: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Logits ``(P, M, 4g, 4g)`` of all masks but the single one, for ``P`` prompts at once.

    The very numbers of ``SamMaskDecoder`` with ``multimask_output``; what is not asked for is not computed.

    decoder: a ``SamMaskDecoder``.  features: ``(P, C, g, g)``, the dense prompt added.  positions: ``(1, C, g, g)``.
    tokens: ``(P, n, C)`` prompts, n may be 0.
    """
    count, channels, side, _ = features.shape
    queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
    queries = torch.cat([queries, tokens.to(queries.dtype)], 1)
    queries, image = two_way(decoder.transformer, queries[:, None], features, positions)
    image = image[:, 0].transpose(1, 2).reshape(count, channels, side, side)
    half = F.gelu(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    full = F.gelu(decoder.upscale_conv2(half))
    masks = queries[:, 0, 2 : 1 + decoder.num_mask_tokens]
    return read_maps(decoder.output_hypernetworks_mlps[1:], masks, full)


def train_decoder(sam: Sam) -> None:
    """Train all of SAM's decoder that ``mask_maps`` depends on, and the "no mask" vector; the encoder stays as it is.

    Frozen are the IoU head, the hypernetwork of the single mask, all of the prompt encoder that no empty prompt
    needs, and the Fourier matrix of positions.
    """
    for name, parameter in sam.model.named_parameters():
        if not name.startswith("vision_encoder."):
            parameter.requires_grad_(not UNUSED.match(name))


class MaskWeights(nn.Module):
    """The diversity-aware assembling: one weight for each of ``M`` maps, ``1 / M`` at first (Eq. 5).

    Args:
        masks: M.
        kind: affine (all but the first are learnt, and all sum to 1: the released code), free, or fixed.
    """

    def __init__(self, masks: int, kind: str = "affine") -> None:
        super().__init__()
        self.kind = kind
        start = torch.full((masks - (kind == "affine"),), 1 / masks)
        if kind == "fixed":
            self.register_buffer("learnt", start, persistent=False)
        else:
            self.learnt = nn.Parameter(start)

    @property
    def values(self) -> Tensor:
        """The ``(M,)`` weights in effect; negative ones are possible."""
        if self.kind == "affine":
            return torch.cat([1 - self.learnt.sum(0, keepdim=True), self.learnt])
        return self.learnt

    def forward(self, maps: Tensor) -> Tensor:
        """``(..., h, w)`` float32 logits, the weighted sum of maps ``(..., M, h, w)``."""
        return torch.einsum("m,...mhw->...hw", self.values.float(), maps.float())


def enlarged(logits: Tensor, side: int) -> Tensor:
    """Logits ``(B, K, h, w)`` at ``(B, K, side, side)``, bilinear: summing maps before or after gives the same."""
    if logits.shape[-1] == side:
        return logits
    return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
