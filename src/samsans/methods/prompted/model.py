"""SAM prompted from the target's own true mask: a yardstick, not a method for images whose truth is unknown.

Prompts follow section 6 of the supplement of arXiv 2502.03501: a tight box, one random pixel inside the object, or
everything with the proposal that overlaps the truth best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.classes import require_one_object
from samsans.methods.prompted.given import GivenPrompts
from samsans.methods.prompted.prompts import enlarge, every_object, present_objects, truth_prompt, valid_size
from samsans.methods.prompted.proposals import overlap, propose
from samsans.methods.prompted.untrained import ABSENT, Untrained
from samsans.types import Batch, Embedding, Needs

if TYPE_CHECKING:
    from samsans.config import RunConfig


class Prompted(Untrained):
    """A SAM backbone whose prompts come from ``batch.masks``.  Nothing is trained."""

    needs = Needs(labels_at_predict=True)

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of every object that ``batch.masks`` shows; ``ABSENT`` for the others."""
        present, side = present_objects(batch), batch.images.shape[-1]
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        found = batch.images.new_zeros(0, side, side)
        if len(present):
            with self.timer("decode"):
                everything = self.config.prompt == "everything"
                found = (self._everything if everything else self._prompted)(embedding, batch, present)
                found = enlarge(found, side)
        return every_object(found, present, batch)

    def _prompted(self, embedding: Embedding, batch: Batch, present: Tensor) -> Tensor:
        """``(P, 4g, 4g)`` logits of one box or point for each present (image, object), decoded in one batch."""
        config = self.config
        prompt = truth_prompt(self.backbone, batch, present, config.prompt, config.seed, config.box_jitter)
        masks = self.backbone.decode(embedding, prompt, multimask=config.multimask)
        best = masks.iou.argmax(1)
        return masks.logits[torch.arange(len(best), device=best.device), best].float()

    def _everything(self, embedding: Embedding, batch: Batch, present: Tensor) -> Tensor:
        """``(P, 4g, 4g)`` logits of the proposal that overlaps each present (image, object) best."""
        assert batch.masks is not None
        out = []
        for image in present[:, 0].unique().tolist():
            alone = Embedding(embedding.features[image : image + 1])
            proposals = propose(self.backbone, alone, valid_size(batch, image), self.config)
            items = present[present[:, 0] == image, 1]
            if not len(proposals):
                side = 4 * self.backbone.grid
                out.append(proposals.new_full((len(items), side, side), ABSENT))
                continue
            side = proposals.shape[1]
            small = F.adaptive_avg_pool2d(batch.masks[image, items].float(), (side, side))
            out.append(proposals[overlap(proposals, small).argmax(1)])
        return torch.cat(out)


def build(config: RunConfig, objects: tuple[str, ...]) -> Prompted | GivenPrompts:
    """The baseline as a run's configuration describes it; the base stays as it was published.

    Raises:
        InputError: given points with more than one object, or with everything mode.
    """
    from samsans.backbones import load_backbone

    model = config.model
    if model.source == "points" and len(objects) > 1:
        require_one_object(objects, "with model.source points", "points are of one object")
    if model.source == "points" and (model.prompt == "everything" or model.box_jitter):
        raise InputError(
            f"model.source points with model.prompt {model.prompt} and model.box_jitter {model.box_jitter}",
            "prompt point or box, without jitter",
        )
    backbone = load_backbone(config.backbone, seed=config.seed, family="sam")
    backbone.freeze()
    made = GivenPrompts(backbone, model) if model.source == "points" else Prompted(backbone, model)
    return made.eval()
