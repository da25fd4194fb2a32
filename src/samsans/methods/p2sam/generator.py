"""P2SAM's prompt generation network: from the image to a Gaussian over prompts, and how a prompt enters the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.methods.draws import Gaussian

WIDTHS = (32, 64, 128, 192)
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, 0..255


class Generator(nn.Module):
    """The prior network of the Probabilistic U-Net: four blocks of three convolutions, mean over the image, 1x1.

    No normalisation, no dropout.  Computed in float32 whatever the autocast: standard deviations are exponentials.

    Args:
        latent: C.
        channels: Of the input: 1, or 2 for a posterior, which also sees an annotation.
        head_bias: constant (the means' are N(0, 1), every logarithm of sigma starts near ``log_sigma``; our decision)
            or normal (all N(0, 1), the released code).
        log_sigma: See ``head_bias``.
        clamp: Bounds of the logarithm of sigma.
    """

    def __init__(
        self,
        latent: int,
        channels: int = 1,
        *,
        head_bias: str = "constant",
        log_sigma: float = 0.0,
        clamp: Sequence[float] | None = (-10.0, 3.0),
    ) -> None:
        super().__init__()
        self.clamp = None if clamp is None else (clamp[0], clamp[1])
        self.blocks = nn.ModuleList()
        for width in WIDTHS:
            sizes = [(channels, width), (width, width), (width, width)]
            self.blocks.append(nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in sizes]))
            channels = width
        self.head = nn.Linear(channels, 2 * latent)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)  # type: ignore[arg-type]
        nn.init.normal_(self.head.bias)
        if head_bias == "constant":
            nn.init.constant_(self.head.bias[latent:], log_sigma)

    def forward(self, x: Tensor) -> Gaussian:
        """``(B, 1 or 2, S, S)``: the grey image in [0, 1], and the annotation for a posterior."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            for i, block in enumerate(self.blocks):
                if i:
                    x = F.avg_pool2d(x, 2, ceil_mode=True)
                for convolution in block:  # type: ignore[attr-defined]
                    x = convolution(x).relu_()
            mean, log_sigma = self.head(x.mean((2, 3))).chunk(2, 1)
            if self.clamp is not None:
                log_sigma = log_sigma.clamp(*self.clamp)
            return Gaussian(mean, log_sigma)


class Fusion(nn.Module):
    """The released code's way of a prompt into the decoder: a vector that is added at every position of the image.

    There, four 1x1 convolutions over two maps that are constant in space; here, on the vectors themselves.

    Args:
        width: C.
        residual: The vector is added to the "no mask" one and starts as zero (our addition).
    """

    def __init__(self, width: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList([nn.Linear(2 * width, width), *(nn.Linear(width, width) for _ in range(3))])
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
            nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)  # type: ignore[arg-type]
        if residual:
            nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, prompts: Tensor, no_mask: Tensor) -> Tensor:
        """``(B, K, C)`` from prompts ``(B, K, C)`` and SAM's "no mask" vector ``(C,)``, in float32."""
        with torch.autocast(prompts.device.type, enabled=False):
            x = torch.cat([no_mask.float().expand_as(prompts), prompts], -1)
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            x = self.layers[-1](x)
            return x + no_mask if self.residual else x


class Prompter(nn.Module):
    """What stage 2 trains: the generator, and in dense mode the fusion."""

    def __init__(self, generator: Generator, fusion: Fusion | None) -> None:
        super().__init__()
        self.generator, self.fusion = generator, fusion

    def enter(self, prompts: Tensor, no_mask: Tensor) -> Tensor:
        """What the decoder is given for prompts ``(B, K, C)``: tokens, or with a fusion vectors, ``(B, K, C)``."""
        return prompts if self.fusion is None else self.fusion(prompts, no_mask)

    def forward(self, grey: Tensor, noise: Tensor, no_mask: Tensor) -> Tensor:
        """``(B, K, C)`` of images ``(B, 1, S, S)`` and standard normal ``noise`` ``(B, K, C)``."""
        return self.enter(self.generator(grey).draw(noise), no_mask)


def grey_image(images: Tensor, statistics: str) -> Tensor:
    """``(B, 1, S, S)`` in [0, 1]: the mean of the channels of ``(B, 3, S, S)`` images normalised by ``statistics``."""
    if statistics == "sam":
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) / 255 for v in (SAM_MEAN, SAM_STD))
        images = images * std + mean
    return images.mean(1, keepdim=True)
