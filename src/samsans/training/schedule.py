"""How long a run lasts, how its stages share it, and what the learning rate and the optimiser are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samsans.config import TrainConfig
from samsans.errors import InputError
from samsans.types import Stage

HALVED_AFTER = 10  # epochs, of the schedule ``halving``
IMPROVEMENT = 1e-4  # of the lowest validation loss, that a lower one must exceed: PyTorch's threshold


@dataclass
class Position:
    """Where a run stands: what ``resume.ckpt`` holds beside weights and optimiser.

    step, seconds: done so far, over all resumes.  stage: index.  stage_step, stage_seconds, stage_epoch: where the
    stage began.  best: best validation score of the stage.  stale: validations since then.  empty: all-empty
    validations in a row.  validated: step of the last validation.  wait, work: seconds spent waiting for data and in
    steps.  lowest, waited, cuts: of the schedule ``plateau`` in this stage, see ``follow``.
    """

    step: int = 0
    seconds: float = 0.0
    stage: int = 0
    stage_step: int = 0
    stage_seconds: float = 0.0
    stage_epoch: float = 0.0
    best: float | None = None
    stale: int = 0
    empty: int = 0
    validated: int = -1
    wait: float = 0.0
    work: float = 0.0
    lowest: float | None = None
    waited: int = 0
    cuts: int = 0


@dataclass(frozen=True)
class Duration:
    """A run's length in ``steps``, ``epochs`` or wall-clock ``seconds``; ``ends``: where its stages end, in that unit.

    stop: where the run ends; before the last of ``ends`` only with ``train.stop_epoch``: schedules then follow the
    whole.  epoch: of each stage, the steps that pass once over what it learns from.  shares: used share of the run at
    the end of each stage.
    """

    unit: str
    ends: tuple[float, ...]
    stop: float
    epoch: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, config: TrainConfig, stages: Sequence[Stage], steps_per_epoch: Sequence[int]) -> Duration:
        """The length that ``minutes``, else ``epochs``, else ``steps`` asks for, split by the stages' shares.

        steps_per_epoch: one number a stage; each stage has its share of the epochs, counted in its own steps.

        Raises:
            InputError: no step, no stage, or a ``stop_epoch`` that is none of the run's epochs.
        """
        total: float = config.steps
        unit = "steps"
        if config.minutes is not None:
            unit, total = "seconds", 60 * config.minutes
        elif config.epochs is not None:
            unit, total = "epochs", config.epochs
        if total <= 0:
            raise InputError(f"a training of {total} {unit}", "at least one step", "Set train.steps, epochs or minutes")
        parts = [stage.share for stage in stages]
        if not parts or min(parts) < 0 or sum(parts) <= 0:
            raise InputError(f"stages with shares {parts}", "at least one stage and positive shares")
        shares = tuple(sum(parts[: i + 1]) / sum(parts) for i in range(len(parts)))
        ends = [total * share for share in shares]
        if unit == "steps":
            ends = [float(round(end)) for end in ends]
        if config.stop_epoch is not None:
            if unit != "epochs" or not 1 <= config.stop_epoch <= total:
                raise InputError(
                    f"train.stop_epoch is {config.stop_epoch}, in a training of {total:g} {unit}",
                    "one of the epochs 1 to train.epochs, and no train.minutes",
                    "Set train.epochs, or train.stop_epoch to null",
                )
            total = config.stop_epoch
        return cls(unit, tuple(ends), float(total), tuple(steps_per_epoch), shares)

    @property
    def timed(self) -> bool:
        """Whether the clock decides."""
        return self.unit == "seconds"

    def done(self, at: Position) -> float:
        """Steps, or seconds, done."""
        return at.seconds if self.timed else at.step

    def epochs(self, at: Position) -> float:
        """Epochs passed, of every stage its own."""
        return at.stage_epoch + self.stage_epochs(at)

    def stage_epochs(self, at: Position) -> float:
        """Epochs passed of the present stage."""
        return (at.step - at.stage_step) / self.epoch[at.stage]

    def stage_end(self, at: Position) -> float:
        """Where the run leaves the present stage, in steps or seconds: at its end, or at the run's."""
        return self._reached(at, min(self.ends[at.stage], self.stop))

    def end(self, at: Position) -> float:
        """Where the run ends, in steps or seconds."""
        if self.unit != "epochs":
            return self.stop
        later = zip(self.ends[at.stage :], self.ends[at.stage + 1 :], self.epoch[at.stage + 1 :], strict=False)
        rest = (round((min(end, self.stop) - min(begin, self.stop)) * steps) for begin, end, steps in later)
        return self.stage_end(at) + sum(rest)

    def finished(self, at: Position) -> bool:
        """Whether the run has reached its end."""
        return self.done(at) >= self.end(at)

    def share(self, at: Position) -> float:
        """Used share of the whole run, in [0, 1]: of its epochs, steps or time."""
        before = self.shares[at.stage - 1] if at.stage else 0.0
        return before + (self.shares[at.stage] - before) * self.used(at)

    def used(self, at: Position, *, whole_epochs: bool = False) -> float:
        """Used share of the present stage, in [0, 1]; by its ``whole_epochs`` alone unless the clock decides."""
        start = at.stage_seconds if self.timed else at.stage_step
        length, done = self._reached(at, self.ends[at.stage]) - start, self.done(at) - start
        if whole_epochs and not self.timed:
            done -= done % self.epoch[at.stage]
        return 1.0 if length <= 0 else min(max(done / length, 0.0), 1.0)

    def _reached(self, at: Position, goal: float) -> float:
        """Where the present stage reaches ``goal``, in steps or seconds."""
        if self.unit != "epochs":
            return goal
        return at.stage_step + round((goal - at.stage_epoch) * self.epoch[at.stage])

    def validates(self, at: Position, config: TrainConfig) -> bool:
        """Whether a validation is due after the step just made."""
        every, done = config.validate_every, at.step
        if config.validate_epochs:
            every, done = config.validate_epochs * self.epoch[at.stage], at.step - at.stage_step
        return every > 0 and done > 0 and done % every == 0


def require_usable(config: TrainConfig) -> None:
    """InputError that names the first number no training can go by."""
    rules = {
        "lr": (config.lr >= 0, "0 or more"),
        "betas": (len(config.betas) == 2 and all(0 <= b < 1 for b in config.betas), "two numbers, 0 <= b < 1"),
        "eps": (config.eps >= 0, "0 or more"),
        "weight_decay": (config.weight_decay >= 0, "0 or more"),
        "momentum": (config.momentum >= 0, "0 or more"),
        "nesterov": (not config.nesterov or config.momentum > 0, "false, or a train.momentum above 0"),
        "warmup": (config.warmup >= 0, "0 or more steps"),
        "validate_every": (config.validate_every >= 0, "0 or more steps"),
        "validate_epochs": (config.validate_epochs >= 0, "0 or more epochs"),
        "pictures_every": (config.pictures_every >= 0, "0 or more steps"),
        "plateau_factor": (0 < config.plateau_factor < 1, "above 0 and below 1"),
        "plateau_patience": (config.plateau_patience >= 0, "0 or more validations"),
        "workers": (config.workers >= 0, "0 or more processes"),
        "devices": (config.devices >= 1, "at least 1"),
    }
    for name, (usable, wanted) in rules.items():
        if not usable:
            raise InputError(f"train.{name} is {getattr(config, name)}", wanted)
    if config.schedule == "plateau" and not (config.validate_epochs or config.validate_every):
        raise InputError(
            "train.schedule plateau without validations while training",
            "one now and then: it follows the loss on held-out slices",
            "Set train.validate_epochs to 1",
        )


def learning_rate(config: TrainConfig, at: Position, used: float, epochs: float = 0.0) -> float:
    """Learning rate of the next step: a linear warm-up over the stage's first steps, times the schedule.

    ``used`` is the used share of the stage; cosine and poly (power 0.9) reach zero at its end.  ``poly_epoch`` is poly
    where ``used`` is by whole epochs (see ``Duration.used``; by the clock it is poly itself).  ``halving``: halved
    after every ten of the ``epochs`` that passed of the stage, which no other schedule reads (Med-SA's step decay).
    ``plateau``: times its factor for every cut so far (see ``follow``).  ``samed``: with ``s``
    steps done, ``W`` of warm-up and ``T`` of the whole stage, ``s / W`` (the first step as the second), then
    ``(1 - (s - 1 - W) / T) ** 0.9``, which ends above zero (section 13 of the specification; ``s / T`` is ``used``,
    so that it also follows the clock).
    """
    if config.schedule == "samed":
        return config.lr * _samed(at.step - at.stage_step, config.warmup, used)
    warm = min(1.0, (at.step - at.stage_step + 1) / config.warmup) if config.warmup > 0 else 1.0
    decay = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * used)), "poly": (1 - used) ** 0.9}
    decay["poly_epoch"] = decay["poly"]
    decay["halving"] = 0.5 ** (epochs // HALVED_AFTER)
    decay["plateau"] = config.plateau_factor**at.cuts
    return config.lr * warm * decay[config.schedule]


def follow(at: Position, loss: float, config: TrainConfig) -> bool:
    """Take a validation's loss into account; whether the learning rate is cut now.

    PyTorch's ``ReduceLROnPlateau``: with patience p, the (p + 1)-th validation in a row whose loss is not below the
    lowest one by more than a ten-thousandth of it cuts, and the counting begins anew (decision D24).  A loss that is no
    number is no improvement.
    """
    if loss < (math.inf if at.lowest is None else at.lowest * (1 - IMPROVEMENT)):
        at.lowest, at.waited = loss, 0
    else:
        at.waited += 1
    if at.waited <= config.plateau_patience:
        return False
    at.waited, at.cuts = 0, at.cuts + 1
    return True


def _samed(step: int, warmup: int, used: float) -> float:
    if step <= warmup:
        return max(step, 1) / max(warmup, 1)
    return (1 - used * (step - 1 - warmup) / step) ** 0.9


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_optimizer(config: TrainConfig, stage: Stage) -> torch.optim.Optimizer:
    """sgd, adam or adamw over a stage's groups; parameters marked ``_no_weight_decay`` are exempt from decay.

    The ``eps`` of a group is of adam and adamw alone.  On a GPU, these run fused (the same update in one kernel).
    """
    groups: list[dict[str, Any]] = []
    for group in stage.groups:
        exempt = [p for p in group.parameters if not group.decay or getattr(p, "_no_weight_decay", False)]
        known = set(map(id, exempt))
        decayed = [p for p in group.parameters if id(p) not in known]
        for parameters, decay in ((decayed, config.weight_decay), (exempt, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "lr_scale": group.lr_scale})
                if group.eps is not None and config.optimizer != "sgd":
                    groups[-1]["eps"] = group.eps
    if not groups:
        raise InputError(
            f"stage {stage.name!r} trains no parameter", "at least one", "Switch lora or backbone.train on"
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    fused = all(p.is_cuda for group in groups for p in group["params"])
    beta1, beta2 = config.betas
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=fused or None)
