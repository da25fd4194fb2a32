"""P2SAM on SAM (doi 10.1145/3664647.3680628): a network draws prompts from the image; each gives a plausible mask.

Read top to bottom: encode, draw prompts, decode them all at once, assemble the masks; loss; stages; answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from samsans.backbones import load_backbone, merge_lora
from samsans.cache import GIB, Cache
from samsans.errors import InputError
from samsans.methods.classes import refuse_decoder_adapters, require_one_object
from samsans.methods.draws import Gaussian, all_annotations, choose, seeded_noise
from samsans.methods.p2sam import losses
from samsans.methods.p2sam.config import P2SamConfig, check
from samsans.methods.p2sam.decoder import MaskWeights, enlarged, mask_maps, train_decoder
from samsans.methods.p2sam.generator import Fusion, Generator, Prompter, grey_image
from samsans.methods.p2sam.snapshots import Snapshots
from samsans.ops.timing import Timer
from samsans.types import Batch, Needs, ParamGroup, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig

SAM, PROMPTS = "sam", "prompts"  # names of the stages
POSITIONS = 1 << 14  # image positions decoded at once when sampling: bounds the memory
WEIGHTS_EPS = 1e-4  # of the optimiser of the mask weights (released code)


@dataclass(frozen=True)
class Output:
    """Training output for ``B`` images.

    logits: ``(B, K, S, S)``, assembled; K is 1, or the number of draws of the set loss.
    maps: ``(B, M, 4g, 4g)`` logits of the masks, of the first draw.
    target: ``(B, S, S)`` bool, the annotation that was chosen.
    divergence: ``(B,)`` of the posterior from the prior, where there is a posterior.
    """

    logits: Tensor
    maps: Tensor
    target: Tensor
    divergence: Tensor | None = None


class P2Sam(nn.Module):
    """P2SAM on a SAM backbone with ``config.masks`` masks, for one object.

    In its first stage, and wholly where ``config.prompts`` is off, it answers without prompts; ``prompted`` tells.

    Args:
        backbone: SAM, with LoRA in its encoder, trained whole, or frozen; its decoder is trained in any case.
        config: The method's configuration.
        statistics: How images are normalised: sam or unit.
    """

    needs = Needs(annotators=True, samples=True)
    prompted: Tensor  # () bool

    def __init__(self, backbone: Sam, config: P2SamConfig, statistics: str = "unit") -> None:
        super().__init__()
        self.backbone, self.config, self.statistics = backbone, config, statistics
        self.timer, self.cache, self.caching = Timer(), Cache(0), False
        self._predicted: tuple[Tensor, Tensor] | None = None  # images and features of the last prediction
        train_decoder(backbone)
        self.weights = MaskWeights(config.masks, config.weights if config.assembling else "fixed")
        self.prompter = self.snapshots = self.posterior = None
        if config.prompts:
            fusion = Fusion(backbone.channels, config.dense_residual) if config.injection == "dense" else None
            self.prompter = Prompter(self._generator(1), fusion)
            self.snapshots = Snapshots(self.prompter, config.snapshots)
            self.posterior = self._generator(2) if config.posterior else None
        self.register_buffer("prompted", torch.zeros((), dtype=torch.bool))

    def _generator(self, channels: int) -> Generator:
        config = self.config
        return Generator(
            self.backbone.channels,
            channels,
            head_bias=config.head_bias,
            log_sigma=config.log_sigma,
            clamp=config.clamp,
        )

    # -- the network --------------------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> Tensor:
        """Image features ``(B, C, g, g)``.

        Once SAM is frozen there is no gradient, and with ``caching`` each slice is encoded once, and alone, so that
        nothing depends on which others are in its batch.
        """
        if not self.prompted:
            return self.backbone.encode(batch.images).features
        with torch.no_grad():
            if not self.caching:
                return self.backbone.encode(batch.images).features
            kept = []
            for i, name in enumerate(batch.ids):
                found = self.cache.get(name)
                if found is None:
                    found = self.backbone.encode(batch.images[i : i + 1]).features
                    self.cache.put(name, found, found.nbytes)
                kept.append(found)
            return torch.cat(kept)

    @property
    def no_mask(self) -> Tensor:
        """SAM's "no mask" vector ``(C,)``."""
        vector: Tensor = self.backbone.model.prompt_encoder.no_mask_embed.weight[0]
        return vector

    def decode(self, features: Tensor, entering: Tensor | None = None) -> Tensor:
        """Mask logits ``(B, K, M, 4g, 4g)`` of features ``(B, C, g, g)`` and what K draws give the decoder.

        entering: ``(B, K, C)``, see ``Prompter``; ``None``: no prompt, and K is 1.
        """
        decoder, positions = self.backbone.model.mask_decoder, self.backbone.image_pe
        if entering is None:
            entering = features.new_zeros(len(features), 1, 0, features.shape[1])
            dense = features + self.no_mask[:, None, None]
        elif self.config.injection == "token":
            entering = entering[:, :, None]
            dense = features + self.no_mask[:, None, None]
        else:
            dense = (features[:, None] + entering[..., None, None]).flatten(0, 1)
            entering = entering.new_zeros(*entering.shape[:2], 0, entering.shape[2])
        batch, count = entering.shape[:2]
        if len(dense) == batch:
            dense = dense.repeat_interleave(count, 0)
        return mask_maps(decoder, dense, positions, entering.flatten(0, 1)).unflatten(0, (batch, count))

    def assemble(self, maps: Tensor) -> Tensor:
        """``(B, K, S, S)`` float32 logits: the weighted sum of maps ``(B, K, M, 4g, 4g)``, then enlarged (Eq. 6)."""
        return enlarged(self.weights(maps), self.backbone.input_size)

    def _grey(self, batch: Batch) -> Tensor:
        return grey_image(batch.images, self.statistics)

    # -- training -----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Logits and the annotation they are to be compared with; in stage 2 of one draw, or those of the set loss."""
        annotations = all_annotations(batch)
        target = choose(annotations, batch.drawn, self.config.train_on_empty)
        features = self.features(batch)
        entering, divergence = None, None
        if self.prompted and self.prompter is not None:
            grey = self._grey(batch)
            prior: Gaussian = self.prompter.generator(grey)
            source = prior
            if self.posterior is not None:
                source = self.posterior(torch.cat([grey, target[:, None].to(grey.dtype)], 1))
                divergence = source.divergence(prior)
            count = max(1, self.config.set_loss)
            noise = torch.randn(len(grey), count, self.backbone.channels, device=grey.device)
            entering = self.prompter.enter(source.draw(noise), self.no_mask)
        maps = self.decode(features, entering)
        return Output(self.assemble(maps), maps[:, 0], target, divergence)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy, focal and Dice loss against the chosen annotation (section 8 of the specification).

        With ``set_loss``, in stage 2, the energy distance to all annotations instead.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        if self.prompted and config.set_loss:
            terms["set"] = losses.energy_distance(output.logits, all_annotations(batch), batch.drawn).mean()
            total = terms["set"]
        elif config.loss == "reference":
            weighted = enlarged(self.weights.values[:, None, None] * output.maps.float(), self.backbone.input_size)
            ce, focal, dice = losses.reference_terms(output.logits[:, 0], weighted, output.target)
            terms |= {"ce": ce, "focal": focal, "dice": dice}
            total = ce + focal + dice
        else:
            bce, focal, dice = losses.paper_terms(output.logits[:, 0], output.target)
            terms |= {"bce": bce, "focal": focal, "dice": dice}
            total = config.bce * bce + config.focal * focal + config.dice * dice
        if self.prompted and config.loss == "reference":
            terms["norms"] = losses.norms(self._normed())
            total = total + terms["norms"]
        if output.divergence is not None:
            terms["kl"] = output.divergence.mean()
            total = total + config.kl * terms["kl"]
        return {"loss": total, **terms}

    def _normed(self) -> Sequence[Tensor]:
        """What the released code's small penalty is on: all that stage 2 trains but the last layer of the fusion."""
        assert self.prompter is not None
        parameters = list(self.prompter.generator.parameters())
        if self.prompter.fusion is not None:
            parameters += self.prompter.fusion.layers[:-1].parameters()
        return parameters

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """SAM without prompts, then, SAM frozen, the network that prompts it.

        Weight decay (``train.weight_decay``) is on the mask weights alone.
        """
        model, weights = self.config, tuple(self.weights.parameters())
        groups = [ParamGroup(tuple(p for p in self.backbone.parameters() if p.requires_grad), decay=False)]
        if weights:
            groups.append(ParamGroup(weights, eps=WEIGHTS_EPS))
        if self.prompter is None:
            return [Stage(SAM, tuple(groups))]
        drawing = [*self.prompter.parameters(), *(() if self.posterior is None else self.posterior.parameters())]
        scale = model.stage2_lr / config.train.lr
        return [
            Stage(SAM, tuple(groups), 1 - model.stage2_share),
            Stage(
                PROMPTS,
                (ParamGroup(tuple(drawing), scale, decay=False),),
                model.stage2_share,
                images=model.stage2_images,
                begins=model.stage2_from,
                selects=model.stage2_select,
            ),
        ]

    def begin(self, stage: Stage, augmented: bool) -> None:
        """A stage begins, or goes on after a resume; its first weights are loaded.

        augmented: images change from one epoch to the next, so that no embedding may be kept.
        """
        self.prompted.fill_(stage.name == PROMPTS)
        self.caching = stage.name == PROMPTS and not augmented
        self.cache = Cache(int(self.config.cache_gb * GIB))
        self.train(self.training)

    def train(self, mode: bool = True) -> P2Sam:
        """Training mode; a backbone that is frozen by the stage stays in evaluation mode."""
        super().train(mode)
        self._predicted = None
        if self.prompted:
            self.backbone.eval()
        return self

    def schedule(self, epoch: float, used: float) -> None:
        """Keep a copy of the generator where stage 2 has come to one of ``snapshots``."""
        share = self.config.stage2_share
        if self.prompted and self.snapshots is not None and self.prompter is not None:
            self.snapshots.update(self.prompter, (used - 1 + share) / share)

    def finish(self) -> None:
        """The weights are final: merge the adapters into the base for inference.  Training cannot go on."""
        self.caching, self.cache, self._predicted = False, Cache(0), None
        merge_lora(self.backbone)

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, 1, S, S)`` float32 logits of the mean prompt; without prompts, of the assembled masks."""
        with self.timer("encode"):
            features = self.features(batch)
        self._predicted = batch.images, features
        entering = None
        if self.prompted and self.prompter is not None:
            with self.timer("prompt"):
                noise = torch.zeros(len(features), 1, self.backbone.channels, device=features.device)
                entering = self.prompter(self._grey(batch), noise, self.no_mask)
        with self.timer("decode"):
            return self.assemble(self.decode(features, entering))

    @torch.no_grad()
    def sample(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
        """``(B, count, 1, S, S)`` float32 logits of draws; each image's depend on its seed and nothing else.

        The image is encoded once, and not again where it has just been predicted.  With ``snapshots`` the draws come
        from the copies in turn.  Configured without prompts there is one answer, repeated; and where nothing is
        assembled either, the masks are the samples, in turn.

        Raises:
            InputError: not one seed for each image, no sample asked for, or the prompts were never trained.
        """
        if len(seeds) != len(batch.images) or count < 1:
            raise InputError(f"{len(seeds)} seeds for {len(batch.images)} images, {count} samples", "a seed each")
        if self.prompter is not None and not self.prompted:
            raise InputError(
                f"{count} samples of a p2sam whose training ended in its first stage",
                "weights of the second, which learns the prompts that samples are drawn from",
                "Go on with `samsans train ... --resume`, or predict without samples",
            )
        images, features = self._predicted or (None, None)
        self._predicted = None
        if features is None or images is not batch.images:
            with self.timer("encode"):
                features = self.features(batch)
        if self.prompter is None:
            with self.timer("decode"):
                answers = self._answers(features)
                return answers[:, torch.arange(count) % answers.shape[1], None]
        with self.timer("prompt"):
            entering = self._drawn(batch, seeds, count)
        with self.timer("decode"):
            size = max(1, POSITIONS // (len(features) * self.backbone.grid**2))
            chunks = [self.assemble(self.decode(features, part)) for part in entering.split(size, 1)]
            return torch.cat(chunks, 1)[:, :, None]

    def _answers(self, features: Tensor) -> Tensor:
        """``(B, n, S, S)``: the different answers without prompts."""
        maps = self.decode(features)
        if self.config.assembling:
            return self.assemble(maps)
        return enlarged(maps[:, 0].float(), self.backbone.input_size)

    def _drawn(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
        """What ``count`` draws of each image give the decoder, ``(B, count, C)``; draw k is of network k modulo n."""
        assert self.prompter is not None
        assert self.snapshots is not None
        grey = self._grey(batch)
        noise = seeded_noise(seeds, count, self.backbone.channels).to(grey.device)
        pool, entering = self.snapshots.pool(self.prompter), torch.empty_like(noise)
        for i, network in enumerate(pool[:count]):
            entering[:, i :: len(pool)] = network(grey, noise[:, i :: len(pool)], self.no_mask)
        return entering


def build(config: RunConfig, objects: tuple[str, ...]) -> P2Sam:
    """P2SAM as a run's configuration describes it, its fresh parts drawn from ``config.seed``.

    Raises:
        InputError: more than one object, or an option that cannot be used.
    """
    require_one_object(objects, "for p2sam", "samples are of one object")
    check(config.model, config.train.lr)
    refuse_decoder_adapters(config)
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, masks=config.model.masks, family="sam")
    return P2Sam(backbone, config.model, config.backbone.statistics)
