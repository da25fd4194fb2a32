"""A small H-SAM on small data; as a script, ``hsam_training.py RUN``, two processes train it and say what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dummy_training import OBJECTS, DummySource
from samsans import config as configuration
from samsans.display import Display
from samsans.methods import build
from samsans.training.data import TrainingData
from samsans.training.run import first_process, fit
from samsans.types import Batch


class LargeSource(DummySource):
    """The discs and squares at 64 pixels; each process draws its own."""

    def batch(self, step: int | Sequence[int], rank: int = 0, world: int = 1) -> Batch:  # type: ignore[override]
        small = super().batch(step, rank, world)  # type: ignore[arg-type]
        large = (x.repeat_interleave(4, -1).repeat_interleave(4, -2) for x in (small.images, small.masks))
        return dataclasses.replace(small, **dict(zip(("images", "masks"), large, strict=True)))


def make_hsam(**train: Any) -> tuple[configuration.RunConfig, Any]:
    """The preset ``paper`` on the tiny backbone, three steps."""
    options = {"epochs": None, "steps": 3, "warmup": 1, "pictures_every": 0, "accelerator": "cpu"} | train
    settings = {"train": options, "backbone": {"name": "tiny", "input_size": 64}}
    config = configuration.from_dict(settings, method="hsam", preset="paper")
    return config, build(config, OBJECTS)


def digest(method: torch.nn.Module) -> str:
    """Of everything that was trained."""
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    values = [value.detach().numpy().tobytes() for name, value in method.state_dict().items() if name in trained]
    return hashlib.sha256(b"".join(values)).hexdigest()


if __name__ == "__main__":
    run = Path(sys.argv[1])
    config, method = make_hsam(devices=2, strategy="ddp")
    source = LargeSource(12)
    with Display("training", silent=not first_process()) as display:
        fit(config, method, TrainingData(source, source, LargeSource(0), OBJECTS), run, display, resume=False)
    pixels = method.cmattn.pixels.tolist()
    print(f"process {os.environ['LOCAL_RANK']} holds {digest(method)} {pixels}", flush=True)
