"""The Segment Anything Model with two verbs: ``encode`` images once, ``decode`` many prompts."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamConfig, SamModel

from samsans.backbones.attention import encoder_block
from samsans.errors import InputError
from samsans.types import Embedding, Masks, Prompt
from samsans.zoo import SamArchitecture


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    resized: one line per position table that was resized to another input side.  drawn: names of the tensors that were
    not taken from the source but drawn at random; ``tensors`` does not count them.
    """

    source: str
    tensors: int
    resized: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()

    def __str__(self) -> str:
        tables = "".join(f"\n  resized {line}" for line in self.resized)
        tables += f"\n  drew {len(self.drawn)} tensors at random" if self.drawn else ""
        return f"{self.tensors} tensors from {self.source}{tables}"


class Sam(nn.Module):
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
        super().__init__()
        self.model = model
        vision = self.model.config.vision_config
        self.name, self.from_scratch, self.load_report = name, from_scratch, report
        self.attention, self.checkpointing = attention, checkpointing
        self.input_size, self.patch = int(vision.image_size), int(vision.patch_size)
        self.grid, self.channels = self.input_size // self.patch, int(vision.output_channels)
        self.canvas = canvas or self.input_size
        self.model.prompt_encoder.input_image_size = self.canvas
        self.frozen = True
        self._base_hash: str | None = None
        self.register_buffer("image_pe", self._positions(), persistent=False)
        self.register_load_state_dict_post_hook(_follow)
        self.freeze()

    @torch.no_grad()
    def _positions(self) -> Tensor:
        """``(1, C, g, g)`` of the Fourier matrix at hand, in float32 whatever the autocast: bf16 would blur them."""
        embed = self.model.shared_image_embedding
        matrix = embed.positional_embedding
        centres = (torch.arange(self.grid, dtype=matrix.dtype, device=matrix.device) + 0.5) * self.patch / self.canvas
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return embed(torch.stack([columns, rows], -1)).permute(2, 0, 1)[None]

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or start) training the base weights.  The Fourier matrix of positions is never trained."""
        self.frozen = frozen
        if not frozen:
            _ = self.base_hash  # of the initial weights
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not frozen and not name.endswith("positional_embedding"))
        self.train(self.training)

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

    def train(self, mode: bool = True) -> Sam:
        """Training mode; a frozen base stays in evaluation mode, only its adapters follow."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
            for name, module in self.model.named_modules():
                if "lora_" in name:
                    module.train(mode)
        return self

    @property
    def base_hash(self) -> str:
        """SHA-256 over the names and bytes of the base weights as loaded, adapters left out; computed once.

        Tensors that loading drew at random have no part in it.
        """
        if self._base_hash is None:
            from samsans.backbones.adapters import base_state

            digest = hashlib.sha256()
            for name, tensor in sorted(base_state(self).items()):
                if name in self.load_report.drawn:
                    continue
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._base_hash = digest.hexdigest()
        return self._base_hash

    def encode(self, images: Tensor, blocks: bool = False) -> Embedding:
        """Embed images ``(B, 3, S, S)`` float, normalised; ``blocks`` also keeps every ViT block's output.

        Features have the dtype of ``images``, also under autocast.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.input_size, self.input_size):
            side = self.input_size
            raise InputError(
                f"Images of shape {tuple(images.shape)}",
                f"(B, 3, {side}, {side}) for {self.name} at {side} px",
                "Resize the images or set backbone.input_size",
            )
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

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool = False) -> Masks:
        """Masks of ``P`` prompts about the ``B`` images of ``embedding``, in one batch.

        Returns logits ``(P, 1, 4g, 4g)`` of SAM's single-mask token (decision D-12), or with ``multimask`` the
        ``(P, 3, 4g, 4g)`` of the others, and their predicted IoU.  Tokens are the output tokens followed by
        ``prompt.sparse``, nothing else (decision D-11).
        """
        count, index = len(prompt.sparse), prompt.image_index
        if prompt.sparse.ndim != 3 or prompt.sparse.shape[2] != self.channels or index.shape != (count,):
            raise InputError(
                f"Prompts of shape {tuple(prompt.sparse.shape)} with image_index {tuple(index.shape)}",
                f"(P, tokens, {self.channels}) and (P,)",
            )
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
        )
        return Masks(logits[:, 0], iou[:, 0])

    def dense_default(self) -> Tensor:
        """SAM's learned "no mask" vector over the grid, ``(1, C, g, g)``."""
        vector = self.model.prompt_encoder.no_mask_embed.weight
        return vector.reshape(1, -1, 1, 1).expand(1, -1, self.grid, self.grid)

    def take_decoder(self) -> tuple[Any, Tensor]:
        """Hand over the mask decoder and a copy of the "no mask" vector ``(C,)``; from then on only ``encode`` works.

        For methods that give the decoder class tokens of their own.  Prompt encoder and IoU head are dropped.
        """
        _ = self.base_hash  # of the whole network
        decoder = self.model.mask_decoder
        vector = self.model.prompt_encoder.no_mask_embed.weight.detach()[0].clone()
        del self.model.mask_decoder, self.model.prompt_encoder
        return decoder, vector

    def embed_prompts(
        self,
        image_index: Tensor,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Prompt:
        """SAM's own prompt encoder, with gradients.

        image_index: ``(P,)`` int64.  points: ``(P, n, 2)`` x, y in model pixels; point_labels: ``(P, n)``, 1 inside,
        0 outside, -1 padding.  boxes: ``(P, 4)`` x0, y0, x1, y1 in model pixels.  masks: ``(P, 1, 4g, 4g)`` logits.
        """
        if (points is None) != (point_labels is None):
            raise InputError("Points without labels, or labels without points", "both or neither")
        for name, given in (("points", points), ("boxes", boxes), ("masks", masks)):
            if given is not None and len(given) != len(image_index):
                raise InputError(f"{len(given)} {name} for {len(image_index)} prompts", "one entry for every prompt")
        with torch.autocast(image_index.device.type, enabled=False):  # coordinates need their full precision
            sparse, dense = self.model.prompt_encoder(
                input_points=None if points is None else points[:, None].float(),
                input_labels=None if point_labels is None else point_labels[:, None],
                input_boxes=None if boxes is None else boxes[:, None].float(),
                input_masks=masks,
            )
        if sparse is None:
            tokens = self.model.mask_decoder.iou_token.weight.new_zeros(len(image_index), 0, self.channels)
        else:
            tokens = sparse[:, 0]
        return Prompt(tokens, self.dense_default() if masks is None else dense, image_index)


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
