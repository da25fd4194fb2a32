"""SAM 2 with the verbs of SAM, ``encode`` and ``decode``, and two of its own: ``attend`` and ``propagate``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Sam2VideoModel

from samsans.backbones.base import Backbone, LoadReport
from samsans.backbones.hiera import hiera_block
from samsans.backbones.memory_attention import attend_memories, rotary_table
from samsans.backbones.sam2_network import (
    LOGIT_BIAS,
    LOGIT_SCALE,
    MEMORY,
    POINTERS,
    Reading,
    read_masks,
    shrink,
    sine_positions,
    sine_times,
)
from samsans.errors import InputError
from samsans.types import Embedding, Masks, Prompt

if TYPE_CHECKING:
    from samsans.backbones.sam2_video import ObjectPrompt, Tracked


MADE = r"memory_(encoder|temporal)|mask_downsample|object_pointer_proj|temporal_positional|occlusion|no_object_pointer"
"""Weights that make memories of masks."""
SCORES = r"mask_decoder\.(iou_prediction_head|iou_token|(pred_)?obj_score)"
"""Weights that say how good a mask is, and whether its object is there at all."""


class Sam2(Backbone):
    """SAM 2 over ``transformers.Sam2VideoModel``; letters ``B``, ``P``, ``S``, ``g``, ``C`` as in ``types``.

    An image embedding comes *without* the "no memory" vector.  What the decoder is to read is made of it by either
    ``unconditioned`` (a still image) or ``attend`` (an image with memories, or with a prompt in their place).

    model: the network.  name: as asked for.  from_scratch: whether its weights were random at the start.
    attention: ``fast`` (exact, see ``hiera.py`` and ``memory_attention.py``) or ``naive`` (the library's own blocks).
    checkpointing: recompute each encoder block in the backward pass instead of storing it.
    """

    image_pe: Tensor
    token_positions: Tensor
    memory_positions: Tensor
    rotary: Tensor

    def __init__(
        self,
        model: Sam2VideoModel,
        *,
        name: str,
        from_scratch: bool,
        report: LoadReport,
        attention: str = "fast",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(model, name, from_scratch, report, attention, checkpointing)
        prompt = self.model.config.prompt_encoder_config
        self.input_size, self.patch, self.channels = prompt.image_size, prompt.patch_size, prompt.hidden_size
        self.grid = self.input_size // self.patch
        self.memory_channels = MEMORY
        self.register_buffer("image_pe", self._positions(), persistent=False)
        self.register_buffer("token_positions", sine_positions(self.grid, self.channels), persistent=False)
        self.register_buffer("memory_positions", sine_positions(self.grid, MEMORY), persistent=False)
        self.register_buffer("rotary", rotary_table(self.model.memory_attention), persistent=False)
        self.register_load_state_dict_post_hook(_follow)
        self.freeze()

    @property
    def encoder_blocks(self) -> Any:
        """The blocks of the image encoder, each with an ``attn.qkv``."""
        return self.model.vision_encoder.backbone.blocks

    @torch.no_grad()
    def _positions(self) -> Tensor:
        """``(1, C, g, g)`` of the Fourier matrix at hand, in float32 whatever the autocast."""
        return self.model.get_image_wide_positional_embeddings()

    def _base_state(self) -> Mapping[str, Tensor]:
        matrix = "shared_image_embedding.positional_embedding"  # a buffer here
        return {**super()._base_state(), matrix: self.model.get_buffer(matrix)}

    def train_whole(
        self,
        default_prompt: bool = True,
        boxes: bool = False,
        masks: bool = False,
        memory: bool = False,
        made: bool = False,
        scores: bool = False,
    ) -> None:
        """Train every base weight that single masks depend on.

        The rest stays frozen, so that no trained tensor is left without gradient.  ``default_prompt``: the "no mask"
        vector and the token of no point.  ``boxes``, ``masks``: such prompts.  ``memory``: the memory attention, in
        place of the "no memory" vector.  ``made``: what the memories are made with, of given masks (see ``read_given``)
        and beside the default prompt.  ``scores``: the predicted IoU and the object score.
        """
        self.freeze(False)
        prompts = {
            "no_mask_embed": default_prompt and not masks,
            r"point_embed\.[23]": boxes,
            "mask_embed": masks or made,
        }
        used = "|".join([*(name for name, use in prompts.items() if use), "not_a_point_embed"])
        unused = [
            rf"prompt_encoder\.(?!{used})",
            r"mask_decoder\.output_hypernetworks_mlps\.[1-9]|no_memory_positional",
            r"no_memory_embedding" if memory else "memory_attention",
            *([] if made else [MADE]),
            *([] if scores else [SCORES]),
        ]
        self._require_grad("|".join(f"({part})" for part in unused), False)

    def train_memory(self, attention: bool = True, scores: bool = False) -> None:
        """Train what memories are made with, and read with unless ``attention`` is false, whatever else is frozen.

        ``scores``: also the predicted IoU and the object score.
        """
        _ = self.base_hash  # of the initial weights
        parts = [MADE, *(["memory_attention"] if attention else []), *([SCORES] if scores else [])]
        self._require_grad("|".join(f"({part})" for part in parts), True)

    def _require_grad(self, names: str, wanted: bool) -> None:
        for name, parameter in self.model.named_parameters():
            if re.match(names, name):
                parameter.requires_grad_(wanted)

    # -- images -------------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, blocks: bool = False) -> Embedding:
        """Embed images ``(B, 3, S, S)`` float, normalised; ``blocks`` also keeps every Hiera block's output.

        Features ``(B, C, g, g)`` are without the "no memory" vector; ``high_res`` are ``(B, C / 8, 4g, 4g)`` and
        ``(B, C / 4, 2g, 2g)``.  They have the dtype of ``images``, also under autocast.
        """
        self.check_images(images)
        trunk = self.model.vision_encoder.backbone
        x = trunk.patch_embed(images)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        kept, stages = [], []
        for i, block in enumerate(trunk.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._block, block, x, use_reentrant=False)
            else:
                x = self._block(block, x)
            if blocks:
                kept.append(x)
            if i in trunk.stage_ends:
                stages.append(x)
        features, fine, middle = self._pyramid(stages)
        high_res = (fine.to(images.dtype), middle.to(images.dtype))
        return Embedding(features.to(images.dtype), high_res, tuple(kept))

    def _block(self, block: Any, x: Tensor) -> Tensor:
        return hiera_block(block, x) if self.attention == "fast" else block(x)

    def _pyramid(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The neck: the third stage with the fourth laid over it, and the first two as the decoder wants them."""
        convs = self.model.vision_encoder.neck.convs  # of the last stage first
        levels = [conv(stage.permute(0, 3, 1, 2)) for conv, stage in zip(convs, reversed(stages), strict=True)]
        features = levels[1] + F.interpolate(levels[0].float(), scale_factor=2.0).to(levels[1].dtype)
        return features, self.model.mask_decoder.conv_s0(levels[3]), self.model.mask_decoder.conv_s1(levels[2])

    def unconditioned(self, embedding: Embedding) -> Embedding:
        """The embedding of still images, as SAM 2 decodes them: with its learned "no memory" vector."""
        vector = self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return Embedding(embedding.features + vector, embedding.high_res, embedding.blocks)

    # -- prompts ------------------------------------------------------------------------------------------------------

    def no_tokens(self, count: int) -> Tensor:
        """The empty prompt of SAM 2, ``(P, 2, C)``: one point of label -1, and the one that always follows points."""
        return self.model.prompt_encoder.not_a_point_embed.weight.expand(count, 2, -1)

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool = False) -> Masks:
        """Masks of ``P`` prompts about the ``B`` images of ``embedding``, in one batch.

        Returns logits ``(P, 1, 4g, 4g)`` of the single-mask token, never another's (decision D-15) and never gated by
        the object score, or with ``multimask`` the ``(P, 3, 4g, 4g)`` of the others; and their predicted IoU.
        """
        reading = self.read(embedding, prompt, slice(1, None) if multimask else slice(0, 1))
        return Masks(reading.logits, reading.iou)

    def read(self, embedding: Embedding, prompt: Prompt, masks: slice) -> Reading:
        """``decode`` with all that the decoder says, of the ``masks`` asked for among the 1 + 3 there are."""
        self.check_prompt(prompt)
        if len(embedding.high_res) != 2:
            raise InputError("An embedding without its high resolution features", "what Sam2.encode returned")
        features, fine, middle = (self._of(part, prompt) for part in (embedding.features, *embedding.high_res))
        features = features.expand(len(prompt.sparse), -1, -1, -1)
        decoder = self.model.mask_decoder
        return read_masks(decoder, features, self.image_pe, prompt.sparse, prompt.dense, (fine, middle), masks)

    @staticmethod
    def _of(maps: Tensor, prompt: Prompt) -> Tensor:
        """What each prompt sees of ``(B, c, h, w)``; without a copy where there is one image."""
        return maps if len(maps) == 1 else maps.index_select(0, prompt.image_index)

    # -- memories -----------------------------------------------------------------------------------------------------

    def attend(self, features: Tensor, memory: Tensor, positions: Tensor | None = None, pointers: int = 0) -> Tensor:
        """Memory attention: image features that have read ``N`` memories, all in one pass.

        features: ``(N, C, g, g)``, or ``(1, C, g, g)`` of the one image that every memory is read for; without the
            "no memory" vector.  memory: ``(M, N, 64)`` tokens.  positions: what is added to them as keys,
            ``(M, N, 64)`` or ``(M, 1, 64)``; ``None``: nothing.
        pointers: the last so many tokens are no places (object pointers, prompts): they have no rotary position.  The
            tokens before them are whole grids, so ``M - pointers`` is a multiple of ``g^2``.

        Returns ``(N, C, g, g)``: what ``decode`` reads of each.
        """
        tokens, count = memory.shape[0], memory.shape[1]
        spatial = tokens - pointers
        if memory.ndim != 3 or memory.shape[2] != MEMORY or spatial < 0 or spatial % self.grid**2:
            raise InputError(
                f"Memory of shape {tuple(memory.shape)} with {pointers} pointer tokens",
                f"(M, N, {MEMORY}), M - pointers a multiple of {self.grid**2}",
            )
        if len(features) not in (1, count):
            raise InputError(f"Features of {len(features)} images for {count} memories", f"1 or {count}")
        queries = features.flatten(2).permute(2, 0, 1)
        keys = torch.zeros_like(memory) if positions is None else positions.expand(-1, count, -1)
        if self.attention == "fast":
            placed = (queries + 0.1 * self.token_positions[:, None]).transpose(0, 1)
            values = memory.transpose(0, 1)
            read = attend_memories(
                self.model.memory_attention, placed, values + keys.transpose(0, 1), values, self.rotary, pointers
            )
        else:
            read = self.model.memory_attention(
                current_vision_features=queries.expand(-1, count, -1),
                current_vision_position_embeddings=self.token_positions[:, None],
                memory=memory,
                memory_posision_embeddings=keys,
                num_object_pointer_tokens=pointers,
            )[0]
        return read.transpose(1, 2).unflatten(2, (self.grid, self.grid)).to(features.dtype)

    def conditioned(
        self, embedding: Embedding, image_index: Tensor, memory: Tensor, positions: Tensor | None, pointers: int
    ) -> Embedding:
        """What the decoder is to read of images with memories, an "image" for each of ``N`` memories.

        image_index: ``(N,)`` int64, the image that reads each memory.  The others are those of ``attend``.  High
        resolution features are shared where there is one image.
        """
        features, high_res = embedding.features, embedding.high_res
        if len(features) > 1:
            features = features.index_select(0, image_index)
            high_res = tuple(part.index_select(0, image_index) for part in high_res)
        return Embedding(self.attend(features, memory, positions, pointers), high_res)

    def remember(self, features: Tensor, masks: Tensor, visible: Tensor) -> Tensor:
        """Memory encoder: spatial memories ``(g^2, N, 64)`` of images and of what was found in them.

        features: ``(N or 1, C, g, g)`` as encoded.  masks: ``(N, 1, S, S)`` probabilities in [0, 1].  visible:
        ``(N,)`` bool, whether the object is in the image.  Keeps gradients and dtype.
        """
        side = 16 * self.grid
        if masks.shape[-2:] != (side, side):
            masks = F.interpolate(masks, (side, side), mode="bilinear", antialias=True)
        features = features.expand(len(masks), -1, -1, -1)
        memory, _ = self.model.memory_encoder(features, masks * LOGIT_SCALE + LOGIT_BIAS)
        if self.model.occlusion_spatial_embedding_parameter is not None:
            hidden = (~visible).to(memory.dtype)[:, None, None, None]
            memory = memory + hidden * self.model.occlusion_spatial_embedding_parameter[..., None, None]
        return memory.flatten(2).permute(2, 0, 1)

    def read_given(self, embedding: Embedding, masks: Tensor, image_index: Tensor, which: slice) -> Reading:
        """What the decoder says to masks that are given, as SAM 2 asks it for their object pointers.

        embedding: of images, without the "no memory" vector.  masks: ``(P, 1, S, S)`` float in [0, 1].  image_index:
        ``(P,)`` int64.  which: of the 1 + 3 masks there are.  Keeps gradients.
        """
        dense = shrink(self.model.mask_downsample(masks), 4 * self.grid)
        return self.read(embedding, self.embed_prompts(image_index, masks=dense), which)

    def spatial_positions(self, offset: int) -> Tensor:
        """``(g^2, 1, 64)``: positions of a memory of ``offset`` frames ago; 0: of a conditioning frame."""
        return self.memory_positions[:, None] + self.model.memory_temporal_positional_encoding[offset - 1]

    def point_at(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Object pointers ``(N, C)`` from mask tokens ``(N, C)``; a learned one where nothing is ``visible`` (N,)."""
        pointers = self.model.object_pointer_proj(tokens)
        return torch.where(visible[:, None], pointers, self.model.no_object_pointer)

    def pointer_tokens(self, pointers: Tensor, offsets: Tensor, most: int = POINTERS) -> tuple[Tensor, Tensor]:
        """Object pointers as memory tokens and their positions, ``(n C / 64, N, 64)`` and ``(n C / 64, 1, 64)``.

        pointers: ``(n, N, C)``.  offsets: ``(n,)`` how many frames ago each was made, of at most ``most`` - 1.
        """
        parts = self.channels // MEMORY
        tokens = pointers.unflatten(2, (parts, MEMORY)).transpose(1, 2).flatten(0, 1)
        return tokens, self.pointer_positions(offsets, most).repeat_interleave(parts, 0)[:, None]

    def pointer_positions(self, offsets: Tensor, most: int = POINTERS) -> Tensor:
        """``(n, 64)`` positions of pointers ``offsets`` ``(n,)`` frames old; zero in SAM 2.0."""
        if not self.model.config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros(len(offsets), MEMORY, device=offsets.device)
        waves = sine_times(offsets / max(most - 1, 1), self.channels)
        return self.model.temporal_positional_encoding_projection_layer(waves)

    def propagate(
        self,
        frames: Iterable[Tensor],
        prompts: Mapping[int, Mapping[int, ObjectPrompt]],
        **options: Any,
    ) -> Iterator[Tracked]:
        """Follow objects through a video, frame by frame, with SAM 2's own memory bank; see ``Tracker``.

        frames: ``(3, S, S)`` each, normalised; read one by one.  prompts: what is said, by frame index and object
        index ``0 ... N - 1``.  options: those of ``Tracker``.  For the frames before one that is prompted, pass them
        in reverse.
        """
        from samsans.backbones.sam2_video import Tracker

        if not any(prompts.values()):
            raise InputError("A video without prompts", "a mask, box or points on some frame")
        objects = 1 + max(n for said in prompts.values() for n in said)
        if isinstance(frames, Sized):
            options.setdefault("length", len(frames))
        tracker = Tracker(self, objects, **options)
        for index, frame in enumerate(frames):
            yield tracker.step(frame, prompts.get(index))


def _follow(sam2: Sam2, _: Any) -> None:
    """After weights were loaded: positions of the matrix among them."""
    sam2.image_pe.copy_(sam2._positions())
