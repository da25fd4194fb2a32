"""The network that draws AutoSAM's dense prompts from the image (arXiv 2306.06370)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError


class PromptNetwork(nn.Module):
    """A U-net from image to dense prompts: ``(B, 3, S, S)`` to ``(B, N, C, g, g)`` in [-1, 1], ``g = S / patch``.

    With patches of 16 the image is halved first: the published network sees 512 pixels where SAM sees 1024.  Four
    residual levels, each half the size of the one before, lead to ``g / 4``; two steps up, with the levels of their
    size joined, lead to ``g``; a 1 x 1 convolution with tanh gives all objects their prompts.

    Deviations, both our decision: the published trunk, a pretrained HarDNet-85, is replaced by this one, which starts
    from random weights; and objects share it, where a model was published for every object.

    Args:
        channels: C.
        objects: N.
        width: Channels of the first level, a multiple of 8; each level doubles them.
        patch: Pixels a side of a cell of the prompt: 16, or 8 for the small inputs of networks that start from nothing.
    """

    def __init__(self, channels: int, objects: int, width: int, patch: int = 16) -> None:
        super().__init__()
        if patch not in (8, 16):
            raise InputError(f"a backbone with patches of {patch} px", "patches of 8 or 16 px")
        if width < 8 or width % 8:
            raise InputError(f"model.width {width}", "a positive multiple of 8", "Set model.width, e.g. 32")
        self.objects, self.halved = objects, patch == 16
        widths = [width * 2**level for level in range(4)]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU())
        inputs = [width, *widths[:-1]]
        self.down = nn.ModuleList(Residual(i, o, stride=2) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(
            [Residual(widths[3] + widths[2], widths[2]), Residual(widths[2] + widths[1], widths[2])]
        )
        self.head = nn.Conv2d(widths[2], objects * channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(F.avg_pool2d(images, 2) if self.halved else images)
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for block, joined in zip(self.up, (levels[2], levels[1]), strict=True):
            x = F.interpolate(x, joined.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, joined], 1))
        return self.head(x).tanh().unflatten(1, (self.objects, -1))


class Residual(nn.Module):
    """Two 3 x 3 convolutions with group norm, and a 1 x 1 convolution around them.

    ``(B, inputs, h, w)`` to ``(B, outputs, ceil(h / stride), ceil(w / stride))``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(8, outputs))
        self.around = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.around(x))
