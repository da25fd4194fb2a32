"""Random weights a SAM can be trained from in minutes (our decision; ``transformers``' own are of size 1e-10).

A ViT that starts from noise spends most of a short training on finding out what pixels, places and attention are.
So positions start as sines, patches as the low frequencies of a cosine transform in brightness and two colour
differences, and attention as "look at tokens like yourself" (mimetic initialisation, Trockman and Kolter 2023,
arXiv 2305.09828).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samsans.backbones.sam import tie_positions

POSITIONS = 0.3  # amplitude of the sines of the position table
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # brightness, red-blue, green-magenta
ALIKE, VALUE = 0.7, 0.4  # weights of identity and noise in query-key and value-projection products


@torch.no_grad()
def initialise(model: Any, seed: int) -> Any:
    """Fill an empty ``SamModel`` and return it; depends on ``seed`` alone and leaves torch's global state as it is.

    Linear layers of the ViT: truncated normal, 0.02.  Other linear and convolution weights: truncated normal,
    ``1 / sqrt(fan in)``.  Biases and relative positions 0, norms 1, tokens and the Fourier matrix standard normal as in
    SAM.  Then positions, patches and attention of the encoder as above.
    """
    model.to_empty(device="cpu")
    tie_positions(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(("bias", "rel_pos_h", "rel_pos_w")):
            parameter.zero_()
        elif isinstance(module, nn.Embedding) or name.endswith("positional_embedding"):
            parameter.normal_(generator=generator)
        else:
            if name.startswith("vision_encoder.") and not isinstance(module, nn.Conv2d):
                std = 0.02
            else:  # the stride of every transposed convolution is its kernel: fan in is its input channels
                fan_in = len(parameter) if isinstance(module, nn.ConvTranspose2d) else parameter[0].numel()
                std = 1 / math.sqrt(fan_in)
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    encoder = model.vision_encoder
    encoder.pos_embed.copy_(POSITIONS * sine_positions(*encoder.pos_embed.shape[1:]))
    patches = encoder.patch_embed.projection.weight
    filters = cosine_filters(*patches.shape[::3])[: len(patches)]
    patches[: len(filters)] = filters
    for layer in encoder.layers:
        mimic(layer.attn, generator)
    return model


def draw_heads(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Mask tokens and heads as the original SAM starts them: tokens N(0, 1), layers uniform in ``1 / sqrt(fan in)``.

    ``transformers`` would start tokens at 0.02: nearly alike, so that their masks part slowly.  Depends on ``seed``
    alone and leaves torch's global state as it is.
    """
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(shapes.items()):
        if "tokens" in name:
            drawn[name] = torch.randn(*shape, generator=generator)
        else:
            bound = 1 / math.sqrt(shapes[f"{name.rpartition('.')[0]}.weight"][1])
            drawn[name] = torch.empty(*shape).uniform_(-bound, bound, generator=generator)
    return drawn


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """``(1, height, width, channels)``: sines and cosines of the row, then of the column."""
    frequencies = 100.0 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis[..., None] * frequencies for axis in (rows, columns)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)
    return torch.nn.functional.pad(table, (0, channels - table.shape[-1]))[None]


def cosine_filters(count: int, patch: int) -> Tensor:
    """At most ``count`` orthonormal filters ``(., 3, patch, patch)``: half of them brightness, a quarter each colour.

    Each is a product of two cosines (the DCT-II basis), low frequencies first.
    """
    index = torch.arange(patch)
    cosines = torch.cos(math.pi * (index + 0.5) * index[:, None] / patch) * math.sqrt(2 / patch)
    cosines[0] /= math.sqrt(2)
    basis = torch.einsum("iy,jx->ijyx", cosines, cosines).flatten(0, 1)
    basis = basis[torch.argsort((index[:, None] + index).flatten(), stable=True)]
    colours = torch.tensor(COLOURS)
    colours = colours / colours.norm(dim=1, keepdim=True)
    shares = (count // 2, count // 4, count - count // 2 - count // 4)
    return torch.cat([c[:, None, None] * basis[:n, None] for c, n in zip(colours, shares, strict=True)])


def mimic(attention: Any, generator: torch.Generator) -> None:
    """Attention that starts near "tokens look at tokens like themselves, and subtract what they see".

    For every head ``Wq' Wk = 0.7 (noise + identity)``; over all heads ``Wproj Wv = 0.4 (noise - identity)``, the noise
    of variance 1 / width; both split by singular values.
    """
    weight, width = attention.qkv.weight, attention.qkv.weight.shape[1]
    head = width // attention.num_attention_heads

    def product(scale: float, sign: float) -> tuple[Tensor, Tensor]:
        noise = torch.randn(width, width, generator=generator) / math.sqrt(width)
        left, values, right = torch.linalg.svd(scale * (noise + sign * torch.eye(width)))
        return left * values.sqrt(), right * values.sqrt()[:, None]

    for start in range(0, width, head):
        query, key = product(ALIKE, 1.0)
        weight[start : start + head] = query[:, :head].T
        weight[width + start : width + start + head] = key[:head]
    projection, value = product(VALUE, -1.0)
    weight[2 * width :] = value
    attention.proj.weight.copy_(projection)
