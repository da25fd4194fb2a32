"""``resume.ckpt``: everything a run needs to go on as if it had never stopped.

Besides weights, optimiser state and position there is nothing to keep: every random generator is set at each step from
(seed, step, rank), see ``module.seed_step``, and the samples are drawn from the step as well.  Resuming is equal to the
last bit where the arithmetic is: on a CPU, and on a GPU as far as its kernels are deterministic.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samsans.errors import InputError
from samsans.io.atomic import atomic_path
from samsans.training.schedule import Position

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """weights: what is trained.  optimizer: its ``state_dict``, or ``None`` between two stages."""

    position: Position
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a process killed at any moment leaves the former checkpoint or the new one."""
    values = {
        "format": FORMAT,
        "position": dataclasses.asdict(checkpoint.position),
        "weights": checkpoint.weights,
        "optimizer": checkpoint.optimizer,
    }
    with atomic_path(path) as temporary:
        torch.save(values, temporary)


def load(path: Path) -> Checkpoint | None:
    """Read a checkpoint to main memory without unpickling any code; ``None`` where there is none yet."""
    if not path.is_file():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}", "a checkpoint of this run", "Train anew") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of this version of samsans", f"format {FORMAT}", "Train anew")
    return Checkpoint(Position(**values["position"]), values["weights"], values["optimizer"])
