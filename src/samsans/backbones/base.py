"""What SAM and SAM 2 share: frozen or trained base weights, their hash, prompts, the shapes they accept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from samsans.errors import InputError
from samsans.types import Prompt


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


class Backbone(nn.Module):
    """A network of ``transformers`` that encodes images and decodes prompts; letters as in ``types``.

    input_size: S.  patch: pixels a token side.  grid: g.  channels: C.  frozen: whether the base is.
    """

    model: Any  # type checkers cannot see its submodules
    input_size: int
    patch: int
    grid: int
    channels: int

    def __init__(
        self, model: Any, name: str, from_scratch: bool, report: LoadReport, attention: str, checkpointing: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.name, self.from_scratch, self.load_report = name, from_scratch, report
        self.attention, self.checkpointing = attention, checkpointing
        self.frozen = True
        self._base_hash: str | None = None

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or start) training the base weights.  The Fourier matrix of positions is never trained."""
        self.frozen = frozen
        if not frozen:
            _ = self.base_hash  # of the initial weights
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not frozen and not name.endswith("positional_embedding"))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
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
            digest = hashlib.sha256()
            for name, tensor in sorted(self._base_state().items()):
                if name in self.load_report.drawn:
                    continue
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._base_hash = digest.hexdigest()
        return self._base_hash

    def _base_state(self) -> Mapping[str, Tensor]:
        """Every base tensor by name, adapters left out."""
        from samsans.backbones.adapters import base_state

        return base_state(self)

    @property
    def encoder_blocks(self) -> Any:
        """The blocks of the image encoder, each with an ``attn.qkv``."""
        raise NotImplementedError

    def no_tokens(self, count: int) -> Tensor:
        """Tokens of ``count`` prompts that have neither points nor boxes, ``(P, tokens, C)``."""
        raise NotImplementedError

    def check_images(self, images: Tensor) -> None:
        """Raise ``InputError`` unless images are ``(B, 3, S, S)``."""
        if images.ndim != 4 or images.shape[1:] != (3, self.input_size, self.input_size):
            side = self.input_size
            raise InputError(
                f"Images of shape {tuple(images.shape)}",
                f"(B, 3, {side}, {side}) for {self.name} at {side} px",
                "Resize the images or set backbone.input_size",
            )

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise ``InputError`` unless prompts are ``(P, tokens, C)``, with an image for each."""
        count, index = len(prompt.sparse), prompt.image_index
        if prompt.sparse.ndim != 3 or prompt.sparse.shape[2] != self.channels or index.shape != (count,):
            raise InputError(
                f"Prompts of shape {tuple(prompt.sparse.shape)} with image_index {tuple(index.shape)}",
                f"(P, tokens, {self.channels}) and (P,)",
            )

    def dense_default(self) -> Tensor:
        """SAM's learned "no mask" vector over the grid, ``(1, C, g, g)``."""
        vector = self.model.prompt_encoder.no_mask_embed.weight
        return vector.reshape(1, -1, 1, 1).expand(1, -1, self.grid, self.grid)

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
        0 outside, -1 padding.  boxes: ``(P, 4)`` x0, y0, x1, y1 in model pixels.  masks: ``(P, 1, 4g, 4g)`` logits of
        any precision.
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
                input_masks=None if masks is None else masks.to(torch.promote_types(masks.dtype, torch.float32)),
            )
        tokens = self.no_tokens(len(image_index)) if sparse is None else sparse[:, 0]
        return Prompt(tokens, self.dense_default() if masks is None else dense, image_index)
