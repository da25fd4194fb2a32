"""H-SAM on SAM (arXiv 2403.18271): two mask decoders in cascade segment all classes of a slice, without any prompt.

Read top to bottom: encode, stage 1, its prior and gate, stage 2, loss, ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import load_backbone, merge_lora
from samsans.errors import InputError
from samsans.methods.class_decoder import ClassDecoder, ClassMaps
from samsans.methods.classes import central_labels, one_stage, refuse_decoder_adapters, true_labels
from samsans.methods.hsam.cmattn import CMAttn
from samsans.methods.hsam.config import HsamConfig, check
from samsans.methods.hsam.stage2 import Stage2
from samsans.ops.labels import shrink_labels
from samsans.ops.losses import cross_entropy, softmax_dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Needs, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig


@dataclass(frozen=True)
class Output:
    """Training output for ``B`` images and ``K`` classes, background first.

    logits_low: ``(B, K, 4g, 4g)`` of stage 1.  logits_full: ``(B, K, S, S)`` of stage 2.  prior: ``(B, K, g * g)``,
    the class probabilities of stage 1 that enter stage 2.  gate: ``(B, 1, g, g)`` on the image embedding.
    With one stage only the first is there.
    """

    logits_low: Tensor
    logits_full: Tensor | None = None
    prior: Tensor | None = None
    gate: Tensor | None = None


class HSam(nn.Module):
    """H-SAM on a SAM backbone, whose mask decoder becomes stage 1.

    Args:
        backbone: SAM, with LoRA in its encoder, trained whole, or frozen; frozen parameters stay frozen.
        config: The method's configuration; every ablation is one of its values.
        objects: N; with the background there are ``K = N + 1`` classes.
    """

    needs = Needs(exclusive=True)

    def __init__(self, backbone: Sam, config: HsamConfig, objects: int) -> None:
        super().__init__()
        sizes = backbone.model.config.mask_decoder_config
        classes, width, mode = objects + 1, backbone.channels, config.cmattn.mode
        self.config, self.backbone, self.timer = config, backbone, Timer()
        self.views = ("stage1",) if config.stages == 1 else ("stage1", "stage2", "logit_mean", "prob_mean")
        self.own_view = "stage1" if config.stages == 1 else config.ensemble
        self.epoch = 0
        decoder, dense = backbone.take_decoder()
        self.stage1 = ClassDecoder(decoder, classes, config.order)
        self.dense = nn.Parameter(dense)
        self.cmattn = self.stage2 = None
        if config.stages == 2 and mode == "paper":
            cmattn = config.cmattn
            self.cmattn = CMAttn(
                backbone.grid**2,
                classes,
                width,
                hidden=sizes.mlp_dim,
                normalise=cmattn.normalise,
                noise=cmattn.noise,
                dropout=cmattn.dropout,
                gate=cmattn.gate,
            )
        if config.stages == 2:
            self.stage2 = Stage2(
                classes,
                width=width,
                heads=sizes.num_attention_heads,
                mlp=sizes.mlp_dim,
                patch=backbone.patch,
                mask_attention=config.mask_attention,
                dropout=config.mask_dropout,
                hierarchical=config.pixel_decoder == "hierarchical",
            )

    # -- the network --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Logits of both stages.  In training mode the masks also place the class-balanced noise of CMAttn."""
        return self.decode(self.backbone.encode(batch.images).features, batch.masks)

    def decode(self, features: Tensor, masks: Tensor | None = None) -> Output:
        """Both stages on image features ``(B, C, g, g)``; ``masks`` ``(B, N, S, S)`` bool, needed in training mode."""
        first = self.stage1(self._prompted(features), self.backbone.image_pe)
        if self.stage2 is None:
            return Output(first.logits)
        prior = class_prior(first.logits, self.backbone.grid)
        gate = self.gate(first, masks)
        enhanced = self._prompted(self._noisy(features))
        enhanced = enhanced + enhanced * gate
        logits = self.stage2(enhanced, self.backbone.image_pe, prior, first.upscaled)
        return Output(first.logits, _enlarged(logits, self.backbone.input_size), prior, gate)

    def _prompted(self, features: Tensor) -> Tensor:
        """The default prompt: one learned vector at every position, the same one for both stages."""
        return features + self.dense[:, None, None]

    def gate(self, first: ClassMaps, masks: Tensor | None = None) -> Tensor:
        """CMAttn's gate ``(B, 1, g, g)`` on the embedding: 1 everywhere as ``released``, 0 where it is off."""
        grid = self.backbone.grid
        if self.cmattn is None:
            value = 1.0 if self.config.cmattn.mode == "released" else 0.0
            return first.image.new_full((len(first.image), 1, grid, grid), value)
        labels = None
        if masks is not None and self.training:
            labels = central_labels(masks, grid).flatten(1)
        return self.cmattn(mask_feature(first), labels).unflatten(1, (1, grid, grid))

    def _noisy(self, features: Tensor) -> Tensor:
        """Stage 2's embedding in training: Gaussian noise relative to the range of its values (the released code)."""
        if not self.training or not self.config.embed_noise:
            return features
        spread = self.config.embed_noise * (features.max() - features.min())
        return features + spread * torch.randn_like(features)

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """``0.1 CE + 0.9 Dice`` of each stage, weighted by epoch; stage 1 learns from labels of its own size."""
        labels = true_labels(batch)
        stage1 = self._stage_loss(output.logits_low, shrink_labels(labels, output.logits_low.shape[-1]))
        if output.logits_full is None:
            return {"loss": stage1, "stage1": stage1}
        stage2 = self._stage_loss(output.logits_full, labels)
        share = stage2_weight(self.epoch, self.config.stage1_start, self.config.stage1_decay)
        return {"loss": (1 - share) * stage1 + share * stage2, "stage1": stage1, "stage2": stage2}

    def _stage_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.config.ce * cross_entropy(logits, labels) + self.config.dice * softmax_dice_loss(logits, labels)

    def observe(self, pixels: Tensor) -> None:
        """How many training pixels are background and each object, ``(K,)`` int64: CMAttn's noise depends on them."""
        if self.cmattn is not None:
            self.cmattn.observe(pixels)

    def schedule(self, epoch: float, used: float) -> None:
        """The epoch that the stage weights belong to; they are constant inside an epoch."""
        passed = epoch if self.config.weight_epochs is None else used * self.config.weight_epochs
        self.epoch = math.floor(passed)

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)

    def finish(self) -> None:
        """The weights are final: merge the adapters into the base for inference.  Training cannot go on."""
        merge_lora(self.backbone)

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None, view: str | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits relative to background.

        view: One of ``views`` instead of the configured ensemble: a stage alone, or the mean of both stages' logits or
            probabilities.

        Raises:
            InputError: there is no such view.
        """
        if view is not None and view not in self.views:
            raise InputError(f"no view {view!r}", f"one of {', '.join(self.views)}")
        with self.timer("encode"):
            features = self.backbone.encode(batch.images).features
        with self.timer("decode"):
            output = self.decode(features)
            logits = self.answer(output, view or self.config.ensemble)
            return logits[:, 1:] - logits[:, :1]

    def answer(self, output: Output, view: str) -> Tensor:
        """``(B, K, S, S)`` float32 logits of a view; with one stage always its own."""
        second = output.logits_full
        if view == "stage2" and second is not None:
            return second.float()
        first = _enlarged(output.logits_low.float(), self.backbone.input_size)
        if view == "stage1" or second is None:
            return first
        if view == "logit_mean":
            return (first + second.float()) / 2
        return torch.logaddexp(first.log_softmax(1), second.float().log_softmax(1)) - math.log(2)


def mask_feature(first: ClassMaps) -> Tensor:
    """``P``, products of stage 1's final class tokens and image features: ``(B, K, T)``, in float32 always."""
    with torch.autocast(first.image.device.type, enabled=False):
        return first.tokens.float() @ first.image.float().mT


def class_prior(logits: Tensor, grid: int) -> Tensor:
    """``M``, class probabilities at the positions: ``(B, K, 4g, 4g)`` logits, shrunk, softmax: ``(B, K, g * g)``."""
    small = F.interpolate(logits.float(), (grid, grid), mode="bilinear", align_corners=False)
    return small.softmax(1).flatten(2)


def stage2_weight(epoch: int, stage1_start: float = 0.4, decay: float = 0.99) -> float:
    """Weight of stage 2 in the loss, ``(1 - start) ** (decay ** epoch)``; stage 1 has the rest."""
    return float((1 - stage1_start) ** (decay**epoch))


def _enlarged(logits: Tensor, side: int) -> Tensor:
    """Bilinear; nothing is done at that size."""
    if logits.shape[-1] == side:
        return logits
    return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


def build(config: RunConfig, objects: tuple[str, ...]) -> HSam:
    """H-SAM as a run's configuration describes it, its fresh parts drawn from ``config.seed``."""
    check(config.model)
    refuse_decoder_adapters(config)
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam")
    return HSam(backbone, config.model, len(objects))
