"""Experiments: protocols and controls that end in one table and one figure.  Adding one is a file and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samsans.config import DataConfig
from samsans.errors import InputError
from samsans.types import Case, ClassInfo, Progress

if TYPE_CHECKING:
    from samsans.data.cases import Dataset

EXPERIMENTS = {
    "controls": "samsans.experiments.controls:controls",
    "stages": "samsans.experiments.stages:stages",
    "nnunet": "samsans.experiments.nnunet:nnunet",
    "mirroring": "samsans.experiments.mirroring:mirroring",
    "prompts": "samsans.experiments.prompts:prompts",
    "distillation": "samsans.experiments.distillation:distillation",
    "grid": "samsans.experiments.grid:grid",
    "stability": "samsans.experiments.stability:stability",
    "relevance": "samsans.experiments.relevance:relevance",
    "context-encoders": "samsans.experiments.context_encoders:context_encoders",
    "ablation": "samsans.experiments.ablation:ablation",
    "choosing": "samsans.experiments.choosing:choosing",
    "memory": "samsans.experiments.memory:memory",
    "main": "samsans.experiments.main_table:main_table",
}
OWN_OPTIONS = {  # which only some experiments take
    "nnunet": ("python", "minutes", "threads", "mirror"),
    "distillation": ("prompt_noise",),
    "ablation": ("table", "steps", "minutes", "also"),
    "grid": ("retrain", "steps", "minutes"),
    "relevance": ("unrelated",),
    "stability": ("objects",),
}


@dataclass(frozen=True)
class Request:
    """What every experiment is asked.

    Args:
        data: The data set, as for training.
        run_folder: Folder that ``train`` wrote.
        out: Folder for tables, figures and label maps.
        seed: Of the draws.
        limit: Evaluate at most this many cases.
        part: Which held-out part of the run; by default ``test``, or ``val`` where nobody is in it.
        convention: Name of a convention of ``samsans.metrics.conventions``.
        on_progress: Called with a ``Progress``.
    """

    data: DataConfig
    run_folder: Path
    out: Path
    seed: int = 0
    limit: int | None = None
    part: Literal["val", "test"] | None = None
    convention: str = "default"
    on_progress: Callable[[Progress], None] | None = None

    def tell(self, done: int, total: int, what: str) -> None:
        """Report progress to who wants to know it."""
        if self.on_progress is not None:
            self.on_progress(Progress(done, total, what))

    def find(self, classes: Sequence[ClassInfo]) -> Dataset:
        """The data set with the objects that ``data.classes`` names, or else with the run's, ``classes``."""
        from samsans.data.cases import find_cases

        known = {info.name: list(info.values) for info in classes}
        return find_cases(replace(self.data, classes=self.data.classes or known))

    def held_out(self, dataset: Dataset) -> list[Case]:
        """The labelled cases that the run held out, at most ``limit``; ``InputError`` where there is none."""
        from samsans.data.splits import Split

        split = Split.load(self.run_folder / "split.json")
        ids = set(getattr(split, self.part) if self.part else split.test or split.val)
        cases = [case for case in dataset.labelled if case.id in ids][: self.limit]
        if not cases:
            where = f" for {self.part}" if self.part else ""
            raise InputError(
                f"{self.run_folder} holds no case of {dataset.root} out{where}", "a run with --split.test 0.2, say"
            )
        return cases


def add_arguments(parser: Any) -> None:
    """What ``samsans experiment`` takes beside the data set's own options."""
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("folder", type=str, metavar="DATA", help="folder or CSV of images with masks")
    parser.add_argument("--run", type=str, required=True, help="folder that train wrote")
    parser.add_argument("-o", "--out", type=str, required=True, help="folder for the table and the figure")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--limit", type=int, help="evaluate at most this many images")
    parser.add_argument("--split", choices=["val", "test"], help="which held-out part of the run (test, else val)")
    parser.add_argument("--convention", default="default", help="also score by this convention")
    parser.add_argument("--python", type=str, metavar="PATH", help="nnunet: the Python of nnU-Net's environment")
    parser.add_argument("--minutes", type=float, help="nnunet, ablation, grid: training time (as the run was trained)")
    parser.add_argument("--steps", type=int, help="ablation, grid: steps of each training (as the run was trained)")
    parser.add_argument("--threads", type=int, help="nnunet: of a training on a CPU, data included (all cores)")
    parser.add_argument(
        "--prompt-noise", metavar="LEVEL", help="distillation: of simulated points, L0 to L5 (the run's)"
    )
    parser.add_argument("--mirror", action="store_true", default=None, help="nnunet: predict with mean over mirrorings")
    parser.add_argument("--table", type=str, help="ablation: modules, context, qualities, strategies or pretrained")
    parser.add_argument(
        "--also", type=str, nargs="+", metavar="MODALITY=DATA", help="ablation, strategies: further data sets"
    )
    parser.add_argument("--retrain", action="store_true", default=None, help="grid: train a network for every M")
    parser.add_argument("--objects", nargs="+", metavar="NAME", help="stability: ask for these objects only")
    parser.add_argument("--unrelated", type=str, metavar="IMAGE:MASK", help="relevance: a pair of another modality")


def run(name: str, data: DataConfig, run_folder: Path, out: Path, **options: Any) -> str:
    """Run the experiment ``name`` of a trained run on a data set; writes into ``out`` and returns its table as text.

    Args:
        name: A key of ``EXPERIMENTS``.
        data: The data set, as for training.
        run_folder: Folder that ``train`` wrote.
        out: Folder for tables, figures and label maps.
        options: Further ones of ``Request``, and those that only some experiments take, see ``OWN_OPTIONS``; ``None``
            of these is not given.
    """
    special = {option for taken in OWN_OPTIONS.values() for option in taken}
    own = {option: options.pop(option) for option in special & options.keys()}
    given = {option: value for option, value in own.items() if value is not None}
    for option in given.keys() - OWN_OPTIONS.get(name, ()):
        takers = [other for other, taken in OWN_OPTIONS.items() if option in taken]
        raise InputError(
            f"--{option.replace('_', '-')} for the experiment {name}", f"it with {' or '.join(takers)} alone"
        )
    module, _, function = EXPERIMENTS[name].partition(":")
    experiment = getattr(importlib.import_module(module), function)
    return experiment(Request(data, run_folder, out, **options), **given)
