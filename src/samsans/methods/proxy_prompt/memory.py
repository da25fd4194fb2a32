"""How the proxy prompt enters SAM 2: in the place of what its memory attention would remember (decision D-13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samsans.backbones import Sam, Sam2
from samsans.backbones.sam2_network import MEMORY, sine_positions
from samsans.backbones.sam2_video import Proxy
from samsans.errors import InputError
from samsans.types import Embedding, Prompt

if TYPE_CHECKING:
    from samsans.methods.proxy_prompt.config import ProxyPromptConfig


class PromptMemory(nn.Module):
    """Prompt tokens of C channels as memory tokens of 64, none of which is a place in the image.

    Args:
        grid: g of the backbone; there are ``(g / 4)^2`` prompt tokens, row by row.
        channels: C.
        config: ``mem_map``: each token cut in C / 64 that follow each other, or mapped by a learned layer to one.
            ``mem_pos``: what is added to them as keys.
    """

    positions: Tensor

    def __init__(self, grid: int, channels: int, config: ProxyPromptConfig) -> None:
        super().__init__()
        self.parts = channels // MEMORY if config.mem_map == "split" else 1
        self.map = nn.Linear(channels, MEMORY) if config.mem_map == "linear" else nn.Identity()
        positions = torch.zeros((grid // 4) ** 2, MEMORY)
        if config.mem_pos == "sine16":
            positions = sine_positions(grid // 4, MEMORY)
        self.register_buffer("positions", positions.repeat_interleave(self.parts, 0)[:, None], persistent=False)

    def tokens(self, prompts: Tensor) -> Tensor:
        """``(P, T / 16, C)`` prompts to ``(M, P, 64)`` memory tokens; M is T / 16 times C / 64, or T / 16."""
        tokens: Tensor = self.map(prompts)
        return tokens.unflatten(2, (self.parts, MEMORY)).flatten(1, 2).transpose(0, 1)

    def proxy(self, sam2: Sam2, prompts: Tensor, dense: Tensor | None = None) -> Proxy:
        """The prompts ``(N, T / 16, C)`` of N objects in one frame, for a ``Tracker``; ``dense`` ``(N, C, g, g)``.

        They are where a pointer of this very frame would be (decision D-14): of use beside other memories alone, since
        one vector added to all keys changes nothing.
        """
        here = sam2.pointer_positions(torch.zeros(1, device=self.positions.device))
        return Proxy(self.tokens(prompts), self.positions + here, dense=dense)

    def forward(self, sam2: Sam2, embedding: Embedding, prompt: Prompt) -> tuple[Embedding, Prompt]:
        """What SAM 2's decoder is given for P prompts about B still images, all in one memory attention: the prompt is
        all that there is to remember, whatever ``memory_mode`` says.

        Returns an embedding of P "images", each having read its own prompt, and P prompts that say nothing more than
        ``prompt.dense``.  Where B is 1 its high resolution features are shared.
        """
        memory, count = self.tokens(prompt.sparse), len(prompt.sparse)
        seen = sam2.conditioned(embedding, prompt.image_index, memory, self.positions, pointers=len(memory))
        own = torch.arange(count, device=memory.device)
        return seen, Prompt(sam2.no_tokens(count), prompt.dense, own)


def memory_of(backbone: Sam | Sam2, config: ProxyPromptConfig) -> PromptMemory | None:
    """The way into a SAM 2; ``None`` for a SAM, whose decoder reads the prompt itself."""
    if isinstance(backbone, Sam2):
        return PromptMemory(backbone.grid, backbone.channels, config)
    standard = type(config)()
    for name in ("mem_map", "mem_pos", "memory_mode", "gate_by_object_score"):
        value = getattr(config, name)
        if value != getattr(standard, name):
            raise InputError(
                f"model.{name} {value} for {backbone.name}, which has no memory",
                "a SAM 2",
                f"Leave model.{name} at its default, or name a SAM 2 as backbone.name",
            )
    return None
