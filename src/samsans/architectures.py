"""What fixes the shapes of a network: plain data; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamArchitecture:
    """Everything that fixes the shapes of a SAM network.

    ``hidden``, ``depth``, ``heads``, ``mlp``: the image encoder (a ViT).  ``patch``: pixels a token side.
    ``window``: tokens a window side; blocks in ``global_blocks`` attend to the whole image instead.
    ``channels``: C of the embedding.  ``input_size``: S in pixels the weights were made for.
    """

    hidden: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    patch: int = 16
    window: int = 14
    channels: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    decoder_downsample: int = 2
    multimask: int = 3
    iou_hidden: int = 256
    mask_channels: int = 16
    input_size: int = 1024


@dataclass(frozen=True)
class Sam2Architecture:
    """Everything that fixes the shapes of a SAM 2 network.

    The image encoder (a Hiera) has four stages; each halves the grid of the one before.  ``widths``, ``blocks``,
    ``stage_heads``, ``windows``: one number a stage; blocks in ``global_blocks`` (counted through) attend to the whole
    image instead of windows.  ``stride``: pixels a token side in the first stage; the embedding's tokens are four times
    as large (``patch``).  ``background``: side of the position table under that of the windows.
    ``channels``: C of the embedding and of the memory attention; memories have 64 channels.
    ``version``: 2.1 has an embedding of occlusion and tells pointers by their time, 2.0 has neither.
    """

    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    blocks: tuple[int, int, int, int] = (1, 2, 7, 2)
    stage_heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7
    stride: int = 4
    channels: int = 256
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    decoder_downsample: int = 2
    multimask: int = 3
    iou_hidden: int = 256
    mask_channels: int = 16
    memory_layers: int = 4
    memory_mlp: int = 2048
    version: str = "2.1"
    input_size: int = 1024

    @property
    def patch(self) -> int:
        """Pixels a token side of the embedding."""
        return 4 * self.stride

    @property
    def depth(self) -> int:
        """Number of blocks of the image encoder."""
        return sum(self.blocks)

    @property
    def hidden(self) -> int:
        """Width of the first stage."""
        return self.widths[0]

    @property
    def heads(self) -> int:
        """Attention heads of the first stage."""
        return self.stage_heads[0]


VIT_B = SamArchitecture()
VIT_L = SamArchitecture(hidden=1024, depth=24, heads=16, mlp=4096, global_blocks=(5, 11, 17, 23))
VIT_H = SamArchitecture(hidden=1280, depth=32, heads=16, mlp=5120, global_blocks=(7, 15, 23, 31))
TINY = SamArchitecture(
    hidden=32,
    depth=2,
    heads=2,
    mlp=64,
    global_blocks=(1,),
    window=3,
    channels=32,
    decoder_heads=2,
    decoder_mlp=64,
    iou_hidden=32,
    mask_channels=8,
    input_size=64,
)
SCRATCH = SamArchitecture(
    hidden=128,
    depth=4,
    heads=4,
    mlp=512,
    global_blocks=(3,),
    patch=16,
    window=8,
    channels=128,
    decoder_mlp=512,
    iou_hidden=128,
    input_size=256,
)
SMALL = SamArchitecture(
    hidden=192,
    depth=8,
    heads=3,
    mlp=768,
    global_blocks=tuple(range(8)),
    window=16,
    channels=128,
    decoder_mlp=512,
    iou_hidden=128,
    input_size=256,
)

HIERA_TINY = Sam2Architecture()
HIERA_SMALL = Sam2Architecture(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13))
HIERA_BASE_PLUS = Sam2Architecture(
    widths=(112, 224, 448, 896),
    blocks=(2, 3, 16, 3),
    stage_heads=(2, 4, 8, 16),
    global_blocks=(12, 16, 20),
    background=14,
)
HIERA_LARGE = Sam2Architecture(
    widths=(144, 288, 576, 1152),
    blocks=(2, 6, 36, 4),
    stage_heads=(2, 4, 8, 16),
    windows=(8, 4, 16, 8),
    global_blocks=(23, 33, 43),
)
HIERAS = {"tiny": HIERA_TINY, "small": HIERA_SMALL, "base-plus": HIERA_BASE_PLUS, "large": HIERA_LARGE}
SAM2_TEST = Sam2Architecture(
    widths=(8, 16, 32, 64),
    blocks=(1, 1, 2, 1),
    stage_heads=(1, 2, 2, 4),
    windows=(4, 4, 6, 3),
    global_blocks=(3,),
    background=3,
    channels=128,
    decoder_heads=2,
    decoder_mlp=64,
    iou_hidden=32,
    mask_channels=8,
    memory_layers=2,
    memory_mlp=64,
    input_size=64,
)
SAM2_SCRATCH = Sam2Architecture(
    widths=(32, 64, 128, 256),
    blocks=(1, 1, 4, 1),
    stage_heads=(1, 2, 4, 8),
    windows=(8, 4, 8, 4),
    global_blocks=(3, 5),
    background=7,
    channels=128,
    decoder_mlp=512,
    iou_hidden=128,
    memory_layers=2,
    memory_mlp=512,
    input_size=256,
)
