"""nnU-Net's trainer for a number of minutes.  Runs in nnU-Net's own environment, where it is copied; needs nnU-Net.

``minutes.json`` beside the copy holds the budget and the threads of a CPU to use (null: all, as nnU-Net does).
Network, loss, augmentation, batches, optimiser and initial learning rate are nnU-Net's own.  Changed is what a budget
of time asks for:

- The rate falls as nnU-Net's does (power 0.9, to zero), by the share of the time that is used, step by step.
- The clock starts when the first step is done, which compiles the network on a GPU.
- An epoch is a tenth of the budget, and few validation batches follow it: they choose nothing, the last weights count.
- Only these are saved, and nnU-Net's own prediction of whole validation cases is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POWER = 0.9
EPOCHS = 10
VALIDATION_BATCHES = 2
FINAL = "checkpoint_final.pth"


class Budget:
    """Seconds of wall clock, counted from the first ``start``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began: float | None = None

    def start(self) -> None:
        """Start the clock, unless it runs."""
        if self.began is None:
            self.began = monotonic()

    @property
    def used(self) -> float:
        """Share of the time that is used, in [0, 1]."""
        return 0.0 if self.began is None else min((monotonic() - self.began) / self.seconds, 1.0)


class RateByTime:
    """In the place of nnU-Net's scheduler: sets the learning rate from the time that is left, whatever the epoch."""

    def __init__(self, optimizer: Any, initial: float, budget: Budget) -> None:
        self.optimizer, self.initial, self.budget = optimizer, initial, budget

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of now."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial * (1 - self.budget.used) ** POWER


class MinutesTrainer(nnUNetTrainer):
    """nnU-Net's own trainer, ended by the clock."""

    def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        told = json.loads(Path(__file__).with_name("minutes.json").read_text(encoding="utf-8"))
        self.budget = Budget(60 * told["minutes"])
        self.num_val_iterations_per_epoch = VALIDATION_BATCHES
        if told.get("threads"):
            from torch import set_num_threads

            set_num_threads(told["threads"])
        self.steps = 0

    def configure_optimizers(self) -> Any:
        """nnU-Net's optimiser with a rate that follows the clock."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, RateByTime(optimizer, self.initial_lr, self.budget)

    def train_step(self, batch: Any) -> Any:
        """One step of nnU-Net's, at the rate of now."""
        self.lr_scheduler.step()
        result = super().train_step(batch)
        self.budget.start()
        self.steps += 1
        return result

    def run_training(self) -> None:
        """Epochs until the time is used."""
        from torch import no_grad

        self.on_train_start()
        while self.budget.used < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses: list[Any] = []
            end = self.budget.used + 1 / EPOCHS
            while not losses or self.budget.used < min(end, 1):
                losses.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(losses)
            with no_grad():
                self.on_validation_epoch_start()
                batches = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in batches])
            self.on_epoch_end()
        self.on_train_end()
        told = {"steps": self.steps, "epochs": self.current_epoch, "seconds": monotonic() - (self.budget.began or 0)}
        (Path(self.output_folder) / "minutes.json").write_text(json.dumps(told), encoding="utf-8")

    def save_checkpoint(self, filename: str) -> None:
        """Save the last weights alone."""
        if filename.endswith(FINAL):
            super().save_checkpoint(filename)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the held-out cases are predicted and scored by samsans."""
