"""Predicting the held-out cases with a contestant at one level and draw of the noise, and scoring them; kept on disk.

``scores/NAME/LEVEL-DRAW.json`` holds, of every case, the numbers of every slice, so that any mean can be taken of them
later; it is read again only if the run is the same to the last weight, and the cases to the last byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import OnProgress, content, identity, open_run
from samsans.data.cases import Dataset
from samsans.data.prompt_noise import LEVELS, Noise
from samsans.data.prompt_statistics import PromptStatistics
from samsans.errors import InputError
from samsans.inference.manifest import Manifest, hash_values
from samsans.io.orientation import Orientation
from samsans.metrics import examples, matching
from samsans.metrics.slicewise import Slicewise, slicewise

TIMED = ("prepare", "model", "restore")  # from the image to the label map, without reading and writing


@dataclass(frozen=True)
class Answer:
    """What a contestant made of the held-out cases at one level and draw.

    volumes: by case id.  given, shown: the points as they were simulated and as the decoder saw them; ``None`` of
    prompt-free ones.  ms_per_slice: on average.
    """

    volumes: Mapping[str, Slicewise]
    ms_per_slice: float
    given: PromptStatistics | None = None
    shown: PromptStatistics | None = None


@dataclass
class Contest:
    """The answers of one contestant, by level and draw; prompt-free ones have one, at level ``""``."""

    name: str
    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)

    def at(self, level: str) -> list[Answer]:
        """The answers at a level, one a draw."""
        found = [answer for (at, _), answer in sorted(self.answers.items()) if at in (level, "")]
        assert found, f"{self.name} was not asked at {level}"
        return found

    def scores(self, levels: Sequence[str], draws: int, cases: Sequence[str]) -> np.ndarray:
        """Volumetric Dice ``(L, R, V)``; what does not depend on the draw, or on the level, is repeated."""
        table = np.empty((len(levels), draws, len(cases)))
        for place, level in enumerate(levels):
            answers = self.at(level)
            for draw in range(draws):
                answer = answers[draw % len(answers)]
                table[place, draw] = [answer.volumes[case].volumetric_dice for case in cases]
        return table


def jobs(plan: Plan, name: str) -> list[tuple[str, int]]:
    """The levels and draws at which a contestant is asked: once, if it sees no prompts; clean prompts have one draw."""
    if not CONTESTANTS[name].prompted:
        return [("", 0)]
    return [(level, draw) for level in plan.levels for draw in range(1 if LEVELS[level] == Noise() else plan.draws)]


def ask(plan: Plan, name: str, dataset: Dataset, on_progress: OnProgress | None = None) -> Contest:
    """The answers of a trained contestant to the cases of ``dataset``; those that are kept are not made again."""
    contest, key, segmenter = Contest(name), hash_values(identity(plan, name), content(dataset)), None
    axis = plan.data.slice_axis
    for level, draw in jobs(plan, name):
        where = f"{level or 'once'}-{draw}"
        file, folder = plan.out / "scores" / name / f"{where}.json", plan.out / "masks" / name / where
        kept = _read(file, key, dataset)
        if kept is None:
            segmenter = open_run(plan, name) if segmenter is None else segmenter
            told: dict[str, Any] = {"prompt_noise": level, "prompt_mode": plan.prompts.mode} if level else {}
            again = foreign(folder, segmenter.weights_hash)
            manifest = segmenter.predict_folder(
                dataset, folder, seed=draw, overwrite=again, on_progress=on_progress, **told
            )
            if manifest.failures:
                raise InputError(f"cases that cannot be segmented: {manifest.failures}", "images that can be read")
            kept = _scored(folder, manifest, dataset, axis)
            _write(file, key, kept)
        contest.answers[level, draw] = kept
    return contest


def foreign(folder: Path, weights: str) -> bool:
    """Whether a folder holds predictions of other weights: of a run that was trained further since."""
    about = Manifest.load(folder).about
    return bool(about) and (about["weights"]["sha256"] or "") != weights


def _scored(folder: Path, manifest: Manifest, dataset: Dataset, axis: Any) -> Answer:
    pairs = matching.match(folder, list(dataset.cases)).pairs
    objects = matching.resolve_classes(dataset.classes, matching.read_classes(folder), pairs)
    volumes = {}
    for pair in pairs:
        predicted, drawn = io.read_labels(pair.prediction), matching.read_reference(pair.case)
        matching.check_grid(predicted, drawn, pair.case.id)
        orientation = Orientation.of(drawn, axis)
        ((_, ours, theirs),) = examples.masks(predicted.array, drawn.array, objects)
        z, y, x = (drawn.spacing[place] for place in orientation.axes)
        volumes[pair.case.id] = slicewise(orientation.to_slices(ours), orientation.to_slices(theirs), (z, y, x))
    slices = sum(len(volume.dice) for volume in volumes.values())
    seconds = sum(manifest.seconds.get(part, 0.0) for part in TIMED)
    told = [record.prompts for record in manifest.records.values() if "on_target" in record.prompts]
    given = sum((_statistics(prompts) for prompts in told), NOTHING) if told else None
    shown = sum((_statistics(prompts["shown"]) for prompts in told), NOTHING) if told else None
    return Answer(volumes, 1000 * seconds / max(slices, 1), given, shown)


NOTHING = PromptStatistics(0, 0, 0, 0, 0, 0, 0)


def _statistics(told: Mapping[str, Any]) -> PromptStatistics:
    return PromptStatistics(**{f.name: int(told[f.name]) for f in fields(PromptStatistics)})


# -- on disk ----------------------------------------------------------------------------------------------------------


def _write(file: Path, key: str, answer: Answer) -> None:
    volumes = {id: {name: _plain(values) for name, values in _columns(v)} for id, v in answer.volumes.items()}
    prompts = {name: None if s is None else asdict(s) for name, s in (("given", answer.given), ("shown", answer.shown))}
    io.write_json(file, {"key": key, "ms_per_slice": answer.ms_per_slice, "prompts": prompts, "volumes": volumes})


def _columns(volume: Slicewise) -> Iterator[tuple[str, np.ndarray]]:
    return ((f.name, getattr(volume, f.name)) for f in fields(volume))


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def _read(file: Path, key: str, dataset: Dataset) -> Answer | None:
    """What was kept of this very run and these very cases; else ``None``."""
    if not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    if told["key"] != key or set(told["volumes"]) != {case.id for case in dataset.cases}:
        return None
    volumes = {
        id: Slicewise(**{name: _array(name, values) for name, values in columns.items()})
        for id, columns in told["volumes"].items()
    }
    prompts = {name: None if s is None else PromptStatistics(**s) for name, s in told["prompts"].items()}
    return Answer(volumes, told["ms_per_slice"], prompts["given"], prompts["shown"])


def _array(name: str, values: Sequence[float | None]) -> np.ndarray:
    whole = name in ("predicted", "reference", "both")
    return np.array([np.nan if v is None else v for v in values], np.int64 if whole else np.float64)
