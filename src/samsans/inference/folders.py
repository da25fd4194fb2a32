"""Many images: read ahead, segment in batches, write behind; a bad file stops nothing; a half-done folder goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samsans import io
from samsans.data.cases import Dataset, require_same_grid
from samsans.data.classes import write_classes
from samsans.data.pairs import listing, match
from samsans.errors import InputError
from samsans.inference import outputs, prompts, provenance
from samsans.inference.choosing import Choose
from samsans.inference.jobs import Job, Target
from samsans.inference.manifest import Manifest, Record, hash_files
from samsans.inference.pipeline import Behind, ahead
from samsans.inference.points import PointJob
from samsans.inference.slices import SliceJob
from samsans.types import Case, Progress

if TYPE_CHECKING:
    from samsans.inference.banks import Supports
    from samsans.inference.prompts import Prompting
    from samsans.inference.segmenter import Segmenter

SAVE_EVERY = 2.0  # seconds between two writings of the manifest
BEHIND = 2  # label maps that may wait to be written


@dataclass(frozen=True)
class Item:
    """A case, where its label map goes and its other files, and after reading: the job or why there is none."""

    case: Case
    output: str
    beside: tuple[str, ...] = ()
    sha256: str = ""
    job: Job | None = None
    failure: str = ""
    skipped: bool = False


def predict_folder(
    segmenter: Segmenter,
    inputs: str | Path | Sequence[str | Path] | Dataset,
    out: Path,
    *,
    support: Any = None,
    task: str | None = None,
    objects: Sequence[str] | None = None,
    labels: str | Path | None = None,
    probabilities: bool = False,
    seed: int | None = None,
    batch_size: int | None = None,
    view: str | None = None,
    largest_component: bool = False,
    mirror: bool | None = None,
    samples: int = 0,
    choose: Choose = "random",
    points: str | None = None,
    prompt_noise: str | None = None,
    prompt_mode: str | None = None,
    cache: bool = True,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Segment images and volumes into ``out``: one label map each, under the same relative path and name.

    Writes label maps (PNG for 2D images, volumes in their own format, DICOM series as ``.nii.gz``), ``classes.json``,
    ``manifest.json`` and ``config.yaml``; with ``probabilities`` also ``probabilities/CASE_OBJECT`` (16-bit PNG where
    65535 is 1, float32 volumes).  With ``samples`` also these of their mean, ``entropy/CASE_OBJECT`` likewise, and the
    samples: ``CASE_samples.nii.gz``, 4D, of NIfTI label maps, else ``CASE_sample00.png``... in the format of these.
    Every file appears whole or not at all.  Run again, what is there and was made from the same bytes in the same way
    is skipped.

    Args:
        segmenter: What to segment with.
        inputs: A folder or CSV in any layout that data sets have, image files, or a ``Dataset`` (its cases).
        out: Folder to write.
        support: As in ``Segmenter.predict``.
        task: As in ``Segmenter.predict``.
        objects: Names of the objects wanted; all by default.
        labels: Folder of true masks, of prompted baselines only; by default the masks that ``inputs`` itself holds.
        probabilities: Also write each object's probability.
        seed: Of the draws of supports, samples and simulated points; the run's by default.
        batch_size: As in ``Segmenter.predict``.
        view: As in ``Segmenter.predict``.
        largest_component: As in ``Segmenter.predict``.
        mirror: As in ``Segmenter.predict``.
        samples: As in ``Segmenter.predict``.
        choose: As in ``Segmenter.predict``.
        points: For methods that are prompted with points: template of their files, see ``data.points``.  By default as
            the run has it (``prompts.source``): files in the usual places, or points simulated from the masks.
        prompt_noise: Simulate the points from the masks that ``inputs`` itself holds, with noise of this level.
        prompt_mode: Where simulated points fall that miss the object, ``uniform`` or ``hard``; the run's by default.
        cache: As in ``Segmenter.predict``.
        overwrite: Do everything again, and replace files that were not made in this way.
        on_progress: Called after every image.

    Returns:
        The manifest; images that could not be read are in its ``failures``.

    Raises:
        InputError: nothing to segment, two inputs with one output, or ``out`` holds something else.
    """
    if io.is_image(out):
        raise InputError(
            f"the output {out} is named like an image", "a folder, one label map is written there per input"
        )
    dataset = _dataset(segmenter, inputs)
    needs_truth = segmenter.needs_truth
    if needs_truth:
        dataset = _with_truth(segmenter, dataset, labels)
    elif labels is not None:
        raise InputError(f"{segmenter.config.method} was given true masks", "no labels: it needs no prompt")
    prompting = None
    if segmenter.method.needs.points:
        told = segmenter.config.prompts
        prompting, dataset = prompts.choose(told, dataset, points, prompt_noise, prompt_mode, seed)
    elif points is not None or prompt_noise is not None or prompt_mode is not None:
        raise segmenter.no_use("points, or a noise of points,")
    segmenter.require_view(view)
    runner = segmenter.runner(batch_size, mirror, cache, view)
    found = segmenter.supports(support, task, batch_size)
    target = segmenter.target(found, objects, view, samples, seed, choose)
    items = _plan(dataset, out, target, probabilities)
    seed = segmenter.seed(seed)
    options = {
        "objects": [c.name for c in target.classes],
        "probabilities": probabilities,
        "seed": seed,
        "view": view,
        "largest_component": largest_component,
    }
    if segmenter.method.needs.volumes:
        options["mirror"] = segmenter.mirror(mirror)
    if segmenter.method.needs.samples:
        options["samples"] = samples
    if choose != "random":
        options["choose"] = choose
    if prompting is not None:
        options["prompts"] = prompting.options
    about = provenance.about(segmenter, found, options | {"batch_size": segmenter.batch_size(batch_size)})
    flat = sum(map(_is_flat, (item.case for item in items))) if segmenter.method.needs.first_label else 0
    if flat:
        own = f"each of {flat} single images was prompted with its own label, of which its label map is little test"
        about["note"] = f"{own}; frames are followed from one label with `--video`"
    key = provenance.key(segmenter, found, options)
    manifest = open_manifest(out, key, about, items, overwrite)
    call = {
        "inputs": provenance.shown(inputs),
        "out": str(out),
        "support": found.source or None,
        "labels": str(labels or "") or None,
        "points": points,
    }
    io.write_text(out / "config.yaml", provenance.resolved(call | options | {"overwrite": overwrite}, segmenter))
    write_classes(out / "classes.json", target.classes)

    def read(item: Item) -> Item:
        draw = segmenter.draw(found, item.case.id, seed, choose)
        return _read(segmenter, dataset, manifest, item, draw, needs_truth, prompting, cache)

    progress = _Progress(on_progress, len(items))
    log = _Log(manifest, progress)
    size = segmenter.batch_size(batch_size)
    writer: Behind[Item, Item] = Behind(lambda item: _write(item, out, target, largest_component), BEHIND)
    try:
        with writer:
            waiting: deque[Item] = deque()

            def jobs() -> Iterator[Job]:
                for item in ahead(read, items, size, lambda i: 1 if _is_flat(i.case) else size):
                    if item.job is None:
                        log.leave(item)
                    else:
                        waiting.append(item)
                        yield item.job

            for _ in runner.run(jobs(), target, probabilities=probabilities):
                log.enter(writer.put(waiting.popleft()), found)
    finally:  # also what an interruption found still being written
        log.enter(writer.rest(), found)
        manifest.save()
    return manifest


# -- what there is to do ----------------------------------------------------------------------------------------------


def _dataset(segmenter: Segmenter, inputs: str | Path | Sequence[str | Path] | Dataset) -> Dataset:
    if isinstance(inputs, Dataset):
        found = inputs
    elif isinstance(inputs, (str, Path)):
        found = segmenter.dataset(inputs)
    else:
        paths = [Path(p) for p in inputs]
        cases = [Case(io.stem(p), io.stem(p), (p,)) for p in paths]
        found = replace(segmenter.dataset(paths[0]), cases=tuple(cases)) if paths else Dataset(Path(), "files", ())
    if not found.cases:
        raise InputError("nothing to segment", "image files, or a folder that holds some")
    return found


def _with_truth(segmenter: Segmenter, dataset: Dataset, labels: str | Path | None) -> Dataset:
    """The data set with a true mask for every case, from ``labels`` or its own."""
    if labels is not None:
        masks = listing(Path(labels))
        matched, _ = match({case.id: case.images[0] for case in dataset.cases}, masks)
        cases = [replace(c, labels=((matched[c.id],),) if c.id in matched else ()) for c in dataset.cases]
        dataset = replace(dataset, cases=tuple(cases))
    for case in dataset.cases:
        if not case.labels:
            raise segmenter.no_truth(case.id)
    return dataset


def _plan(dataset: Dataset, out: Path, target: Target, probabilities: bool) -> list[Item]:
    """Where every case goes; InputError where two would be written to one file, or an input overwritten."""
    inputs = {path.resolve() for case in dataset.cases for path in (*case.images, *(p for r in case.labels for p in r))}
    items: list[Item] = []
    taken: dict[str, Case] = {}
    for case in dataset.cases:
        output = case.id + _suffix(case)
        item = Item(case, output, outputs.files_beside(output, target.classes, probabilities, target.samples))
        for file in (output, *item.beside):
            other = taken.setdefault(file.casefold(), case)
            if other is not case:
                raise InputError(
                    f"{other.images[0]} and {case.images[0]} would both be written to {file}",
                    "images whose names differ by more than their suffix"
                    + (", and not by the endings of samples and maps alone" if item.beside else ""),
                    "Segment them into two folders",
                )
            if (out / file).resolve() in inputs:
                raise InputError(f"{out / file} would overwrite an input", "another output folder")
        items.append(item)
    return items


def _suffix(case: Case) -> str:
    """Suffix of the label map; a stack of pictures becomes a volume."""
    try:
        suffix = io.output_suffix(case.images[0])
    except (InputError, OSError):  # a missing or damaged file is reported when it is read
        suffix = ".png"
    return ".nii.gz" if case.stacked and suffix == ".png" else suffix


def _is_flat(case: Case) -> bool:
    return not case.stacked and io.suffix(case.images[0]) in io.IMAGE_SUFFIXES


def open_manifest(out: Path, key: str, about: dict[str, Any], items: Sequence[Item], overwrite: bool) -> Manifest:
    """The manifest to go on with; InputError where ``out`` holds what was made in another way."""
    todo = "Choose another folder, or overwrite"
    try:
        old = Manifest.load(out)
    except InputError:
        if not overwrite:
            raise
        old = Manifest(out)
    if overwrite:
        _remove_beside(old, items)
        old = Manifest(out)
    if old.about and old.about.get("key") != key:
        raise InputError(f"{out} holds predictions of other weights, supports or options", "an empty folder", todo)
    if not old.about and not overwrite:
        files = (file for item in items for file in (item.output, *item.beside))
        there = next((file for file in files if (out / file).exists()), None)
        if there is not None:
            raise InputError(f"{out / there} exists and was not made by this prediction", "an empty folder", todo)
    io.sweep(out)
    manifest = Manifest(out, {"key": key, **about}, old.records)
    manifest.save()
    return manifest


def _remove_beside(old: Manifest, items: Sequence[Item]) -> None:
    """Remove what an earlier prediction of the same cases wrote beside and this one does not, e.g. further samples."""
    folder = old.folder.resolve()
    stay = {(folder / file).resolve() for item in items for file in (item.output, *item.beside)}
    stay |= {path.resolve() for item in items for path in item.case.images}
    for item in items:
        record = old.records.get(item.case.id)
        there = set() if record is None else {(folder / file).resolve() for file in record.beside}
        for path in there - stay:
            if path.is_relative_to(folder):
                path.unlink(missing_ok=True)


# -- reading and writing ----------------------------------------------------------------------------------------------


def _read(
    segmenter: Segmenter,
    dataset: Dataset,
    manifest: Manifest,
    item: Item,
    draw: tuple[int, ...],
    needs_truth: bool,
    prompting: Prompting | None,
    cache: bool,
) -> Item:
    """Read one case and cut it into slices; whatever is wrong with its files becomes its ``failure``."""
    case, start = item.case, time.perf_counter()
    try:
        files = (*case.images, *(case.labels[0] if needs_truth else ()))
        files = files if prompting is None else (*files, *prompting.files(case))
        item = replace(item, sha256=hash_files(files))
        if manifest.has(case.id, item.sha256):
            return replace(item, skipped=True)
        volume = dataset.read_image(case)
        truth = dataset.read_labels(case) if needs_truth else None
        if truth is not None:
            require_same_grid(case, volume, truth)
        job = segmenter.open(case.id, volume, truth, draw)
        if prompting is not None:
            assert isinstance(job, SliceJob)
            hashed = cache and segmenter.cache is not None
            job = prompting.prompt(dataset, case, job, segmenter.preprocess, segmenter.classes, hashed)
    except (InputError, OSError, MemoryError) as error:
        return replace(item, failure=str(error) or type(error).__name__)
    job.add("read", time.perf_counter() - start - job.seconds.get("prepare", 0.0))
    return replace(item, job=job)


def _write(item: Item, out: Path, target: Target, largest_component: bool) -> Item:
    """Write a finished job; what is wrong with the disk becomes its ``failure``."""
    assert item.job is not None
    start = time.perf_counter()
    try:
        outputs.write(item.job.prediction(target.classes, largest_component), out, item.output)
    except (InputError, OSError, MemoryError) as error:
        return replace(item, failure=str(error) or type(error).__name__)
    item.job.add("write", time.perf_counter() - start)
    return item


class _Progress:
    def __init__(self, call: Callable[[Progress], None] | None, total: int) -> None:
        self.call, self.total, self.done = call, total, 0

    def step(self, item: str, message: str = "") -> None:
        """One image more is done."""
        self.done += 1
        if self.call is not None:
            self.call(Progress(self.done, self.total, item, message))


class _Log:
    """Keeps the manifest: in memory at once, on disk every two seconds."""

    def __init__(self, manifest: Manifest, progress: _Progress) -> None:
        self.manifest, self.progress, self._saved = manifest, progress, time.monotonic()

    def enter(self, items: Iterable[Item], found: Supports) -> None:
        """Record written items."""
        for item in items:
            if item.failure:
                self.leave(item)
                continue
            assert item.job is not None
            self.manifest.records[item.case.id] = Record(
                input=tuple(str(p) for p in item.case.images),
                sha256=item.sha256,
                output=item.output,
                beside=item.beside,
                supports=tuple(found.bank.ids[i] for i in sorted(item.job.chosen) or item.job.draw),
                seconds=item.job.seconds,
                prompts=item.job.told() if isinstance(item.job, PointJob) else {},
            )
            self.progress.step(item.case.id)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.manifest.save()
                self._saved = time.monotonic()

    def leave(self, item: Item) -> None:
        """Record an item that was skipped or failed."""
        if item.skipped:
            self.manifest.skipped = (*self.manifest.skipped, item.case.id)
        else:
            self.manifest.failures[item.case.id] = item.failure
            self.manifest.records.pop(item.case.id, None)
        self.progress.step(item.case.id, item.failure or "already there")
