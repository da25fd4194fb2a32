"""Which weights of SAM are trained where its single mask is: no trained weight is left without gradient."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam

IDLE = re.compile(r"iou_prediction_head|output_hypernetworks_mlps\.[1-9]")  # of the decoder: no single mask needs them


def train_decoder(sam: Sam, *prompts: str) -> None:
    """Train the mask decoder, and of the prompt encoder the vectors named, e.g. ``no_mask_embed``, ``point_embed.1``.

    All else outside the image encoder is frozen; the encoder stays as it is.
    """
    vectors = {f"prompt_encoder.{name}.weight" for name in prompts}
    for name, parameter in sam.model.named_parameters():
        if name.startswith("mask_decoder."):
            parameter.requires_grad_(not IDLE.search(name))
        elif not name.startswith("vision_encoder."):
            parameter.requires_grad_(name in vectors)
