"""The two methods called AutoSAM: SAM is frozen, and what replaces the prompt is learned.

``AutoSam`` (Shaharabany et al., arXiv 2306.06370) draws a dense prompt from the image for each object; SAM answers.
``AutoSamClasses`` (Hu, Xu and Shi, arXiv 2306.13731) puts a head of its own on the embedding; classes exclude each
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import load_backbone, merge_lora
from samsans.methods.adapted.class_heads import CnnHead, TokenHead
from samsans.methods.adapted.prompt_network import PromptNetwork
from samsans.methods.classes import (
    central_labels,
    foreground_dice_loss,
    object_logits,
    one_stage,
    refuse_decoder_adapters,
    true_masks,
)
from samsans.ops.losses import cross_entropy, dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, Prompt, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig


class AutoSam(nn.Module):
    """A network draws SAM's dense prompt from the image, one for each object; the sparse prompt is empty.

    Objects are independent and may overlap.  SAM stays frozen, or as the backbone leaves it (adapters; or all of it).
    A mask is SAM's single mask through a sigmoid; the original stretches every map to [0, 1] instead, which shows an
    object on every image (our decision).

    Args:
        backbone: SAM.
        objects: N.
        width: Of the prompt network.
    """

    needs = Needs()

    def __init__(self, backbone: Sam, objects: int, width: int) -> None:
        super().__init__()
        self.backbone, self.timer = backbone, Timer()
        self.prompts = PromptNetwork(backbone.channels, objects, width, backbone.patch)

    def forward(self, batch: Batch) -> Tensor:
        """``(B, N, S, S)`` float32 logits."""
        return self.decode(self.backbone.encode(batch.images), self.prompts(batch.images), batch.images.shape[-1])

    def decode(self, embedding: Embedding, dense: Tensor, side: int) -> Tensor:
        """``(B, N, side, side)`` float32 logits of dense prompts ``(B, N, C, g, g)``, all decoded in one batch."""
        count, objects = dense.shape[:2]
        empty = embedding.features.new_zeros(count * objects, 0, self.backbone.channels)
        image = torch.arange(count, device=dense.device).repeat_interleave(objects)
        logits = self.backbone.decode(embedding, Prompt(empty, dense.flatten(0, 1), image)).logits
        logits = logits.float().unflatten(0, (count, objects))[:, :, 0]
        return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of every pixel plus Dice loss of every object and image, each averaged."""
        masks = true_masks(batch)
        bce = F.binary_cross_entropy_with_logits(output, masks.to(output.dtype))
        dice = dice_loss(output, masks).mean()
        return {"loss": bce + dice, "bce": bce, "dice": dice}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of every object, bilinear from ``4g``."""
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        with self.timer("prompt"):
            dense = self.prompts(batch.images)
        with self.timer("decode"):
            return self.decode(embedding, dense, batch.images.shape[-1])

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)

    def finish(self) -> None:
        """The weights are final: merge adapters, where there are any, into the base for inference."""
        merge_lora(self.backbone)


class AutoSamClasses(nn.Module):
    """A head on SAM's embedding that maps every class, background included.

    Args:
        backbone: SAM; its decoder is taken over.
        objects: N; the head maps ``K = N + 1`` classes.
        head: class_tokens or cnn_head.
    """

    needs = Needs(exclusive=True)

    def __init__(self, backbone: Sam, objects: int, head: str) -> None:
        super().__init__()
        decoder, _ = backbone.take_decoder()
        self.backbone, self.timer = backbone, Timer()
        self.head = (
            TokenHead(decoder, objects + 1) if head == "class_tokens" else CnnHead(backbone.channels, objects + 1)
        )

    def forward(self, batch: Batch) -> Tensor:
        """``(B, K, 4g, 4g)`` logits of every class, background first."""
        return self.head(self.backbone.encode(batch.images).features)

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy plus Dice loss of the objects at ``4g``, the size of the maps.

        The original compares at the size of its pictures before they are enlarged for SAM: 256, enlarged to 1024, where
        ``4g`` is 256 too.
        """
        labels = central_labels(true_masks(batch), output.shape[-1])
        ce, dice = cross_entropy(output, labels), foreground_dice_loss(output, labels)
        return {"loss": ce + dice, "ce": ce, "dice": dice}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of every object relative to background, bilinear from ``4g``."""
        with self.timer("encode"):
            features = self.backbone.encode(batch.images).features
        with self.timer("decode"):
            return object_logits(self.head(features), batch.images.shape[-1])

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)

    def finish(self) -> None:
        """The weights are final: merge adapters, where there are any, into the base for inference."""
        merge_lora(self.backbone)


def build(config: RunConfig, objects: tuple[str, ...]) -> AutoSam | AutoSamClasses:
    """The AutoSAM that ``config.model.prompt`` names, its fresh parts drawn from ``config.seed``."""
    dense = config.model.prompt == "dense"
    if not dense:
        refuse_decoder_adapters(config)
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam")
    if config.backbone.train == "all" and dense:
        backbone.train_whole(default_prompt=False)
    if dense:
        return AutoSam(backbone, len(objects), config.model.width)
    return AutoSamClasses(backbone, len(objects), config.model.prompt)
