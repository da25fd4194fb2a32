"""The Probabilistic U-Net of Kohl et al. (arXiv 1806.05034), from its description: several plausible masks, no SAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.classes import require_one_object
from samsans.methods.draws import Gaussian, all_annotations, choose, seeded_noise
from samsans.methods.prob_unet.config import ProbUNetConfig
from samsans.methods.prob_unet.networks import Combine, Encoder, UNet, initialise
from samsans.ops.timing import Timer
from samsans.types import Batch, Needs, ParamGroup, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig

CHANNELS = 3  # grey images come repeated
INPUT_SIZE = 128  # pixels, where backbone.input_size is null
MOST_VALUES = 1 << 24  # of a layer of the last 1x1 convolutions at a time: 64 MiB


@dataclass(frozen=True)
class NoBackbone:
    """What is asked of a backbone where there is none: nothing was loaded, all weights were random once."""

    input_size: int
    name: str = "none"
    base_hash: str = ""
    from_scratch: bool = True


@dataclass(frozen=True)
class Output:
    """What a training step computes of ``B`` images.

    logits: ``(B, 1, S, S)`` of a draw from the posterior.  target: ``(B, 1, S, S)`` bool, the annotation that the
    posterior saw.  posterior, prior: of ``(B, latent)``.
    """

    logits: Tensor
    target: Tensor
    posterior: Gaussian
    prior: Gaussian


class ProbUNet(nn.Module):
    """A U-Net whose last 1x1 layers also see a draw of a latent variable.

    Training draws it from the posterior, a network that sees image and annotation, and pulls the prior, which sees the
    image alone, to it (section 2 of the paper).  Predicting takes the prior: its mean, or draws.
    """

    needs = Needs(annotators=True, samples=True)

    def __init__(self, backbone: NoBackbone, config: ProbUNetConfig) -> None:
        super().__init__()
        self.config, self.backbone, self.timer = config, backbone, Timer()
        widths, latent = config.widths, config.latent
        self.unet = UNet(CHANNELS, widths)
        self.prior = Encoder(CHANNELS, widths, latent)
        self.posterior = Encoder(CHANNELS + 1, widths, latent)
        self.combine = Combine(widths[0], latent)
        initialise(self)

    def forward(self, batch: Batch) -> Output:
        """The logits of one draw from the posterior of one annotation an image, with both distributions."""
        target = choose(all_annotations(batch), batch.drawn, self.config.train_on_empty)[:, None]
        posterior = self.posterior(torch.cat([batch.images, target.to(batch.images.dtype)], 1))
        draw = posterior.draw(torch.randn_like(posterior.mean)[:, None])
        logits = self.combine(self.unet(batch.images), draw)
        return Output(logits, target, posterior, self.prior(batch.images))

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """``bce + beta * kl`` (equation 4): binary cross-entropy summed over pixels, both means over the batch."""
        logits, target = output.logits.float(), output.target.float()
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
        kl = output.posterior.divergence(output.prior).mean()
        return {"loss": bce + self.config.beta * kl, "bce": bce, "kl": kl}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, 1, S, S)`` float32 logits of the mean of the prior."""
        with self.timer("encode"):
            features, prior = self.unet(batch.images), self.prior(batch.images)
        with self.timer("decode"):
            return self.combine(features, prior.mean[:, None]).float()

    @torch.no_grad()
    def sample(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
        """``(B, count, 1, S, S)`` float32 logits of draws from the prior, the U-Net running once.

        seeds: one an image; its draws depend on nothing else, and the first ones are the same for any ``count``.
        """
        with self.timer("encode"):
            features, prior = self.unet(batch.images), self.prior(batch.images)
        with self.timer("prompt"):
            draws = prior.draw(seeded_noise(seeds, count, self.config.latent).to(features.device))
        with self.timer("decode"):
            step = max(1, MOST_VALUES // features.numel())
            parts = [self.combine(features, part).float() for part in draws.split(step, 1)]
            return torch.cat(parts, 1)[:, :, None]

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage, all networks; held-out slices choose the weights by the energy distance of samples."""
        return [Stage("train", (ParamGroup(tuple(self.parameters())),), selects="ged")]

    def finish(self) -> None:
        """The weights are final: drop the posterior, which only training needs."""
        del self.posterior


def build(config: RunConfig, objects: tuple[str, ...]) -> ProbUNet:
    """The Probabilistic U-Net as a run's configuration describes it, drawn from ``config.seed``."""
    own = config.model
    if config.backbone.name != "none":
        raise InputError(
            f"backbone.name {config.backbone.name} for prob_unet",
            "none: there is no SAM inside",
            "Leave --backbone away; for short trainings choose --preset scratch",
        )
    require_one_object(objects, "for prob_unet", "samples are of one object")
    if len(own.widths) < 2 or min(own.widths) < 1 or own.latent < 1:
        raise InputError(
            f"model.widths {own.widths} and model.latent {own.latent}", "two or more widths and a latent of at least 1"
        )
    return ProbUNet(NoBackbone(config.backbone.input_size or INPUT_SIZE), own)
