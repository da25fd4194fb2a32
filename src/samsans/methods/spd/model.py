"""SPD on SAM (arXiv 2604.23314): a saliency prior decides which points of a volume's slices SAM is shown.

Read top to bottom: encode, judge, distil, decode; losses of the two stages; answers; back to plain SAM.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import drop_lora, load_backbone, merge_lora
from samsans.backbones.adapters import base_state, has_lora
from samsans.errors import InputError
from samsans.methods.classes import refuse_decoder_adapters, require_one_object, true_masks
from samsans.methods.spd import losses
from samsans.methods.spd.config import LOW_TAU, SpdConfig, check
from samsans.methods.spd.distiller import Distiller
from samsans.methods.spd.head import SaliencyHead
from samsans.methods.thaw import train_decoder
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, ParamGroup, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig

SALIENCY, DECODER, TUNING = "saliency", "decoder", "tuning"  # names of the stages
ABSENT = -20.0  # logit everywhere of a slice that is not decoded: no prompt, no object


@dataclass(frozen=True)
class Output:
    """Logits ``(D, S, S)`` float32 of some images of a batch, and which: ``decoded (D,)`` int64."""

    logits: Tensor
    decoded: Tensor


class Spd(nn.Module):
    """SAM, a saliency head on its features, and points distilled by it; for one object.

    In its first stage it answers with the saliency; ``prompted`` tells.  With ``config.distill`` none there is no head
    and no first stage.

    Stage II trains SAM's mask decoder, 4,058,340 parameters at ViT-B.  Of these the IoU head (132,612) and the
    hypernetworks of the three masks that are not asked for (419,424) never have a gradient; they are left out of the
    optimiser, where a distributed run would wait for them.

    Args:
        backbone: SAM, with LoRA in its encoder, trained whole (then its prompt encoder is too), or frozen.
        config: The method's configuration.
    """

    needs = Needs(points=True)
    prompted: Tensor  # () bool

    def __init__(self, backbone: Sam, config: SpdConfig) -> None:
        super().__init__()
        self.backbone, self.config, self.timer = backbone, config, Timer()
        whole = not backbone.frozen
        train_decoder(backbone, *(_vectors(config.rejected_as_negative) if whole else ()))
        self.head: SaliencyHead | None = None
        if config.distill != "none":
            self.head = SaliencyHead(backbone.channels, config.head, config.head_bias)
        self.distiller = Distiller(config, backbone.input_size)
        self.register_buffer("prompted", torch.tensor(self.head is None))
        self._original = {  # what training changes of SAM, as it was
            name: value.clone() for name, value in base_state(backbone).items() if whole or "mask_decoder." in name
        }

    # -- the network --------------------------------------------------------------------------------------------------

    @property
    def frozen_prior(self) -> bool:
        """Whether encoder, adapters and head are those of a finished first stage."""
        return self.head is not None and bool(self.prompted)

    @property
    def reach(self) -> int:
        """How many slices away a point may lie that a slice is prompted with."""
        return self.config.neighbours if self.config.distill == "context" else 0

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, g, g)`` of images ``(B, 3, S, S)``; without gradient once the prior is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_prior):
            return self.backbone.encode(images).features

    def judge(self, features: Tensor) -> Tensor:
        """Saliency logits ``(B, 4g, 4g)`` float32 of features.  InputError: ``config.distill`` is none."""
        if self.head is None:
            raise InputError("saliency with model.distill none", "distill local or context")
        saliency: Tensor = self.head(features)
        return saliency

    @torch.no_grad()
    def saliency(self, batch: Batch) -> Tensor:
        """``(B, 4g, 4g)`` float32 logits of the saliency, to be kept at this size.  InputError: no head."""
        with self.timer("encode"):
            features = self.features(batch.images)
        with self.timer("prompt"):
            return self.judge(features)

    def distil(self, logits: np.ndarray | None, points: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of each of a volume's T slices the points ``(K, 3)`` (x, y, label) that it is to be decoded with.

        logits: ``(T, 4g, 4g)`` as of ``saliency``; unused (``None``) with ``distill`` none.  points: those given, in
        model pixels, ``(K, 3)`` of each slice.
        """
        return self.distiller(logits, points)

    def decode(self, features: Tensor, points: Sequence[Tensor]) -> Output:
        """Logits of the images that are to be decoded, each with its own points; images of equally many in one call.

        More points than there are would not be neutral, so nothing is padded (decision D11).  Images without any are
        decoded (without prompt) with ``config.empty`` no_prompt alone.

        features: ``(B, C, g, g)``.  points: of each ``(K, 3)`` x, y, label.
        """
        buckets: dict[int, list[int]] = {}
        for i, own in enumerate(points):
            if len(own) or self.config.empty == "no_prompt":
                buckets.setdefault(len(own), []).append(i)
        logits, decoded = [], []
        for count, images in sorted(buckets.items()):
            index = torch.tensor(images, device=features.device)
            places = torch.stack([points[i] for i in images]) if count else None
            prompt = self.backbone.embed_prompts(
                index,
                points=None if places is None else places[..., :2],
                point_labels=None if places is None else places[..., 2].long(),
            )
            logits.append(self.backbone.decode(Embedding(features), prompt).logits)
            decoded += images
        small = (
            torch.cat(logits) if logits else features.new_zeros(0, 1, 4 * self.backbone.grid, 4 * self.backbone.grid)
        )
        return Output(self._enlarged(small[:, 0]), torch.tensor(decoded, dtype=torch.int64, device=features.device))

    def _enlarged(self, logits: Tensor) -> Tensor:
        """``(D, 4g, 4g)`` to ``(D, S, S)`` float32, bilinear."""
        side = self.backbone.input_size
        if not len(logits):
            return logits.float().new_zeros(0, side, side)
        return F.interpolate(logits.float()[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]

    # -- training -----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """The saliency of all images, or what the points of the batch make of those that are decoded.

        Every image is encoded once, whatever the number of pairs it is in.
        """
        features = self.features(batch.images)
        if self.prompted:
            return self.decode(features, given_points(batch))
        everything = torch.arange(len(features), device=features.device)
        return Output(self._enlarged(self.judge(features)), everything)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Dice and focal loss of what was decoded; in pairs also ``psc`` times pairwise slice consistency.

        Slices without points are not decoded when predicting either and teach nothing (decision D23); ``empty`` and
        ``empty_object`` are the shares of the batch's slices without points, and without points but with an object.
        """
        config, truth = self.config, true_masks(batch)[:, 0]
        if not len(output.decoded):
            dice = focal = output.logits.new_zeros(())
        else:
            dice, focal = losses.segmentation_terms(output.logits, truth[output.decoded])
        total, terms = config.dice * dice + config.focal * focal, {"dice": dice, "focal": focal}
        if self.prompted:
            if config.psc > 0 and config.psc_direction != "none" and batch.following is not None:
                terms["psc"] = self._consistency(output, batch.following, truth)
                total = total + config.psc * terms["psc"]
            silent = torch.tensor([not len(own) for own in given_points(batch)], device=truth.device)
            terms["empty"] = silent.float().mean()
            terms["empty_object"] = (silent & truth.flatten(1).any(1)).float().mean()
            if silent.all():
                total = total + self._nothing()
        return {"loss": total, **terms}

    def _consistency(self, output: Output, following: Tensor, truth: Tensor) -> Tensor:
        """Mean over the pairs whose slices are both decoded; 0 where there is none."""
        place = following.new_full((len(following),), -1)
        place[output.decoded] = torch.arange(len(output.decoded), device=place.device)
        current, after = losses.pairs(following, place >= 0)
        if self.config.psc_skip_empty:
            shown = truth.flatten(1).any(1)
            some = shown[current] | shown[after]
            current, after = current[some], after[some]
        if not len(current):
            return output.logits.new_zeros(())
        masks = output.logits.sigmoid()
        return losses.consistency(
            masks[place[current]], masks[place[after]], self.config.psc_direction, self.config.psc_stop_grad
        ).mean()

    def _nothing(self) -> Tensor:
        """Zero, with a gradient of zero for all that is trained: a batch without points is still a step."""
        return torch.stack([0 * p.sum() for p in self.parameters() if p.requires_grad]).sum()

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """The prior (encoder or its adapters, and head), then, all of that frozen, the mask decoder.

        Where the encoder is trained whole, the second stage also trains the prompt encoder (our decision: its points
        are random there).  With ``distill`` none there is one stage: encoder and decoder together.
        """
        trained = {name: p for name, p in self.backbone.model.named_parameters() if p.requires_grad}
        encoder = tuple(p for name, p in trained.items() if name.startswith("vision_encoder."))
        decoder = tuple(p for name, p in trained.items() if not name.startswith("vision_encoder."))
        if self.head is None:
            return [Stage(TUNING, (ParamGroup(encoder + decoder),), batches="pairs")]
        model = self.config
        return [
            Stage(SALIENCY, (ParamGroup((*encoder, *self.head.parameters())),), 1 - model.stage2_share),
            Stage(DECODER, (ParamGroup(decoder),), model.stage2_share, begins=model.stage2_from, batches="pairs"),
        ]

    def begin(self, stage: Stage, augmented: bool) -> None:
        """A stage begins, or goes on after a resume; its first weights are loaded."""
        self.prompted.fill_(stage.name != SALIENCY)
        self.distiller.counts.clear()
        self.train(self.training)

    def train(self, mode: bool = True) -> Spd:
        """Training mode; the prior stays in evaluation mode once it is frozen: it judges without dropout."""
        super().train(mode)
        if self.frozen_prior and self.head is not None:
            self.backbone.eval()
            self.head.eval()
        return self

    @torch.no_grad()
    def gauges(self, batch: Batch) -> dict[str, float]:
        """Shares of the distilled slices (see ``Distiller.counts``), and how loose the prior is.

        ``prior_recall``: the share of the object where the saliency exceeds tau; ``prior_area``: size of that region in
        sizes of the object.
        """
        counts = self.distiller.counts
        gauges = {}
        for name, whole in (("empty", "slices"), ("fallback", "empty"), ("capped", "slices"), ("silenced", "prompted")):
            if counts[whole]:
                gauges[name] = counts[name] / counts[whole]
        if self.head is not None and batch.masks is not None and batch.masks.any():
            truth = batch.masks[:, 0]
            region = self._enlarged(self.judge(self.features(batch.images))).sigmoid() > self.config.tau
            gauges["prior_recall"] = float((region & truth).sum() / truth.sum())
            gauges["prior_area"] = float(region.sum() / truth.sum())
        return gauges

    def gauge_warning(self, gauges: Mapping[str, float], step: int, warmup: int) -> str | None:
        """A sentence where the prior turns almost everything down."""
        if gauges.get("silenced", 0.0) <= 0.9:
            return None
        return (
            f"the saliency turns down all points of {gauges['silenced']:.0%} of the slices that have some: lower "
            "model.tau, or learn the prior for longer (train.epochs, a smaller model.stage2_share)"
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, 1, S, S)`` float32 logits: of the points of the batch as they are; in stage I, of the saliency.

        ``ABSENT`` everywhere in images that are not decoded.  InputError: a batch without points.
        """
        with self.timer("encode"):
            features = self.features(batch.images)
        if not self.prompted:
            with self.timer("prompt"):
                return self._enlarged(self.judge(features))[:, None]
        with self.timer("decode"):
            return self.answer(features, given_points(batch))

    @torch.no_grad()
    def answer(self, features: Tensor, points: Sequence[Tensor]) -> Tensor:
        """``(B, 1, S, S)`` float32 logits of features ``(B, C, g, g)`` and the points ``(K, 3)`` of each."""
        output, side = self.decode(features, points), self.backbone.input_size
        logits = output.logits.new_full((len(features), 1, side, side), ABSENT)
        logits[output.decoded, 0] = output.logits
        return logits

    def finish(self) -> None:
        """The weights are final: merge the adapters into the base for inference.  Training cannot go on."""
        if has_lora(self.backbone):
            now = base_state(self.backbone)
            self._original |= {name: value.cpu() for name, value in now.items() if ".qkv." in name}
        merge_lora(self.backbone)

    @torch.no_grad()
    def restore_sam(self) -> Sam:
        """Turn the backbone into the SAM it was, bit for bit, and return it: no adapters, its own decoder.

        Then the method shows its points to plain SAM; the saliency head no longer fits.  Also after ``finish``.
        """
        drop_lora(self.backbone)
        self.backbone.model.load_state_dict(self._original, strict=False)
        self.backbone.freeze()
        return self.backbone


def given_points(batch: Batch) -> tuple[Tensor, ...]:
    """The points ``(K, 3)`` of each image.  InputError: the batch has none."""
    if batch.points is None:
        raise InputError(
            f"no points for {', '.join(batch.ids[:3])}", "points of every image (none on some of them is fine)"
        )
    return batch.points


def _vectors(negatives: bool) -> tuple[str, ...]:
    """The vectors of the prompt encoder that prompts of points are made with."""
    return ("no_mask_embed", "not_a_point_embed", "point_embed.1", *(("point_embed.0",) if negatives else ()))


def build(config: RunConfig, objects: tuple[str, ...]) -> Spd:
    """SPD as a run's configuration describes it, its fresh parts drawn from ``config.seed``.

    Raises:
        InputError: more than one object, or an option that cannot be used.
    """
    require_one_object(objects, "for spd", "points are of one object")
    check(config.model)
    refuse_decoder_adapters(config)
    if config.model.distill != "none" and config.model.tau < LOW_TAU:
        warnings.warn(
            f"model.tau {config.model.tau} is below {LOW_TAU}: the saliency of background rests at 0.1 to 0.2, so that "
            "such a threshold may let every point pass",
            stacklevel=2,
        )
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam")
    return Spd(backbone, config.model)
