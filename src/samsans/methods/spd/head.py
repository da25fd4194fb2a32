"""The saliency head: where an object may be, from image features alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SaliencyHead(nn.Module):
    """Two transposed convolutions after the pattern of SAM's own upscaling (decision D13).

    Args:
        channels: C of the features.
        hidden: Channels of the two layers.
        bias: Of the last layer: a low saliency everywhere at the start.
    """

    def __init__(self, channels: int, hidden: tuple[int, int] = (64, 32), bias: float = -2.0) -> None:
        super().__init__()
        first, second = hidden
        self.up1 = nn.ConvTranspose2d(channels, first, 2, stride=2)
        self.norm = nn.LayerNorm(first, eps=1e-6)
        self.up2 = nn.ConvTranspose2d(first, second, 2, stride=2)
        self.last = nn.Conv2d(second, 1, 1)
        assert self.last.bias is not None
        nn.init.constant_(self.last.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, C, g, g)`` to logits ``(B, 4g, 4g)`` float32."""
        x = self.norm(self.up1(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.last(F.gelu(self.up2(F.gelu(x))))[:, 0].float()
