"""What is asked of a method, and an image or volume on its way to the label map on its own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.data import classes as objects
from samsans.inference.components import largest_components
from samsans.io.orientation import Orientation
from samsans.types import ClassInfo, Prediction, Volume


@dataclass(frozen=True)
class Target:
    """What is asked of a method.

    known: all objects it answers about.  keep: which of them are wanted, as positions.
    bank: encoded support pairs, of methods that have them.  view: which of its answers; ``None``: its own.
    samples: how many plausible answers besides its own.  seed: of their draws.
    """

    known: tuple[ClassInfo, ...]
    keep: tuple[int, ...]
    bank: Any = None
    view: str | None = None
    samples: int = 0
    seed: int = 0

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of all objects."""
        return tuple(c.name for c in self.known)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The wanted objects, in the order of ``keep``."""
        return tuple(self.known[i] for i in self.keep)


@dataclass(kw_only=True)
class Job:
    """One image or volume on its way to a label map.

    draw: support pairs of the target's bank.  labels ``(D, H, W)``, probabilities ``(N, D, H, W)`` float16: of the
    wanted objects, canonical, filled as slices are done.  samples ``(K, D, H, W)``: label maps on the input's own grid.
    entropy ``(N, D, H, W)`` float16, canonical: of the mean probability of the samples, in bits.  seconds: by part.
    """

    id: str
    volume: Volume
    orientation: Orientation
    draw: tuple[int, ...] = ()
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    samples: np.ndarray | None = None
    entropy: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Canonical size ``(D, H, W)``."""
        d, h, w = (self.volume.shape[axis] for axis in self.orientation.axes)
        return d, h, w

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.shape[0]

    def add(self, part: str, seconds: float) -> None:
        """Count seconds."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def allocate(self, classes: Sequence[ClassInfo], probabilities: bool, samples: int = 0) -> None:
        """Make room for the label map, and for probabilities and samples if wanted; samples have both their maps."""
        highest = max((c.label for c in classes), default=0)
        self.labels = np.zeros(self.shape, np.uint8 if highest < 256 else np.uint16)
        if probabilities or samples:
            self.probabilities = np.zeros((len(classes), *self.shape), np.float16)
        if samples:
            self.entropy = np.zeros((len(classes), *self.shape), np.float16)
            self.samples = np.zeros((samples, *self.volume.shape), self.labels.dtype)

    def fill(self, index: int, shown: Tensor, soft: Tensor | None, classes: Sequence[ClassInfo]) -> None:
        """Set a slice from what is shown ``(N, H, W)``, logits or bool, and the probabilities ``(N, H, W)``."""
        assert self.labels is not None
        self.labels[index] = objects.compose(shown.cpu().numpy(), classes)
        if self.probabilities is not None and soft is not None:
            self.probabilities[:, index] = soft.cpu().numpy()

    def prediction(self, classes: Sequence[ClassInfo], largest_component: bool = False) -> Prediction:
        """The finished job on the input's own grid, if asked for with the largest piece of each object alone."""
        assert self.labels is not None
        labels = largest_components(self.labels, classes) if largest_component else self.labels
        if self.samples is not None and largest_component:
            for sample in self.samples:
                slices = self.orientation.view(sample)
                slices[:] = largest_components(slices, classes)
        return Prediction(
            labels=self.orientation.from_slices(labels),
            classes=tuple(classes),
            probabilities=self._native(self.probabilities),
            volume=self.volume,
            seconds=dict(self.seconds),
            samples=self.samples,
            entropy=self._native(self.entropy),
        )

    def _native(self, maps: np.ndarray | None) -> np.ndarray | None:
        return None if maps is None else np.stack([self.orientation.from_slices(one) for one in maps])


def with_inner(parts: Tensor, known: Sequence[ClassInfo]) -> Tensor:
    """``(N, H, W)`` float of objects that exclude each other, to each added those that lie inside it by definition.

    Methods that give every pixel one class learn the rim of a disc: the disc is the rim and the cup.
    """
    within = torch.from_numpy(objects.inner_objects(known)).to(parts.device).float()
    within += torch.eye(len(known), device=parts.device)
    return torch.einsum("ij,jhw->ihw", within, parts)
