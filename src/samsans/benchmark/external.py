"""nnU-Net as a contestant: it runs in an environment of its own, on the split and the objects of a run of ours."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from samsans.benchmark.contestants import EXTERNAL
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import Cost, OnProgress, cost
from samsans.data.cases import Dataset
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.nnunet import nnunet
from samsans.experiments.nnunet_child import NnUNet
from samsans.inference.manifest import Manifest, hash_values


def find(plan: Plan) -> NnUNet:
    """The nnU-Net of a plan; InputError where no environment is named, or that has none."""
    if plan.nnunet is None:
        raise InputError("nnunet, and no environment that holds it", "its Python", "Give --nnunet env/bin/python")
    return NnUNet.find(plan.nnunet)


def identity(plan: Plan) -> str:
    """Hash of what it answers with: it is trained once, on one split, for so many minutes."""
    split = (plan.run(plan.trained[0]) / "split.json").read_text(encoding="utf-8")
    return hash_values(EXTERNAL, json.loads(split), minutes(plan))


def minutes(plan: Plan) -> float:
    """Of its training: as of all, or where these count steps, as long as the slowest of them took (our decision)."""
    told = plan.length.get("train.minutes")
    if told is not None:
        return float(told)
    slowest = max(cost(plan.run(name)).train_seconds for name in plan.trained)
    if not slowest:
        raise InputError(f"{EXTERNAL} beside methods that train nothing", "a length of its training", "Give --minutes")
    return max(1, math.ceil(slowest / 6)) / 10


def ask(plan: Plan, dataset: Dataset, on_progress: OnProgress | None = None) -> tuple[Path, Cost]:
    """Train it and segment the held-out cases: the folder of its label maps, and what that took.

    On a CPU it has as many threads as the others.  Raises InputError where it is not there, or fails.
    """
    threads = torch.get_num_threads() if find(plan).device == "cpu" else None
    asked = Request(plan.data, plan.run(plan.trained[0]), plan.out / EXTERNAL, plan.seed, on_progress=on_progress)
    nnunet(asked, python=plan.nnunet, minutes=minutes(plan), threads=threads)
    about = Manifest.load(plan.masks(EXTERNAL)).about
    return plan.masks(EXTERNAL), Cost(None, float(about["training_seconds"]))
