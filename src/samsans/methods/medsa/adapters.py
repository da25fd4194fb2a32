"""Adapters in every block of SAM's image encoder: one behind the attention, one beside the MLP.

Both work on each token alone, so that it makes no difference whether attention cuts the grid into windows, or in which
order the block does its work: they are put *into* the block, and the fast attention stays exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam


class Adapter(nn.Module):
    """Narrow, ReLU, widen: ``(..., width)`` to the same shape.

    The widening layer starts as zeros (our decision): at first SAM is what it was.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.up(F.relu(self.down(x)))
        return y


class Behind(nn.Module):
    """A layer and an adapter of its output, ``y + adapter(y)``, before the block adds what went in."""

    def __init__(self, base_layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base_layer, self.adapter = base_layer, adapter

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same shape."""
        y: Tensor = self.base_layer(x)
        return y + self.adapter(y)


class Beside(nn.Module):
    """A layer and an adapter of its input, ``layer(x) + scale * adapter(x)``."""

    def __init__(self, base_layer: nn.Module, adapter: Adapter, scale: float) -> None:
        super().__init__()
        self.base_layer, self.adapter, self.scale = base_layer, adapter, scale

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same shape."""
        y: Tensor = self.base_layer(x)
        return y + self.scale * self.adapter(x)


def add_adapters(sam: Sam, ratio: float, scale: float) -> None:
    """Put two adapters into every block of the encoder, drawn from torch's generator; nothing else changes.

    They have ``2 width hidden + hidden + width`` parameters each, ``hidden`` being ``ratio * width``.

    Args:
        sam: Modified; the output projection of every attention and every MLP are then ``base_layer``s.
        ratio: Hidden width over width.
        scale: Factor on the adapters beside the MLPs.

    Raises:
        InputError: ``ratio`` leaves no hidden channel.
    """
    width = sam.model.config.vision_config.hidden_size
    hidden = round(ratio * width)
    if hidden < 1:
        raise InputError(
            f"model.ratio {ratio} of an encoder of {width} channels", "at least one hidden channel", "Raise model.ratio"
        )
    for layer in sam.encoder_blocks:
        layer.attn.proj = Behind(layer.attn.proj, Adapter(width, hidden))
        layer.mlp = Beside(layer.mlp, Adapter(width, hidden), scale)
