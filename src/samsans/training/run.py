"""Train a method on a data set into a run folder, or go on with one that was interrupted."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import samsans
from samsans import config as configuration
from samsans import methods
from samsans.config import RunConfig
from samsans.display import Display
from samsans.errors import InputError, OtherRunError
from samsans.io.atomic import sweep, write_json, write_text
from samsans.methods import weights
from samsans.training import checkpoints
from samsans.training.data import (
    TrainingData,
    choose_split,
    describe,
    keep_plan,
    loader,
    pair_prompts,
    pair_source,
    plan_patches,
    read_data,
    stage_source,
)
from samsans.training.errors import TrainingStopped
from samsans.training.log import CsvLog, read
from samsans.training.schedule import Duration, require_usable
from samsans.training.session import Session, count_parameters
from samsans.training.signals import StopSignals
from samsans.types import Progress

FOREVER = 2**31  # steps a run by the clock could take at most
MAY_CHANGE = (
    *("train.steps", "train.epochs", "train.stop_epoch", "train.minutes", "train.patience"),
    *("train.validate_every", "train.validate_epochs", "train.save_every", "train.save_minutes"),
    *("train.pictures_every", "train.workers", "train.accelerator", "data.path", "data.cache_gb"),
)


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train ``config.method`` on the data set ``config.data`` into the folder ``out``.

    For methods that see volumes, what ``config.patches`` leaves open is planned from the training cases first.

    Afterwards the folder holds ``config.yaml``, ``split.json``, ``classes.json``, ``model/last.safetensors`` (and
    ``best`` where slices were held out), ``resume.ckpt``, ``log.csv``, ``train.json``, ``pictures/`` and
    ``tensorboard/``.

    Args:
        config: What to do.
        out: The run folder: new, empty, or with ``resume`` one that was trained with the same configuration.
        resume: Go on where an interrupted run was saved.  Its length may grow (``train.steps``, ``epochs``,
            ``stop_epoch``, ``minutes``); schedules then follow the new length.
        on_progress: Called at every step and with every message, instead of a bar in the terminal.

    Returns:
        The run folder.

    Raises:
        InputError: the data or an option cannot be used, or the folder is in use or belongs to another configuration.
        TrainingError: the loss is no longer a number; the last checkpoint is kept.
        TrainingStopped: Ctrl-C or SIGTERM; everything is saved.
    """
    from samsans.data.cases import find_cases

    run = Path(out)
    require_usable(config.train)
    if resume:
        config = keep_plan(config, run)
    if first_process():
        check_folder(config, run, resume)
        sweep(run)
    with Display("training", on_progress, silent=not first_process()) as display:
        dataset = find_cases(config.data)
        split, complete = choose_split(dataset, config, run)
        parts = ", ".join(f"{len(ids)} to {what}" for what, ids in (("train", split.train), ("validate", split.val)))
        display.say(f"{dataset.root}: {dataset.layout}; {parts}; objects {', '.join(c.name for c in dataset.classes)}")
        for note in split.notes:
            display.say(note)
        patch_side = methods.patch_side(config)
        if patch_side is not None:
            config = plan_patches(dataset, split, config, patch_side)
            display.say(_told(config))
        objects = [c.name for c in dataset.classes]
        config = methods.complete(config, objects)
        method = methods.build(config, objects)
        side = method.backbone.input_size
        data = read_data(dataset, split, config, method.needs, side, complete=complete)
        for note in data.notes:
            display.say(note)
        if first_process():
            describe(run, dataset, replace(split, slices=data.drawn) if data.drawn else split)
        if not tuple(method.stages(config)):
            write_text(run / "config.yaml", configuration.dump(config))
            display.say(f"{config.method} has nothing to train: the run only remembers its settings")
            return run
        fit(config, method, data, run, display, resume=resume)
    return run


def fit(config: RunConfig, method: Any, data: TrainingData, run: Path, display: Display, *, resume: bool) -> None:
    """Train a built method on given data: the second half of ``train``."""
    with quiet_lightning(), StopSignals() as signals:
        stages = tuple(method.stages(config))
        if not stages:
            raise InputError(
                f"{config.method} has nothing to train", "a method that learns", "Predict with it directly"
            )
        shared = 1 if method.needs.volumes else config.train.devices  # patches have no end: an epoch is a count
        _require_held_out(config, method, data)
        prompts = pair_prompts(config, method, data) if any(s.batches == "pairs" for s in stages) else None
        sources = tuple(
            pair_source(config, prompts) if prompts and stage.batches == "pairs" else stage_source(data.source, stage)
            for stage in stages
        )
        duration = Duration.of(config.train, stages, [-(-source.steps_per_epoch // shared) for source in sources])
        names = weights.trained_names(method)
        stored = weights.stored_names(method)
        session = Session(config, method, data, run, stages, sources, duration, display, stored, prompts)
        checkpoint = checkpoints.load(run / "resume.ckpt") if resume else None
        if checkpoint is not None:
            session.position, session.optimizer_state = checkpoint.position, checkpoint.optimizer
            weights.load_state(method, checkpoint.weights, stored, str(run / "resume.ckpt"))
            display.say(f"Going on after step {session.position.step}")
        elif hasattr(method, "observe"):  # what it makes of this is in every checkpoint
            method.observe(torch.from_numpy(data.train.class_pixels))
        if first_process():
            (run / "train.json").unlink(missing_ok=True)  # it tells of a training that is over
            write_text(run / "config.yaml", configuration.dump(config))
            session.log = CsvLog(run / "log.csv", session.position.step)
        try:
            while not session.finished and not session.stop:
                _train_stage(session, signals)
            if session.writes:
                _conclude(session, names)
        finally:
            if session.log is not None:
                session.log.close()
            for name, parameter in method.named_parameters():
                parameter.requires_grad_(name in names)
    if session.stop and signals.received and not session.finished:
        raise TrainingStopped(
            f"Stopped by {signals.received} after step {session.position.step}; everything is saved in {run}. "
            "Run the same command with --resume to go on."
        )


def _require_held_out(config: RunConfig, method: Any, data: TrainingData) -> None:
    """InputError where the learning rate is to follow a loss on held-out slices, and there is none."""
    if config.train.schedule != "plateau":
        return
    if method.needs.supports:
        raise InputError(
            f"train.schedule plateau for {config.method}, which learns in episodes",
            "a method whose loss can be had of held-out slices",
            "Set train.schedule to another one",
        )
    if len(data.val) == 0:
        raise InputError(
            "train.schedule plateau, and no slices are held out",
            "held-out slices: it follows their loss",
            "Set split.val, or train.schedule to another one",
        )


def _told(config: RunConfig) -> str:
    """The plan of the patches, for people."""
    patches = config.patches
    size, spacing = (" x ".join(f"{v:g}" for v in values or ()) for values in (patches.size, patches.spacing))
    return f"patches of {size} voxels (slices x rows x columns) of {spacing}, intensities by {patches.intensity}"


def _train_stage(session: Session, signals: StopSignals) -> None:
    """Run the session's present stage to its end with one Lightning trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    from samsans.training.module import StageModule
    from samsans.training.supervisor import Supervisor

    config, at = session.config.train, session.position
    duration = session.duration
    end = FOREVER if duration.timed else int(duration.stage_end(at))
    if end <= at.step:  # a share too small for a single step
        session.next_stage()
        return
    if len(session.stages) > 1:
        session.display.say(f"stage {at.stage + 1} of {len(session.stages)}: {session.stages[at.stage].name}")
    board = TensorBoardLogger(session.run, name="tensorboard", version="", purge_step=at.step + 1)
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=1,
        logger=board if session.writes else False,
        callbacks=[Supervisor(session, signals)],
        use_distributed_sampler=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=session.run,
    )
    source = session.sources[at.stage]
    steps = loader(source, range(at.step, end), trainer.global_rank, trainer.world_size, config.workers)
    trainer.fit(StageModule(session), steps)


def first_process() -> bool:
    """Whether this is the process that writes: all but the helpers of a distributed run."""
    with quiet_lightning():
        from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def check_folder(config: RunConfig, run: Path, resume: bool) -> None:
    """Whether ``run`` may be written by this configuration.

    Raises:
        InputError: it holds files and ``resume`` is false.
        OtherRunError: it is the run of a configuration that differs in more than its length and its bookkeeping.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file", "a folder for the run")
    if run.exists() and any(run.iterdir()) and not resume:
        todo = "Add --resume to go on with it, or name another folder"
        raise InputError(f"{run} is not empty", "a new or empty folder", todo)
    written = run / "config.yaml"
    if written.is_file():
        now = configuration.flatten(configuration.to_dict(config))
        then = configuration.flatten(configuration.to_dict(configuration.load(written)))
        fixed = [key for key in now if key not in MAY_CHANGE and not key.startswith("recipe.")]
        differing = [key for key in fixed if now[key] != then.get(key)]
        if differing:
            shown = ", ".join(f"{key} was {then.get(key)!r} and is {now[key]!r}" for key in differing[:5])
            raise OtherRunError(f"{run} was trained with other options: {shown}", todo="Resume with the options it had")


def _conclude(session: Session, trained: tuple[str, ...]) -> None:
    """Write ``train.json``."""
    import lightning

    at = session.position
    cuda = session.device.startswith("cuda")
    rows = read(session.run / "log.csv")
    write_json(
        session.run / "train.json",
        {
            "finished": session.finished,
            "stopped_by": session.stop or None,
            "steps": at.step,
            "seconds": round(at.seconds, 3),
            "data_wait_seconds": round(at.wait, 3),
            "step_seconds": round(at.work, 3),
            "loss": _last(rows, "loss"),
            "score": _last(rows, "val/dice"),
            "best_score": at.best,
            "selects": session.stages[at.stage].selects,
            "parameters": count_parameters(session.method, trained),
            "device": torch.cuda.get_device_name() if cuda else session.device,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else peak_memory(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": {
                "samsans": samsans.__version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "python": sys.version.split()[0],
            },
        },
    )


def _last(rows: list[dict[str, str]], name: str) -> float | None:
    return next((float(row[name]) for row in reversed(rows) if row.get(name)), None)


def peak_memory() -> int | None:
    """Largest resident size of this process in bytes; ``None`` where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips and device lines out of the terminal; its errors still show."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    with warnings.catch_warnings():
        import lightning.pytorch  # noqa: F401  (it sets its loggers' levels when it is imported)

        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
