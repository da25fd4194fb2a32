"""What the tests of methods without prompts and supports share: a toy task, and checks that hold for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from samsans import config as configuration
from samsans.methods import build
from samsans.methods.weights import load_weights, save_weights
from samsans.types import Batch

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def make(name: str, preset: str = "paper", objects: int = 3, **options: Any) -> Any:
    """A method on the tiny backbone; ``model__layers=4`` sets ``model.layers``."""
    settings = {"backbone.name": "tiny", "backbone.input_size": 64}
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    return build(configuration.from_dict(settings, method=name, preset=preset), NAMES[:objects])


def toy(images: int = 2, objects: int = 3, seed: int = 0) -> Batch:
    """Pictures of noise with one brighter quarter for each of at most three objects; masks do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(images, 64, 64, dtype=torch.int64)
    for item in range(objects):
        row, column = divmod(item, 2)
        labels[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = item + 1
    pictures = torch.randn(images, 3, 64, 64, generator=generator) * 0.2
    pictures[:, 0] += labels
    masks = torch.stack([labels == item + 1 for item in range(objects)], 1)
    return Batch(pictures, masks, tuple(f"image{i}" for i in range(images)), NAMES[:objects])


def unlabelled(batch: Batch) -> Batch:
    """The same images to predict."""
    return Batch(batch.images, None, batch.ids, batch.objects)


def step(method: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One training step; the loss before it."""
    optimizer.zero_grad()
    loss = method.loss(method(batch), batch)["loss"]
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def optimizer_of(method: Any, lr: float) -> torch.optim.Optimizer:
    """Adam over what the method's only stage trains, which must be what requires gradients."""
    (stage,) = method.stages(None)
    parameters = [p for group in stage.groups for p in group.parameters]
    assert {id(p) for p in parameters} == {id(p) for p in method.parameters() if p.requires_grad}
    return torch.optim.Adam(parameters, lr)


def check_step(method: Any, batch: Batch) -> None:
    """Every trained tensor has a finite gradient and some move; what is frozen stays bit for bit."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step(method.train(), batch, optimizer_of(method, 1e-3))
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    after = method.state_dict()
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} <= trained.keys()
    assert sum(not torch.equal(after[name], before[name]) for name in trained) > len(trained) // 2


def check_learns(method: Any, batch: Batch, share: float = 0.75, lr: float = 3e-3) -> None:
    """A few steps on one batch lower the loss below this share of what it was."""
    optimizer = optimizer_of(method.train(), lr)
    losses = [step(method, batch, optimizer) for _ in range(12)]
    assert losses[-1] < share * losses[0], losses


def check_round_trip(made: Any, again: Any, batch: Batch, path: Path) -> None:
    """What one method saves, another that was built alike but has other weights reads, and answers the same."""
    for method in (made, again):
        method.backbone.from_scratch = False  # so that only what was trained is stored
    step(made.train(), batch, optimizer_of(made, 1e-2))
    wanted = made.eval().predict(unlabelled(batch))
    assert not torch.equal(again.eval().predict(unlabelled(batch)), wanted)
    save_weights(made, path)
    load_weights(again, path)
    assert torch.equal(again.predict(unlabelled(batch)), wanted)
