"""The baseline nnU-Net: on the split and the objects of a run of ours, for so many minutes, into the same report.

nnU-Net plans, trains (``3d_fullres``; ``2d`` for pictures) and predicts in its own environment.  What it sees is a raw
data set that is written for it: the run's training and validation cases with their masks, the held-out ones without.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samsans import __version__, io
from samsans import config as configuration
from samsans.data.cases import Dataset, require_same_grid
from samsans.data.classes import disjoint_classes, read_classes, write_classes
from samsans.data.splits import Split
from samsans.data.volumes import hounsfield, label_map, named_intensity
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.nnunet_child import NnUNet, Workspace, processes
from samsans.inference.manifest import Manifest, Record, hash_files
from samsans.metrics.evaluate import evaluate
from samsans.types import Case, ClassInfo, Volume

NAME = "Dataset001_samsans"
TRAINER = "MinutesTrainer"
ENDING = ".nii.gz"
STEPS = 5  # as progress counts them
RESERVED = ("background", "ignore")  # labels that mean something to nnU-Net
PLAN = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry"
TRAIN = "nnunetv2.run.run_training:run_training_entry"
PREDICT = "nnunetv2.inference.predict_from_raw_data:predict_entry_point"


@dataclass(frozen=True)
class Task:
    """What nnU-Net is given: cases to learn from and to predict, and its names for them (``case_0000``, ...)."""

    dataset: Dataset
    split: Split
    test: tuple[Case, ...]

    @property
    def learned(self) -> tuple[Case, ...]:
        """Training cases, then validation cases."""
        return tuple(self.dataset.by_id(id) for id in (*self.split.train, *self.split.val))

    @property
    def names(self) -> dict[str, str]:
        """nnU-Net's name of every case id."""
        ids = dict.fromkeys(case.id for case in (*self.learned, *self.test))
        return {id: f"case_{number:04}" for number, id in enumerate(ids)}

    @property
    def fold(self) -> dict[str, list[str]]:
        """The only fold of ``splits_final.json``; the first training case stands in where nobody validates."""
        train, val = ([self.names[id] for id in part] for part in (self.split.train, self.split.val))
        return {"train": train, "val": val or train[:1]}


def nnunet(
    asked: Request,
    *,
    python: str | Path | None = None,
    minutes: float | None = None,
    threads: int | None = None,
    mirror: bool = False,
) -> str:
    """Train nnU-Net on a run's training cases, predict those it held out, and score them as ``evaluate`` does.

    Writes ``masks`` (label maps on the grids of the inputs, ``classes.json``, ``manifest.json``), ``report`` and
    ``nnunet`` (all that nnU-Net reads and writes, and ``nnunet.log``).  Run again, finished steps are not repeated; a
    training that was interrupted starts anew.

    Args:
        asked: A run of any method, for its split and its objects; its seed is that of the intervals, nnU-Net's training
            is not seeded.
        python: The Python of the environment that nnU-Net is installed in.
        minutes: Wall clock of nnU-Net's training; by default the run's own ``train.minutes``.
        threads: Of its training on a CPU: its batches are then made by the same process, so that a minute of one
            thread is a minute of one core.  By default all cores, and processes beside them.
        mirror: Mean over all mirrorings when predicting, nnU-Net's test-time augmentation.

    Returns:
        The table of the report and the time of every step, as text.

    Raises:
        InputError: there is no nnU-Net, it fails, the run holds nobody out or learned from single slices, or ``out``
            holds an experiment with other cases or minutes.
    """
    tool = NnUNet.find(python)
    minutes = _minutes(minutes, asked.run_folder)
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads", "at least 1", "Correct --threads")
    dataset, out = asked.find(read_classes(asked.run_folder / "classes.json")), asked.out
    task = Task(dataset, _split(asked.run_folder), tuple(asked.held_out(dataset)))
    asked.tell(0, STEPS, "writing nnU-Net's data set")
    space = Workspace(tool, out.resolve() / "nnunet")
    network = prepare(task, space.folder, asked.data.channels, minutes, threads)
    few = str(processes())
    asked.tell(1, STEPS, "planning and preprocessing")
    seconds = {"plan": space.step("plan", PLAN, _plan_arguments(network, few))}
    io.write_json(space.folder / f"preprocessed/{NAME}/splits_final.json", [task.fold])
    asked.tell(2, STEPS, f"training for {minutes:g} minutes")
    device = ["-device", tool.device]
    apart = {} if threads is None else {"nnUNet_n_proc_DA": "0"}  # 0: no processes beside the one that trains
    seconds["train"] = space.step("train", TRAIN, ["1", network, "0", "-tr", TRAINER, *device], apart)
    asked.tell(3, STEPS, "predicting")
    folders = ["-i", str(space.folder / f"raw/{NAME}/imagesTs"), "-o", str(space.folder / _predicted(mirror))]
    model = ["-d", "1", "-f", "0", "-c", network, "-tr", TRAINER, "-npp", few, "-nps", few, *device]
    once = [] if mirror else ["--disable_tta"]
    name = "predict-mirrored" if mirror else "predict"
    seconds["predict"] = space.step(name, PREDICT, [*folders, *model, "--disable_progress_bar", *once])
    asked.tell(4, STEPS, "scoring")
    trained = _trained(space.folder, network)
    about = {
        "method": "nnunet",
        "configuration": network,
        "split_of": str(asked.run_folder),
        "minutes": minutes,
        "threads": threads,
        **trained,
        "options": {"mirror": mirror},
        "device": tool.device_name,
        "versions": {"samsans": __version__, **tool.versions},
        "seconds_by_step": {step: round(value, 1) for step, value in seconds.items()},
    }
    collect(task, space.folder / _predicted(mirror), out / "masks", about)
    said = (
        f"nnU-Net {tool.versions['nnunetv2']} ({network}) on {tool.device_name}: {trained['steps']} steps in "
        f"{trained['training_seconds']:.0f} s; predicted {'as the mean over mirrorings' if mirror else 'once'}."
    )
    summary = evaluate(
        out / "masks",
        task.test,
        out / "report",
        convention=asked.convention,
        classes=dataset.classes,
        seed=asked.seed,
        seen=task.split.train,
        notes=[said],
        slice_axis=asked.data.slice_axis,
    )
    asked.tell(STEPS, STEPS, "done")
    times = ", ".join(f"{step} {value:.0f} s" for step, value in seconds.items())
    return f"{summary.text()}\nseconds of each step, start-up included: {times}"


def prepare(task: Task, folder: Path, channels: Any, minutes: float, threads: int | None = None) -> str:
    """Write ``raw`` (once, whole or not at all) and ``trainer``; returns nnU-Net's configuration to use.

    Raises InputError where ``folder`` holds an experiment with other cases, objects, minutes or threads, and naming the
    file where an image has other channels than the first or a mask lies on another grid.
    """
    raw = folder / "raw"
    asked = {
        "names": task.names,
        "fold": task.fold,
        "test": [case.id for case in task.test],
        "classes": {c.name: list(c.values) for c in task.dataset.classes},
        "minutes": minutes,
        "threads": threads,
    }
    file = raw / "experiment.json"
    if not file.is_file():
        draft = folder / "raw.part"
        shutil.rmtree(draft, ignore_errors=True)
        name = _write_raw(task, draft / NAME, channels)
        io.write_json(draft / file.name, asked | {"configuration": name})
        os.replace(draft, raw)
    written = json.loads(file.read_text(encoding="utf-8"))
    if changed := [key for key, value in asked.items() if written.get(key) != value]:
        raise InputError(
            f"{folder} holds nnU-Net with other {' and '.join(changed)}", "the same experiment", "Choose another folder"
        )
    (folder / "trainer").mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("nnunet_trainer.py"), folder / "trainer" / "samsans_minutes.py")
    io.write_json(folder / "trainer" / "minutes.json", {"minutes": minutes, "threads": threads})
    return str(written["configuration"])


def _write_raw(task: Task, folder: Path, channels: Any) -> str:
    """nnU-Net's raw data set; returns the configuration that fits it."""
    classes = disjoint_classes(task.dataset.classes)
    names, depths, counts, signed = task.names, [], set(), []
    for case in task.learned:
        volume = task.dataset.read_image(case)
        drawn = task.dataset.read_labels(case)
        require_same_grid(case, volume, drawn)
        counts.add(_write_image(volume, folder / "imagesTr", names[case.id], channels))
        label = folder / "labelsTr" / f"{names[case.id]}{ENDING}"
        io.write_labels(label, label_map(drawn.array, classes), like=_grid(volume))
        depths.append(volume.shape[0])
        signed.append(hounsfield(volume.array))
    for case in task.test:
        counts.add(_write_image(task.dataset.read_image(case), folder / "imagesTs", names[case.id], channels))
    if len(counts) > 1:
        raise InputError(
            f"images of {' and '.join(map(str, sorted(counts)))} channels in {task.dataset.root}",
            "the same number in all of them",
            "Pick those to see with data.channels",
        )
    named = named_intensity(task.dataset, channels)
    ct = 2 * sum(signed) > len(signed) if named is None else named == "ct"
    kind = "CT" if ct else "image"  # nnU-Net clips what is called CT, and takes z-scores of everything else
    described = {
        "channel_names": {str(c): kind for c in range(counts.pop())},
        "labels": {"background": 0, **{_label(c): number for number, c in enumerate(classes, 1)}},
        "numTraining": len(task.learned),
        "file_ending": ENDING,
        "overwrite_image_reader_writer": "NibabelIO",  # array for array; SimpleITK refuses oblique grids
    }
    io.write_json(folder / "dataset.json", described)
    return "3d_fullres" if np.median(depths) > 1 else "2d"


def _write_image(volume: Volume, folder: Path, name: str, channels: Any) -> int:
    """One NIfTI file a channel on the grid of the image; returns how many."""
    there = volume.array.shape[-1]
    wanted = list(range(there)) if channels == "auto" else list(channels)
    if not wanted or not all(0 <= c < there for c in wanted):
        raise InputError(f"data.channels is {wanted}, {volume.path} has {there}", f"numbers from 0 to {there - 1}")
    for number, channel in enumerate(wanted):
        path = folder / f"{name}_{number:04}{ENDING}"
        io.write_image(path, volume.array[..., channel], like=_grid(volume))
    return len(wanted)


def _grid(volume: Volume) -> Volume:
    """The grid without the native header: NIfTI's two forms then agree."""
    return replace(volume, header=None)


def _label(info: ClassInfo) -> str:
    return f"{info.name} object" if info.name in RESERVED else info.name


def collect(task: Task, predicted: Path, masks: Path, about: Mapping[str, Any]) -> Manifest:
    """nnU-Net's label maps as ours: our label values, on the grid and under the name of every held-out input."""
    classes = task.dataset.classes
    values = np.array([0, *(c.label for c in classes)])
    manifest = Manifest(masks, dict(about))
    for case in task.test:
        volume = task.dataset.read_image(case)
        file = predicted / f"{task.names[case.id]}{ENDING}"
        found = io.read_labels(file).array
        if found.shape != volume.shape or found.max(initial=0) > len(classes):
            raise InputError(
                f"{file} has the size {found.shape} and values up to {found.max(initial=0)}",
                f"nnU-Net's prediction of {case.id}: {volume.shape}, values up to {len(classes)}",
                f"Remove {predicted} and the file predict.json beside it, and run again",
            )
        output = f"{case.id}{ENDING if case.stacked else io.output_suffix(case.images[0])}"
        io.write_labels(masks / output, values[found], like=volume)
        manifest.records[case.id] = Record(tuple(map(str, case.images)), hash_files(case.images), output)
    write_classes(masks / "classes.json", classes)
    manifest.save()
    return manifest


def _plan_arguments(name: str, few: str) -> Sequence[str]:
    return ["-d", "1", "-c", name, "-npfp", few, "-np", few, "--verify_dataset_integrity", "--no_pbar"]


def _predicted(mirror: bool) -> str:
    return "predicted-mirrored" if mirror else "predicted"


def _trained(folder: Path, name: str) -> dict[str, Any]:
    """What our trainer wrote: optimiser steps, epochs, and the seconds from the first step to the end."""
    file = folder / f"results/{NAME}/{TRAINER}__nnUNetPlans__{name}/fold_0/minutes.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    return {"steps": told["steps"], "epochs": told["epochs"], "training_seconds": round(told["seconds"], 1)}


def _minutes(minutes: float | None, run_folder: Path) -> float:
    if minutes is None:
        minutes = configuration.load(run_folder / "config.yaml").train.minutes
    if minutes is None:
        raise InputError(f"{run_folder} was not trained by the clock", "a number of minutes", "Give --minutes")
    if not minutes > 0:
        raise InputError(f"{minutes:g} minutes of training", "more than 0", "Correct --minutes")
    return minutes


def _split(run_folder: Path) -> Split:
    split = Split.load(run_folder / "split.json")
    if split.slices:
        raise InputError(
            f"{run_folder} learned from {len(split.slices)} single slices; nnU-Net learns from whole cases",
            "a run that learned from whole cases",
            "Compare with a run without split.slices and split.slice_share",
        )
    return split
