"""Bridge Unit (CSM step 2): support features and mask context become one value map per object and support pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError


class ResBlock(nn.Module):
    """``skip(x) + conv(relu(conv(relu(x))))`` without normalisation (decision D-06).

    ``(B, in, g, g)`` to ``(B, out, g, g)``; the skip is a 3x3 convolution where the channel count changes.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(F.relu(self.conv1(F.relu(x))))


class Cbam(nn.Module):
    """Convolutional block attention: a channel gate, then a spatial gate, both in (0, 1).

    ``scope`` says over what the gates pool (decision D-08): ``joint`` over all objects, which share the gates;
    ``per_object`` over each alone; ``folded`` over a channel axis of ``N * C``, which fixes the number of objects.
    Support pairs never mix.
    """

    def __init__(self, channels: int, reduction: int = 16, scope: str = "joint", folded_objects: int = 1) -> None:
        super().__init__()
        self.scope, self.folded_objects = scope, folded_objects
        width = channels * (folded_objects if scope == "folded" else 1)
        self.mlp = nn.Sequential(nn.Linear(width, width // reduction), nn.ReLU(), nn.Linear(width // reduction, width))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """``(K, N, C, g, g)`` to the same shape."""
        shape = x.shape
        if self.scope == "folded":
            if shape[1] != self.folded_objects:
                raise InputError(
                    f"{shape[1]} objects given to a CBAM folded for {self.folded_objects}",
                    "the number of objects it was built for",
                    "Use cbam_scope joint or per_object to ask for any number",
                )
            x = x.flatten(1, 2).unsqueeze(1)
        elif self.scope == "per_object":
            x = x.flatten(0, 1).unsqueeze(1)
        return self._gated(x).reshape(shape)

    def _gated(self, x: Tensor) -> Tensor:
        # (groups, n, channels, g, g): one gate a group
        gate = torch.sigmoid(self.mlp(x.mean((1, 3, 4))) + self.mlp(x.amax((1, 3, 4))))
        x = x * gate[:, None, :, None, None]
        maps = torch.stack([x.amax((1, 2)), x.mean((1, 2))], dim=1)
        return x * torch.sigmoid(self.spatial(maps))[:, :, None]


class Bridge(nn.Module):
    """``ResBlock -> CBAM -> ResBlock`` over the concatenation of support features and context (paper Eq. 5).

    ``enabled=False`` is the ablation of decision D-31: a 1x1 convolution, no exchange between objects.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        *,
        enabled: bool = True,
        residual: bool = True,
        reduction: int = 16,
        scope: str = "joint",
        folded_objects: int = 1,
    ) -> None:
        super().__init__()
        self.enabled, self.residual = enabled, residual
        if not enabled:
            self.mix = nn.Conv2d(channels + context_channels, channels, 1)
            return
        self.block1 = ResBlock(channels + context_channels, channels)
        self.cbam = Cbam(channels, reduction, scope, folded_objects)
        self.block2 = ResBlock(channels, channels)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Values of every support pair and object.

        Args:
            features: ``(K, C, g, g)`` support features, repeated over the objects.
            context: ``(K, N, Cv, g, g)`` context encoder output.

        Returns:
            ``(K, N, C, g, g)``; pair k depends on no other pair, so that it can be cached alone.
        """
        k, n = context.shape[:2]
        features = features.unsqueeze(1).expand(-1, n, -1, -1, -1)
        x = torch.cat([features, context], dim=2).flatten(0, 1)
        if not self.enabled:
            return self.mix(x).unflatten(0, (k, n))
        x = self.block1(x).unflatten(0, (k, n))
        gated = self.cbam(x)
        x = x + gated if self.residual else gated
        return self.block2(x.flatten(0, 1)).unflatten(0, (k, n))
