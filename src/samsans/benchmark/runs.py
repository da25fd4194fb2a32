"""Training and opening the runs of a benchmark: what is done is not done again, what was interrupted goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans import api, io
from samsans import config as configuration
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.config import RunConfig
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.inference import Segmenter
from samsans.inference.manifest import hash_values
from samsans.training.data import keep_plan
from samsans.training.errors import TrainingStopped
from samsans.training.run import check_folder
from samsans.training.run import train as fit
from samsans.types import Batch, Needs, Progress

OnProgress = Callable[[Progress], None]
LENGTHS = ("steps", "epochs", "stop_epoch", "minutes")


@dataclass(frozen=True)
class Cost:
    """What a run took: trained numbers, and seconds of training (0 and 0 where nothing is trained)."""

    trained_parameters: int
    train_seconds: float


def train(plan: Plan, name: str, on_progress: OnProgress | None = None) -> Path:
    """The folder of the finished run ``name``; trained first, or further, where it is not finished.

    Raises:
        InputError: the folder holds a run of other settings, or the method cannot learn from these data.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    run, config = plan.run(name), plan.settings(name)
    if not finished(config, run):
        try:
            fit(config, run, resume=run.exists(), on_progress=on_progress)
        except TrainingStopped as error:
            raise TrainingStopped(f"{name} was stopped; everything is saved. Run the same command to go on.") from error
    return run


def finished(config: RunConfig, run: Path) -> bool:
    """Whether ``run`` holds the whole training of ``config``; InputError where it is of another configuration."""
    if not (run / "config.yaml").is_file():
        return False
    check_folder(keep_plan(config, run), run, resume=True)
    written = configuration.load(run / "config.yaml").train
    if any(getattr(written, key) != getattr(config.train, key) for key in LENGTHS):
        return False
    if not (run / "train.json").is_file():  # nothing to train, or interrupted
        return config.method == "prompted"
    return bool(json.loads((run / "train.json").read_text(encoding="utf-8"))["finished"])


def same_split(plan: Plan) -> Split:
    """The split of all runs; InputError where they were not trained and held out alike."""
    found = {name: Split.load(plan.run(name) / "split.json") for name in plan.trained}
    first = next(iter(found.values()))
    for name, split in found.items():
        if (split.train, split.val, split.test) != (first.train, first.val, first.test):
            raise InputError(
                f"the runs {next(iter(found))} and {name} divide the patients differently",
                "one split for all",
                "Say it with --split.file, or with --split.test and --split.val",
            )
    if not (first.test or first.val):
        raise InputError(f"the runs of {plan.out} hold nobody out", "--split.test 0.2, say")
    return first


def cost(run: Path) -> Cost:
    """What a finished run took."""
    path = run / "train.json"
    if not path.is_file():
        return Cost(0, 0.0)
    told = json.loads(path.read_text(encoding="utf-8"))
    return Cost(int(told["parameters"]["trained"]), float(told["seconds"]))


def identity(plan: Plan, name: str) -> str:
    """Hash of what a contestant answers with: the settings and the weights of its run."""
    run = plan.run(name)
    settings = configuration.flatten(configuration.to_dict(configuration.load(run / "config.yaml")))
    kept = {
        key: str(value) for key, value in settings.items() if not key.startswith(("train.", "data.path", "data.cache"))
    }
    files = [io.file_hash(path) for path in sorted((run / "model").glob("*.safetensors"))]
    return hash_values(name, kept, files)


def open_run(plan: Plan, name: str) -> Segmenter:
    """What a contestant segments with."""
    segmenter = api.load(plan.run(name), device=plan.device)
    if CONTESTANTS[name].of is None:
        return segmenter
    return Segmenter(
        SaliencyOnly(segmenter.method, segmenter.config.model.tau),
        segmenter.config,
        segmenter.classes,
        run=segmenter.run,
        weights_file=segmenter.weights_file,
        device=segmenter.device,
    )


class SaliencyOnly(nn.Module):
    """The prior of a trained SPD as a method of its own: the mask is where the saliency exceeds ``tau``."""

    needs = Needs()

    def __init__(self, spd: Any, tau: float) -> None:
        super().__init__()
        self.spd, self.backbone, self.threshold = spd, spd.backbone, math.log(tau / (1 - tau))

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, 1, S, S)`` float32 logits, above 0 where the saliency is above ``tau``."""
        small = self.spd.saliency(batch)[:, None]
        shown = F.interpolate(small, batch.images.shape[-2:], mode="bilinear", align_corners=False)
        return shown - self.threshold
