"""SAMed (arXiv 2304.13785): adapters in SAM's encoder, one token a class in its decoder, no prompt.

Encode, add the default prompt, decode all classes at once; the loss sees the decoder's own quarter-size maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamTwoWayAttentionBlock

from samsans.backbones import load_backbone, merge_adapters, merge_lora
from samsans.errors import InputError
from samsans.methods.adapted.samed_config import SamedConfig
from samsans.methods.class_decoder import ClassDecoder
from samsans.methods.classes import object_logits, one_stage, refuse_decoder_adapters, true_labels
from samsans.ops.labels import shrink_labels
from samsans.ops.losses import cross_entropy, softmax_dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Needs, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig


class Samed(nn.Module):
    """SAM's encoder and a decoder of K = N + 1 class tokens, background first.

    Trained: what the backbone leaves trainable (its adapters, or all of it), the default prompt and the decoder.  The
    IoU head and the prompt encoder's other parts, which the released code carries along unused, are not built.

    Args:
        backbone: SAM; its decoder is taken over.  With ``config.decoder`` lora it must hold adapters already.
        objects: N.
        config: The method's configuration.
    """

    needs = Needs(exclusive=True)

    def __init__(self, backbone: Sam, objects: int, config: SamedConfig) -> None:
        super().__init__()
        decoder, vector = backbone.take_decoder()
        base = [p for name, p in decoder.transformer.named_parameters() if "lora_" not in name]
        deepen(decoder, config.layers)
        self.config, self.backbone, self.timer = config, backbone, Timer()
        self.default_prompt = nn.Parameter(vector)
        self.decoder = ClassDecoder(decoder, objects + 1)
        if config.decoder == "lora":
            for parameter in base:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """``(B, K, 4g, 4g)`` logits of every class, background first."""
        return self.decode(self.backbone.encode(batch.images).features)

    def decode(self, features: Tensor) -> Tensor:
        """``(B, K, 4g, 4g)`` logits of image features ``(B, C, g, g)``."""
        prompted = features + self.default_prompt[:, None, None]
        return self.decoder(prompted, self.backbone.image_pe).logits

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``ce * cross-entropy + dice * Dice`` against the labels at ``4g`` (nearest, corners aligned)."""
        labels = shrink_labels(true_labels(batch), output.shape[-1])
        ce, dice = cross_entropy(output, labels), softmax_dice_loss(output, labels)
        return {"loss": self.config.ce * ce + self.config.dice * dice, "ce": ce, "dice": dice}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of every object relative to background, bilinear from ``4g``."""
        with self.timer("encode"):
            features = self.backbone.encode(batch.images).features
        with self.timer("decode"):
            return object_logits(self.decode(features), batch.images.shape[-1])

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)

    def finish(self) -> None:
        """The weights are final: merge the adapters into the base for inference.  Training cannot go on."""
        merge_lora(self.backbone)
        merge_adapters(self.decoder)


def deepen(decoder: Any, layers: int) -> None:
    """Append two-way blocks, drawn at random, to ``SamModel.mask_decoder`` until it has ``layers``.

    They stand between SAM's own blocks and the final attention.  (Efficiency table of arXiv 2403.18271: 2, 4 and 6.)
    """
    blocks = decoder.transformer.layers
    if layers < len(blocks):
        raise InputError(
            f"model.layers {layers}", f"at least the {len(blocks)} that SAM's decoder has", "Raise model.layers"
        )
    while len(blocks) < layers:
        blocks.append(SamTwoWayAttentionBlock(decoder.config))


def build(config: RunConfig, objects: tuple[str, ...]) -> Samed:
    """SAMed as a run's configuration describes it, its fresh parts drawn from ``config.seed``."""
    check(config)
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam")
    return Samed(backbone, len(objects), config.model)


def check(config: RunConfig) -> None:
    """Raise ``InputError`` where ``model.decoder`` and the adapters that are asked for contradict each other."""
    adapted = config.backbone.train == "lora" and bool(config.lora.decoder)
    if config.model.decoder == "lora" and not adapted:
        raise InputError(
            f"model.decoder lora with backbone.train {config.backbone.train} and lora.decoder {config.lora.decoder}",
            "adapters in the decoder",
            "Set backbone.train lora and lora.decoder [q,v] (preset small)",
        )
    if config.model.decoder == "trained":
        refuse_decoder_adapters(config)
