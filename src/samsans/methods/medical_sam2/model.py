"""Medical SAM 2 (arXiv 2408.00874): annotated images of someone else are the first frames that SAM 2 remembers.

Read top to bottom: templates, reading them, episodes and loss, still images, videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import Sam2, load_backbone, merge_lora
from samsans.backbones.sam2_network import MEMORIES, Reading
from samsans.backbones.sam2_video import ABSENT, Proxy, Tracker
from samsans.errors import InputError
from samsans.methods.classes import one_stage
from samsans.methods.episodes import episode, fingerprint, other_masks, to_tokens, upsample, visible_tokens
from samsans.methods.followers import TrackedVideo
from samsans.methods.medical_sam2.config import BANKS, MedicalSam2Config
from samsans.methods.medical_sam2.sorting import SortedTracker
from samsans.methods.medical_sam2.support import TemplateBank
from samsans.ops.losses import dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, Prompt, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig

Choose = Callable[[Tensor], Sequence[TemplateBank]]
Support = TemplateBank | Sequence[TemplateBank] | Choose


@dataclass(frozen=True)
class Output:
    """Training output.

    logits: ``(targets, N, S, S)``.  iou: ``(targets, N)`` predicted.  scores: ``(targets, N)`` logits of being there.
    """

    logits: Tensor
    iou: Tensor
    scores: Tensor


class MedicalSam2(nn.Module):
    """SAM 2 that remembers support pairs as template frames.

    Templates have the temporal position of frames that were prompted, and pointers one frame old, however far a video
    has come: they are no part of it, and their order says nothing (our decision).

    Args:
        backbone: With LoRA or trained whole; frozen parameters stay frozen.
        config: The method's configuration.
    """

    needs = Needs(supports=True)
    bank_per_image = True  # predict takes one bank for each image of a batch

    def __init__(self, backbone: Sam2, config: MedicalSam2Config) -> None:
        super().__init__()
        if not 1 <= config.size < MEMORIES:
            raise InputError(f"model.size {config.size}", f"1 to {MEMORIES - 1} frames to remember")
        self.backbone, self.config, self.timer = backbone, config, Timer()
        self.views = (config.bank, *(bank for bank in BANKS if bank != config.bank))
        self._fingerprint: str | None = None

    # -- templates: nothing here depends on a target ------------------------------------------------------------------

    def remember(self, embedding: Embedding, masks: Tensor) -> tuple[Tensor, Tensor]:
        """What is remembered of true masks ``(K, N, S, S)``: memories ``(K, N, T, 64)`` and pointers ``(K, N, C)``."""
        k, n = masks.shape[:2]
        given = masks.flatten(0, 1)[:, None].to(embedding.features.dtype)
        visible = masks.flatten(0, 1).flatten(1).any(1)
        image = torch.arange(k, device=masks.device).repeat_interleave(n)
        spatial = self.backbone.remember(embedding.features.index_select(0, image), given, visible)
        reading = self.backbone.read_given(embedding, given, image, slice(0, 1))
        pointers = self.backbone.point_at(reading.tokens[:, 0], visible)
        return spatial.transpose(0, 1).unflatten(0, (k, n)), pointers.unflatten(0, (k, n))

    @torch.no_grad()
    def encode_support(self, batch: Batch) -> TemplateBank:
        """Encode K annotated images once; the bank serves any number of targets and can be saved as a task."""
        if batch.masks is None:
            raise InputError("support images without masks", "a mask for every support image")
        embedding = self.backbone.encode(batch.images)
        spatial, pointers = self.remember(embedding, batch.masks)
        return TemplateBank(
            spatial=spatial.float().contiguous(),
            pointers=pointers.float(),
            keys=to_tokens(embedding.features).float(),
            visible=visible_tokens(batch, self.backbone.grid),
            objects=batch.objects,
            ids=batch.ids,
            weights=self.fingerprint(),
        )

    def finish(self) -> None:
        """The weights are final: merge the adapters into the base for inference.  Training cannot go on."""
        self._fingerprint = self.fingerprint()
        merge_lora(self.backbone)

    def fingerprint(self) -> str:
        """sha256 of the trained weights and of the frozen base they belong to, as they were before merging."""
        return self._fingerprint or fingerprint(self, self.backbone.base_hash)

    def load_support(self, path: str) -> TemplateBank:
        """Read a task file made by these very weights."""
        return TemplateBank.load(path).require(self.fingerprint())

    # -- reading them -------------------------------------------------------------------------------------------------

    def templates(self, spatial: Tensor, pointers: Tensor) -> Proxy:
        """Templates as memory tokens, for ``B`` images one after the other N objects.

        spatial: ``(B, K, N, T, 64)``.  pointers: ``(B, K, N, C)``.  Returns tokens ``(M, B * N, 64)``.
        """
        sam2, k = self.backbone, spatial.shape[1]
        places = spatial.permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
        ages = torch.ones(k, device=pointers.device)
        heads, where = sam2.pointer_tokens(pointers.transpose(0, 1).flatten(1, 2), ages)
        positions = torch.cat([sam2.spatial_positions(0).repeat(k, 1, 1), where.to(places.dtype)])
        return Proxy(torch.cat([places, heads.to(places.dtype)]), positions, places=len(places))

    def read(self, embedding: Embedding, templates: Proxy) -> Reading:
        """What the decoder says of N objects on each of ``B`` images, ``B * N`` prompts, all in one pass."""
        memory, features = templates.tokens, embedding.features
        own = torch.arange(memory.shape[1], device=memory.device)
        image = own // (len(own) // len(features))
        pointers = len(memory) - templates.places
        assert templates.positions is not None
        seen = self.backbone.conditioned(
            embedding, image, memory.to(features.dtype), templates.positions.to(features.dtype), pointers
        )
        empty = Prompt(self.backbone.no_tokens(len(own)), self.backbone.dense_default(), own)
        return self.backbone.read(seen, empty, slice(0, 1))

    # -- episodes -----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Leave-one-out episodes: all other images of the batch are the templates of a target."""
        masks, targets = episode(batch)
        embedding = self.backbone.encode(batch.images)
        return self._read_episode(embedding, masks, targets)

    def _read_episode(self, embedding: Embedding, masks: Tensor, targets: Tensor) -> Output:
        spatial, pointers = self.remember(embedding, masks)
        every = torch.arange(len(masks), device=masks.device)
        others = torch.stack([every[every != target] for target in targets])
        chosen = Embedding(embedding.features[targets], tuple(part[targets] for part in embedding.high_res))
        reading = self.read(chosen, self.templates(spatial[others], pointers[others]))
        shape = (len(targets), masks.shape[1])
        return Output(
            logits=upsample(reading.logits[:, 0].unflatten(0, shape), masks.shape[-1]),
            iou=reading.iou[:, 0].unflatten(0, shape),
            scores=reading.scores.unflatten(0, shape),
        )

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Dice loss and cross-entropy of every pixel, means over objects and targets.

        ``scores`` times what SAM 2 learns to judge itself by: the absolute error of the predicted IoU, of objects that
        are there, and the cross-entropy of their being there.
        """
        masks, targets = episode(batch)
        truth, config = masks[targets], self.config
        parts = {
            "dice": dice_loss(output.logits, truth).mean(),
            "bce": F.binary_cross_entropy_with_logits(output.logits.float(), truth.float()),
        }
        total = parts["dice"] + config.bce * parts["bce"]
        if config.scores:
            there, found = truth.flatten(2).any(2), output.logits.flatten(2) > 0
            shared = (found & truth.flatten(2)).sum(2) / (found | truth.flatten(2)).sum(2).clamp_min(1)
            error = (output.iou.float() - shared).abs() * there
            parts["iou"] = error.sum() / there.sum().clamp_min(1)
            parts["there"] = F.binary_cross_entropy_with_logits(output.scores.float(), there.float())
            total = total + config.scores * (parts["iou"] + parts["there"])
        return {"loss": total, **parts}

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen; none where all of it is."""
        return one_stage(self) if any(p.requires_grad for p in self.parameters()) else ()

    @torch.no_grad()
    def gauges(self, batch: Batch) -> dict[str, float]:
        """Does the answer depend on the masks?  ``|a - b| / |a|`` of the logits when the templates' masks are swapped.

        Masks as of ``other_masks``; nothing where they would be the same.
        """
        masks, targets = episode(batch)
        swapped = other_masks(masks)
        if swapped is None:
            return {}
        embedding = self.backbone.encode(batch.images)
        a, b = (self._read_episode(embedding, shown, targets).logits for shown in (masks, swapped))
        return {"rel_answer": float((a - b).norm() / a.norm().clamp_min(1e-12))}

    def gauge_warning(self, gauges: Mapping[str, float], step: int, warmup: int) -> str | None:
        """A sentence when the answer still ignores the templates' masks after warm-up."""
        heard = gauges["rel_answer"]
        if step <= warmup or heard >= 0.05:
            return None
        return (
            f"the answer hardly depends on the templates' masks (relative change {heard:.3f} at step {step}): train "
            "longer, or raise episodes.synthetic, whose masks follow rules that the templates alone tell"
        )

    # -- still images -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, support: Support | None = None, view: str | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of N objects for every image, each a first frame: it reads templates alone.

        ``support`` is one bank, or one for each image, or what chooses one for each by its features ``(B, C, g, g)``.
        """
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        banks = self._banks(support, embedding.features)
        side = 4 * self.backbone.grid
        logits = torch.empty(len(banks), len(batch.objects), side, side, device=batch.images.device)
        with self.timer("decode"):
            for count in dict.fromkeys(bank.K for bank in banks):
                rows = [i for i, bank in enumerate(banks) if count == bank.K]
                some = Embedding(embedding.features[rows], tuple(part[rows] for part in embedding.high_res))
                logits[rows] = self._still(some, [banks[i] for i in rows])
            return upsample(logits, batch.images.shape[-1])

    def _still(self, embedding: Embedding, banks: Sequence[TemplateBank]) -> Tensor:
        """``(B, N, 4g, 4g)`` float32 logits of images with a bank each, of equally many templates."""
        spatial = torch.stack([bank.spatial for bank in banks])
        reading = self.read(embedding, self.templates(spatial, torch.stack([bank.pointers for bank in banks])))
        logits = reading.logits[:, 0].float()
        if self.config.gate_by_object_score:
            logits = logits.where(reading.scores[:, None, None] > 0, ABSENT)
        return logits.unflatten(0, (len(banks), -1))

    @staticmethod
    def _banks(support: Support | None, features: Tensor) -> Sequence[TemplateBank]:
        """A bank for each image."""
        if support is None:
            raise InputError("Medical SAM 2 was given no support pairs", "a TemplateBank from encode_support")
        chosen = support(features) if callable(support) else support
        return [chosen] * len(features) if isinstance(chosen, TemplateBank) else chosen

    # -- videos -------------------------------------------------------------------------------------------------------

    def follows(self, view: str | None = None) -> bool:
        """Whether frames before are remembered."""
        return (view or self.config.bank) != "none"

    def follow(self, objects: Sequence[str], support: Support | None = None, view: str | None = None) -> TrackedVideo:
        """A video of these objects, not yet begun; ``support`` as for one image, asked anew for every frame.

        Memories follow the object score where it was learnt or published, whether or not answers do.
        """
        config, count = self.config, len(objects)
        judged = config.scores > 0 or not self.backbone.from_scratch
        gate, bank = config.gate_by_object_score, view or config.bank
        gates: dict[str, Any] = {"gate": gate, "gate_memories": gate or judged}
        tracker: Tracker
        if bank == "sorted":
            confidence = config.min_confidence
            tracker = SortedTracker(self.backbone, count, size=config.size, min_confidence=confidence, **gates)
        else:
            frames = config.size if bank == "recent" else 0
            tracker = Tracker(self.backbone, count, frames=frames, multimask=False, **gates)
        told: list[tuple[TemplateBank, Proxy]] = []  # the bank of the frame before, and its tokens

        def tell(batch: Batch, embedding: Embedding, first: bool) -> Mapping[str, Any]:
            one = self._banks(support, embedding.features)[0]
            if not told or told[0][0] is not one:
                told[:] = [(one, self.templates(one.spatial[None], one.pointers[None]))]
            return {"proxy": told[0][1]}

        return TrackedVideo(tracker, tell, self.timer, judged=judged)


def build(config: RunConfig, objects: tuple[str, ...]) -> MedicalSam2:
    """Medical SAM 2 as a run's configuration describes it.

    Adapters are of the encoder and the decoder; the parts that make and read memories are then trained whole, the
    memory attention unless ``lora.memory`` puts adapters into it (our decision).

    Raises:
        InputError: the backbone is no SAM 2.
    """
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam2")
    scores = config.model.scores > 0
    if config.backbone.train == "lora":
        backbone.train_memory(attention=not config.lora.memory, scores=scores)
    elif config.backbone.train == "all":
        backbone.train_whole(memory=True, made=True, scores=scores)
    return MedicalSam2(backbone, config.model)
