"""What happens between two steps: the clock, validation, pictures, gauges, checkpoints, and the end."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch

from samsans.data.augment import changes
from samsans.training import pictures, validation
from samsans.training.module import seed_step
from samsans.training.schedule import follow
from samsans.training.session import Session
from samsans.training.signals import StopSignals
from samsans.types import Batch, Progress

SLOW_DATA = 0.3
TRUST_WAIT_AFTER = 20  # steps: the first ones also start the worker processes
EMPTY_IN_A_ROW = 3
SHOWN = 4  # samples of the sample pictures


class Supervisor(pl.Callback):
    """Follows one stage of a run and writes down what happens; the first process of a distributed run does the work."""

    def __init__(self, session: Session, signals: StopSignals) -> None:
        self.session, self.signals = session, signals
        self.method = session.method
        self.saved_at = time.monotonic()
        self.warned = False

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Before worker processes start, which take the points with them."""
        session = self.session
        if session.pairs is not None:
            with self._evaluating():  # in full precision: points near the threshold must not come and go
                lines = session.pairs.prepare(session.method, module.device, validates=session.writes)
            for line in lines:
                session.display.say(line)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.signals.arm()
        self.method.train()
        self.device = module.device
        self.session.device = str(module.device)
        session, at = self.session, self.session.position
        if hasattr(self.method, "begin"):
            self.method.begin(session.stage, changes(session.config.augment))
        if at.step > at.stage_step and session.duration.validates(at, session.config.train):
            self._validate(trainer)  # an interrupted run left it out
            at.cuts = self._agree(trainer, at.cuts)
            if session.log is not None and session.row:
                session.log.amend(session.row)
        self.began = self.mark = time.monotonic()
        self.former = at.seconds

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        now = time.monotonic()
        self.session.row["wait"] = now - self.mark
        self.session.position.wait += now - self.mark
        self.mark = now

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        session, at, config = self.session, self.session.position, self.session.config.train
        now = time.monotonic()
        at.work += now - self.mark
        at.step += 1
        at.seconds, stop = self._agree(trainer, (self.former + now - self.began, self.signals.received))
        session.row |= {"seconds": at.seconds}

        last, stage_done = session.finished, session.duration.used(at) >= 1
        moves_on = stage_done and at.stage < len(session.stages) - 1
        if last or stage_done or (not stop and session.duration.validates(at, config)):
            enough = self._validate(trainer)
            enough, at.cuts = self._agree(trainer, (enough, at.cuts))
            stop = enough or stop
        look = session.writes and config.pictures_every > 0 and (last or _due(at.step, config.pictures_every))
        if look:
            self._read_gauges(trainer, batch)
        self._write(trainer)
        if look:
            self._draw(trainer)
        session.stop = stop
        if moves_on:
            at.best = self._agree(trainer, at.best)  # and all wait for the best weights to be written
            session.next_stage()
        if stop or last or moves_on or self._save_due():
            session.save(None if moves_on else trainer.optimizers[0])
            self.saved_at = time.monotonic()
            self._report()
        trainer.should_stop = bool(stop) or last or stage_done
        self.mark = time.monotonic()

    def _agree(self, trainer: pl.Trainer, value: Any) -> Any:
        return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value

    def _save_due(self) -> bool:
        config = self.session.config.train
        late = time.monotonic() - self.saved_at >= 60 * config.save_minutes > 0
        return _due(self.session.position.step, config.save_every) or late

    def _validate(self, trainer: pl.Trainer) -> str:
        """Score the held-out slices, keep the best weights, and say why to stop, if so."""
        session, at, config = self.session, self.session.position, self.session.config
        if not session.writes or len(session.data.val) == 0 or at.validated == at.step:
            return ""
        held_out = session.held_out
        with self._evaluating(trainer):
            bank, size = self._bank(), config.train.batch_size
            scores, empty = validation.validate(self.method, held_out, bank, session.data.objects, size, self.device)
            if session.draws:
                scores |= validation.ambiguity(self.method, held_out, session.draws, size, self.device)
            if config.train.schedule == "plateau":
                seed_step(config.seed, 0, 0)  # what the loss draws at random is the same every time
                scores["val/loss"] = validation.mean_loss(self.method, session.held_out_batches(), self.device)
        at.validated = at.step
        session.row |= scores
        if config.train.schedule == "plateau" and follow(at, scores["val/loss"], config.train):
            rate = config.train.lr * config.train.plateau_factor**at.cuts
            session.display.say(f"step {at.step}: the loss on held-out slices no longer falls: learning rate {rate:g}")
        selects = session.stage.selects
        score = -scores.get("val/ged", math.inf) if selects == "ged" else scores.get("val/dice", 0.0)
        better = selects == "last" or at.best is None or score > at.best
        at.best, at.stale = (score, 0) if better else (at.best, at.stale + 1)
        at.empty = at.empty + 1 if empty else 0
        if better:
            session.save_weights("best")
        what = "patches" if self.method.needs.volumes else "slices"
        told = validation.told(scores)
        session.display.say(f"step {at.step}: {told} on held-out {what}{', best' * (better and selects != 'last')}")
        if at.empty == EMPTY_IN_A_ROW:
            warnings.warn(
                f"The last {EMPTY_IN_A_ROW} validations predicted not a single pixel of any object. The method may "
                "have collapsed to empty masks: lower train.lr, or check that the masks fit the images with "
                "`samsans check`.",
                stacklevel=2,
            )
        spent = session.stage is session.stages[-1] and 0 < config.train.patience <= at.stale
        return f"no improvement in {at.stale} validations" if spent else ""

    def _read_gauges(self, trainer: pl.Trainer, batch: Batch) -> None:
        """Log the method's gauges, where it has any, and warn where it says so."""
        session = self.session
        if not hasattr(self.method, "gauges"):
            return
        with self._evaluating(trainer):
            gauges = {name: float(value) for name, value in self.method.gauges(batch).items()}
        session.row |= {f"gauge/{name}": value for name, value in gauges.items()}
        judge = getattr(self.method, "gauge_warning", None)
        advice = judge(gauges, session.position.step, session.config.train.warmup) if judge and gauges else None
        if advice:
            warnings.warn(advice, stacklevel=2)

    def _draw(self, trainer: pl.Trainer) -> None:
        session = self.session
        with self._evaluating(trainer):
            logits = self.method.predict(session.sample.to(self.device), self._bank())
            drawn = self.method.sample(session.sample.to(self.device), [0], SHOWN) if session.draws else None
        folder = session.run / "pictures"
        path = folder / f"samples_{session.position.step:06d}.png"
        if drawn is not None:
            pictures.draw_samples(session.sample, logits.cpu(), drawn.cpu(), path)
        else:
            pictures.draw_sample(session.sample, logits.cpu(), session.supports, path, self.method.needs.exclusive)
        pictures.draw_loss(session.run / "log.csv", folder / "loss.png")

    def _bank(self) -> Any:
        supports = self.session.supports
        return None if supports is None else self.method.encode_support(supports.to(self.device))

    def _write(self, trainer: pl.Trainer) -> None:
        session, at = self.session, self.session.position
        if session.log is not None:
            session.log.write(session.row)
            numbers = {name: value for name, value in session.row.items() if isinstance(value, float)}
            if trainer.logger is not None:
                trainer.logger.log_metrics(numbers, at.step)
        done, total = session.duration.done(at), session.duration.end(at)
        message = f"loss {session.row['loss']:.4f}"
        session.display.step(Progress(int(min(done, total)), int(total), f"step {at.step}", message))

    def _report(self) -> None:
        session, at = self.session, self.session.position
        waiting = session.waiting()
        session.display.say(
            f"step {at.step}: loss {session.row['loss']:.4f}, {at.work / at.step:.3f} s a step, "
            f"{waiting:.0%} of the time waiting for data; saved"
        )
        if waiting > SLOW_DATA and at.step >= TRUST_WAIT_AFTER and not self.warned:
            self.warned = True
            session.display.say(
                f"The processor waits for data {waiting:.0%} of the time: raise train.workers (now "
                f"{session.config.train.workers}) or data.cache_gb (now {session.config.data.cache_gb:g})"
            )

    @contextmanager
    def _evaluating(self, trainer: pl.Trainer | None = None) -> Iterator[None]:
        """Without gradients or dropout, in the precision of the ``trainer`` (none: in full)."""
        self.method.eval()
        precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        try:
            with torch.no_grad(), precision:
                yield
        finally:
            self.method.train()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
