"""The Segment Anything Model with two verbs: ``encode`` images once, ``decode`` many prompts."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import SamConfig, SamModel

from samsans.architectures import SamArchitecture
from samsans.backbones.attention import encoder_block
from samsans.backbones.base import Backbone, LoadReport
from samsans.errors import InputError
from samsans.types import Embedding, Masks, Prompt


class Sam(Backbone):
    """SAM over ``transformers.SamModel``: letters ``B`` images, ``P`` prompts, ``S``, ``g``, ``C`` as in ``types``.

    model: the network.  name: as asked for.  from_scratch: whether its weights were random at the start.
    attention: ``fast`` (exact, see ``attention.py``) or ``naive`` (the library's own blocks).
    checkpointing: recompute each encoder block in the backward pass instead of storing it.
    canvas: side in px of the square whose top left the images are, which places are relative to; default: the image.
    """

    model: Any  # SamModel, whose submodules type checkers cannot see
    image_pe: Tensor

    def __init__(
        self,
        model: SamModel,
        *,
        name: str,
        from_scratch: bool,
        report: LoadReport,
        attention: str = "fast",
        checkpointing: bool = False,
        canvas: int | None = None,
    ) -> None:
        super().__init__(model, name, from_scratch, report, attention, checkpointing)
        vision = self.model.config.vision_config
        self.input_size, self.patch = int(vision.image_size), int(vision.patch_size)
        self.grid, self.channels = self.input_size // self.patch, int(vision.output_channels)
        self.canvas = canvas or self.input_size
        self.model.prompt_encoder.input_image_size = self.canvas
        self.register_buffer("image_pe", self._positions(), persistent=False)
        self.register_load_state_dict_post_hook(_follow)
        self.freeze()

    @property
    def encoder_blocks(self) -> Any:
        """The blocks of the image encoder, each with an ``attn.qkv``."""
        return self.model.vision_encoder.layers

    @torch.no_grad()
    def _positions(self) -> Tensor:
        """``(1, C, g, g)`` of the Fourier matrix at hand, in float32 whatever the autocast: bf16 would blur them."""
        embed = self.model.shared_image_embedding
        matrix = embed.positional_embedding
        centres = (torch.arange(self.grid, dtype=matrix.dtype, device=matrix.device) + 0.5) * self.patch / self.canvas
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return embed(torch.stack([columns, rows], -1)).permute(2, 0, 1)[None]

    def train_whole(self, default_prompt: bool = True, boxes: bool = False, masks: bool = False) -> None:
        """Train every base weight that single masks depend on.

        The rest stays frozen, so that no trained tensor is left without gradient: IoU token and head, the
        hypernetworks of the other masks, and of the prompt encoder all but what is used.  ``default_prompt``: the "no
        mask" vector.  ``boxes``, ``masks``: such prompts.
        """
        self.freeze(False)
        prompts = {"no_mask_embed": default_prompt, r"point_embed\.[23]": boxes, "mask_embed": masks}
        used = "|".join(name for name, use in prompts.items() if use) or "$"
        unused = rf"prompt_encoder\.(?!{used})|iou_prediction_head|output_hypernetworks_mlps\.[1-9]|iou_token"
        for name, parameter in self.model.named_parameters():
            if re.search(unused, name):
                parameter.requires_grad_(False)

    def encode(self, images: Tensor, blocks: bool = False) -> Embedding:
        """Embed images ``(B, 3, S, S)`` float, normalised; ``blocks`` also keeps every ViT block's output.

        Features have the dtype of ``images``, also under autocast.
        """
        self.check_images(images)
        vision = self.model.vision_encoder
        x = vision.patch_embed(images)
        if vision.pos_embed is not None:
            x = x + vision.pos_embed
        kept = []
        for layer in vision.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._block, layer, x, use_reentrant=False)
            else:
                x = self._block(layer, x)
            if blocks:
                kept.append(x)
        return Embedding(vision.neck(x).to(images.dtype), blocks=tuple(kept))

    def _block(self, layer: Any, x: Tensor) -> Tensor:
        return encoder_block(layer, x) if self.attention == "fast" else layer(x)

    def decode(
        self,
        embedding: Embedding,
        prompt: Prompt,
        multimask: bool = False,
        *,
        attention: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Masks:
        """Masks of ``P`` prompts about the ``B`` images of ``embedding``, in one batch.

        Returns logits ``(P, 1, 4g, 4g)`` of SAM's single-mask token (decision D-12), or with ``multimask`` the
        ``(P, 3, 4g, 4g)`` of the others, and their predicted IoU.  Tokens are the output tokens followed by
        ``prompt.sparse``, nothing else (decision D-11).

        attention: ``(P, g, g)``, added before the softmax to what every token attends to in the image, in each layer.
        target: ``(P, C)``, added to every token before each layer (by the library, in the first also to its position).
        """
        count, index = len(prompt.sparse), prompt.image_index
        self.check_prompt(prompt)
        features = embedding.features
        if len(features) == 1:
            features = features.expand(count, -1, -1, -1)  # no copy
        else:
            features = features.index_select(0, index)
        logits, iou = self.model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=self.image_pe,
            sparse_prompt_embeddings=prompt.sparse[:, None],
            dense_prompt_embeddings=prompt.dense,
            multimask_output=multimask,
            attention_similarity=None if attention is None else attention.flatten(1)[:, None, None],
            target_embedding=None if target is None else target[:, None, None],
        )
        return Masks(logits[:, 0], iou[:, 0])

    def no_tokens(self, count: int) -> Tensor:
        """``(P, 0, C)``: a prompt without points and boxes has no tokens."""
        return self.model.mask_decoder.iou_token.weight.new_zeros(count, 0, self.channels)

    def take_decoder(self) -> tuple[Any, Tensor]:
        """Hand over the mask decoder and a copy of the "no mask" vector ``(C,)``; from then on only ``encode`` works.

        For methods that give the decoder class tokens of their own.  Prompt encoder and IoU head are dropped.
        """
        _ = self.base_hash  # of the whole network
        decoder = self.model.mask_decoder
        vector = self.model.prompt_encoder.no_mask_embed.weight.detach()[0].clone()
        del self.model.mask_decoder, self.model.prompt_encoder
        return decoder, vector


def _follow(sam: Sam, _: Any) -> None:
    """After weights were loaded: positions of the matrix among them."""
    sam.image_pe.copy_(sam._positions())


def build_network(arch: SamArchitecture, input_size: int, attention: str = "fast") -> SamModel:
    """An empty network (meta tensors) for inputs of ``input_size`` pixels.

    The decoder's LayerNorm has SAM's own epsilon, 1e-5, not the 1e-6 of ``transformers``.
    """
    if input_size < arch.patch or input_size % arch.patch:
        raise InputError(f"Input side {input_size} px", f"a multiple of the patch side, {arch.patch} px")
    config = SamConfig(
        vision_config={
            "hidden_size": arch.hidden,
            "num_hidden_layers": arch.depth,
            "num_attention_heads": arch.heads,
            "mlp_dim": arch.mlp,
            "global_attn_indexes": list(arch.global_blocks),
            "window_size": arch.window,
            "output_channels": arch.channels,
            "num_pos_feats": arch.channels // 2,
            "image_size": input_size,
            "patch_size": arch.patch,
        },
        prompt_encoder_config={
            "hidden_size": arch.channels,
            "mask_input_channels": arch.mask_channels,
            "image_size": input_size,
            "patch_size": arch.patch,
        },
        mask_decoder_config={
            "hidden_size": arch.channels,
            "num_hidden_layers": arch.decoder_depth,
            "num_attention_heads": arch.decoder_heads,
            "mlp_dim": arch.decoder_mlp,
            "attention_downsample_rate": arch.decoder_downsample,
            "num_multimask_outputs": arch.multimask,
            "iou_head_hidden_dim": arch.iou_hidden,
            "layer_norm_eps": 1e-5,
        },
    )
    config._attn_implementation = "sdpa" if attention == "fast" else "eager"
    with torch.device("meta"):
        return SamModel(config)


def tie_positions(model: Any) -> None:
    """Let images and points share one Fourier matrix, as SAM does."""
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding = shared
