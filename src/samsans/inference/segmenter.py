"""``Segmenter``: a trained run, ready to segment arrays, files and folders; see ``loading.load``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from samsans import io, methods
from samsans.config import DataConfig, RunConfig
from samsans.data.cases import Dataset, find_cases, grid_shift
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.inference import supports
from samsans.inference.arrays import as_image, as_labels
from samsans.inference.banks import Banks, Supports
from samsans.inference.choosing import Choose, require_choice
from samsans.inference.devices import choose_device
from samsans.inference.following import FollowRunner
from samsans.inference.jobs import Job, Target
from samsans.inference.manifest import Manifest
from samsans.inference.points import PointRunner, prompted
from samsans.inference.prompt_cache import PromptCache
from samsans.inference.prompts import FORMS, as_points, placed
from samsans.inference.samples import require_samples
from samsans.inference.slices import Runner, SliceJob, open_job
from samsans.inference.volumes import VolumeRunner, open_volume
from samsans.ops.timing import Timer
from samsans.types import ClassInfo, Points, Prediction, Progress, Volume

SLICE_BUDGET = 2 * 1024**2  # pixels of a batch on a CPU: two slices of SAM's own size (our decision)


class Segmenter:
    """A method with its weights and everything needed to segment with it; made by ``load`` or ``from_config``.

    Args:
        method: Follows ``samsans.methods.Method``.
        config: The run's configuration.
        classes: The objects the run was trained for, with the values of its label files.
        run: The run folder, where there is one: tasks are kept in it, training images found through it.
        weights_file: What was loaded.
        device: ``auto`` (CUDA, then Apple's MPS, then CPU) or a name that torch knows.
        precision: ``fp32``, or ``bf16`` autocast.
    """

    def __init__(
        self,
        method: Any,
        config: RunConfig,
        classes: Sequence[ClassInfo],
        *,
        run: Path | None = None,
        weights_file: Path | None = None,
        device: str | torch.device = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision {precision!r}", "fp32 or bf16")
        self.device = choose_device(device)
        self.method = method.eval().to(self.device)
        if isinstance(getattr(method, "timer", None), Timer):
            method.timer = Timer(self.device)
        self.config, self.classes, self.run, self.weights_file = config, tuple(classes), run, weights_file
        self.precision = precision
        self.preprocess = Preprocess.of(config, method.backbone.input_size, predicting=True)
        self.banks = Banks(method, config, self.classes, self.preprocess, run, self.device, precision)
        self.k = self.banks.k
        self.cache = None if run is None or not method.needs.points else PromptCache(run / "cache", self.method)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        classes: Sequence[ClassInfo] = (),
        *,
        device: str | torch.device = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> Segmenter:
        """A method without a training, e.g. a prompted baseline; its trained parts, if any, are freshly drawn."""
        method = methods.build(config, [c.name for c in classes])
        return cls(method, config, classes, device=device, precision=precision)

    # -- one image --------------------------------------------------------------------------------------------------

    def predict(
        self,
        image: str | Path | np.ndarray | Volume,
        support: Any = None,
        *,
        task: str | None = None,
        objects: Sequence[str] | None = None,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
        labels: Any = None,
        seed: int | None = None,
        batch_size: int | None = None,
        view: str | None = None,
        largest_component: bool = False,
        mirror: bool | None = None,
        samples: int = 0,
        choose: Choose = "random",
        points: Any = None,
        point_labels: Any = None,
        cache: bool = True,
    ) -> Prediction:
        """Segment one image or volume.

        Args:
            image: A path, a ``Volume``, or an array ``(H, W)``, ``(H, W, 3)``, ``(D, H, W)`` or ``(D, H, W, C)``.
            support: Pairs ``[(image, mask), ...]`` (paths, arrays or volumes), a folder or CSV of images with masks,
                or a bank; by default the run's own training pairs.
            task: Name of a bank saved by ``encode_support``, instead of ``support``.
            objects: Names of the objects wanted; all by default.
            spacing: ``(z, y, x)`` mm of arrays, and of files that state none.
            probabilities: Also keep each object's probability.
            labels: The image's own true mask; prompted baselines only.  Of a volume it may show one slice, for those
                that follow objects from slice to slice.
            seed: Of the draws of supports and samples; the run's by default.
            batch_size: Slices a batch; windows, of a method that sees volumes.
            view: One of ``views``, instead of the method's own answer.
            largest_component: Keep of each object its largest connected piece alone, in the whole volume; voxels that
                touch at a face, an edge or a corner are connected (our decision).  So it is done to every sample;
                probabilities stay as they are.
            mirror: Take the mean over the eight mirrorings of every window, eight times the work; by default as the
                run's ``patches.mirror`` has it.  Methods that see volumes only.
            samples: Also draw so many plausible answers, of methods that have several; the probability is then their
                mean, and its entropy is given.  The draws depend on the seed and the name of the slice alone, and the
                slices of a volume are drawn independently.
            choose: Of more support pairs than ``model.k_test``: a ``random`` draw of so many (as in the paper), or for
                each slice those that look most ``similar`` and cover it best.
            points: Prompts, for methods that take some: an array ``(K, 3)`` of voxels z, y, x, or ``(K, 2)`` of pixels
                x, y of a 2D image (their centres being whole numbers; empty: no prompts), a file of points, or
                ``Points``.
            point_labels: Of an array of points, 1 inside the object (all by default) or 0 outside.
            cache: Keep what a method makes of a volume before it is prompted in the run folder, and use what is there:
                other points, or the same again, are then segmented sooner, and in the same way.

        Returns:
            The label map on the input's own grid.

        Raises:
            InputError: the image, the supports or an option cannot be used.
        """
        if spacing is None and self.config.data.spacing is not None:
            spacing = self.config.data.spacing
        timer = Timer()
        with timer("read"):
            volume = as_image(image, spacing)
            id = io.stem(volume.path) if volume.path is not None else "image"
            truth = self._truth(id, volume, labels)
            clicks = self._points(id, volume, points, point_labels)
        self.require_view(view)
        runner = self.runner(batch_size, mirror, cache, view)
        found = self.supports(support, task, batch_size)
        target = self.target(found, objects, view, samples, seed, choose)
        with timer("read"):
            job = self.open(id, volume, truth, self.draw(found, id, seed, choose))
            if clicks is not None:
                assert isinstance(job, SliceJob)
                job = prompted(job, placed(clicks, job, self.preprocess), cache and self.cache is not None)
        job.seconds |= timer.seconds
        done: Job = next(runner.run([job], target, probabilities=probabilities))
        return done.prediction(target.classes, largest_component)

    def _truth(self, id: str, volume: Volume, labels: Any) -> Volume | None:
        """The target's own mask, for prompted baselines and nobody else."""
        if not self.needs_truth:
            if labels is not None:
                raise InputError(f"a true mask of {id} for {self.config.method}", "no labels: it needs no prompt")
            return None
        if labels is None:
            raise self.no_truth(id)
        truth = as_labels(labels)
        if truth.shape != volume.shape or grid_shift(volume, truth) > 0.5:
            raise InputError(f"the mask of {id} is not on the grid of its image", f"the size {volume.shape}")
        return truth

    def _points(self, id: str, volume: Volume, points: Any, labels: Any) -> Points | None:
        """The prompts of a method that takes points, and of nobody else."""
        if not self.method.needs.points:
            if points is not None or labels is not None:
                raise self.no_use(f"points of {id}")
            return None
        if points is None:
            raise InputError(
                f"{id} has no points and {self.config.method} is prompted with points",
                FORMS,
                "Give points; an empty array says that there are none",
            )
        return as_points(points, volume, labels)

    def no_use(self, what: str) -> InputError:
        """The error of a method that takes no points and was given ``what``."""
        return InputError(
            f"{what} for {self.config.method}", "none: it takes no points", "Leave them out, or use e.g. spd"
        )

    def no_truth(self, id: str) -> InputError:
        """The error of a prompted baseline without the true mask of ``id``."""
        return InputError(
            f"{id} has no true mask of an object and {self.config.method} draws its prompts from one",
            "labels of one of its slices or frames" if self.method.needs.first_label else "labels of every image",
            "Give `labels`, or use a method that needs no prompt",
        )

    def predict_folder(
        self,
        inputs: str | Path | Sequence[str | Path] | Dataset,
        out: str | Path,
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
        """Segment many images; see ``samsans.inference.folders.predict_folder``."""
        from samsans.inference.folders import predict_folder

        return predict_folder(
            self,
            inputs,
            Path(out),
            support=support,
            task=task,
            objects=objects,
            labels=labels,
            probabilities=probabilities,
            seed=seed,
            batch_size=batch_size,
            view=view,
            largest_component=largest_component,
            mirror=mirror,
            samples=samples,
            choose=choose,
            points=points,
            prompt_noise=prompt_noise,
            prompt_mode=prompt_mode,
            cache=cache,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    # -- supports ---------------------------------------------------------------------------------------------------

    def encode_support(self, support: Any, name: str | None = None) -> Any:
        """Encode support pairs once, to be passed as ``support`` any number of times.

        Args:
            support: Pairs, or a folder or CSV of images with masks.
            name: Also keep the bank in the run folder as the task of this name.
        """
        return self.banks.encode(support, self.batch_size(None), name)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the banks kept in the run folder."""
        return self.banks.tasks

    def supports(self, support: Any, task: str | None, batch_size: int | None = None) -> Supports:
        """The bank to segment with: a task's, one given, one made of pairs, or one of the run's training images."""
        return self.banks.find(support, task, self.batch_size(batch_size))

    # -- answers besides the method's own ---------------------------------------------------------------------------

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the answers that the method can give besides its own, e.g. of one decoder alone."""
        return tuple(getattr(self.method, "views", ()))

    @property
    def own_view(self) -> str | None:
        """Which of ``views`` the run answers with when none is asked for; ``None`` for a method without views."""
        return getattr(self.method, "own_view", next(iter(self.views), None))

    def follows(self, view: str | None) -> bool:
        """Whether that answer (its own, or one of ``views``) depends on the frames or slices before."""
        return hasattr(self.method, "follows") and bool(self.method.follows(view))

    @property
    def needs_truth(self) -> bool:
        """Whether it is shown true masks of what it segments: prompted baselines."""
        return self.method.needs.labels_at_predict or self.method.needs.first_label

    def require_view(self, view: str | None) -> None:
        """InputError where the method has no such answer."""
        if view is not None and view not in self.views:
            known = f"one of {', '.join(self.views)}" if self.views else "none: it gives one answer"
            raise InputError(f"view {view!r} of {self.config.method}", known)

    # -- what the parts share ---------------------------------------------------------------------------------------

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights file; empty where nothing was loaded."""
        return io.file_hash(self.weights_file) if self.weights_file is not None else ""

    def target(
        self,
        found: Supports,
        wanted: Sequence[str] | None,
        view: str | None = None,
        samples: int = 0,
        seed: int | None = None,
        choose: Choose = "random",
    ) -> Target:
        """What to ask the method for: the bank's objects, or the run's; of those the ones wanted; and of samples."""
        if found.bank is None:
            classes = self.classes
        else:
            classes = supports.classes_of(found.bank.objects, self.classes)
        names = tuple(c.name for c in classes)
        if not names:
            raise InputError("no objects to segment", "the objects of the run", "Give classes")
        require_samples(self.method, self.config.method, samples, classes, view)
        unknown = [] if wanted is None else [name for name in wanted if name not in names]
        if unknown or (wanted is not None and not wanted):
            raise InputError(f"objects {', '.join(unknown) or '(none)'}", f"some of {', '.join(names)}")
        keep = tuple(i for i, name in enumerate(names) if wanted is None or name in wanted)
        require_choice(choose, found.bank, self.config.method)
        chosen = self.k if choose == "similar" else 0
        return Target(classes, keep, found.bank, view, samples, self.seed(seed), chosen)

    def draw(self, found: Supports, id: str, seed: int | None, choose: Choose = "random") -> tuple[int, ...]:
        """Which pairs of the bank segment the case ``id`` (decision D-29), or may be chosen for it."""
        return found.drawable(id) if choose == "similar" else found.draw(id, self.k, self.seed(seed))

    def seed(self, wanted: int | None) -> int:
        """The seed of draws: as asked for, else the run's."""
        return self.config.seed if wanted is None else wanted

    def batch_size(self, wanted: int | None) -> int:
        """Slices or windows a batch: as asked for, else about 2 million pixels on a CPU, four times that on a GPU."""
        if wanted is not None:
            if wanted < 1:
                raise InputError(f"a batch of {wanted}", "at least 1")
            return wanted
        budget = SLICE_BUDGET * (1 if self.device.type == "cpu" else 4)
        pixels = self.preprocess.input_size**2 * (self.config.patches.size or [1])[0]
        return max(1, min(16, budget // pixels))

    def mirror(self, wanted: bool | None) -> bool:
        """Whether windows are mirrored: as asked for, else as the run has it; InputError for a method without them."""
        if self.method.needs.volumes:
            return self.config.patches.mirror if wanted is None else wanted
        if wanted is not None:
            raise InputError(f"{self.config.method} was told mirror={wanted}", "no such option: it sees slices")
        return False

    def open(self, id: str, volume: Volume, truth: Volume | None, draw: tuple[int, ...]) -> Job:
        """Prepare an image or volume for ``runner``; InputError where the method cannot be shown it."""
        axis = self.config.data.slice_axis
        if self.method.needs.volumes:
            channels = self.preprocess.channels
            return open_volume(id, volume, self.config.patches, axis, channels, truth=truth, truth_classes=self.classes)
        return open_job(id, volume, self.preprocess, axis, truth=truth, truth_classes=self.classes, draw=draw)

    def runner(self, size: int | None, mirror: bool | None = None, cache: bool = True, view: str | None = None) -> Any:
        """What runs such jobs through the method: ``run(jobs, target, probabilities=...)`` yields them when done."""
        size, mirrored = self.batch_size(size), self.mirror(mirror)
        if self.method.needs.volumes:
            return VolumeRunner(self.method, self.config.patches, self.device, self.precision, size, mirrored)
        shared = (self.method, self.preprocess, self.device, self.precision, size)
        if self.method.needs.points:
            return PointRunner(*shared, self.cache if cache else None, self.weights_hash)
        return FollowRunner(*shared) if self.follows(view) else Runner(*shared)

    def dataset(self, path: str | Path) -> Dataset:
        """The cases of a folder, CSV or image; no mask is read, since the objects are those of the run."""
        known = {c.name: list(c.values) for c in self.classes}
        return find_cases(DataConfig(path=str(path), spacing=self.config.data.spacing, classes=known or None))
