"""The public functions: thin wrappers that turn plain arguments into configurations.  The command line calls these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
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
    from samsans.data.splits import Split
    from samsans.inference import Manifest, Segmenter
    from samsans.metrics.evaluate import Illustrate, Summary

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

LENGTHS = ("train.steps", "train.epochs", "train.minutes")


def check(data: str | Path | DataConfig, *, on_progress: OnProgress | None = None) -> CheckReport:
    """What was understood of a data set, what is wrong, in which file, and how to mend it."""
    from samsans.data.check import check as run

    return run(_data(data), on_progress=on_progress)


def resolve(
    method: str | None,
    data: str | Path | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a run: defaults < preset < YAML file < options (dotted keys or ``SHORTCUTS``).

    ``method`` may be left to the YAML file; ``InputError`` where the two disagree, or neither names one.
    """
    values = _lengths_alone(configuration.flatten(configuration.read_yaml(config)) if config else {})
    method = choose_method(method, values.get("method"), config)
    told = {SHORTCUTS.get(k, k): v for k, v in configuration.flatten(options or {}).items() if v is not None}
    values |= _lengths_alone(told)
    if data is not None:
        values["data.path"] = str(Path(data).resolve())
    return configuration.from_dict(values, method=method, preset=preset)


def _lengths_alone(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer of settings; a length in it replaces the one of the layers below, whatever its unit."""
    if all(layer.get(key) is None for key in LENGTHS):
        return layer
    return dict.fromkeys(("train.epochs", "train.stop_epoch", "train.minutes")) | layer


def choose_method(told: str | None, in_file: str | None, file: str | Path | None) -> str:
    """The method of a run: as told, else as its YAML file has it; ``InputError`` where they disagree or are silent."""
    if told is None and in_file is None:
        where = f"{file} names no method" if file else "no method is named"
        raise InputError(where, "a name of `samsans models list`, or a recipe")
    if told is not None and in_file is not None and told != in_file:
        raise InputError(f"the method {told!r}, but {file} is of {in_file!r}", "one method", "Leave one of them out")
    return told or str(in_file)


def train(
    method: str | None,
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
        method: A name of ``samsans models``, e.g. ``proxy_prompt``; ``None``: the one of ``config``.
        data: Folder or CSV in any layout that ``check`` understands.
        out: Run folder to write.
        preset: Named settings; by default the method's first, or ``scratch`` for a small backbone, trained whole.
        config: YAML file of settings, or the name of a recipe.
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
    as_told = (
        data.images
        or data.volume
        or data.video
        or (segmenter.method.needs.points and data != DataConfig(path=data.path))
    )
    if part is None and not as_told:
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


def videos(
    segmenter: Segmenter, inputs: Sequence[str | Path] | Path | Dataset, options: Mapping[str, Any]
) -> Callable[..., Manifest] | None:
    """What segments ``inputs`` as videos: ``predict_videos`` with ``options`` of ``predict``; ``None`` for images.

    Raises InputError where videos and images are mixed, or an option is not one of videos.
    """
    from samsans.inference.video_folders import find_videos, predict_videos

    overlay = bool(options["overlay"])
    if overlay and options["video"] is False:
        raise InputError("--overlay with --no-video", "one of the two")
    sources = find_videos(segmenter, inputs, True if overlay else options["video"])
    if not sources:
        return None
    never = ("probabilities", "samples", "mirror", "points", "prompt_noise", "prompt_mode")
    flags = [f"--{name.replace('_', '-')}" for name in never if options[name] not in (None, False)]
    if flags:
        raise InputError(f"{', '.join(flags)} with videos", "no such option: frames get label maps", "Leave it out")
    named = ("objects", "labels", "seed", "batch_size", "view", "largest_component", "overwrite")
    told = {name: options[name] for name in named}
    return functools.partial(predict_videos, segmenter, sources, overlay=overlay, **told)


def evaluate(
    predictions: str | Path,
    reference: str | Path | DataConfig,
    out: str | Path,
    *,
    convention: str = "default",
    panels: int = 0,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Summary:
    """Compare label maps with a reference and write ``summary.json``, ``cases.csv`` and ``report.html``.

    Where the run that predicted them is still there and was trained from a recipe, our numbers stand beside the
    published ones.

    Args:
        predictions: Folder that ``predict`` wrote.
        reference: Folder of masks, or a data set in any layout: then the predicted cases are evaluated.  The data set
            that the predicting run was trained on is read as it was then.
        out: Report folder.
        convention: How empty masks count, and over what; a name of ``samsans.metrics.conventions``.
        panels: Also draw ``panels.png``: so many cases, from best to worst, with the truth, the stages of the method
            and, where the run answers with a mean of them, its ensemble side by side.  Opens the run again and segments
            these cases once a column.
        on_progress: Called with a ``Progress``.
        options: Passed to ``samsans.metrics.evaluate.evaluate``.
    """
    from samsans.metrics import repetition
    from samsans.metrics.evaluate import evaluate as run
    from samsans.metrics.matching import read_manifest

    if not Path(predictions).exists():
        raise InputError(f"there is nothing at {predictions}", "a folder of label maps that predict wrote")
    run_folder, origin = _origin(Path(predictions))

    def obstacles(scored: Collection[str]) -> Sequence[str]:
        if run_folder is None or origin is None:
            return []
        return repetition.obstacles(run_folder, origin, read_manifest(Path(predictions)), scored)

    data = _as_trained(_data(reference), None if origin is None else origin.data)
    cases, classes = _reference(Path(predictions), data)
    split = None if run_folder is None else _split_of(run_folder)
    illustrate = _illustrate(Path(predictions), run_folder, data, panels) if panels else None
    return run(
        Path(predictions),
        Path(data.path) if cases is None else cases,
        Path(out),
        convention=convention,
        classes=classes or None,
        seen=() if split is None else split.train,
        recipe=None if origin is None else origin.recipe,
        obstacles=obstacles,
        illustrate=illustrate,
        slice_axis=data.slice_axis,
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


def _origin(predictions: Path) -> tuple[Path | None, RunConfig | None]:
    """The run that made the predictions and its configuration, where that run is still there."""
    from samsans.metrics.matching import read_manifest

    named = read_manifest(predictions).get("run")
    if not named or not (Path(named) / "config.yaml").is_file():
        return None, None
    return Path(named), configuration.load(Path(named) / "config.yaml")


def _split_of(run: Path) -> Split | None:
    from samsans.data.splits import Split

    return Split.load(run / "split.json") if (run / "split.json").is_file() else None


def _illustrate(predictions: Path, run: Path | None, data: DataConfig, count: int) -> Illustrate:
    """What draws ``panels.png`` once the cases are scored."""
    from samsans import io
    from samsans.data.cases import Dataset
    from samsans.metrics import panels
    from samsans.metrics.matching import Pair, read_manifest

    manifest = read_manifest(predictions)
    options = manifest.get("options", {})

    def draw(summary: Any, pairs: Any, objects: Any) -> list[Any]:
        segmenter = None if run is None else _reopen(run, manifest)
        stages = () if segmenter is None else _stages(segmenter)
        own = None if segmenter is None else segmenter.own_view
        remark = _panel_remark(own, options.get("view"), there=run is not None)

        def answers(pair: Pair) -> dict[str, Any]:
            if segmenter is None or not stages:
                return {"prediction": io.read_labels(pair.prediction).array}
            if not pair.case.images:
                raise InputError(
                    f"{pair.case.id} has no image: its stages cannot be drawn", "a data set with its images"
                )
            spacing = None if data.spacing is None else (data.spacing[0], data.spacing[1], data.spacing[2])
            volume = Dataset(Path(data.path), "", (pair.case,), spacing=spacing).read_image(pair.case)
            chosen = {
                "objects": options.get("objects"),
                "seed": options.get("seed"),
                "largest_component": bool(options.get("largest_component")),
            }
            shown = {view: segmenter.predict(volume, view=view, **chosen).labels for view in stages}
            return shown if own in stages else shown | {"ensemble": segmenter.predict(volume, **chosen).labels}

        return [panels.plate(summary, pairs, objects, answers, count=count, slice_axis=data.slice_axis, remark=remark)]

    return draw


def _stages(segmenter: Segmenter) -> tuple[str, ...]:
    """The views that are stages of the method, each a column of the panels."""
    return tuple(view for view in segmenter.views if view.startswith("stage"))


def _panel_remark(own: str | None, scored: str | None, *, there: bool) -> str:
    """What the caption says of the answers: which one is the run's own, and which one was scored."""
    if not there:
        return "The run that predicted them is not there: only its prediction is shown."
    if own is None:
        return ""
    said = f"The run answers with {own}."
    return said if scored in (None, own) else f"{said} The masks that are scored and ranked are those of {scored}."


def _reopen(run: Path, manifest: Mapping[str, Any]) -> Segmenter:
    """The run as it was when it predicted; ``InputError`` where its weights have changed since."""
    weights = manifest.get("weights", {})
    segmenter = load(
        run,
        precision=manifest.get("precision", "fp32"),
        checkpoint="last" if Path(weights.get("file") or "").stem == "last" else "best",
        slice_axis=manifest.get("slice_axis"),
        via=manifest.get("backbone", {}).get("via"),
    )
    if _stages(segmenter) and (segmenter.weights_hash or None) != weights.get("sha256"):
        raise InputError(
            f"the weights of {run} are not those that made the predictions", "the same weights", "Predict again"
        )
    return segmenter


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
    predicted = _predicted(predictions)
    cases = [case for case in dataset.labelled if case.id in predicted]
    if not cases:
        raise InputError(
            f"none of the {len(predicted)} label maps of {predictions} belongs to a labelled case of {path}",
            f"names such as {dataset.labelled[0].id}",
        )
    return cases, dataset.classes


def _predicted(predictions: Path) -> set[str]:
    """Ids of the label maps of a folder, or of one file."""
    from samsans import io

    if not predictions.is_dir():
        return {io.stem(predictions)}
    files = io.find_images(predictions)
    return {(file.relative_to(predictions).parent / io.stem(file)).as_posix() for file in files}
