"""VRP-SAM (arXiv 2402.17726): learned queries turn an annotated image of someone else into prompt tokens of SAM.

Read top to bottom: what is made of the supports, the prompt of a target, decoding, loss.  All objects are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones import Sam, load_backbone
from samsans.backbones.sam2_network import sine_positions
from samsans.errors import InputError
from samsans.methods.episodes import episode, fingerprint, other_masks, to_tokens, upsample, visible_tokens
from samsans.methods.vrp_sam.config import VrpSamConfig
from samsans.methods.vrp_sam.features import Features, FrozenResNet, load_resnet
from samsans.methods.vrp_sam.reading import Reader, likeness, prototypes, read_masks
from samsans.methods.vrp_sam.support import VrpBank
from samsans.ops.losses import area_loss, dice_loss
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding, Needs, ParamGroup, Prompt, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig

Choose = Callable[[Tensor], Sequence[VrpBank]]


@dataclass(frozen=True)
class Output:
    """Training output.

    logits: ``(targets, N, S, S)``.  prompts: ``(targets, N, K * Q, C)``.  read: ``(targets, N, h, h)`` in [0, 1], the
    masks as deep features alone read them off all supports; only where ``model.direct`` or ``read`` asks for it.
    """

    logits: Tensor
    prompts: Tensor
    read: Tensor | None


@dataclass(frozen=True)
class Seen:
    """Features of ``B`` images as the queries meet them.

    maps: ``(B, C, g, g)``.  deep: ``(B, A, D)``, what tells alike places.  visible: ``(B, A)`` bool, not padding.
    hidden: ``(B, g^2)`` bool, padding; ``None`` where there is none.
    """

    maps: Tensor
    deep: Tensor
    visible: Tensor
    hidden: Tensor | None


class VrpSam(nn.Module):
    """Visual reference prompt encoder on a SAM.

    Args:
        backbone: Frozen as published, or trained whole.
        config: The method's configuration.
        network: What the queries look at; ``None``: SAM's own embedding.
    """

    needs = Needs(supports=True)
    bank_per_image = True  # predict takes one bank for each image of a batch

    positions: Tensor

    def __init__(self, backbone: Sam, config: VrpSamConfig, network: FrozenResNet | None = None) -> None:
        super().__init__()
        channels = backbone.channels
        if channels % config.heads or config.queries < 1:
            raise InputError(
                f"{config.queries} queries of {channels} channels in {config.heads} heads",
                "at least one query, and channels that the heads divide",
            )
        self.config, self.backbone, self.network, self.timer = config, backbone, network, Timer()
        self.grid = backbone.grid if network is None else network.grid
        self.reduce = nn.Conv2d(channels if network is None else network.channels, channels, 1)
        self.merge = nn.Conv2d(2 * channels + 1, channels, 1)
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, channels))
        self.read_support = Reader(channels, config.heads)
        self.read_target = Reader(channels, config.heads)
        self.register_buffer("positions", sine_positions(self.grid, channels), persistent=False)

    # -- supports: nothing here depends on a target -------------------------------------------------------------------

    @torch.no_grad()
    def encode_support(self, batch: Batch) -> VrpBank:
        """Encode K annotated images once; the bank serves any number of targets and can be saved as a task."""
        if batch.masks is None:
            raise InputError("support images without masks", "a mask for every support image")
        seen = self._see(self._look(batch.images), batch)
        return self._bank(seen, batch.masks, batch, self.fingerprint()).float()

    def _look(self, images: Tensor) -> Features:
        if self.network is not None:
            found: Features = self.network(images)
            return found
        features = self.backbone.encode(images).features
        return Features(features, features)

    def _see(self, features: Features, batch: Batch) -> Seen:
        hidden = ~visible_tokens(batch, self.grid)
        return Seen(
            maps=self.reduce(features.maps),
            deep=to_tokens(features.deep),
            visible=visible_tokens(batch, features.deep.shape[-1]),
            hidden=hidden if bool(hidden.any()) else None,
        )

    def _bank(self, seen: Seen, masks: Tensor, batch: Batch, weights: str = "") -> VrpBank:
        """Every image of a batch as support, ``masks`` ``(K, N, S, S)`` being what is drawn on it."""
        covers = F.adaptive_avg_pool2d(masks.to(seen.maps.dtype), self.grid)
        means = prototypes(seen.maps, covers)
        k, n = covers.shape[:2]
        hidden = None if seen.hidden is None else seen.hidden.repeat_interleave(n, 0)
        start = self.queries.expand(k * n, -1, -1)
        queries = self.read_support(start, self._merged(seen.maps, means, covers), hidden)
        deep = F.adaptive_avg_pool2d(masks.to(seen.maps.dtype), math.isqrt(seen.deep.shape[1]))
        return VrpBank(
            queries=queries.unflatten(0, (k, n)),
            prototypes=means,
            keys=seen.deep,
            covers=to_tokens(deep),
            visible=seen.visible,
            objects=batch.objects,
            ids=batch.ids,
            weights=weights,
        )

    def _merged(self, maps: Tensor, means: Tensor, masks: Tensor) -> Tensor:
        """Feature, prototype and mask of every place as one token with its position, ``(K * N, T, C)``.

        One convolution serves supports, with their masks, and targets, with pseudo masks (our decision); positions are
        sines and cosines, in keys and values alike (our decision).

        maps: ``(K, C, g, g)``.  means: ``(K, N, C)``.  masks: ``(K, N, g, g)`` in [0, 1].
        """
        n, g = masks.shape[1:3]
        seen = maps.unsqueeze(1).expand(-1, n, -1, -1, -1)
        mean = means.to(maps.dtype)[..., None, None].expand(-1, -1, -1, g, g)
        mask = masks.to(maps.dtype).unsqueeze(2) * self.config.mask_gain
        merged = self.merge(torch.cat([seen, mean, mask], 2).flatten(0, 1))
        return to_tokens(merged) + self.positions

    def fingerprint(self) -> str:
        """sha256 of the trained weights and of the frozen networks they belong to."""
        return fingerprint(self, self.backbone.base_hash, "" if self.network is None else self.network.hash)

    def load_support(self, path: str) -> VrpBank:
        """Read a task file made by these very weights."""
        return VrpBank.load(path).require(self.fingerprint())

    # -- targets ------------------------------------------------------------------------------------------------------

    def prompt(self, seen: Seen, index: int, bank: VrpBank) -> Tensor:
        """Prompt tokens ``(N, K * Q, C)`` of image ``index`` of those seen: of all pairs, side by side (K-shot)."""
        maps, k = seen.maps[index : index + 1].expand(bank.K, -1, -1, -1), bank.K
        like = likeness(seen.deep[index], bank.keys, bank.covers, seen.visible[index])
        n, side = like.shape[1], math.isqrt(like.shape[2])
        tokens = self._merged(maps, bank.prototypes, upsample(like.unflatten(2, (side, side)), self.grid))
        hidden = None if seen.hidden is None else seen.hidden[index : index + 1].expand(k * n, -1)
        read: Tensor = self.read_target(bank.queries.flatten(0, 1).to(tokens.dtype), tokens, hidden)
        return read.unflatten(0, (k, n)).transpose(0, 1).flatten(1, 2)

    def read(self, seen: Seen, index: int, bank: VrpBank) -> Tensor | None:
        """The support masks as the deep features of image ``index`` read them, ``(N, h, h)``; where anything asks."""
        if not (self.config.direct or self.config.read):
            return None
        read = read_masks(seen.deep[index], bank.keys, bank.covers, bank.visible)
        return read.unflatten(1, (math.isqrt(read.shape[1]),) * 2)

    def decode(self, embedding: Embedding, prompts: Tensor, read: Tensor | None = None) -> Tensor:
        """``(B, N, 4g, 4g)`` logits of SAM's single mask: prompts ``(B, N, tokens, C)`` are its sparse tokens.

        Only with ``model.direct`` there is a dense prompt, ``read`` ``(B, N, h, h)`` as SAM's mask prompt.
        """
        batch, n = prompts.shape[:2]
        image = torch.arange(batch, device=prompts.device).repeat_interleave(n)
        dense = self.backbone.dense_default()
        if self.config.direct:
            assert read is not None
            shown = upsample(20 * read.to(prompts.dtype) - 10, 4 * self.backbone.grid)  # logits, as SAM is given them
            dense = self.backbone.embed_prompts(image, masks=shown.flatten(0, 1).unsqueeze(1)).dense
        prompt = Prompt(prompts.flatten(0, 1), dense, image)
        return self.backbone.decode(embedding, prompt).logits[:, 0].unflatten(0, (batch, n))

    def forward(self, batch: Batch) -> Output:
        """Leave-one-out episodes: every target is prompted by all other images of the batch."""
        masks, targets = episode(batch)
        embedding, features = self._encode(batch.images, targets)
        prompts, read = self._prompts(self._see(features, batch), masks, targets, batch)
        return Output(upsample(self.decode(embedding, prompts, read), batch.images.shape[-1]), prompts, read)

    def _prompts(self, seen: Seen, masks: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """``prompt`` and ``read`` of every target, stacked, all other images being supports with these masks."""
        bank = self._bank(seen, masks, batch)
        prompts, reads = [], []
        for target in targets.tolist():
            others = bank.select([i for i in range(bank.K) if i != target])
            prompts.append(self.prompt(seen, target, others))
            read = self.read(seen, target, others)
            reads += [] if read is None else [read]
        return torch.stack(prompts), torch.stack(reads) if reads else None

    def _encode(self, images: Tensor, targets: Tensor | slice) -> tuple[Embedding, Features]:
        """SAM's embedding of the targets, and what the queries see of all images."""
        if self.network is not None:
            return self.backbone.encode(images[targets]), self.network(images)
        features = self.backbone.encode(images).features
        return Embedding(features[targets]), Features(features, features)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of every pixel plus Dice loss per object, means over objects and targets.

        Our option, 0 in ``paper``: ``read`` times the cross-entropy of the masks as deep features read them off the
        supports, which teaches an encoder what looks alike.
        """
        masks, targets = episode(batch)
        truth = masks[targets]
        bce = F.binary_cross_entropy_with_logits(output.logits.float(), truth.float())
        parts = {"bce": bce, "dice": dice_loss(output.logits, truth).mean()}
        total = parts["bce"] + parts["dice"]
        if self.config.read and output.read is not None:
            parts["read"] = area_loss(output.read, truth)
            total = total + self.config.read * parts["read"]
        return {"loss": total, **parts}

    @torch.no_grad()
    def predict(self, batch: Batch, support: VrpBank | Sequence[VrpBank] | Choose | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits of N objects for every image.

        ``support`` is one bank, or one for each image, or what chooses one for each by its deep features
        ``(B, D, h, h)``.
        """
        if support is None:
            raise InputError("VRP-SAM was given no support pairs", "a VrpBank from encode_support")
        with self.timer("encode"):
            embedding, features = self._encode(batch.images, slice(None))
        with self.timer("prompt"):
            support = support(features.deep) if callable(support) else support
            banks = [support] * len(batch.images) if isinstance(support, VrpBank) else support
            seen = self._see(features, batch)
            found = [(self.prompt(seen, i, bank), self.read(seen, i, bank)) for i, bank in enumerate(banks)]
        with self.timer("decode"):
            logits = [
                self.decode(Embedding(one), tokens[None], None if read is None else read[None])
                for one, (tokens, read) in zip(embedding.features.split(1), found, strict=True)
            ]
            return upsample(torch.cat(logits), batch.images.shape[-1]).float()

    # -- training -----------------------------------------------------------------------------------------------------

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return [Stage("train", (ParamGroup(tuple(p for p in self.parameters() if p.requires_grad)),))]

    @torch.no_grad()
    def gauges(self, batch: Batch) -> dict[str, float]:
        """Does the prompt depend on the mask?  ``|a - b| / |a|`` when the support masks are swapped.

        Of the prompt tokens, and on the direct path of the dense prompt, too.  Masks as of ``other_masks``; nothing
        where they would be the same.
        """
        masks, targets = episode(batch)
        swapped = other_masks(masks)
        if swapped is None:
            return {}
        seen = self._see(self._look(batch.images), batch)
        (a, read), (b, other) = (self._prompts(seen, shown, targets, batch) for shown in (masks, swapped))
        gauges = {"rel_prompt": float((a - b).norm() / a.norm().clamp_min(1e-12))}
        if self.config.direct and read is not None and other is not None:
            gauges["rel_read"] = float((read - other).norm() / read.norm().clamp_min(1e-12))
        return gauges

    def gauge_warning(self, gauges: Mapping[str, float], step: int, warmup: int) -> str | None:
        """A sentence when the prompt still ignores the support mask after warm-up.

        The prompt tokens are judged alone: the dense prompt is made of the masks themselves and always changes.
        """
        heard = gauges["rel_prompt"]
        if step <= warmup or heard >= 0.05:
            return None
        advice = "raise model.mask_gain" if self.config.direct else "raise model.mask_gain, or use --preset scratch"
        return f"the prompt hardly depends on the support mask (relative change {heard:.3f} at step {step}): {advice}"


def build(config: RunConfig, objects: tuple[str, ...]) -> VrpSam:
    """VRP-SAM as a run's configuration describes it, its fresh parts drawn from ``config.seed``."""
    if config.backbone.train == "lora":
        raise InputError(
            "backbone.train lora for vrp_sam", "none, as published, or all", "Use proxy_prompt for adapters"
        )
    backbone = load_backbone(config.backbone, seed=config.seed, family="sam")
    if config.backbone.train == "all":
        direct = config.model.direct
        backbone.train_whole(default_prompt=not direct, masks=direct)
    network = None
    if config.model.features == "resnet50":
        network = load_resnet(config.model.resnet, config.model.resnet_size)
    return VrpSam(backbone, config.model, network)
