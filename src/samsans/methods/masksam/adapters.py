"""The two adapters by which slices of a patch exchange information inside a frozen network (sections 5.3 and 8.1).

Both take ``n`` groups of ``T`` slices with the channels last, narrow them to a quarter, mix along depth, and widen.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

RATIO = 4  # of the widths outside and inside


class Adapter(nn.Module):
    """Narrow, add what a depth layer makes of it, widen; ``mix`` is the depth layer.

    Args:
        width: D, channels.
        skip: Whether the input is added to the output.
        zero_init: The widening layer starts as zeros, so that the adapter does nothing (our option); else as PyTorch
            has it, as released.
    """

    def __init__(self, width: int, skip: bool, zero_init: bool) -> None:
        super().__init__()
        self.skip = skip
        self.down = nn.Linear(width, width // RATIO)
        self.up = nn.Linear(width // RATIO, width)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, T, ..., D)`` to the same shape."""
        z = F.gelu(self.down(x))
        y = self.up(z + self.mix(z))
        return x + y if self.skip else y

    def mix(self, z: Tensor) -> Tensor:
        """Mix the slices of ``(n, T, ..., D / 4)``."""
        raise NotImplementedError


class DConv(Adapter):
    """Depth-convolution adapter of image tokens ``(n, T, h, w, D)``: a depthwise 3 x 3 x 3 convolution, norm, GELU.

    A slice hears of its two neighbours, at any T.
    """

    def __init__(self, width: int, *, skip: bool, zero_init: bool = False) -> None:
        super().__init__(width, skip, zero_init)
        hidden = width // RATIO
        self.convolution = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)

    def mix(self, z: Tensor) -> Tensor:
        """See the class."""
        return F.gelu(self.norm(self.convolution(z.movedim(-1, 1)).movedim(1, -1)))


class DMlp(Adapter):
    """Depth-MLP adapter of prompt tokens ``(n, T, N, D)``: two layers along depth, the first 4T wide.

    T is part of the weights, and a slice hears of all others.
    """

    def __init__(self, width: int, depth: int, *, skip: bool, zero_init: bool = False) -> None:
        super().__init__(width, skip, zero_init)
        self.widen = nn.Linear(depth, 4 * depth)
        self.narrow = nn.Linear(4 * depth, depth)

    def mix(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.narrow(F.gelu(self.widen(z.movedim(1, -1)))).movedim(-1, 1)


def slices(x: Tensor, depth: int) -> Tensor:
    """``(n T, ...)`` as ``(n, T, ...)``."""
    return x.unflatten(0, (-1, depth))
