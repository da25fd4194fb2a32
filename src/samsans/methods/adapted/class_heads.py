"""The heads of AutoSAM of Hu, Xu and Shi (arXiv 2306.13731): from a frozen embedding to one map a class.

Both take ``(B, C, g, g)`` image features to ``(B, K, 4g, 4g)`` logits, background first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from samsans.methods.class_decoder import two_way


class TokenHead(nn.Module):
    """SAM's decoder asked once for every class, each time with tokens of that class alone: one IoU and two mask tokens.

    Classes are folded into the batch, so none attends to another.  Transformer, upscaling and the hypernetwork of the
    first mask start from SAM and are trained; the IoU tokens are random and stay so; positions have a random Fourier
    matrix of their own.  There is no dense prompt.  Only the first mask is kept: the second token takes part in
    attention, and its hypernetwork, which nothing reads, is not built.

    Args:
        decoder: ``SamModel.mask_decoder``; its modules are taken over.
        classes: K.
    """

    iou_tokens: Tensor
    frequencies: Tensor

    def __init__(self, decoder: Any, classes: int) -> None:
        super().__init__()
        width = decoder.hidden_size
        self.transformer = decoder.transformer
        self.upscale = nn.Sequential(
            decoder.upscale_conv1, decoder.upscale_layer_norm, nn.GELU(), decoder.upscale_conv2, nn.GELU()
        )
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]
        self.requires_grad_(True)
        self.mask_tokens = nn.Parameter(torch.randn(classes, 2, width))
        self.register_buffer("iou_tokens", torch.randn(classes, 1, width))
        self.register_buffer("frequencies", torch.randn(2, width // 2))

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, side, _ = features.shape
        classes = len(self.mask_tokens)
        tokens = torch.cat([self.iou_tokens, self.mask_tokens], 1).repeat(batch, 1, 1).unsqueeze(1)
        asked = features.repeat_interleave(classes, 0)
        tokens, image = two_way(self.transformer, tokens, asked, fourier(self.frequencies, side))
        maps = self.upscale(image[:, 0].transpose(1, 2).reshape(-1, channels, side, side))
        weights = self.hypernetwork(tokens[:, :, 1])
        return (weights @ maps.flatten(2)).reshape(batch, classes, *maps.shape[-2:])


class CnnHead(nn.Sequential):
    """A convolutional head: 1 x 1 convolutions, two levels of [3 x 3, 3 x 3, x 2], 3 x 3, and 1 x 1 to K.

    Channels C, C / 2 and C / 4: for SAM 256, 128 and 64.  Group norm and ReLU follow every convolution but the last
    (our decision).
    """

    def __init__(self, channels: int, classes: int) -> None:
        half, quarter = channels // 2, channels // 4
        super().__init__(
            *_convolution(channels, channels, 1),
            *_convolution(channels, channels, 1),
            *_level(channels, half),
            *_level(half, quarter),
            *_convolution(quarter, quarter, 3),
            nn.Conv2d(quarter, classes, 1),
        )


def fourier(frequencies: Tensor, side: int) -> Tensor:
    """SAM's positions: ``(1, C, side, side)`` sines, then cosines, of ``2 pi (x, y) W``, cell centres in [-1, 1].

    frequencies: W, ``(2, C / 2)``.
    """
    at = (torch.arange(side, device=frequencies.device, dtype=frequencies.dtype) + 0.5) / side * 2 - 1
    across, down = (2 * math.pi * at[:, None] * row for row in frequencies)  # (side, C / 2) each
    angles = across[None] + down[:, None]
    return torch.cat([angles.sin(), angles.cos()], -1).permute(2, 0, 1)[None]


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(math.gcd(8, outputs), outputs),
        nn.ReLU(),
    ]


def _level(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        *_convolution(inputs, inputs, 3),
        *_convolution(inputs, inputs, 3),
        nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False),
        nn.GroupNorm(math.gcd(8, outputs), outputs),
        nn.ReLU(),
    ]
