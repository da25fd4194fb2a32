"""The frozen ResNet-50 that VRP-SAM's queries look at, with its weights from the hub or a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.backbones.files import find_weights, read_tensors
from samsans.errors import InputError


@dataclass(frozen=True)
class Features:
    """What the queries see of ``B`` images.

    maps: ``(B, F, g, g)``, where prompts are read from.  deep: ``(B, D, h, h)``, what tells alike places.
    """

    maps: Tensor
    deep: Tensor


class FrozenResNet(nn.Module):
    """A ResNet of ``transformers`` with its ImageNet weights, never trained: its batch norm stays as it is, too.

    Images normalised for SAM, that is with ImageNet's mean and deviation, are resized to ``size`` (our decision).
    ``maps`` are its stages 2 and 3 (strides 8 and 16) joined at stride 8, ``deep`` is stage 4 (our decision, after
    PFENet, arXiv 2008.01449, whose pseudo masks come from the last stage).

    Args:
        model: A ``ResNetModel`` of four stages.
        size: Side in pixels that images are brought to, a multiple of 32.
    """

    digest: Tensor

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise InputError(f"model.resnet_size {size}", "a multiple of 32 pixels, the stride of a ResNet")
        widths = model.config.hidden_sizes
        if len(widths) != 4:
            raise InputError(f"a ResNet of {len(widths)} stages", "one of four, e.g. microsoft/resnet-50")
        self.model, self.size = model.requires_grad_(False).eval(), size
        self.channels, self.grid = widths[1] + widths[2], size // 8
        self.register_buffer("digest", _digest(model))
        self.register_load_state_dict_pre_hook(_same_weights)

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: it is frozen."""
        return super().train(False)

    @property
    def hash(self) -> str:
        """SHA-256 of its weights."""
        return bytes(self.digest.tolist()).hex()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of ``(B, 3, S, S)`` float, normalised."""
        side = (self.size, self.size)
        if images.shape[-2:] != side:
            images = F.interpolate(images, side, mode="bilinear", align_corners=False, antialias=True)
        *_, second, third, fourth = self.model(images, output_hidden_states=True).hidden_states
        third = F.interpolate(third, second.shape[-2:], mode="bilinear", align_corners=False)
        return Features(torch.cat([second, third], 1).to(images.dtype), fourth.to(images.dtype))


def load_resnet(name: str, size: int) -> FrozenResNet:
    """The ResNet of a hub id or folder, on this machine or fetched; a classifier beside it is left out.

    Raises:
        InputError: it is not here and cannot be fetched, or is no whole ResNet.
    """
    from transformers import ResNetConfig, ResNetModel

    todo = "Name a folder or hub id of a ResNet-50 as model.resnet, or set model.features backbone"
    if Path(name).is_file():
        raise InputError(f"model.resnet {name} is a file", "a folder with config.json and model.safetensors", todo)
    try:
        path = find_weights(name)
        about = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        state = read_tensors(path, "the tensors of a ResNet")
    except InputError as error:
        raise InputError(f"model.features resnet50 has no weights. {error}", todo=todo) from error
    except (OSError, ValueError) as error:
        raise InputError(f"no config.json can be read beside {path}: {error}", "the one of a ResNet", todo) from error
    if about.get("model_type") != "resnet":
        raise InputError(f"{path.parent} holds a {about.get('model_type')}", "a resnet of transformers", todo)
    model = ResNetModel(ResNetConfig.from_dict(about))
    own = {key.removeprefix("resnet."): value for key, value in state.items() if not key.startswith("classifier.")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is not the ResNet of its config.json: {reason}", "all its tensors", todo) from error
    return FrozenResNet(model, size)


def _digest(model: nn.Module) -> Tensor:
    """SHA-256 of all weights, ``(32,)`` uint8."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _same_weights(network: FrozenResNet, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: InputError where they were trained on top of another ResNet."""
    found = state.get(f"{prefix}digest")
    if found is not None and not torch.equal(found.cpu(), network.digest.cpu()):
        raise InputError(
            f"weights trained with a ResNet of hash {bytes(found.tolist()).hex()[:12]}",
            f"the one at hand, {network.hash[:12]}",
            "Name the ResNet that the run was trained with as model.resnet",
        )
