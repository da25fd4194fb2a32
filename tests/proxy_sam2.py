"""Proxy Prompt on a small SAM 2, and images of noise for it."""

from __future__ import annotations

from typing import Any

import torch

from samsans import config as configuration
from samsans.methods import build
from samsans.methods.proxy_prompt.model import ProxyPrompt
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Batch, Embedding

SIDE = 128  # an 8 x 8 grid: four prompt tokens
SMALL = {
    "backbone.name": "sam2-tiny-test",
    "backbone.input_size": SIDE,
    "backbone.train": "lora",
    "model.csm.encoder.dim": 32,
    "model.csm.encoder.depth": 1,
    "model.ccm.ffn": 32,
    "model.scan": "chunked",
}


def make(**options: Any) -> ProxyPrompt:
    preset = options.pop("preset", "paper")
    settings = SMALL | {key.replace("__", "."): value for key, value in options.items()}
    return build(configuration.from_dict(settings, method="proxy_prompt", preset=preset), ("a", "b"))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(images: int = 4, objects: int = 2, seed: int = 0, side: int = SIDE) -> Batch:
    masks = rand(images, objects, side, side, seed=seed + 1) > 0.5
    ids = tuple(f"image{i}" for i in range(images))
    return Batch(rand(images, 3, side, side, seed=seed), masks, ids, tuple("abcdef"[:objects]))


def target(images: int = 1, seed: int = 9) -> Batch:
    return Batch(rand(images, 3, SIDE, SIDE, seed=seed), None, tuple("xyz"[:images]), ("a", "b"))


def spread(method: ProxyPrompt) -> ProxyPrompt:
    """Random LoRA: at the start B is zero and the adapters do nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return method


def read(method: ProxyPrompt, images: torch.Tensor, bank: SupportBank) -> tuple[Embedding, torch.Tensor, torch.Tensor]:
    embedding = method.backbone.encode(images)
    tokens, context = method.prompt(embedding.features, bank.keys, bank.values)
    return embedding, tokens, context
