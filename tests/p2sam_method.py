"""A small P2SAM and small images for tests of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from samsans import config as configuration
from samsans.methods import build
from samsans.methods.p2sam.model import P2Sam
from samsans.types import Batch, Stage

SIDE = 64


def make(preset: str = "paper", seed: int = 0, **options: Any) -> tuple[P2Sam, configuration.RunConfig]:
    """P2SAM on the tiny backbone with adapters; keyword arguments are options of ``model``."""
    settings = {"backbone": {"name": "tiny", "input_size": SIDE}, "seed": seed, "model": options}
    config = configuration.from_dict(settings, method="p2sam", preset=preset)
    return build(config, ("lesion",)), config


def begin(method: P2Sam, config: configuration.RunConfig, number: int, augmented: bool = False) -> Stage:
    """What training does when a stage begins."""
    stage = method.stages(config)[number]
    method.begin(stage, augmented)
    trained = {id(p) for group in stage.groups for p in group.parameters}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    method.train()
    return stage


def ready(**options: Any) -> P2Sam:
    """A method that draws prompts as after its training, and whose masks follow them (our weights are random)."""
    method, config = make(**options)
    begin(method, config, 1, augmented=True)
    with torch.no_grad():
        method.backbone.model.mask_decoder.mask_tokens.weight.mul_(0.3)
    return method.eval()


def batch(images: int = 2, annotated: bool = True, first: int = 0) -> Batch:
    """Noise; three annotators drew rectangles that grow with the image, one drew nothing."""
    pixels = torch.stack([torch.rand(1, SIDE, SIDE, generator=rng(first + i)) for i in range(images)])
    annotations = torch.zeros(images, 4, 1, SIDE, SIDE, dtype=torch.bool)
    for i in range(images):
        for a in range(3):
            annotations[i, a, 0, 10 : 30 + 4 * a + first + i, 20:40] = True
    truth = (annotations[:, 0], annotations, torch.ones(images, 4, dtype=torch.bool)) if annotated else (None,) * 3
    ids = tuple(f"image{first + i}" for i in range(images))
    return Batch(pixels.expand(-1, 3, -1, -1), truth[0], ids, ("lesion",), annotations=truth[1], drawn=truth[2])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def learn(method: P2Sam, stage: Stage, steps: int = 2, lr: float = 1e-3, images: int = 2) -> dict[str, Tensor]:
    """A few steps on a stage; the gradients of the last by name."""
    groups = [{"params": list(g.parameters), "lr": lr * g.lr_scale, "eps": g.eps or 1e-8} for g in stage.groups]
    optimizer = torch.optim.Adam(groups)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        shown = batch(images)
        method.loss(method(shown), shown)["loss"].backward()
        optimizer.step()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def encodes(method: P2Sam, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each encoding from now on takes."""
    seen: list[int] = []
    encode = method.backbone.encode

    def counted(images: Tensor) -> Any:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(method.backbone, "encode", counted)
    return seen
