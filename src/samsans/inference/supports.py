"""Support pairs: from files, folders, arrays or the run's own training data to an encoded bank, and draws from it.

Methods with supports have ``encode_support(batch)``, ``load_support(path)`` (both give a bank) and ``fingerprint()``; a
bank has ``objects``, ``ids``, ``K``, ``weights``, ``select(pairs)``, ``to(device)``, ``save(path)``, ``concat(banks)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samsans import io
from samsans.config import DataConfig, SliceAxis
from samsans.data import classes as objects
from samsans.data.cases import Dataset, find_cases, grid_shift
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.inference.arrays import as_image, as_labels
from samsans.io.orientation import Orientation
from samsans.types import Batch, ClassInfo, Volume

POOL = 16  # pairs encoded of a folder or of the training data; each image is segmented with a draw of them
SUPPORT_FORMS = '"image.png:mask.png", (image, mask), a folder or CSV of images with masks, or a SupportBank'


@dataclass(frozen=True)
class Example:
    """A support image with its mask, read when asked for."""

    id: str
    image: Callable[[], Volume]
    labels: Callable[[], Volume]


def split_pair(text: str) -> tuple[Path, Path]:
    """``image:mask`` cut at the last colon that leaves two files (or DICOM folders) that exist.

    Drive letters and names that hold colons are understood.  Raises InputError where no cut does.
    """
    for at in reversed([i for i, letter in enumerate(text) if letter == ":"]):
        image, mask = Path(text[:at]), Path(text[at + 1 :])
        if text[:at] and text[at + 1 :] and image.exists() and mask.exists():
            return image, mask
    raise InputError(
        f"{text!r} names no image and mask that are both there", '"image.png:mask.png"', "Check both paths"
    )


def read_support(given: Any) -> list[Any] | Path:
    """Any form of supports as a list of pairs, or the folder or CSV that holds them."""
    if isinstance(given, (str, Path)) or _is_pair(given):
        given = [given]
    if not isinstance(given, Sequence) or not len(given):
        raise InputError(f"support pairs given as {type(given).__name__}", SUPPORT_FORMS)
    if len(given) == 1 and isinstance(given[0], (str, Path)) and Path(given[0]).exists():
        return Path(given[0])
    pairs = [split_pair(str(item)) if isinstance(item, (str, Path)) else tuple(item) for item in given]
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"a support of {len(pair)} parts", SUPPORT_FORMS)
    return pairs


def _is_pair(given: Any) -> bool:
    """Whether it is one bare ``(image, mask)``."""
    if not isinstance(given, tuple) or len(given) != 2 or isinstance(given[0], (tuple, list)):
        return False
    return not isinstance(given[0], (str, Path)) or Path(given[0]).exists()


def examples_of_pairs(pairs: Sequence[tuple[Any, Any]]) -> list[Example]:
    """Pairs of paths, arrays or volumes."""
    out = []
    for number, (image, mask) in enumerate(pairs, 1):
        id = io.stem(image) if isinstance(image, (str, Path)) else f"support_{number}"
        out.append(Example(id, lambda image=image: as_image(image), lambda mask=mask: as_labels(mask)))  # type: ignore[misc]
    return out


def examples_of_dataset(dataset: Dataset, ids: Iterable[str]) -> list[Example]:
    """Cases of a data set."""

    def example(id: str) -> Example:
        case = dataset.by_id(id)
        return Example(id, lambda: dataset.read_image(case), lambda: dataset.read_labels(case))

    return [example(id) for id in ids]


def examples_of_folder(path: Path, seed: int) -> tuple[list[Example], tuple[ClassInfo, ...]]:
    """The labelled cases of a folder or CSV in seeded order, and the objects it names itself."""
    dataset = find_cases(DataConfig(path=str(path)))
    ids = [case.id for case in dataset.labelled]
    if not ids:
        raise InputError(f"{path} ({dataset.layout}) holds no image with a mask", SUPPORT_FORMS)
    return examples_of_dataset(dataset, shuffled(ids, seed)), dataset.classes if _named(dataset.classes) else ()


def _named(classes: Sequence[ClassInfo]) -> bool:
    inferred = objects.infer_classes(v for c in classes for v in c.values)[0]
    return tuple(c.name for c in inferred) != tuple(c.name for c in classes)


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in an order that depends on them and on ``seed`` alone."""
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())


def objects_in(values: set[int], known: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The objects that support masks with these values show.

    Values of ``known`` objects mean those; any other value ``v`` is the new object ``object_v``.  Grey levels (a JPEG
    mask, soft edges) are one object: the only known one, else ``foreground``.
    """
    soft = objects.infer_classes(values)[0]
    if len(soft) == 1 and len(soft[0].values) > 1:
        name = known[0].name if len(known) == 1 else soft[0].name
        return with_labels([dataclasses.replace(soft[0], name=name)], known)
    shown = [c for c in known if values & set(c.values)]
    strange = sorted(values - {0} - {v for c in known for v in c.values})
    return with_labels([*shown, *(ClassInfo(f"object_{v}", 0, (v,)) for v in strange)], known)


def with_labels(wanted: Iterable[ClassInfo], known: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The objects with the label of the known one of their name, new ones with the next free labels."""
    labels = {c.name: c.label for c in known}
    out = []
    for info in wanted:
        label = labels.setdefault(info.name, max(labels.values(), default=0) + 1)
        out.append(dataclasses.replace(info, label=label))
    return tuple(out)


def classes_of(names: Iterable[str], known: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The objects of a bank: the known ones as they are; new ones get the next free labels, and those as values."""
    by_name = {c.name: c for c in known}
    numbered = with_labels([by_name.get(name, ClassInfo(name, 0, ())) for name in names], known)
    return tuple(c if c.values else dataclasses.replace(c, values=(c.label,)) for c in numbered)


def prepare(
    examples: Iterable[Example],
    classes: Sequence[ClassInfo],
    preprocess: Preprocess,
    axis: SliceAxis,
    *,
    per_volume: int,
    at_most: int | None = None,
    empty: str = "refuse",
) -> Batch:
    """Support slices as one batch of K normalised images ``(K, 3, S, S)`` with masks ``(K, N, S, S)``.

    per_volume: slices of a volume: evenly chosen among those that show an object.
    at_most: stop when this many are there.
    empty: what to do about an example that shows no object: ``refuse``, or ``skip`` it.
    """
    images, masks, valid = [], [], []
    ids: list[str] = []
    for example in examples:
        if at_most is not None and len(ids) >= at_most:
            break
        volume, labels = example.image(), example.labels()
        _require_grid(example.id, volume, labels)
        orientation = Orientation.of(volume, axis)
        drawn, pictures = orientation.to_slices(labels.array), orientation.to_slices(volume.array)
        shown = np.flatnonzero(objects.class_masks(preprocess.sample(drawn), classes).any(axis=(0, 2, 3)))
        if not len(shown):
            if empty == "skip":
                continue
            raise InputError(
                f"the mask of support {example.id} shows none of {', '.join(c.name for c in classes)}",
                "a mask with the object drawn in it",
            )
        levels = preprocess.levels(volume.array)
        for index in evenly(shown, per_volume):
            images.append(preprocess.image(pictures[index], levels))
            masks.append(preprocess.labels(objects.class_masks(drawn[index], classes)))
            valid.append(preprocess.valid(*drawn.shape[1:]))
            ids.append(example.id if len(drawn) == 1 else f"{example.id}#{index:03d}")
    if not ids:
        raise InputError(f"no support shows any of {', '.join(c.name for c in classes) or 'the objects'}")
    keep = slice(at_most)
    where = torch.tensor(valid[keep], dtype=torch.int64)
    return Batch(
        images=preprocess.normalize(torch.stack(images[keep]), where),
        masks=torch.stack(masks[keep]),
        ids=tuple(ids[keep]),
        objects=tuple(c.name for c in classes),
        valid=where,
    )


def evenly(found: np.ndarray, count: int) -> list[int]:
    """``count`` of the sorted numbers, evenly spread, middle ones where only few are wanted; all where fewer."""
    if len(found) <= count:
        return [int(i) for i in found]
    places = (np.arange(count) + 0.5) * len(found) / count
    return [int(found[int(p)]) for p in places]


def _require_grid(id: str, image: Volume, labels: Volume) -> None:
    if image.shape != labels.shape:
        raise InputError(
            f"the mask of support {id} has the size {labels.shape}, its image {image.shape} (slices, rows, columns)",
            "a mask of the size of its image",
        )
    if grid_shift(image, labels) > 0.5:
        raise InputError(f"the mask of support {id} lies elsewhere than its image by the geometry in the headers")


def values_in(examples: Iterable[Example]) -> set[int]:
    """Every value of the examples' masks."""
    return {value for example in examples for value in objects.value_counts(example.labels().array)}


def encode(method: Any, batch: Batch, device: torch.device, chunk: int) -> Any:
    """The bank of a batch of supports, ``chunk`` pairs at a time."""
    banks = [method.encode_support(part.to(device)) for part in _chunks(batch, chunk)]
    return banks[0] if len(banks) == 1 else type(banks[0]).concat(banks)


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    assert batch.masks is not None
    assert batch.valid is not None
    for start in range(0, len(batch.ids), size):
        part = slice(start, start + size)
        yield dataclasses.replace(
            batch, images=batch.images[part], masks=batch.masks[part], ids=batch.ids[part], valid=batch.valid[part]
        )


def draw(ids: Sequence[str], k: int, seed: int, target: str, *, leave_out_own: bool) -> tuple[int, ...]:
    """Positions of the ``k`` pairs that segment ``target``: one seeded draw an image (decision D-29), all if fewer.

    Depends on ``seed``, the pairs' number and the target's id alone.  leave_out_own: pairs of the target itself
    (``target``, ``target#012``) are not drawn, unless there are no others.
    """
    pool = drawable(ids, target, leave_out_own=leave_out_own)
    if len(pool) <= k:
        return pool
    digest = hashlib.sha256(f"{seed}:{target}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return tuple(sorted(pool[i] for i in rng.permutation(len(pool))[:k]))


def drawable(ids: Sequence[str], target: str, *, leave_out_own: bool) -> tuple[int, ...]:
    """Positions of the pairs that may segment ``target``: with ``leave_out_own`` not its own, if there are others."""
    others = tuple(i for i, id in enumerate(ids) if id.partition("#")[0] != target)
    return others if leave_out_own and others else tuple(range(len(ids)))


def share(count: int) -> int:
    """Slices to take of each of ``count`` volumes to fill the pool."""
    return math.ceil(POOL / max(1, min(count, POOL)))


def hash_tensors(*tensors: torch.Tensor, text: str = "") -> str:
    """SHA-256 of tensors and a text, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_bank(bank: Any) -> str:
    """SHA-256 of everything that a bank (a dataclass) holds."""
    values = {f.name: getattr(bank, f.name) for f in dataclasses.fields(bank)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    return hash_tensors(*tensors.values(), text=repr(sorted(plain.items())))
