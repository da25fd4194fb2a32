"""Where banks of encoded supports come from: pairs, folders, named tasks, or the run's own training images."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from samsans import config as configuration
from samsans import io
from samsans.config import RunConfig
from samsans.data.cases import find_cases
from samsans.data.splits import Split
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.inference import supports
from samsans.inference.manifest import hash_values
from samsans.inference.slices import autocast
from samsans.inference.supports import Example
from samsans.types import ClassInfo

log = logging.getLogger(__name__)

TRAIN_TASK = "train"


@dataclass(frozen=True)
class Supports:
    """Encoded support pairs and where they come from; ``bank`` is ``None`` for methods without supports.

    source: in words.  sha256: of what they were made from.  own: they are training images of the run.
    """

    bank: Any = None
    sha256: str = ""
    source: str = ""
    own: bool = False

    def drawable(self, id: str) -> tuple[int, ...]:
        """Which pairs may segment the case ``id``: of training images never its own, as far as its name tells."""
        return () if self.bank is None else supports.drawable(self.bank.ids, id, leave_out_own=self.own)

    def draw(self, id: str, k: int, seed: int) -> tuple[int, ...]:
        """Which ``k`` pairs segment the case ``id``: of training images never its own, as far as its name tells."""
        return () if self.bank is None else supports.draw(self.bank.ids, k, seed, id, leave_out_own=self.own)


class Banks:
    """Makes, keeps and finds the banks of one model.

    Args:
        method: The model, on ``device``.
        config: The run's configuration.
        classes: The objects the run was trained for.
        preprocess: How slices are shown to the model.
        run: The run folder; ``None``: no named tasks and no training images.
        device: Where it computes.
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(
        self,
        method: Any,
        config: RunConfig,
        classes: tuple[ClassInfo, ...],
        preprocess: Preprocess,
        run: Path | None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.method, self.config, self.classes, self.preprocess = method, config, classes, preprocess
        self.run, self.device, self.precision = run, device, precision
        self.k = int(getattr(config.model, "k_test", supports.POOL))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights that banks are tied to."""
        return str(self.method.fingerprint())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the banks kept in the run folder."""
        return tuple(sorted(p.stem for p in self.run.glob("tasks/*.safetensors"))) if self.run is not None else ()

    def encode(self, support: Any, chunk: int, name: str | None = None) -> Any:
        """The bank of pairs, a folder or a CSV; kept in the run folder as task ``name`` where one is given."""
        if not self.method.needs.supports:
            raise InputError(f"{self.config.method} takes no support pairs", "a method that does, e.g. proxy_prompt")
        if name == TRAIN_TASK:
            raise InputError(f"a task called {name!r}", "another name: this one holds the run's own training pairs")
        path = None if name is None else self.task_path(name)
        bank = self.find(support, None, chunk).bank
        if path is not None:
            bank.save(path)
        return bank

    def find(self, support: Any, task: str | None, chunk: int) -> Supports:
        """The bank to segment with: a task's, one given, one made of pairs, or one of the run's training images.

        chunk: pairs encoded together.  Raises InputError where there is none or it cannot be used.
        """
        if not self.method.needs.supports:
            if support is not None or task is not None:
                raise InputError(f"supports for {self.config.method}", "none: this method learns no task from examples")
            return Supports()
        if support is not None and task is not None:
            raise InputError("both support pairs and a task", "one of the two")
        if task is not None:
            path = self.task_path(task)
            if not path.is_file():
                raise InputError(f"the run has no task {task!r}", f"one of {', '.join(self.tasks) or '(none yet)'}")
            return Supports(self.method.load_support(str(path)), io.file_hash(path), f"task {task}", task == TRAIN_TASK)
        if support is None:
            return self._training(chunk)
        if hasattr(support, "select"):
            return Supports(support.require(self.fingerprint), supports.hash_bank(support), "bank")
        given = supports.read_support(support)
        if isinstance(given, Path):
            examples, named = supports.examples_of_folder(given, self.config.seed)
            known = supports.with_labels(named, self.classes)
            at_most, each, empty = supports.POOL, supports.share(len(examples)), "skip"
            examples = examples[: supports.POOL]
            source = str(given)
        else:
            examples, known = supports.examples_of_pairs(given), ()
            at_most, each, empty, source = None, self.k, "refuse", f"{len(given)} pairs"
        classes = known or supports.objects_in(supports.values_in(examples), self.classes)
        return self._encode(examples, classes, source, each, at_most, empty, chunk)

    def _encode(
        self,
        examples: Iterable[Example],
        classes: Sequence[ClassInfo],
        source: str,
        per_volume: int,
        at_most: int | None,
        empty: str,
        chunk: int,
    ) -> Supports:
        axis = self.config.data.slice_axis
        batch = supports.prepare(
            examples, classes, self.preprocess, axis, per_volume=per_volume, at_most=at_most, empty=empty
        )
        with autocast(self.device, self.precision), torch.no_grad():
            bank = supports.encode(self.method, batch, self.device, chunk)
        assert batch.masks is not None
        text = repr((batch.ids, batch.objects))
        return Supports(bank, supports.hash_tensors(batch.images, batch.masks, text=text), source)

    def _training(self, chunk: int) -> Supports:
        """The bank of up to 16 of the run's training slices, kept as ``tasks/train.safetensors``."""
        if self.run is None or not (self.run / "split.json").is_file():
            raise InputError(
                "no support pairs, and no training run to take them from", supports.SUPPORT_FORMS, "Give support pairs"
            )
        split = Split.load(self.run / "split.json")
        key = self._training_key(split)
        path, note = self.task_path(TRAIN_TASK), self.run / "tasks" / f"{TRAIN_TASK}.json"
        if path.is_file() and note.is_file() and configuration.read_yaml(note).get("key") == key:
            try:
                return Supports(self.method.load_support(str(path)), key, "training images", own=True)
            except InputError as error:  # of another version of samsans, or damaged: made again
                log.warning("The kept training pairs cannot be used and are encoded again: %s", error)
        if not self.config.data.path or not Path(self.config.data.path).exists():
            raise InputError(
                f"the training images are not at {self.config.data.path!r} and no bank of them is kept in {self.run}",
                "support pairs, or the data set where it was",
                "Give support pairs, or name the folder with data.path in the run's config.yaml",
            )
        dataset = replace(find_cases(self.config.data), classes=self.classes)
        ids = supports.shuffled(split.train, self.config.seed)
        examples = supports.examples_of_dataset(dataset, ids)
        made = self._encode(
            examples, self.classes, "training images", supports.share(len(ids)), supports.POOL, "skip", chunk
        )
        try:
            made.bank.save(path)
            io.write_json(note, {"key": key, "ids": list(made.bank.ids)})
        except OSError as error:
            log.warning("The encoded training images are not kept: %s cannot be written (%s)", path, error)
        return replace(made, sha256=key, own=True)

    def _training_key(self, split: Split) -> str:
        """What the cached bank of training images depends on: weights, ids, objects and how slices are shown."""
        return hash_values(
            self.fingerprint,
            sorted(split.train),
            [(c.name, c.values) for c in self.classes],
            (self.config.seed, supports.POOL, self.precision, self.config.data.slice_axis, repr(self.preprocess)),
        )

    def task_path(self, name: str) -> Path:
        """Where the task ``name`` is kept; InputError without a run folder, and for names that leave it."""
        if self.run is None:
            raise InputError(f"task {name!r} without a run folder", "a model that was loaded from its run")
        if not re.fullmatch(r"[\w][\w .-]*", name):
            raise InputError(f"task name {name!r}", "letters, digits, blanks, dots, hyphens and underscores")
        return self.run / "tasks" / f"{name}.safetensors"
