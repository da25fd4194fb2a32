"""One network for each data set, for each modality, or for all of them (Table 9 of the Proxy Prompt paper)."""

from __future__ import annotations

import csv
import io as text
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samsans import config as configuration
from samsans import io
from samsans.config import DataConfig, RunConfig, SplitConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.episodes import plain_batch
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split, make_split
from samsans.errors import InputError
from samsans.experiments import Request, held_out
from samsans.experiments.ablation import Scores, report, score, trained
from samsans.experiments.draws import POOL, encode, patients_first
from samsans.experiments.published_proxy_prompt import told
from samsans.types import Case

OWN = "own"  # the modality of the run's data set
TEST = 0.2  # held out of further data sets, where the run's own share is not known
UNTOLD = dict.fromkeys(f"data.{key}" for key in ("images", "labels", "patient", "volume", "annotators", "threshold"))


@dataclass(frozen=True)
class Source:
    """One of the data sets: its cases and split, and the numbers its mask values get in a data set of several."""

    name: str
    modality: str
    dataset: Dataset
    split: Split
    offset: int

    @property
    def objects(self) -> dict[str, list[int]]:
        """Values of each object in a data set of several, whose objects carry the data set's name."""
        return {f"{self.name} {c.name}": [self.offset + v for v in c.values] for c in self.dataset.classes}


def strategies(asked: Request, also: Sequence[str], steps: int | None, minutes: float | None) -> str:
    """Train one network a data set, one a modality, and one for all; score each data set with its own supports.

    The images of several data sets are copied side by side into ``data``, their masks with values of their own.

    Args:
        asked: Its data set is the first one, of the modality ``own``.
        also: Further data sets as ``MODALITY=FOLDER``; of each as many training images as the run had, a fifth held out
            (or the run's ``split.test``, or what the folder itself declares).
        steps: Length of the trainings instead of the run's.
        minutes: Length of the trainings instead of the run's.

    Raises:
        InputError: no further data set, or one whose images are of several files.
    """
    config = configuration.load(asked.run_folder / "config.yaml")
    sources = _sources(asked, also, config)
    plans: dict[str, list[tuple[Source, ...]]] = {
        "one per data set": [(source,) for source in sources],
        "one per modality": [
            tuple(s for s in sources if s.modality == m) for m in dict.fromkeys(s.modality for s in sources)
        ],
        "one for all": [tuple(sources)],
    }
    runs: dict[tuple[str, ...], Mapping[str, Mapping[str, Any]]] = {}
    groups = [group for plan in plans.values() for group in plan]
    for done, group in enumerate(groups, start=1):
        key = tuple(source.name for source in group)
        if key not in runs:
            runs[key] = _group(asked, group, config, steps, minutes)
        asked.tell(done, len(groups), " + ".join(key))
    n = sum(len(_held_out(asked, source)) for source in sources)
    found = {}
    for plan, made in plans.items():
        scores = {name: row for group in made for name, row in runs[tuple(s.name for s in group)].items()}
        ordered = [name for source in sources for name in source.objects]
        found[plan] = Scores({name: scores[name] for name in ordered}, n)
    sets = "; ".join(f"{s.name} ({s.modality}): {', '.join(c.name for c in s.dataset.classes)}" for s in sources)
    return report(asked, "strategies", found, {}, {}, [sets, *told("strategies", config, len(sources[0].split.train))])


def _sources(asked: Request, also: Sequence[str], config: RunConfig) -> list[Source]:
    from samsans.inference import load

    if not also:
        raise InputError("one data set", "further ones", "Name them with --also MODALITY=FOLDER")
    first = asked.find(load(asked.run_folder).classes)
    split = Split.load(asked.run_folder / "split.json")
    sources = [Source("A", OWN, first, split, 0)]
    for number, given in enumerate(also, start=1):
        modality, equals, folder = given.partition("=")
        if not equals or not modality:
            raise InputError(f"--also {given}", f"MODALITY=FOLDER, the modality of DATA being {OWN!r}")
        dataset = find_cases(DataConfig(path=folder))
        share = config.split.test or TEST
        patients = len({case.patient for case in dataset.labelled})
        apart = make_split(dataset, SplitConfig(test=share), asked.seed)
        shots = min(len(split.train), len({dataset.by_id(id).patient for id in apart.train}))
        if patients < 2:
            raise InputError(f"{folder} holds {patients} patient with masks", "at least 2: one is held out")
        apart = make_split(dataset, SplitConfig(test=share, shots=shots), asked.seed)
        offset = max(v for values in sources[-1].objects.values() for v in values)
        sources.append(Source("ABCDEFGHIJ"[number], modality, dataset, apart, offset))
    for source in sources:
        if any(len(case.images) > 1 for case in source.dataset.cases):
            raise InputError(f"images of several files in {source.dataset.root}", "one file an image")
    return sources


def _held_out(asked: Request, source: Source) -> list[Case]:
    if source.name == "A":
        return asked.held_out(source.dataset)
    ids = set(source.split.test)
    return [case for case in source.dataset.labelled if case.id in ids][: asked.limit]


def _group(
    asked: Request, group: Sequence[Source], config: RunConfig, steps: int | None, minutes: float | None
) -> dict[str, Mapping[str, Any]]:
    """Train one network on some data sets; scores of every object of each of them."""
    from samsans.inference import load

    name = "".join(source.name for source in group)
    if name == "A":
        run = trained(asked, name, {}, steps, minutes)
        scores = score(asked, run, name).classes
        return {f"A {object_}": row for object_, row in scores.items()}
    folder, origin = _merge(asked, group, asked.out / "data" / name)
    objects = {key: values for source in group for key, values in source.objects.items()}
    merged = find_cases(DataConfig(path=str(folder), classes=objects))
    where = {merged_case.images[0]: merged_case.id for merged_case in merged.cases}
    placed = {key: where[path] for key, path in origin.items()}
    parts = {
        part: tuple(placed[s.name, id] for s in group for id in getattr(s.split, part) if (s.name, id) in placed)
        for part in ("train", "val", "test")
    }
    here = replace(asked, data=DataConfig(path=str(folder), classes=objects))
    changes = UNTOLD | {"data.classes": objects}
    run = trained(here, name, changes, steps, minutes, split=Split(parts["train"], parts["val"], parts["test"]))
    segmenter = load(run)
    found: dict[str, Mapping[str, Any]] = {}
    for source in group:
        mine = tuple(c for c in merged.classes if c.name in source.objects)
        dataset = replace(merged, classes=mine)
        ids = [placed[source.name, id] for id in source.split.train]
        slices = SliceDataset(dataset, ids, segmenter.preprocess, slice_axis=config.data.slice_axis)
        shown = [i for i in np.random.default_rng(asked.seed).permutation(len(slices)) if slices.present[i].any()]
        bank = encode(segmenter, plain_batch(slices, patients_first(slices, shown)[:POOL]))
        cases = [merged.by_id(placed[source.name, case.id]) for case in _held_out(asked, source)]
        masks = asked.out / "masks" / name / source.name
        held_out.segment(segmenter, dataset, cases, masks, support=bank, seed=asked.seed)
        report_folder = asked.out / "reports" / name / source.name
        summary = held_out.score(asked, segmenter, cases, masks, report_folder, mine)
        found |= summary.classes
    return found


def _merge(asked: Request, group: Sequence[Source], folder: Path) -> tuple[Path, dict[tuple[str, str], Path]]:
    """Copy what is learned from and scored into one data set; where each image went, by data set and id."""
    placed: dict[tuple[str, str], Path] = {}
    rows = []
    for source in group:
        held = {case.id for case in _held_out(asked, source)}
        parts = {"train": source.split.train, "val": source.split.val, "test": tuple(held)}
        for part, ids in parts.items():
            for id in ids:
                case = source.dataset.by_id(id)
                image = folder / "images" / source.name / f"{id}{io.suffix(case.images[0])}"
                label = folder / "labels" / source.name / f"{id}{io.output_suffix(case.images[0])}"
                volume = source.dataset.read_labels(case)
                values = {v for c in source.dataset.classes for v in c.values}
                known = np.isin(volume.array, list(values))
                painted = np.where(known, volume.array.astype(np.int32) + source.offset, 0)
                for file in (image, label):
                    file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(case.images[0], image)
                io.write_labels(label, painted, like=volume)
                placed[source.name, id] = image
                shown = [str(file.relative_to(folder).as_posix()) for file in (image, label)]
                rows.append([*shown, f"{source.name}/{case.patient}", part])
    buffer = text.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([["image", "label", "patient", "split"], *rows])
    io.write_text(folder / "cases.csv", buffer.getvalue())
    return folder, placed
