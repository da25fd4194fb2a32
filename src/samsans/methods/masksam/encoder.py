"""From a 3D patch to features of its slices: a small 3D stem, then SAM's image encoder with adapters across slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from samsans.backbones.attention import attention, from_windows, to_windows
from samsans.methods.masksam.adapters import DConv, slices

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam

SCALE = 0.5  # of an adapter beside an MLP, in encoder and decoder
SLOW = 20480  # channels times slices times rows, up to which PyTorch is slow on one patch
MAPS = 4  # feature maps that the prompt generator reads


class Conv3d(nn.Conv3d):
    """3D convolution of odd kernel, sizes stay; the same numbers as PyTorch's, sooner for one small patch on a CPU.

    There PyTorch falls back to a kernel up to 18 times as slow (measured) as that of two patches, so that the patch's
    upper and lower rows are convolved as two.
    """

    def __init__(self, before: int, after: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(before, after, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T, H, W)``."""
        if len(x) > 1 or x.device.type != "cpu" or x[..., 0].numel() > SLOW:
            return super().forward(x)
        rows, (depth, halo, width) = x.shape[3], self.kernel_size
        half, halo = -(-rows // 2), halo - 1
        padded = F.pad(x, (0, 0, halo // 2, halo // 2 + 2 * half - rows))
        parts = torch.cat([padded.narrow(3, start, half + halo) for start in (0, half)])
        made = F.conv3d(parts, self.weight, self.bias, padding=(depth // 2, 0, width // 2))
        return torch.cat([made[:1], made[1:]], 3)[:, :, :, :rows]


class ConvBlock(nn.Sequential):
    """3D convolution of odd ``kernel``, instance norm, leaky ReLU; ``(B, C, T, H, W)``, sizes stay."""

    def __init__(self, before: int, after: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(Conv3d(before, after, kernel), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01))


def doubled(before: int, after: int) -> nn.ConvTranspose3d:
    """Rows and columns doubled; depth stays."""
    return nn.ConvTranspose3d(before, after, (1, 2, 2), (1, 2, 2))


def doubling(before: int, after: int) -> nn.Sequential:
    """The same, followed by an instance norm without parameters and GELU."""
    return nn.Sequential(doubled(before, after), nn.InstanceNorm3d(after), nn.GELU())


class Stem(nn.Sequential):
    """``(B, C, T, H, W)`` to the three channels that SAM sees, ``(B, 3, T, H 2^n, W 2^n)`` (section 3, rows 1 to 4).

    SAM's own normalisation is left out: the stem ends with one.  The last of n doublings also doubles the channels.
    """

    def __init__(self, channels: int, width: int, doublings: int) -> None:
        layers: list[nn.Module] = [ConvBlock(channels, width)]
        for step in range(doublings):
            after = 2 * width if step == doublings - 1 else width
            layers.append(doubling(width, after))
            width = after
        if doublings:
            layers.append(ConvBlock(width, width))
        super().__init__(*layers, ConvBlock(width, 3))


class Encoder(nn.Module):
    """The trained parts inside SAM's image encoder, and the way through both; SAM itself is handed in.

    Every block has an adapter after its attention, with a skip of its own, and one beside its MLP, halved.  Each slice
    also has a learned vector, zero at first.

    Args:
        backbone: SAM.
        depth: T.
        unwindowed: The adapter after attention sees whole slices.  Otherwise it sees windows, as released: in blocks
            with windows, T windows that follow each other stand for T slices, although they are neighbours in a slice.
        zero_init: Adapters start as nothing.
    """

    def __init__(self, backbone: Sam, depth: int, *, unwindowed: bool, zero_init: bool) -> None:
        super().__init__()
        vision = backbone.model.config.vision_config
        width, blocks = vision.hidden_size, vision.num_hidden_layers
        self.depth, self.unwindowed = depth, unwindowed
        self.kept = read_blocks(blocks, tuple(vision.global_attn_indexes))
        self.slice_embedding = nn.Parameter(torch.zeros(1, depth, width))
        self.space = nn.ModuleList(DConv(width, skip=True, zero_init=zero_init) for _ in range(blocks))
        self.mlp = nn.ModuleList(DConv(width, skip=False, zero_init=zero_init) for _ in range(blocks))

    def forward(self, backbone: Sam, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Features of the stem's images ``(B, 3, T, S, S)``.

        Returns SAM's embedding ``(B, C, T, g, g)`` and four maps ``(B, width, T, g, g)`` from within, shallow to deep.
        """
        vision = backbone.model.vision_encoder
        x = vision.patch_embed(images.transpose(1, 2).flatten(0, 1)) + vision.pos_embed
        x = (slices(x, self.depth) + self.slice_embedding[:, :, None, None]).flatten(0, 1)
        outputs: dict[int, Tensor] = {}  # of the blocks that are read; without gradients, no others stay in memory
        for index, (layer, space, mlp) in enumerate(zip(vision.layers, self.space, self.mlp, strict=True)):
            if backbone.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.block, backbone, layer, space, mlp, x, use_reentrant=False)
            else:
                x = self.block(backbone, layer, space, mlp, x)
            if index in self.kept:
                outputs[index] = x
        maps = tuple(slices(outputs[block], self.depth).movedim(-1, 1) for block in self.kept)
        return slices(vision.neck(x), self.depth).transpose(1, 2), maps

    def block(self, backbone: Sam, layer: Any, space: nn.Module, mlp: nn.Module, x: Tensor) -> Tensor:
        """One block with its two adapters, ``(B T, g, g, width)`` to the same shape (section 5.2)."""
        side, window = x.shape[1], layer.window_size
        read, naive = layer.layer_norm1(x), backbone.attention == "naive"
        if self.unwindowed or not window:
            seen = attend(layer.attn, read, window, naive)
            x = x + space(slices(seen, self.depth)).flatten(0, 1)
        else:
            seen = attend(layer.attn, to_windows(read, None, window), 0, naive)
            x = x + from_windows(space(slices(seen, self.depth)).flatten(0, 1), window, side, side)
        read = layer.layer_norm2(x)
        return x + layer.mlp(read) + SCALE * mlp(slices(read, self.depth)).flatten(0, 1)


def attend(attn: Any, x: Tensor, window: int, naive: bool) -> Tensor:
    """Attention in windows, unless ``window`` is 0, of ``(B, h, w, width)``, same shape; naive: the library's own."""
    if not naive:
        return attention(attn, x, window)
    if not window:
        return attn(x)[0]
    return from_windows(attn(to_windows(x, None, window))[0], window, *x.shape[1:3])


def read_blocks(blocks: int, whole: tuple[int, ...]) -> tuple[int, ...]:
    """Which four blocks the prompt generator reads, from 0: those that attend to the whole slice, where they are four.

    Else the last ones of four equal parts of the depth (our decision, for the small networks).
    """
    if len(whole) == MAPS:
        return tuple(sorted(whole))
    return tuple(-(-part * blocks // MAPS) - 1 for part in range(1, MAPS + 1))
