"""Random weights a SAM 2 can be trained from (our decision; ``transformers``' own leave tables at zero)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from samsans.backbones.sam2_network import fill_positions
from samsans.backbones.start import POSITIONS, cosine_filters, mimic, sine_positions

WIDENS = re.compile(r".*\.blocks\.\d+\.proj\.")  # what carries tokens from one stage to the next
SCALE = 0.1  # of what the memory encoder's blocks add
VECTORS = 0.02  # of vectors that are added to tokens


@torch.no_grad()
def initialise_sam2(model: Any, seed: int) -> Any:
    """Fill an empty ``Sam2VideoModel`` and return it; depends on ``seed`` alone, leaves torch's global state as it is.

    As for SAM: linear layers of the encoder truncated normal, 0.02; other weights truncated normal ``1 / sqrt(fan
    in)``; biases 0, norms 1, tokens and the Fourier matrix standard normal; then sines for positions, cosines for
    patches, and attention that looks at tokens like itself where a block keeps its width.
    """
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    model.shared_image_embedding.positional_embedding.normal_(generator=generator)
    fill_positions(model)
    for name, parameter in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif name.endswith(".scale"):
            parameter.fill_(SCALE)
        elif isinstance(module, nn.Embedding):
            parameter.normal_(generator=generator)
        elif not isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.trunc_normal_(parameter, std=VECTORS, a=-2 * VECTORS, b=2 * VECTORS, generator=generator)
        else:
            if name.startswith("vision_encoder.") and isinstance(module, nn.Linear) and not WIDENS.match(name):
                std = 0.02
            else:  # the stride of every transposed convolution is its kernel: fan in is its input channels
                fan_in = len(parameter) if isinstance(module, nn.ConvTranspose2d) else parameter[0].numel()
                std = 1 / math.sqrt(fan_in)
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    trunk = model.vision_encoder.backbone
    _, channels, height, width = trunk.pos_embed.shape
    trunk.pos_embed.copy_(POSITIONS * sine_positions(height, width, channels).permute(0, 3, 1, 2))
    patches = trunk.patch_embed.projection.weight
    filters = cosine_filters(*patches.shape[::3])[: len(patches)]
    patches[: len(filters)] = filters
    for block in trunk.blocks:
        if block.dim == block.dim_out:
            mimic(block.attn, generator)
    return model
