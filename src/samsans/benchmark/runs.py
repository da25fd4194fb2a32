"""Training and opening the runs of a benchmark: what is done is not done again, what was interrupted goes on."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans import api, io
from samsans import config as configuration
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.data.cases import Dataset, find_cases
from samsans.data.classes import read_classes
from samsans.data.splits import Split, make_split
from samsans.errors import InputError, OtherRunError
from samsans.inference import Segmenter
from samsans.inference.manifest import hash_files, hash_values
from samsans.training.data import keep_plan
from samsans.training.errors import TrainingError, TrainingStopped
from samsans.training.run import check_folder
from samsans.training.run import train as fit
from samsans.training.signals import CAUGHT
from samsans.types import Batch, Needs, Progress

OnProgress = Callable[[Progress], None]
T = TypeVar("T")
LENGTHS = ("steps", "epochs", "stop_epoch", "minutes")
UNUSABLE = (InputError, TrainingError)
FEWEST_PATIENTS = 3  # held out; with fewer, intervals over patients say nothing
PEAK = Path("/proc/self/clear_refs")  # Linux: 5 forgets the largest resident size


@dataclass
class Course:
    """How a benchmark is gone through, and what is noted on the way.

    unsuited: contestants that cannot learn from these data, or whose loss is no longer a number, are left out, with a
    note, instead of refused.
    say: told of every part that begins.  on_progress: called instead of a bar in the terminal.
    """

    unsuited: bool = False
    say: Callable[[str], None] = lambda line: None
    on_progress: OnProgress | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Say and keep a line."""
        self.notes.append(line)
        self.say(line)

    def attempt(self, name: str, do: Callable[..., T], *about: Any) -> T | None:
        """What ``do(*about)`` returns; where it is refused and contestants may be left out, a note and ``None``."""
        try:
            return do(*about)
        except UNUSABLE as error:
            self.refused(name, error)
            return None

    def refused(self, name: str, error: Exception) -> None:
        """Note why a contestant is left out; raises the error where it may not be, or is of the folder."""
        if not self.unsuited or isinstance(error, OtherRunError):
            raise error
        why = "does not suit these data" if isinstance(error, InputError) else "could not be trained"
        self.note(f"{name} {why}: {error}")


@dataclass(frozen=True)
class Cost:
    """What a run took; parameters and seconds are 0 where nothing is trained.

    peak_memory_bytes: of training, on the GPU where there is one; ``None`` where nothing is trained, or not told.
    """

    trained_parameters: int | None = 0
    train_seconds: float = 0.0
    peak_memory_bytes: int | None = None


def suited(plan: Plan, course: Course) -> Plan:
    """The plan with those alone who mean something here, where others may be left out.

    Raises InputError where nobody is left.
    """
    if not course.unsuited:
        return plan
    reasons = {name: reason for name in plan.names if (reason := plan.unsuited(name))}
    for name, reason in reasons.items():
        course.note(f"{name} is left out: {reason}.")
    return _some(plan.without(*reasons), course)


def train_all(plan: Plan, course: Course) -> Plan:
    """Train every run of a plan, in turn; returns the plan with those who could be trained.

    Raises InputError before the first of them where nobody could be scored afterwards.
    """
    trained = plan.trained
    if trained:
        dataset = find_cases(plan.data)
        tested(dataset, make_split(dataset, plan.split, plan.seed))
    for place, name in enumerate(trained, start=1):
        course.say(f"{place}/{len(trained)} training {name}")
        users = ", ".join(one for one in plan.names if name in (one, CONTESTANTS[one].of))
        if course.attempt(users, train, plan, name, course.on_progress) is None:
            plan = plan.without(name)
    return _some(plan, course)


def _some(plan: Plan, course: Course) -> Plan:
    if not plan.trained:
        raise InputError("; ".join(course.notes) or "no methods to train", "at least one method that suits the data")
    return plan


def train(plan: Plan, name: str, on_progress: OnProgress | None = None) -> Path:
    """The folder of the finished run ``name``; trained first, or further, where it is not finished.

    Raises:
        InputError: the folder holds a run of other settings, or the method cannot learn from these data.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    run, config = plan.run(name), plan.settings(name)
    if not finished(plan, name):
        forget_peak()
        try:
            fit(config, run, resume=run.exists(), on_progress=on_progress)
        except TrainingStopped as error:
            raise TrainingStopped(f"{name} was stopped; everything is saved. Run the same command to go on.") from error
    return run


def finished(plan: Plan, name: str) -> bool:
    """Whether the run of a contestant is trained as long as asked.

    Raises OtherRunError where it is of another configuration, or was trained longer.
    """
    run, config = plan.run(name), plan.settings(name)
    if not (run / "config.yaml").is_file():
        return False
    check_folder(keep_plan(config, run), run, resume=True)
    written = configuration.read_yaml(run / "config.yaml")["train"]
    now = asdict(config.train)
    (unit, before), (other, wanted) = _length(written), _length(now)
    if unit != other or before > wanted:
        raise OtherRunError(
            f"{run} was trained for {before:g} {unit}, and {wanted:g} {other} are asked for",
            "as long a training as before, or a longer one",
            "Name another folder with -o",
        )
    if any(written[key] != now[key] for key in LENGTHS):
        return False
    if not (run / "train.json").is_file():  # nothing to train, or interrupted
        return CONTESTANTS[name].frozen
    told = json.loads((run / "train.json").read_text(encoding="utf-8"))
    return bool(told["finished"]) or told["stopped_by"] not in (None, *CAUGHT.values())  # its patience ended it


def _length(train: Mapping[str, Any]) -> tuple[str, float]:
    """What a training is measured in, and where it ends."""
    unit = next((unit for unit in ("minutes", "epochs") if train[unit] is not None), "steps")
    end = train["stop_epoch"] if unit == "epochs" and train["stop_epoch"] is not None else train[unit]
    return unit, float(end)


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


def held_out(plan: Plan) -> tuple[Dataset, tuple[str, ...]]:
    """The labelled cases that all runs held out, and notes; InputError where the runs are not of one split.

    Where these are of fewer than three patients, every case counts as a patient of its own, so that there are
    intervals (our decision).
    """
    split = same_split(plan)
    classes = read_classes(plan.run(plan.trained[0]) / "classes.json")
    dataset = find_cases(replace(plan.data, classes=plan.data.classes or {c.name: list(c.values) for c in classes}))
    return tested(dataset, split)


def tested(dataset: Dataset, split: Split) -> tuple[Dataset, tuple[str, ...]]:
    """The labelled cases that a split holds out, and notes; see ``held_out``."""
    ids = set(split.test or split.val)
    cases = tuple(case for case in dataset.labelled if case.id in ids)
    if not cases:
        raise InputError(
            f"no held-out case of {dataset.root} has a mask",
            "a labelled case",
            "Name patients with --split.test_patients, or cases in a --split.file",
        )
    notes = []
    if not split.test:
        notes.append(
            "Nobody is held out to test: the cases scored are those that chose the weights, "
            "which flatters what is trained."
        )
    people = len({case.patient for case in cases})
    if people < FEWEST_PATIENTS and people < len(cases):
        notes.append(
            f"All {len(cases)} held-out cases are of {people} patient{'s' if people > 1 else ''}: "
            "intervals are over cases, and say little of other patients."
        )
        cases = tuple(replace(case, patient=case.id) for case in cases)
    return replace(dataset, cases=cases), tuple(notes)


def cost(run: Path) -> Cost:
    """What a finished run took."""
    path = run / "train.json"
    if not path.is_file():
        return Cost()
    told = json.loads(path.read_text(encoding="utf-8"))
    return Cost(int(told["parameters"]["trained"]), float(told["seconds"]), told["peak_memory_bytes"])


def forget_peak() -> None:
    """Let the largest memory in use be measured from now on: of the GPU, and on Linux of this process.

    Elsewhere a run's peak is that of the process so far.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif PEAK.exists():
        PEAK.write_text("5")


def identity(plan: Plan, name: str) -> str:
    """Hash of what a contestant answers with: the settings and the weights of its run."""
    run = plan.run(name)
    settings = configuration.flatten(configuration.read_yaml(run / "config.yaml"))
    kept = {
        key: str(value) for key, value in settings.items() if not key.startswith(("train.", "data.path", "data.cache"))
    }
    files = [io.file_hash(path) for path in sorted((run / "model").glob("*.safetensors"))]
    return hash_values(name, kept, files)


def content(dataset: Dataset) -> str:
    """Hash of the cases of a data set: who they are, and every byte of their images and masks."""
    files = [hash_files((*case.images, *(path for label in case.labels for path in label))) for case in dataset.cases]
    return hash_values([(case.id, case.patient) for case in dataset.cases], files)


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
