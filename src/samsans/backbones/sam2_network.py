"""SAM 2's network of ``transformers`` for any input side, and its mask decoder read token by token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from samsans.architectures import Sam2Architecture
from samsans.errors import InputError

MEMORY = 64
"""Channels of a memory token (``transformers`` knows no other number)."""
MEMORIES = 7
"""Memories with a temporal position: the conditioning frames share one, the six frames before have one each."""
POINTERS = 16
"""Most object pointers that are looked back at."""
LOGIT_SCALE, LOGIT_BIAS = 20.0, -10.0
"""Turn a mask of zeros and ones into logits, and probabilities into what memories are made of."""
STABLE = 0.98
DELTA = 0.05
"""A mask is stable if moving its threshold by ``DELTA`` either way keeps an IoU of ``STABLE``."""


@dataclass(frozen=True)
class Reading:
    """What the mask decoder says to ``P`` prompts.

    logits: ``(P, M, 4g, 4g)``.  iou: ``(P, M)`` predicted IoU.  tokens: ``(P, M, C)`` the mask tokens, of which object
    pointers are made.  scores: ``(P,)`` logits of the object being in the image at all.
    """

    logits: Tensor
    iou: Tensor
    tokens: Tensor
    scores: Tensor

    def best(self) -> Reading:
        """The mask of highest predicted IoU, ``M`` = 1."""
        return self.pick(self.iou.argmax(1))

    def pick(self, chosen: Tensor) -> Reading:
        """Of every prompt the mask ``chosen`` ``(P,)``, ``M`` = 1."""
        rows = torch.arange(len(chosen), device=chosen.device)
        logits, iou, tokens = (part[rows, chosen][:, None] for part in (self.logits, self.iou, self.tokens))
        return Reading(logits, iou, tokens, self.scores)

    def stable(self) -> Reading:
        """Of all four masks the single one where it is stable, else the best of the others, as SAM 2 does in videos.

        The token remains that of the single mask.
        """
        single = self.logits[:, 0].flatten(1)
        inner, outer = ((single > delta).sum(1).float() for delta in (DELTA, -DELTA))
        stable = torch.where(outer > 0, inner / outer, 1.0) >= STABLE
        picked = self.pick(torch.where(stable, 0, self.iou[:, 1:].argmax(1) + 1))
        return replace(picked, tokens=self.tokens[:, :1])


def read_masks(
    decoder: Any,
    features: Tensor,
    positions: Tensor,
    sparse: Tensor,
    dense: Tensor,
    high_res: tuple[Tensor, ...],
    masks: slice,
) -> Reading:
    """SAM 2's mask decoder for ``P`` prompts; computes only the ``masks`` asked for, of the 1 + 3 there are.

    decoder: a ``Sam2VideoMaskDecoder``.  features: ``(P, C, g, g)``.  positions: ``(1, C, g, g)``.  sparse:
    ``(P, n, C)``.  dense: ``(P or 1, C, g, g)``.  high_res: ``(P or 1, C / 8, 4g, 4g)``, ``(P or 1, C / 4, 2g, 2g)``.
    """
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(own.dtype)], 1)
    queries, keys = decoder.transformer(
        point_embeddings=tokens[:, None],
        image_embeddings=features + dense,
        image_positional_embeddings=positions,
        attention_similarity=None,
    )
    fine, middle = high_res
    maps = keys[:, 0].transpose(1, 2).unflatten(2, features.shape[2:])
    maps = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(maps) + middle))
    maps = decoder.activation(decoder.upscale_conv2(maps) + fine)
    score, quality, mask_tokens = queries[:, 0, 0], queries[:, 0, 1], queries[:, 0, 2 : len(own)]
    chosen = range(len(own) - 2)[masks]
    weights = torch.stack([decoder.output_hypernetworks_mlps[i](mask_tokens[:, i]) for i in chosen], 1)
    logits = (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])
    iou = decoder.iou_prediction_head(quality)[:, masks]
    return Reading(logits, iou, mask_tokens[:, masks], decoder.pred_obj_score_head(score)[:, 0])


def shrink(maps: Tensor, side: int) -> Tensor:
    """``(P, c, h, w)`` to ``(P, c, side, side)``, bilinearly and smoothed; as they are where they have that size."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=True)


def build_sam2(arch: Sam2Architecture, input_size: int, attention: str = "fast") -> Sam2VideoModel:
    """An empty network (meta tensors) for inputs of ``input_size`` pixels.

    The decoder's switch to other masks by stability is off (decision D-15).
    """
    patch = arch.patch
    if input_size < 2 * patch or input_size % (2 * patch) or input_size // arch.stride % arch.windows[0]:
        unit = max(2 * patch, arch.stride * arch.windows[0])
        raise InputError(f"Input side {input_size} px", f"a multiple of {unit} px, twice the patch side")
    grid = input_size // patch
    prompt = {"hidden_size": arch.channels, "image_size": input_size, "patch_size": patch}
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": arch.widths[0],
                "num_attention_heads": arch.stage_heads[0],
                "image_size": [input_size, input_size],
                "patch_stride": [arch.stride, arch.stride],
                "window_positional_embedding_background_size": [arch.background, arch.background],
                "blocks_per_stage": list(arch.blocks),
                "embed_dim_per_stage": list(arch.widths),
                "num_attention_heads_per_stage": list(arch.stage_heads),
                "window_size_per_stage": list(arch.windows),
                "global_attention_blocks": list(arch.global_blocks),
            },
            "backbone_channel_list": list(arch.widths[::-1]),
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
            "fpn_hidden_size": arch.channels,
        },
        prompt_encoder_config={**prompt, "mask_input_channels": arch.mask_channels},
        mask_decoder_config={
            "hidden_size": arch.channels,
            "mlp_dim": arch.decoder_mlp,
            "num_attention_heads": arch.decoder_heads,
            "attention_downsample_rate": arch.decoder_downsample,
            "num_multimask_outputs": arch.multimask,
            "iou_head_hidden_dim": arch.iou_hidden,
            "dynamic_multimask_via_stability": False,
        },
        image_size=input_size,
        num_maskmem=MEMORIES,
        max_object_pointers_in_encoder=POINTERS,
        enable_occlusion_spatial_embedding=arch.version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=arch.version == "2.1",
        memory_attention_hidden_size=arch.channels,
        memory_attention_num_layers=arch.memory_layers,
        memory_attention_feed_forward_hidden_size=arch.memory_mlp,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=arch.channels,
        memory_encoder_output_channels=MEMORY,
        mask_downsampler_embed_dim=arch.channels,
        memory_fuser_embed_dim=arch.channels,
        memory_fuser_intermediate_dim=4 * arch.channels,
    )
    config._attn_implementation = "sdpa" if attention == "fast" else "eager"
    with torch.device("meta"):
        return Sam2VideoModel(config)


def fill_positions(model: Any) -> None:
    """Compute the tables that no file holds (rotary positions) and share the Fourier matrix; after meta tensors."""
    attention, shared = model.memory_attention, model.shared_image_embedding.positional_embedding
    attention.position_ids = attention.precompute_positions(model.config).to(shared.device)
    rotary = attention.rotary_emb
    rotary.inv_freq = rotary.compute_axial_rope_parameters(model.config)[0].to(shared.device)
    rotary.original_inv_freq = rotary.inv_freq.clone()
    model.prompt_encoder.shared_embedding.positional_embedding = shared


def sine_positions(grid: int, channels: int) -> Tensor:
    """``(g^2, channels)`` sines and cosines of the row, then of the column, as SAM 2 gives them to tokens."""
    steps = torch.arange(1, grid + 1, dtype=torch.float32) / (grid + 1e-6) * 2 * torch.pi
    index = torch.arange(channels // 2)
    angles = steps[:, None] / 10000.0 ** (2 * (index // 2) / (channels // 2))
    waves = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1)
    return torch.cat([waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)], 2).flatten(0, 1)


def sine_times(offsets: Tensor, channels: int) -> Tensor:
    """``(n, channels)`` sines, then cosines, of times ``(n,)`` in [-1, 1], as SAM 2 tells object pointers apart."""
    index = torch.arange(channels // 2, device=offsets.device)
    angles = offsets[:, None].float() / 10000.0 ** (2 * (index // 2) / (channels // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)
