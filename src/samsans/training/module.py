"""A method as Lightning sees it: one stage, one optimiser, and a stop at the first loss that is no number."""

from __future__ import annotations

import math
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from samsans.training.errors import TrainingError
from samsans.training.schedule import build_optimizer, learning_rate, set_learning_rate
from samsans.training.session import Session
from samsans.types import Batch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set every random generator from (seed, step, rank) (our decision).

    Dropout and whatever else a method draws is then a function of the step: resuming needs no stored generator state,
    and validating or drawing pictures more often changes no weight.
    """
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  (methods and libraries may use the legacy generator)
    torch.manual_seed(value)


class StageModule(pl.LightningModule):
    """Trains the parameters of the session's present stage and freezes all others meanwhile."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.method = session.method
        self.stage = session.stage
        trained = {id(p) for group in self.stage.groups for p in group.parameters}
        for parameter in self.method.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self._terms: dict[str, Tensor] = {}
        self._ids: tuple[str, ...] = ()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self.session.config.train, self.stage)
        if self.session.optimizer_state is not None:
            optimizer.load_state_dict(self.session.optimizer_state)
            self.session.optimizer_state = None
        return optimizer

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        at, duration = self.session.position, self.session.duration
        config = self.session.config.train
        used = duration.used(at, whole_epochs=config.schedule == "poly_epoch")
        lr = learning_rate(config, at, used, duration.stage_epochs(at))
        set_learning_rate(self.optimizers(use_pl_optimizer=False), lr)  # type: ignore[arg-type]
        self.session.row = {"step": at.step + 1, "stage": self.stage.name, "lr": lr}
        if hasattr(self.method, "schedule"):
            self.method.schedule(duration.epochs(at), duration.share(at))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        seed_step(self.session.config.seed, self.session.position.step, self.global_rank)
        losses = self.method.loss(self.method(batch), batch)
        self._terms = {name: value.detach().float() for name, value in losses.items()}
        self._ids = tuple(dict.fromkeys(batch.ids))
        return losses["loss"]

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by global norm, and refuse the step if loss or norm is not finite on any process."""
        clip = self.session.config.train.clip
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else math.inf)
        values = torch.stack([*self._terms.values(), norm])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        row = dict(zip([*self._terms, "gradient"], values.tolist(), strict=True))
        bad = [f"{name} = {value}" for name, value in row.items() if not math.isfinite(value)]
        if bad:
            step = self.session.position.step + 1
            raise TrainingError(
                f"Training stopped at step {step}: {', '.join(bad)}, for the images {', '.join(self._ids)}. The last "
                f"checkpoint (before this step) is kept. Look at these images (`samsans check`), or lower train.lr."
            )
        self.session.row |= row
