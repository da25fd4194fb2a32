"""The networks of the Probabilistic U-Net: a U-Net, encoders of Gaussians, and the 1x1 layers that join draw and image.

Plain convolutions and ReLU, without normalisation or dropout; weights as He et al. draw them, biases 0 (our decision).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.methods.draws import Gaussian

CONVOLUTIONS = 3  # in every block


def block(before: int, after: int) -> nn.Sequential:
    """Three 3x3 convolutions, a ReLU after each."""
    layers: list[nn.Module] = []
    for i in range(CONVOLUTIONS):
        layers += [nn.Conv2d(before if i == 0 else after, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def halved(x: Tensor) -> Tensor:
    """Half the rows and columns by means of 2 x 2, odd ones rounded up."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class UNet(nn.Module):
    """``(B, channels, S, S)`` to features ``(B, widths[0], S, S)``; every level below the first has half its side."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for i, layer in enumerate(self.down):
            x = layer(halved(x) if i else x)
            levels.append(x)
        for layer, skip in zip(self.up, levels[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = layer(torch.cat([skip, x], 1))
        return x


class Encoder(nn.Module):
    """Blocks whose mean features become a diagonal Gaussian of ``(B, latent)``, of images ``(B, channels, S, S)``."""

    def __init__(self, channels: int, widths: Sequence[int], latent: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True))
        self.head = nn.Linear(widths[-1], 2 * latent)  # a 1x1 convolution of one pixel

    def forward(self, x: Tensor) -> Gaussian:
        for i, layer in enumerate(self.blocks):
            x = layer(halved(x) if i else x)
        mean, log_sigma = self.head(x.mean((2, 3))).float().chunk(2, 1)
        return Gaussian(mean, log_sigma)


class Combine(nn.Module):
    """Three 1x1 convolutions: features ``(B, C, S, S)`` and draws ``(B, K, latent)`` to logits ``(B, K, S, S)``.

    The first layer sees features and the draw, repeated over all pixels; since it is linear, its part that sees the
    features is computed once for all K.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width + latent, width, 1)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor, draws: Tensor) -> Tensor:
        width, weight = features.shape[1], self.first.weight
        seen = F.conv2d(features, weight[:, :width], self.first.bias)
        told = F.linear(draws.to(seen.dtype), weight[:, width:, 0, 0])
        joined = (seen[:, None] + told[..., None, None]).flatten(0, 1)
        return self.rest(joined).unflatten(0, draws.shape[:2])[:, :, 0]


def initialise(module: nn.Module) -> None:
    """He et al.'s normal weights for ReLU, biases 0, of every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
