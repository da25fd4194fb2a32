"""What the tests of MaskSAM's parts share: a small SAM, numbers, counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samsans.backbones import load_backbone
from samsans.backbones.sam import Sam
from samsans.config import BackboneConfig


@torch.no_grad()
def tiny(**options: Any) -> Sam:
    """A small SAM whose biases and relative positions are not zero, as they are in new ones."""
    backbone = load_backbone(BackboneConfig(**({"name": "tiny", "input_size": 64, "train": "none"} | options)))
    if backbone.from_scratch:
        generator = torch.Generator().manual_seed(7)
        for name, parameter in backbone.model.named_parameters():
            if "rel_pos" in name or name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
    return backbone


def count(*parts: Any) -> int:
    return sum(p.numel() for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters()))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
