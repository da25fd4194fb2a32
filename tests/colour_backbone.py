"""A promptable backbone that can be understood: what it sees are colours, and a click means what has that colour."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from samsans.types import Embedding, Masks, Prompt


class Colours:
    """Features are mean colours; a click answers with what has its colour, or with nothing (``blind``)."""

    grid, patch, channels, input_size, base_hash = 8, 8, 3, 64, "0"

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind
        self.asked: list[dict[str, torch.Tensor]] = []

    def encode(self, images: torch.Tensor) -> Embedding:
        return Embedding(F.adaptive_avg_pool2d(images, 8))

    def embed_prompts(self, image_index: torch.Tensor, **prompts: torch.Tensor) -> Prompt:
        self.asked.append(prompts)
        return Prompt(prompts["points"], torch.zeros(1), image_index)

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool = False, **_: Any) -> Masks:
        features = F.normalize(embedding.features[prompt.image_index], dim=1)
        x, y = (prompt.sparse[:, 0] // 8).long().unbind(1)
        clicked = features[torch.arange(len(x)), :, y, x]
        alike = torch.einsum("pchw,pc->phw", features, clicked)
        logits = F.interpolate((alike - 0.5)[:, None], (32, 32)) * 8
        logits = -logits.abs() if self.blind else logits
        wrong = torch.ones_like(logits)
        iou = torch.tensor([0.1, 0.9, 0.2]).expand(len(x), 3)
        return Masks(torch.cat([wrong, logits, wrong], 1), iou) if multimask else Masks(logits, iou[:, 1:2])


def painted(red: tuple[int, int], green: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """``(3, 64, 64)`` blue with a red and a green square of 16 px at those corners, and their masks ``(2, 64, 64)``."""
    image, masks = torch.zeros(3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    image[2] = 1
    for item, (y, x) in enumerate((red, green)):
        image[:, y : y + 16, x : x + 16] = torch.eye(3)[item][:, None, None]
        masks[item, y : y + 16, x : x + 16] = True
    return image, masks
