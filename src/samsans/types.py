"""The values that travel between the parts of samsans; shapes and units are defined here, once.

Letters used everywhere: ``B`` images in a batch, ``N`` objects (classes) asked for, ``P`` prompts, ``K`` support
pairs or samples, ``A`` annotators, ``M`` mask candidates, ``D`` slices, ``S`` model input side in pixels, ``g``
embedding side (``S / patch``), ``C`` embedding channels.  World coordinates are RAS+ millimetres, array axes are
``(z, y, x)``: the reverse of a file's own ``(i, j, k)`` order, never reoriented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Volume:
    """An image or label map with the grid it lives on.  A 2D image is a volume of one slice.

    array: image ``(D, H, W, C)`` in its native dtype; label map ``(D, H, W)`` integer.
    affine: ``(4, 4)`` float64, voxel index ``(x, y, z, 1)`` to RAS+ mm; ``None`` where the format states no geometry
        (PNG, JPEG): then one pixel counts as one unit.
    path: the file or DICOM series folder it was read from.
    header: the native header, opaque: only ``samsans.io`` reads it, to write on the same grid bit for bit.
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    path: Path | None = None
    header: Any = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Grid size ``(D, H, W)``."""
        d, h, w = self.array.shape[:3]
        return d, h, w

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size ``(z, y, x)`` in mm; ``(1, 1, 1)`` pixels where no geometry is known."""
        if self.affine is None:
            return 1.0, 1.0, 1.0
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def unit(self) -> str:
        """Unit of ``spacing``: ``mm`` or ``px``."""
        return "px" if self.affine is None else "mm"


@dataclass(frozen=True)
class ClassInfo:
    """One object of the task.

    name: as shown in reports.  label: the value painted in our label maps (1, 2, ...).
    values: the values of the *file* that belong to this object's mask; objects may overlap (a cup inside a disc).
    """

    name: str
    label: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class PointFiles:
    """Where one person's points of a case are.

    paths: one file, or several of a stack's slices.  slices: the slice of each of these; empty: of the whole image.
    person: who, ``""`` where nobody is named.  member: whose, in a file that holds several people's (from 0).
    """

    paths: tuple[Path, ...]
    slices: tuple[int, ...] = ()
    person: str = ""
    member: int = 0


@dataclass(frozen=True)
class Case:
    """One image to segment or learn from: paths only, nothing is read.

    id: relative path without suffix, unique in its data set.  patient: what a split must never separate.
    images: one file per channel (usually one), or the files of a stack, in slice order, when ``stacked``.
    labels: one entry per annotator, each with as many files as slices (one, unless ``stacked``); empty if unlabelled.
    threshold: file values above it are the object, 1, all others 0 (``data.threshold``).  answers: for each annotator
        the file values that are its object, 1, all others 0, where one file holds several (``data.annotators``).
    points: files of point prompts, one entry a person; empty where there are none.
    positions: where the slices of a stack lie, in any unit; empty where that is not known, or evenly.
    video: id of the video that it is a frame of; empty where it is none.  frame: its number there; where ``images`` is
        the video itself and no picture, it is read out of it.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    labels: tuple[tuple[Path, ...], ...] = ()
    stacked: bool = False
    threshold: float | None = None
    answers: tuple[tuple[int, ...], ...] = ()
    points: tuple[PointFiles, ...] = ()
    positions: tuple[float, ...] = ()
    video: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class VideoCase:
    """One video to segment, of which some frames may be cases to learn from: paths only, nothing is read.

    id: path without suffix, unique among the videos of its data set.  patient: as of its frames.
    path: the video file, or the folder of its frames.  frames: the case id of every frame that is a case, by number:
    the annotated ones of a file, all where frames are pictures.
    """

    id: str
    patient: str
    path: Path
    frames: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Points:
    """Point prompts of one image or volume.

    positions: ``(K, 3)`` float64, voxel index ``(z, y, x)`` of the array; the centre of a voxel is a whole number.
    labels: ``(K,)`` int64, 1 inside the object, 0 outside.
    tags: ``(K,)`` where each point comes from, for people and analyses; methods never see it.
    """

    positions: np.ndarray
    labels: np.ndarray
    tags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Batch:
    """What a method is given to learn from or to segment.

    images: ``(B, 3, S, S)`` float32, normalised for the backbone.
    masks: ``(B, N, S, S)`` bool, the truth of each object; ``None`` when predicting.
    ids: the ``B`` slice names, ``case`` or ``case#slice``, so that an error can name its image.
    objects: the ``N`` object names.
    targets: ``(T,)`` int64, which of the B images are to be segmented in this episode, the others being their
        supports; ``None`` for methods without supports (every image is a target).
    valid: ``(B, 2)`` int64, height and width of the part of ``S x S`` that is image and not padding.
    annotations: ``(B, A, N, S, S)`` bool, what each annotator drew (``masks`` being the first one's), for methods with
        ``needs.annotators``.  drawn: ``(B, A)`` bool, where there is such an annotator; images with fewer than A have
        empty annotations in the rest of the places.
    points: for methods with ``needs.points``, of each image ``(K, 3)`` float32: x and y in model pixels (the centre of
        the top left one is 0, 0) and the label, 1 inside, 0 outside.
    following: ``(B,)`` int64, which image of the batch is the next slice of the same volume, -1 for none; of batches of
        neighbouring slices alone.
    """

    images: Tensor
    masks: Tensor | None
    ids: tuple[str, ...]
    objects: tuple[str, ...]
    targets: Tensor | None = None
    valid: Tensor | None = None
    annotations: Tensor | None = None
    drawn: Tensor | None = None
    points: tuple[Tensor, ...] | None = None
    following: Tensor | None = None

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on ``device``."""
        import dataclasses

        moved: dict[str, Any] = {}
        for name in ("images", "masks", "targets", "valid", "annotations", "drawn", "following"):
            tensor = getattr(self, name)
            moved[name] = None if tensor is None else tensor.to(device)
        if self.points is not None:
            moved["points"] = tuple(points.to(device) for points in self.points)
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Embedding:
    """What ``encode`` returns for ``B`` images.

    features: ``(B, C, g, g)`` float.
    high_res: SAM 2 only: ``(B, 32, 4g, 4g)`` and ``(B, 64, 2g, 2g)``.
    blocks: outputs of the ViT blocks, ``(B, g, g, width)`` each, only where asked for.
    """

    features: Tensor
    high_res: tuple[Tensor, ...] = ()
    blocks: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """``P`` prompts about ``B`` images, in the decoder's own space.

    sparse: ``(P, tokens, C)`` float.  dense: ``(P, C, g, g)`` float, or ``(1, C, g, g)`` shared by all.
    image_index: ``(P,)`` int64 in ``[0, B)``: the image each prompt asks about.
    """

    sparse: Tensor
    dense: Tensor
    image_index: Tensor


@dataclass(frozen=True)
class Masks:
    """What ``decode`` returns for ``P`` prompts.

    logits: ``(P, M, 4g, 4g)`` float; ``M`` is 1, or 3 with ``multimask``.  iou: ``(P, M)`` predicted IoU.
    """

    logits: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Needs:
    """What a method asks of the data layer, which knows no method by name.

    supports: it learns in episodes and segments with support pairs of other patients.
    labels_at_predict: it reads the target's own mask (prompted baselines only).
    volumes: it sees 3D patches: ``Batch.images`` are ``(B, C, T, H, W)`` float32 of C channels and T slices, masks
        ``(B, N, T, H, W)``, and ``predict`` gives ``(B, N + 1, T, H, W)`` scores of at least 0, background first.
    exclusive: every pixel has one class; masks do not overlap, and the highest logit (background: 0) decides.
    annotators: it learns from the masks of several annotators (``Batch.annotations``); slices on which none of them
        drew anything are left out of its training, unless the method's configuration has ``train_on_empty``.
    points: it is prompted with points (``Batch.points``), read from files or simulated from masks.
    samples: it has ``sample(batch, seeds, count)``: ``(B, K, N, S, S)`` float32 logits of K plausible answers.
    first_label: it reads a true mask, like ``labels_at_predict``, but of one frame alone: a video's first annotated
        one, or of a volume the slice that shows most (prompted baselines of SAM 2).
    """

    supports: bool = False
    labels_at_predict: bool = False
    exclusive: bool = False
    volumes: bool = False
    annotators: bool = False
    samples: bool = False
    points: bool = False
    first_label: bool = False


@dataclass(frozen=True)
class Prediction:
    """The end product all methods share, on the grid of the input.

    labels: ``(D, H, W)`` uint8 or uint16 label map, 0 background.
    classes: what the values mean.
    probabilities: ``(N, D, H, W)`` float16 in [0, 1] per object, where asked for; of samples their mean.
    volume: geometry and header of the input.
    seconds: time spent by part (``read``, ``encode``, ``prompt``, ``decode``, ``write``).
    samples: ``(K, D, H, W)`` label maps of K plausible answers, where asked for.
    entropy: ``(N, D, H, W)`` float16 in [0, 1], of the mean probability of the samples, in bits.
    """

    labels: np.ndarray
    classes: tuple[ClassInfo, ...]
    probabilities: np.ndarray | None = None
    volume: Volume | None = field(default=None, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict)
    samples: np.ndarray | None = None
    entropy: np.ndarray | None = None

    def save(self, path: str | Path) -> Path:
        """Write the label map at ``path`` on the input's own grid, atomically."""
        from samsans import io

        return io.write_labels(path, self.labels, like=self.volume)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate: ``lr_scale`` times the run's, weight decay on or off.

    eps: of Adam and AdamW; ``None``: the run's ``train.eps``.
    """

    parameters: tuple[Any, ...]
    lr_scale: float = 1.0
    decay: bool = True
    eps: float | None = None


@dataclass(frozen=True)
class Stage:
    """One training stage of a method: what is trained, for which ``share`` of the run (its epochs, steps or time).

    images: learn from the first so many training slices alone, in their order; ``None``: all.
    begins: from the ``last`` weights of the stage before, or its ``best`` ones where slices were held out.
    batches: of single slices, or of pairs of neighbouring slices with their points (``Batch.following``).
    selects: what chooses the best weights on held-out slices: the mean ``dice`` of what is predicted; of samples the
        generalised energy distance ``ged``, lowest; or nothing: the ``last`` are the best.  Each stage chooses anew;
        the run's best are the last stage's.
    """

    name: str
    groups: tuple[ParamGroup, ...]
    share: float = 1.0
    images: int | None = None
    begins: Literal["last", "best"] = "last"
    batches: Literal["slices", "pairs"] = "slices"
    selects: Literal["dice", "ged", "last"] = "dice"


@dataclass(frozen=True)
class Progress:
    """What a long job tells its caller: ``done`` of ``total`` items, the item at hand and a short message."""

    done: int
    total: int
    item: str = ""
    message: str = ""
