"""Proxy Prompt on SAM and SAM 2 (arXiv 2502.03501): an annotated image of someone else becomes the prompt.

Read top to bottom: encode, context (step 1 and 2), selective read-out (step 3), colorization, decode, loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import Sam, Sam2, load_backbone, merge_lora
from samsans.backbones.sam2_video import ABSENT, Tracker
from samsans.errors import InputError
from samsans.methods.episodes import episode, fingerprint, other_masks, to_tokens, upsample, visible_tokens
from samsans.methods.followers import TrackedVideo
from samsans.methods.proxy_prompt.bridge import Bridge
from samsans.methods.proxy_prompt.ccm import Ccm
from samsans.methods.proxy_prompt.config import MODES, ProxyPromptConfig
from samsans.methods.proxy_prompt.context import context_encoder_of
from samsans.methods.proxy_prompt.memory import memory_of
from samsans.methods.proxy_prompt.selective import mean_readout, selective_readout
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.ops.losses import area_loss, dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, ParamGroup, Prompt, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig

Choose = Callable[[Tensor], Sequence[SupportBank]]
Support = SupportBank | Sequence[SupportBank] | Choose

CELLS = 4
"""Mask cells a side of a token that the direct path reads: the resolution of the decoder's output."""


@dataclass(frozen=True)
class Output:
    """Training output.

    logits: ``(targets, N, S, S)``.  prompts: ``(targets, N, T / 16, C)``.  read: ``(targets, N, 4g, 4g)`` in [0, 1],
    the support masks as the selective map reads them for each target; only on the direct path.
    """

    logits: Tensor
    prompts: Tensor
    read: Tensor | None = None


class ProxyPrompt(nn.Module):
    """Proxy Prompt Generator on a SAM or SAM 2 backbone.

    Args:
        backbone: With LoRA or trained whole; frozen parameters stay frozen.
        config: The method's configuration; every ablation is one of its values.
    """

    needs = Needs(supports=True)
    bank_per_image = True  # predict takes one bank for each image of a batch

    def __init__(self, backbone: Sam | Sam2, config: ProxyPromptConfig) -> None:
        super().__init__()
        grid, channels, csm, ccm = backbone.grid, backbone.channels, config.csm, config.ccm
        if grid % 4:
            raise InputError(
                f"input side {backbone.input_size} gives a {grid} x {grid} grid",
                f"a grid that halves twice: an input side that is a multiple of {4 * backbone.patch}",
            )
        self.config, self.backbone, self.timer = config, backbone, Timer()
        self._fingerprint: str | None = None
        self.context_encoder = context_encoder_of(config, grid, backbone.patch)
        self.bridge = Bridge(
            channels,
            int(self.context_encoder.out_channels),  # type: ignore[arg-type]
            enabled=csm.bridge,
            residual=csm.cbam_residual,
            reduction=csm.reduction,
            scope=csm.cbam_scope,
            folded_objects=csm.folded_objects,
        )
        self.ccm = Ccm(
            grid,
            channels,
            enabled=ccm.enabled,
            projection=ccm.projection,
            proj_init=ccm.proj_init,
            proj_only=ccm.proj_only,
            heads=ccm.heads,
            ffn=ccm.ffn,
        )
        self.direct = nn.Conv2d(channels + CELLS * CELLS, channels, 1) if config.direct else None
        self.memory = memory_of(backbone, config)
        self.views: tuple[str, ...] = () if self.memory is None else MODES
        self.own_view = None if self.memory is None else config.memory_mode

    # -- supports: nothing here depends on a target -------------------------------------------------------------------

    def context(self, images: Tensor, masks: Tensor, features: Tensor) -> Tensor:
        """What each support mask means, ``Aagg`` (CSM steps 1 and 2).

        Args:
            images: ``(K, 3, S, S)`` float32 normalised.
            masks: ``(K, N, S, S)`` bool or float in [0, 1].
            features: ``(K, C, g, g)`` encoder features of the images.

        Returns:
            ``(K, N, C, g, g)``.
        """
        csm = self.config.csm
        k, n = masks.shape[:2]
        pictures = (images * csm.image_gain).unsqueeze(1).expand(-1, n, -1, -1, -1)
        pairs = torch.cat([pictures, masks.unsqueeze(2).to(images.dtype) * csm.mask_gain], dim=2)
        context = self.context_encoder(pairs.flatten(0, 1)).unflatten(0, (k, n))
        return self.bridge(features * csm.fsup_gain, context)

    @torch.no_grad()
    def encode_support(self, batch: Batch) -> SupportBank:
        """Encode K annotated images once; the bank serves any number of targets and can be saved as a task."""
        if batch.masks is None:
            raise InputError("support images without masks", "a mask for every support image")
        features = self.backbone.encode(batch.images).features
        values = self.context(batch.images, batch.masks, features)
        return SupportBank(
            keys=to_tokens(features).float(),
            values=self._values(values, batch.masks).float(),
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

    def load_support(self, path: str) -> SupportBank:
        """Read a task file made by these very weights."""
        return SupportBank.load(path).require(self.fingerprint())

    # -- targets ------------------------------------------------------------------------------------------------------

    def prompt(
        self,
        features: Tensor,
        keys: Tensor,
        values: Tensor,
        exclude: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The proxy prompt of every target and object (CSM step 3 and CCM).

        Args:
            features: ``(B, C, g, g)`` features of the targets.
            keys: ``(K, T, C)`` support features.
            values: ``(K, T, N, V)`` support values; V is C, more on the direct path.
            exclude: ``(B,)`` the pair each target must not read.
            visible: ``(K, T)`` bool, support tokens that are image and not padding.

        Returns:
            ``(B * N, T / 16, C)`` prompt tokens and ``(B * N, T, V)`` context they were made from.
        """
        n = values.shape[2]
        flat = values.flatten(2)
        query = to_tokens(features)
        if self.config.csm.selective:
            context = selective_readout(query, keys, flat, exclude, visible)
        else:
            context = mean_readout(flat, len(query), exclude)
        return self.color(features, context, n)

    def color(self, features: Tensor, context: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``prompt`` of a context ``(B, T, N * V)`` of N objects that was read already (CCM)."""
        query = to_tokens(features)
        context = context.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1).to(query.dtype)
        return self.ccm(query, context[..., : self.backbone.channels]), context

    def decode(self, embedding: Embedding, tokens: Tensor, context: Tensor, gate: bool = False) -> Tensor:
        """``(B, N, 4g, 4g)`` logits: the prompt enters SAM's decoder as sparse tokens (decisions D-11, D-12).

        In SAM 2 it is what the memory attention reads, and the decoder gets the empty prompt (decision D-13); ``gate``:
        objects that it says are not there have no pixels (decision D-15).
        """
        batch, n = len(embedding.features), len(tokens) // len(embedding.features)
        image = torch.arange(batch, device=tokens.device).repeat_interleave(n)
        prompt = Prompt(tokens, self._dense(context), image)
        if self.memory is None or not isinstance(self.backbone, Sam2):
            logits = self.backbone.decode(embedding, prompt).logits[:, 0]
        else:
            seen, empty = self.memory(self.backbone, embedding, prompt)
            reading = self.backbone.read(seen, empty, slice(0, 1))
            logits = reading.logits[:, 0]
            if gate:
                logits = logits.where(reading.scores[:, None, None] > 0, ABSENT)
        return logits.unflatten(0, (batch, n))

    def _dense(self, context: Tensor) -> Tensor:
        """What the decoder is told densely of P prompts: ``(P, C, g, g)`` on the direct path, else ``(1, C, g, g)``."""
        dense = self.backbone.dense_default()
        if self.direct is None:
            return dense
        return dense + self.direct(context.transpose(1, 2).unflatten(2, dense.shape[2:]))

    def forward(self, batch: Batch) -> Output:
        """Leave-one-out episodes (section 4.2): every target reads all other images of the batch as its supports."""
        masks, targets = episode(batch)
        embedding, keys, values = self._encode_all(batch.images, masks)
        chosen = Embedding(embedding.features[targets], tuple(part[targets] for part in embedding.high_res))
        tokens, context = self.prompt(chosen.features, keys, values, targets, visible_tokens(batch, self.backbone.grid))
        logits = upsample(self.decode(chosen, tokens, context), batch.images.shape[-1])
        return Output(logits, tokens.unflatten(0, logits.shape[:2]), self._read(context, logits.shape[:2]))

    def _encode_all(self, images: Tensor, masks: Tensor) -> tuple[Embedding, Tensor, Tensor]:
        embedding = self.backbone.encode(images)
        features = embedding.features if self.config.support_grad else embedding.features.detach()
        return embedding, to_tokens(features), self._values(self.context(images, masks, features), masks)

    def _values(self, context: Tensor, masks: Tensor) -> Tensor:
        """``(K, T, N, V)`` of ``Aagg``; on the direct path the support mask itself, in cells of a token, comes last."""
        values = context.flatten(3).permute(0, 3, 1, 2)
        if self.direct is None:
            return values
        cells = F.adaptive_avg_pool2d(masks.to(values.dtype), CELLS * self.backbone.grid)
        cells = F.pixel_unshuffle(cells.unsqueeze(2), CELLS).flatten(3).permute(0, 3, 1, 2)
        return torch.cat([values, cells], dim=-1)

    def _read(self, context: Tensor, shape: torch.Size) -> Tensor | None:
        """The mask cells at the end of the context, ``(B * N, T, V)``, as maps of ``shape`` ``(B, N)``."""
        if self.direct is None:
            return None
        cells = context[..., self.backbone.channels :].transpose(1, 2).unflatten(2, (self.backbone.grid,) * 2)
        return F.pixel_shuffle(cells, CELLS)[:, 0].unflatten(0, shape)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Dice loss (decision D-18): per object at full size, mean over objects and targets.

        Our options, all 0 in ``paper``: ``bce`` times the cross-entropy of every pixel; ``mask_contrast`` times how
        much the prompts of two objects of the same target resemble each other (decision D-35); ``read`` times the
        cross-entropy of the masks that the direct path reads, which teaches the encoder what looks alike.
        """
        masks, targets = episode(batch)
        truth, config = masks[targets], self.config
        parts = {"dice": dice_loss(output.logits, truth).mean()}
        total = parts["dice"]
        if config.bce:
            parts["bce"] = F.binary_cross_entropy_with_logits(output.logits.float(), truth.float())
            total = total + config.bce * parts["bce"]
        if config.mask_contrast and masks.shape[1] > 1:
            parts["contrast"] = _resemblance(output.prompts)
            total = total + config.mask_contrast * parts["contrast"]
        if config.read and output.read is not None:
            parts["read"] = area_loss(output.read, truth)
            total = total + config.read * parts["read"]
        return {"loss": total, **parts}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Support | None = None, view: str | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of N objects for every image; the same in every ``view``.

        ``support`` is one bank, or one for each image, or what chooses one for each by its features ``(B, C, g, g)``.
        """
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        with self.timer("prompt"):
            tokens, context = self._read_support(embedding.features, support)
        with self.timer("decode"):
            logits = self.decode(embedding, tokens, context, gate=self.config.gate_by_object_score)
            return upsample(logits, batch.images.shape[-1]).float()

    def _read_support(self, features: Tensor, support: Support | None) -> tuple[Tensor, Tensor]:
        """``prompt`` of images ``(B, C, g, g)`` from what is told as ``support``."""
        if support is None:
            raise InputError("Proxy Prompt was given no support pairs", "a SupportBank from encode_support")
        banks = support(features) if callable(support) else support
        if isinstance(banks, SupportBank):
            return self.prompt(features, banks.keys, banks.values, visible=banks.visible)
        each = zip(features.split(1), banks, strict=True)
        tokens, context = zip(*(self._read_support(one, bank) for one, bank in each), strict=True)
        return torch.cat(tokens), torch.cat(context)

    # -- videos -------------------------------------------------------------------------------------------------------

    def follows(self, view: str | None = None) -> bool:
        """Whether an answer depends on the frames before: in the memory modes that have more than the prompt."""
        return self.memory is not None and (view or self.config.memory_mode) != "proxy_only"

    def follow(self, objects: Sequence[str], support: Support | None = None, view: str | None = None) -> TrackedVideo:
        """A video of these objects, not yet begun; ``support`` as for one image, asked anew where it is prompted.

        View proxy_plus_bank: every frame reads its own prompt beside SAM 2's memories.  proxy_first_frame: the first
        one alone, which is a conditioning frame; from then on it is SAM 2 (decision D-14), but for the mask, which is
        always the single one, and not gated unless asked (decisions D-12, D-15).  Memories follow the object score as
        in SAM 2, unless the network was random at the start: nothing teaches the score here, nor the predicted IoU,
        which is not told.
        """
        memory, sam2 = self.memory, self.backbone
        if memory is None or not isinstance(sam2, Sam2) or not self.follows(view):
            raise InputError(
                f"a video to follow with {view or self.config.memory_mode}",
                f"one of {', '.join(MODES[1:])}",
                "Name one of them with --view" if memory is not None else "Train on a SAM 2 (backbone.name)",
            )
        alone = (view or self.config.memory_mode) == "proxy_first_frame"

        def tell(batch: Batch, embedding: Embedding, first: bool) -> Mapping[str, Any]:
            if alone and not first:
                return {}
            tokens, context = self._read_support(embedding.features, support)
            dense = None if self.direct is None else self._dense(context)
            return {"proxy": memory.proxy(sam2, tokens, dense), "conditions": alone}

        gate = self.config.gate_by_object_score
        tracker = Tracker(sam2, len(objects), multimask=False, gate=gate, gate_memories=gate or not sam2.from_scratch)
        return TrackedVideo(tracker, tell, self.timer, judged=False)

    # -- training -----------------------------------------------------------------------------------------------------

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        trained = [p for p in self.parameters() if p.requires_grad]
        exempt = [p for p in trained if getattr(p, "_no_weight_decay", False)]
        decayed = [p for p in trained if not getattr(p, "_no_weight_decay", False)]
        return [Stage("train", (ParamGroup(tuple(decayed)), ParamGroup(tuple(exempt), decay=False)))]

    @torch.no_grad()
    def gauges(self, batch: Batch) -> dict[str, float]:
        """Does the prompt depend on the mask?  ``|a - b| / |a|`` of three tensors when the support masks are swapped.

        Masks as of ``other_masks`` (decision D-35); nothing where they would be the same.
        """
        masks, targets = episode(batch)
        swapped = other_masks(masks)
        if swapped is None:
            return {}
        seen = []
        for shown in (masks, swapped):
            embedding, keys, values = self._encode_all(batch.images, shown)
            tokens, context = self.prompt(
                embedding.features[targets], keys, values, targets, visible_tokens(batch, self.backbone.grid)
            )
            seen.append((values, context, tokens))
        return {
            f"rel_{name}": float((a - b).norm() / a.norm().clamp_min(1e-12))
            for name, a, b in zip(("values", "context", "prompt"), *seen, strict=True)
        }

    def gauge_warning(self, gauges: Mapping[str, float], step: int, warmup: int) -> str | None:
        """A sentence when what enters the decoder still ignores the support mask after warm-up."""
        heard = gauges["rel_prompt"] if self.direct is None else max(gauges["rel_prompt"], gauges["rel_context"])
        if step <= warmup or heard >= 0.05:
            return None
        advice = "raise model.csm.mask_gain, lower model.csm.image_gain and fsup_gain"
        if self.direct is None:
            advice += ", or use --preset scratch"
        return f"the prompt hardly depends on the support mask (relative change {heard:.3f} at step {step}): {advice}"


def _resemblance(prompts: Tensor) -> Tensor:
    """``relu(1 - |P_a - P_b| / |P_a|)`` of neighbouring objects a, b; prompts ``(targets, N, tokens, C)``."""
    flat = prompts.flatten(2).float()
    change = (flat - flat.roll(1, dims=1)).norm(dim=-1) / flat.norm(dim=-1).clamp_min(1e-6)
    return F.relu(1 - change).mean()


def build(config: RunConfig, objects: tuple[str, ...]) -> ProxyPrompt:
    """Proxy Prompt as a run's configuration describes it, its fresh parts drawn from ``config.seed``."""
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed)
    if config.backbone.train == "all" and isinstance(backbone, Sam2):
        backbone.train_whole(memory=True)
    elif config.backbone.train == "all":
        backbone.train_whole()
    return ProxyPrompt(backbone, config.model)
