"""CMAttn: class-balanced mask-guided self-attention, the gate on the image embedding before stage 2 (Eq. 1).

``B`` images, ``K`` classes with background, ``T = g * g`` positions.  Tokens are the classes; a class' feature is its
map of all positions, so that layers are ``T`` wide and belong to one input side.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward

from samsans.errors import InputError
from samsans.methods.hsam.stage2 import Attention

DEVIATIONS = (0.35, 0.30, 0.30, 0.20, 0.20, 0.10, 0.10, 0.0, 0.0)
"""Noise on each of nine classes, rarest first (the list of the released code)."""


class CMAttn(nn.Module):
    """A gate over the positions, of mean 1, made from the mask feature of stage 1.

    The paper's text says little; these choices are the specification's (section 8.4): the mask feature is a softmax
    over classes, noise has mean 0 and the deviation of the true class at a position, and the gate is a softmax over
    positions times their number, so that a flat one doubles the embedding as the released code always does.

    ``pixels``, ``(K,)`` int64, counts the training pixels of each class and is saved with the weights; until
    ``observe`` sets it all classes count as equally common.  ``deviations``, ``(K,)``, of the noise follow from it.

    Args:
        positions: T.
        classes: K.
        channels: C, the width of the tokens and features whose products are the mask feature.
        hidden: Width inside the MLP.
        normalise, noise, dropout, gate: As in ``CmattnConfig``.
    """

    pixels: Tensor
    deviations: Tensor

    def __init__(
        self,
        positions: int,
        classes: int,
        channels: int,
        *,
        hidden: int = 2048,
        normalise: Literal["softmax", "none"] = "softmax",
        noise: Literal["rank", "inverse_freq", "off"] = "rank",
        dropout: float = 0.1,
        gate: Literal["spatial_softmax", "sigmoid"] = "spatial_softmax",
    ) -> None:
        super().__init__()
        self.channels, self.normalise, self.noise, self.gate = channels, normalise, noise, gate
        heads = head_count(positions)
        self.attention1 = Attention(positions, positions, heads)
        self.norm1 = nn.LayerNorm(positions)
        self.attention2 = Attention(positions, positions, heads)
        self.mlp = SamFeedForward(positions, hidden, positions, 2)
        self.norm2 = nn.LayerNorm(positions)
        self.score = nn.Linear(classes, 1)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pixels", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("deviations", torch.zeros(classes), persistent=False)
        self.observe(self.pixels)
        self.register_load_state_dict_post_hook(_follow)

    def observe(self, pixels: Tensor) -> None:
        """Set ``pixels``, and the deviations that follow."""
        self.pixels.copy_(torch.as_tensor(pixels))
        by_class = frequency_deviations if self.noise == "inverse_freq" else rank_deviations
        self.deviations.copy_(by_class(self.pixels))

    def forward(self, feature: Tensor, labels: Tensor | None = None) -> Tensor:
        """The gate ``(B, T)`` float32.

        Args:
            feature: ``(B, K, T)`` float32, products of final class tokens and image features.
            labels: ``(B, T)`` int64, the true class at each position, for the noise; used in training only.

        Raises:
            InputError: noise is to be drawn and there are no labels.
        """
        if self.normalise == "softmax":
            feature = (feature * self.channels**-0.5).softmax(1)
        feature = self.dropout(feature)
        if self.training and self.noise != "off":
            feature = feature + self._noise(feature, labels)
        a = self.norm1(self.attention1(feature, feature, feature))
        a = self.attention2(a, a, a)
        a = self.norm2(a + self.mlp(a))
        scores = self.score(a.mT)[..., 0].float()
        if self.gate == "sigmoid":
            return scores.sigmoid()
        return scores.softmax(-1) * scores.shape[-1]

    def _noise(self, feature: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise InputError(
                "class-balanced noise without masks", "masks of every training image", "Or set model.cmattn.noise=off"
            )
        return self.deviations[labels].unsqueeze(1) * torch.randn_like(feature)


def _follow(module: CMAttn, _: Any) -> None:
    """After loading ``pixels``: they are all that is saved."""
    module.observe(module.pixels)


def head_count(positions: int) -> int:
    """The largest divisor of T that is at most 8: 7 of 196, 8 of 1024, as in the released code."""
    return next(heads for heads in range(8, 0, -1) if positions % heads == 0)


def rank_deviations(pixels: Tensor) -> Tensor:
    """``(K,)`` float32: the list ``DEVIATIONS`` for the classes from the rarest to the commonest.

    pixels: ``(K,)`` int64 counts.  For K other than 9 the list is interpolated linearly; equally common classes share
    the mean of their places.
    """
    count = len(pixels)
    places = torch.linspace(0, len(DEVIATIONS) - 1, count, device=pixels.device)
    listed = torch.tensor(DEVIATIONS, device=pixels.device)
    low = places.long().clamp_max(len(DEVIATIONS) - 2)
    steps = torch.lerp(listed[low], listed[low + 1], places - low)
    rarer = pixels < pixels[:, None]
    same = pixels == pixels[:, None]
    first = rarer.sum(1, keepdim=True)
    place = torch.arange(count, device=pixels.device)
    shared = (place >= first) & (place < first + same.sum(1, keepdim=True))
    return (shared * steps).sum(1) / shared.sum(1)


def frequency_deviations(pixels: Tensor) -> Tensor:
    """``(K,)`` float32: ``0.35 sqrt(f_min / f_c)``, a variance inverse to the frequency; absent classes have 0.35."""
    present = pixels.clamp_min(1).float()
    rarest = torch.where(pixels > 0, present, torch.inf).min()
    return DEVIATIONS[0] * (rarest / present).clamp_max(1).sqrt()
