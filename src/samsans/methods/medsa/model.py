"""Medical SAM Adapter (arXiv 2304.12620): SAM with adapters in its encoder, prompted from the true mask all along.

A yardstick for methods without prompts, as ``prompted`` is: it needs the truth of every image it segments.  Read top
to bottom: encode and prompt, losses, answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import load_backbone
from samsans.errors import InputError
from samsans.methods.classes import one_stage, true_masks
from samsans.methods.medsa.adapters import add_adapters
from samsans.methods.medsa.config import MedsaConfig
from samsans.methods.prompted.prompts import enlarge, every_object, present_objects, truth_prompt
from samsans.methods.thaw import train_decoder
from samsans.ops.losses import dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig

SEEDS = 2**62  # of the prompts of a training step


@dataclass(frozen=True)
class Output:
    """Logits ``(P, S, S)`` float32 of the objects a batch shows, and which: ``present (P, 2)`` int64, image, object."""

    logits: Tensor
    present: Tensor


class Medsa(nn.Module):
    """SAM with two adapters in every block of its encoder; one prompt and one mask for each object that is there.

    Objects are independent and may overlap.  Trained: the adapters; with ``config.decoder`` the mask decoder too, as a
    whole (our decision: the paper puts adapters into it); where the backbone is trained whole, all of it that the
    prompts need.  The rest of SAM is frozen.  Not built, for they are of no use to slices with points or boxes: the
    paper's adapters of depth (its branch for volumes) and its adapters that prompts steer.

    Args:
        backbone: SAM without adapters; modified.
        config: The method's configuration.
    """

    needs = Needs(labels_at_predict=True)

    def __init__(self, backbone: Sam, config: MedsaConfig) -> None:
        super().__init__()
        self.backbone, self.config, self.timer = backbone, config, Timer()
        if not backbone.frozen:
            train_decoder(backbone, "no_mask_embed", *_vectors(config.prompt))
        elif config.decoder:
            train_decoder(backbone)
        add_adapters(backbone, config.ratio, config.scale)

    def forward(self, batch: Batch) -> Output:
        """One mask of each object that ``batch.masks`` shows, by a prompt drawn anew from torch's generator."""
        present = present_objects(batch)
        return self.decode(self.backbone.encode(batch.images), batch, present, int(torch.randint(SEEDS, ())))

    def decode(self, embedding: Embedding, batch: Batch, present: Tensor, seed: int) -> Output:
        """SAM's single mask of each ``present`` object ``(P, 2)``; the names of image and object and ``seed`` decide
        every prompt."""
        side = batch.images.shape[-1]
        if not len(present):
            return Output(embedding.features.new_zeros(0, side, side, dtype=torch.float32), present)
        prompt = truth_prompt(self.backbone, batch, present, self.config.prompt, seed)
        return Output(enlarge(self.backbone.decode(embedding, prompt).logits[:, 0], side), present)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of every pixel plus Dice loss of every object that is there, each averaged (our decision).

        Zero for a batch that shows no object: it has nothing to ask SAM for.
        """
        if not len(output.present):
            nothing = 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)  # a gradient for all, of zeros
            assert isinstance(nothing, Tensor)
            return {"loss": nothing, "bce": nothing, "dice": nothing}
        masks = true_masks(batch)[output.present[:, 0], output.present[:, 1]]
        bce = F.binary_cross_entropy_with_logits(output.logits, masks.float())
        dice = dice_loss(output.logits, masks).mean()
        return {"loss": self.config.bce * bce + self.config.dice * dice, "bce": bce, "dice": dice}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of every object that ``batch.masks`` shows; ``ABSENT`` for the others.

        InputError: a batch without masks.
        """
        present = present_objects(batch)
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        with self.timer("decode"):
            output = self.decode(embedding, batch, present, self.config.seed)
            return every_object(output.logits, present, batch)

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)


def _vectors(prompt: str) -> tuple[str, ...]:
    """The vectors of the prompt encoder that tell a point inside, or the two corners of a box."""
    return ("point_embed.1", "not_a_point_embed") if prompt == "point" else ("point_embed.2", "point_embed.3")


def build(config: RunConfig, objects: tuple[str, ...]) -> Medsa:
    """Medical SAM Adapter as a run's configuration describes it, its adapters drawn from ``config.seed``.

    Raises:
        InputError: LoRA beside the adapters, or an option that cannot be used.
    """
    if config.backbone.train == "lora":
        raise InputError(
            "backbone.train lora for medsa, which has adapters of its own", "none, or all", "Set backbone.train none"
        )
    for name in ("bce", "dice"):
        if getattr(config.model, name) < 0:
            raise InputError(f"model.{name} is {getattr(config.model, name)}", "0 or more")
    backbone = load_backbone(config.backbone, seed=config.seed, family="sam")
    return Medsa(backbone, config.model)
