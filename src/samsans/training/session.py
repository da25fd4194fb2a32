"""What the parts of a running training share, and how it is written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import samsans
from samsans import config as configuration
from samsans.config import RunConfig
from samsans.display import Display
from samsans.io.atomic import atomic_path
from samsans.methods import weights
from samsans.training import checkpoints
from samsans.training.data import Slices, Source, TrainingData
from samsans.training.log import CsvLog
from samsans.training.prompts import PairPrompts
from samsans.training.schedule import Duration, Position
from samsans.training.validation import support_indices
from samsans.types import Batch, Stage


@dataclass
class Session:
    """One training run at work.

    sources: what each stage learns from.  names: what a weights file of the method holds.  prompts: the points of
        stages of pairs.
    log: ``None`` in helper processes, which write nothing.
    optimizer_state: of the checkpoint, until the optimiser takes it.  row: what the present step logs.
    device: where the last stage ran.  stop: why the run is to end now, if it is.
    """

    config: RunConfig
    method: Any
    data: TrainingData
    run: Path
    stages: tuple[Stage, ...]
    sources: tuple[Source, ...]
    duration: Duration
    display: Display
    names: tuple[str, ...]
    prompts: PairPrompts | None = None
    position: Position = field(default_factory=Position)
    log: CsvLog | None = None
    optimizer_state: dict[str, Any] | None = None
    row: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    stop: str = ""

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder: the first of a distributed run does."""
        return self.log is not None

    @cached_property
    def supports(self) -> Batch | None:
        """The training slices that validation and pictures show a method that needs supports."""
        if not self.method.needs.supports:
            return None
        train, config = self.data.train, self.config
        return train.batch(support_indices(train, config.model.k_test, config.seed))

    @property
    def pairs(self) -> PairPrompts | None:
        """The points of the present stage, if it learns from pairs."""
        return self.prompts if self.stage.batches == "pairs" else None

    @property
    def held_out(self) -> Slices:
        """The slices or patches of validations; with their points, where the stage learns from pairs."""
        return self.data.val if self.pairs is None else self.pairs.held_out

    @property
    def sample(self) -> Batch:
        """The slice or patch of the sample pictures: held-out where there are any, with an object where one has any."""
        learned = self.data.train if self.pairs is None else self.pairs.learned
        slices = self.held_out if len(self.held_out) else learned
        return slices.batch(support_indices(slices, 1, self.config.seed + 1) or [0])

    def held_out_batches(self) -> Iterator[Batch]:
        """All held-out slices once, as the present stage learns: in batches of slices or of pairs."""
        size, slices = self.config.train.batch_size, self.data.val
        if self.pairs is not None:
            return self.pairs.held_out.pairs(size)
        return (slices.batch(range(i, min(i + size, len(slices)))) for i in range(0, len(slices), size))

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.duration.finished(self.position)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.stages[self.position.stage]

    @property
    def draws(self) -> int:
        """How many samples of the method are scored; 0 in stages without any."""
        drawn = self.method.needs.samples and self.stage.selects != "dice"
        return int(self.config.model.samples) if drawn else 0

    def next_stage(self) -> None:
        """Go on to the next stage; the method then holds the weights that it begins with."""
        at = self.position
        at.stage_epoch = self.duration.epochs(at)
        chosen = at.best is not None
        at.stage, at.stage_step, at.stage_seconds = at.stage + 1, at.step, at.seconds
        at.best, at.stale, at.empty = None, 0, 0
        at.lowest, at.waited, at.cuts = None, 0, 0
        if chosen and self.stage.begins == "best":
            weights.load_weights(self.method, self.run / "model" / "best.safetensors", self.names)

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write ``model/last.safetensors`` (also as ``best``, where the stage keeps its last) and ``resume.ckpt``."""
        if self.writes:
            self.save_weights("last")
            if self.stage.selects == "last" and len(self.data.val):
                self.save_weights("best")
            state = weights.trained_state(self.method, self.names)
            saved = checkpoints.Checkpoint(self.position, state, None if optimizer is None else optimizer.state_dict())
            checkpoints.save(self.run / "resume.ckpt", saved)

    def save_weights(self, name: str) -> None:
        """Write ``model/NAME.safetensors``."""
        notes = {
            "method": self.config.method,
            "step": self.position.step,
            "config": config_hash(self.config),
            "samsans": samsans.__version__,
        }
        with atomic_path(self.run / "model" / f"{name}.safetensors") as temporary:
            weights.save_weights(self.method, temporary, names=self.names, notes=notes)

    def waiting(self) -> float:
        """Share of the time spent waiting for data, in [0, 1]."""
        at = self.position
        return at.wait / max(at.wait + at.work, 1e-9)


def config_hash(config: RunConfig) -> str:
    """Sixteen hexadecimal digits that change with any option of a run."""
    text = json.dumps(configuration.to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_parameters(method: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    """Numbers of trained and frozen parameters."""
    trained = set(names)
    sizes = {name: parameter.numel() for name, parameter in method.named_parameters()}
    total = sum(size for name, size in sizes.items() if name in trained)
    return {"trained": total, "frozen": sum(sizes.values()) - total}
