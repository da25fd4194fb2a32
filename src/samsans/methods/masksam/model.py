"""MaskSAM (arXiv 2403.14103): SAM segments all classes of a 3D patch at once, and prompts itself.

Read top to bottom: stem, encoder, prompts, decoder, masks; then the loss, and the scores of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samsans.backbones import load_backbone, merge_lora
from samsans.errors import InputError
from samsans.methods.classes import one_stage, true_masks
from samsans.methods.masksam.config import MaskSamConfig, default_queries
from samsans.methods.masksam.decoder import Decoder, Enlarge, OutputNetwork
from samsans.methods.masksam.encoder import MAPS, Encoder, Stem
from samsans.methods.masksam.losses import set_loss
from samsans.methods.masksam.matching import targets
from samsans.methods.masksam.outputs import Outputs, class_scores
from samsans.methods.masksam.prompt_generator import (
    Auxiliary,
    PromptGenerator,
    Prompts,
    generated_prompts,
    true_prompts,
)
from samsans.ops.timing import Timer
from samsans.types import Batch, Needs, Stage

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.config import RunConfig


class MaskSam(nn.Module):
    """MaskSAM on a SAM backbone, which stays frozen, has LoRA, or is trained too, as it is handed in.

    Args:
        backbone: SAM.
        config: The method's configuration.
        objects: N; with the background there are ``K = N + 1`` classes.
        depth: T, slices of a patch; part of the weights.
        channels: Of the images.
    """

    def __init__(self, backbone: Sam, config: MaskSamConfig, objects: int, depth: int, channels: int = 1) -> None:
        super().__init__()
        check(config, backbone, objects)
        self.config, self.backbone, self.timer = config, backbone, Timer()
        self.depth, self.side = depth, backbone.input_size // 2**config.upsample
        self.channels, self.objects = channels, objects
        self.queries = default_queries(objects) if config.queries is None else config.queries
        self.needs = Needs(volumes=True, exclusive=True, labels_at_predict=config.prompts == "gt")
        self.stem = Stem(channels, config.stem, config.upsample)
        self.encoder = Encoder(
            backbone, depth, unwindowed=config.space_adapter == "unwindowed", zero_init=config.zero_init
        )
        self.generator = None
        if config.prompts == "generated":
            self.generator = PromptGenerator(
                backbone.channels,
                backbone.model.config.vision_config.hidden_size,
                config.widths,
                config.fusions,
                self.queries,
                config.box_norm == "instance",
            )
        self.decoder = Decoder(backbone, depth, objects + 1, zero_init=config.zero_init)
        self.enlarge = (
            OutputNetwork(self.queries, (self.side // (4 * backbone.grid)).bit_length() - 1)
            if config.output_cnn
            else Enlarge(backbone.input_size, self.side)
        )

    # -- the network --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Outputs:
        """Answers of all queries; with prompts from the truth the batch must have masks."""
        self.check_images(batch.images)
        with self.timer("encode"):
            embedding, maps = self.encoder(self.backbone, self.stem(batch.images))
        with self.timer("prompt"):
            made, prompts = self.prompt(embedding, maps, batch)
        with self.timer("decode"):
            masks, classes = self.decode(embedding, prompts)
        return Outputs(
            class_logits=_by_slice(classes),
            mask_logits=_by_slice(masks),
            auxiliary_logits=None if made is None else _by_slice(made.masks),
            boxes=None if made is None else _by_slice(made.boxes),
            depth=self.depth,
            identity=made is None,
        )

    def prompt(self, embedding: Tensor, maps: Sequence[Tensor], batch: Batch) -> tuple[Auxiliary | None, Prompts]:
        """What the generator makes of the features, and the prompts; from the truth: nothing, and those."""
        grid, scale = self.backbone.grid, 2**self.config.upsample
        if self.generator is not None:
            made = self.generator(embedding, maps)
            return made, generated_prompts(made, grid, scale, self.config.mask_prompt == "binary")
        if batch.masks is None:
            raise InputError("a batch without masks", "true masks, where prompts are made from them (model.prompts gt)")
        truth = targets(batch.masks)
        return None, true_prompts(truth, self.depth, self.queries, grid, scale, self.config.gt_mask_prompt)

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits ``(B, Q, T, H, W)`` and class logits ``(B, Q, T, K + 1)`` of an embedding ``(B, C, T, g, g)``.

        Queries are decoded ``query_batch`` at a time, with all their slices; the result is the same.
        """
        step = self.config.query_batch or self.queries
        parts = []
        for start in range(0, self.queries, step):
            some = prompts.queries(start, start + step)
            if self.backbone.checkpointing and torch.is_grad_enabled():
                parts.append(checkpoint(self.decoder, self.backbone, embedding, some, use_reentrant=False))
            else:
                parts.append(self.decoder(self.backbone, embedding, some))
        masks, classes = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return self.enlarge(masks), classes

    def check_images(self, images: Tensor) -> None:
        """Raise ``InputError`` for patches of another shape than the weights are made for."""
        want = (self.channels, self.depth, self.side, self.side)
        if images.shape[1:] != want:
            raise InputError(
                f"Patches of shape {tuple(images.shape)}",
                f"(B, {', '.join(map(str, want))}): channels, slices, rows, columns",
                "Cut patches of patches.size",
            )

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, output: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """Set prediction, slice by slice; see ``set_loss``."""
        return set_loss(output, targets(true_masks(batch)), self.config.matching)

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """One stage: everything that is not frozen."""
        return one_stage(self)

    def finish(self) -> None:
        """The weights are final: merge LoRA, where there is any, into the base for inference."""
        merge_lora(self.backbone)

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N + 1, T, H, W)`` float32 scores of the classes, background first, between 0 and Q."""
        return class_scores(self(batch))

    @torch.no_grad()
    def explain(self, batch: Batch) -> Outputs:
        """What every query was prompted with and answers; ``InputError`` where prompts come from the truth."""
        if self.generator is None:
            raise InputError("prompts from the true masks", "a run that makes its own (model.prompts generated)")
        return self(batch)


def _by_slice(x: Tensor) -> Tensor:
    """``(B, Q, T, ...)`` as ``(B T, Q, ...)``."""
    return x.transpose(1, 2).flatten(0, 1)


def check(config: MaskSamConfig, backbone: Sam, objects: int) -> None:
    """Raise ``InputError`` for a configuration that no network can be made of."""
    grid, seen = backbone.grid, backbone.input_size
    side = seen // 2**config.upsample
    if config.queries is not None and config.queries < objects + 1:
        raise InputError(
            f"model.queries {config.queries} for {objects + 1} classes, background included",
            "a query for every class a slice may show",
            f"Set model.queries {default_queries(objects)}, or null",
        )
    if seen % 2**config.upsample or side % grid:
        raise InputError(f"{config.upsample} doublings to {seen} px", f"patches of a multiple of {grid} px")
    doublings = (side // grid).bit_length() - 1
    if grid << doublings != side:
        raise InputError(f"patches of {side} px on a grid of {grid}", "a power of two between them")
    if config.output_cnn and doublings < 2:
        raise InputError(
            f"an output network for patches of {side} px, smaller than SAM's masks of {4 * grid}",
            todo="Set model.output_cnn false",
        )
    if config.prompts == "generated" and (
        len(config.widths) != doublings or not 0 <= config.fusions <= MAPS - doublings
    ):
        raise InputError(
            f"model.widths {config.widths} and model.fusions {config.fusions}",
            f"{doublings} widths, one for each doubling from a grid of {grid} to {side} px, and at most"
            f" {MAPS - doublings} fusions, {MAPS} levels in all",
        )


def build(config: RunConfig, objects: tuple[str, ...]) -> MaskSam:
    """MaskSAM as a run's configuration describes it, its fresh parts drawn from ``config.seed``.

    ``patches.size`` must be known.  Images have one channel, unless ``data.channels`` names more.
    """
    size, own = config.patches.size, config.model
    if size is None:
        raise InputError("patches.size is not known", "slices, rows and columns of a patch", "Plan or set patches.size")
    backbone = load_backbone(config.backbone, config.lora, seed=config.seed, family="sam")
    side = backbone.input_size // 2**own.upsample
    if len(size) != 3 or size[0] < 1 or list(size[1:]) != [side, side]:
        raise InputError(
            f"patches.size {list(size)}",
            f"slices, {side}, {side}; {own.upsample} doublings make them the backbone's {backbone.input_size} px",
            f"Set patches.size, or backbone.input_size {size[-1] * 2**own.upsample}",
        )
    if config.backbone.train == "all":
        masks = own.prompts == "generated" or own.gt_mask_prompt
        backbone.train_whole(default_prompt=own.prompts == "gt", boxes=True, masks=masks)
    channels = 1 if config.data.channels == "auto" else len(config.data.channels)
    return MaskSam(backbone, own, len(objects), size[0], channels)
