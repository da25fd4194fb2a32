"""The public functions: thin wrappers that turn plain arguments into configurations.  The command line calls these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samsans import config as configuration
from samsans.config import DataConfig, RunConfig
from samsans.errors import InputError
from samsans.types import Case, ClassInfo, Progress

if TYPE_CHECKING:
    from samsans.data.cases import Dataset
    from samsans.data.check import CheckReport
    from samsans.inference import Segmenter
    from samsans.metrics.evaluate import Summary

OnProgress = Callable[[Progress], None]

SHORTCUTS = {
    "shots": "split.shots",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "minutes": "train.minutes",
    "seed": "seed",
    "input_size": "backbone.input_size",
    "backbone": "backbone.name",
}
"""Short names of the keys that most runs set."""


def check(data: str | Path | DataConfig, *, on_progress: OnProgress | None = None) -> CheckReport:
    """What was understood of a data set, what is wrong, in which file, and how to mend it."""
    from samsans.data.check import check as run

    return run(_data(data), on_progress=on_progress)


def resolve(
    method: str,
    data: str | Path | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a run: defaults < preset < YAML file < options (dotted keys or ``SHORTCUTS``)."""
    values = configuration.flatten(configuration.read_yaml(config)) if config else {}
    values |= {SHORTCUTS.get(k, k): v for k, v in configuration.flatten(options or {}).items() if v is not None}
    if data is not None:
        values["data.path"] = str(Path(data).resolve())
    return configuration.from_dict(values, method=method, preset=preset)


def train(
    method: str,
    data: str | Path,
    *,
    out: str | Path,
    preset: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Path:
    """Train a method on a data set.

    Args:
        method: A name of ``samsans models``, e.g. ``proxy_prompt``.
        data: Folder or CSV in any layout that ``check`` understands.
        out: Run folder to write.
        preset: Named settings; by default ``paper``, or ``scratch`` for a backbone that trains from nothing.
        config: YAML file of settings.
        resume: Continue an interrupted run.
        on_progress: Called with a ``Progress``.
        options: ``shots``, ``steps``, ``epochs``, ``minutes``, ``seed``, ``input_size``, ``backbone``, or any dotted
            key, e.g. ``**{"model.csm.selective": False}``.

    Returns:
        The run folder.

    Raises:
        InputError: data or settings that cannot be used.
    """
    from samsans.training.run import train as run

    resolved = resolve(method, data, preset=preset, config=config, options=options)
    return run(resolved, Path(out), resume=resume, on_progress=on_progress)


def load(run: str | Path, **options: Any) -> Segmenter:
    """A trained run, ready to segment; see ``samsans.inference.load`` for the options."""
    from samsans.inference import load as open_run

    return open_run(run, **options)


def inputs(
    segmenter: Segmenter, paths: Sequence[str | Path], data: DataConfig, part: str | None = None
) -> Sequence[str | Path] | Path | Dataset:
    """What ``predict`` is to segment: files, a folder, or one part of the run's own split of a data set.

    The data set that the run was trained on is read as it was then, where ``data`` says nothing else.
    """
    from samsans.data.cases import find_cases
    from samsans.data.splits import Split

    data = _as_trained(data, segmenter.config.data)
    if part is None and not (data.images or data.volume):
        return Path(paths[0]) if len(paths) == 1 else list(paths)
    if len(paths) > 1:
        raise InputError(f"{len(paths)} inputs with --split or --data options", "one data set")
    dataset = find_cases(data)
    if part is None:
        return dataset
    if segmenter.run is None:
        raise InputError("a split of a model that was not trained", "a run folder")
    wanted = set(getattr(Split.load(segmenter.run / "split.json"), part))
    cases = tuple(case for case in dataset.cases if case.id in wanted)
    if not cases:
        raise InputError(f"no case of {data.path} is in the {part} part of {segmenter.run}", "the data set trained on")
    return replace(dataset, cases=cases)


def evaluate(
    predictions: str | Path,
    reference: str | Path | DataConfig,
    out: str | Path,
    *,
    convention: str = "default",
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Summary:
    """Compare label maps with a reference and write ``summary.json``, ``cases.csv`` and ``report.html``.

    Args:
        predictions: Folder that ``predict`` wrote.
        reference: Folder of masks, or a data set in any layout: then the predicted cases are evaluated.  The data set
            that the predicting run was trained on is read as it was then.
        out: Report folder.
        convention: How empty masks count, and over what; a name of ``samsans.metrics.conventions``.
        on_progress: Called with a ``Progress``.
        options: Passed to ``samsans.metrics.evaluate.evaluate``.
    """
    from samsans.metrics.evaluate import evaluate as run

    if not Path(predictions).exists():
        raise InputError(f"there is nothing at {predictions}", "a folder of label maps that predict wrote")
    trained, seen = _training_of(Path(predictions))
    data = _as_trained(_data(reference), trained)
    cases, classes = _reference(Path(predictions), data)
    return run(
        Path(predictions),
        Path(data.path) if cases is None else cases,
        Path(out),
        convention=convention,
        classes=classes or None,
        seen=seen,
        on_progress=on_progress,
        **options,
    )


def _data(data: str | Path | DataConfig) -> DataConfig:
    return data if isinstance(data, DataConfig) else DataConfig(path=str(data))


def _as_trained(data: DataConfig, trained: DataConfig | None) -> DataConfig:
    """How to read a data set: as told, else, where it is the one of a run, as the run did."""
    told = data != DataConfig(path=data.path)
    if told or trained is None or not trained.path or Path(trained.path).resolve() != Path(data.path).resolve():
        return data
    return replace(trained, path=data.path)


def _training_of(predictions: Path) -> tuple[DataConfig | None, Sequence[str]]:
    """The data set and the training ids of the run that made the predictions, where that run is still there."""
    from samsans.data.splits import Split
    from samsans.metrics.matching import read_manifest

    run = Path(read_manifest(predictions).get("run") or "")
    if not (run / "config.yaml").is_file():
        return None, ()
    split = run / "split.json"
    return configuration.load(run / "config.yaml").data, Split.load(split).train if split.is_file() else ()


def _reference(predictions: Path, reference: DataConfig) -> tuple[list[Case] | None, Sequence[ClassInfo]]:
    """The labelled cases of a reference data set that were predicted; ``None`` for a plain folder or file of masks."""
    from samsans import io
    from samsans.data.cases import find_cases

    path = Path(reference.path)
    if not (reference.images or reference.labels or reference.volume) and path.is_file() and io.is_image(path):
        return None, ()
    dataset = find_cases(reference)
    if not dataset.labelled:
        return None, ()
    if predictions.is_dir():
        predicted = {_relative(file, predictions) for file in io.find_images(predictions)}
    else:
        predicted = {io.stem(predictions)}
    cases = [case for case in dataset.labelled if case.id in predicted]
    if not cases:
        raise InputError(
            f"none of the {len(predicted)} label maps of {predictions} belongs to a labelled case of {path}",
            f"names such as {dataset.labelled[0].id}",
        )
    return cases, dataset.classes


def _relative(file: Path, folder: Path) -> str:
    from samsans import io

    return (file.relative_to(folder).parent / io.stem(file)).as_posix()
