"""Phantoms as data sets on disk, in each layout that is understood."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from samsans.data.classes import write_classes
from samsans.data.phantoms.base import Phantom
from samsans.data.phantoms.generate import cases_per_patient, make
from samsans.errors import InputError
from samsans.types import ClassInfo

LAYOUTS = ("folders", "nnunet", "msd", "csv")
CANNOT_HOLD = {  # layout: family: what the layout has no place for
    "nnunet": {"lesions": "several annotators", "video": "folders of frames"},
    "msd": {"lesions": "several annotators", "video": "folders of frames", "fundus": "colour and nested objects"},
}
CHANNELS = {"fundus": ("R", "G", "B"), "torso": ("CT",), "tubes": ("MRI",), "lesions": ("CT",)}
PALETTE = ((0, 0, 0), (230, 75, 60), (250, 215, 70), (70, 150, 240))


def write(
    family: str,
    folder: str | Path,
    n: int = 8,
    layout: str = "folders",
    *,
    size: int = 128,
    difficulty: float = 0.5,
    seed: int = 0,
    test: int = 0,
) -> Path:
    """Write ``n`` training and ``test`` test cases of ``family``; returns what to give as the data set's path.

    folder: must be absent or empty; it appears complete or not at all.
    layout: ``folders``: ``images/ masks/`` and ``test/images test/masks``; ``nnunet``: ``imagesTr labelsTr imagesTs
        labelsTs dataset.json`` with channel numbers; ``msd``: the same without them, NIfTI only; ``csv``: ``images/
        labels/ cases.csv`` with the columns image, label, patient, split, rater (the path returned is the table).
    Images without geometry are PNG (masks: palette PNG, whose indices are the label values; grey in ``nnunet``),
    volumes ``.nii.gz`` with their affine.  Raters get ``labels_a labels_b ...``, videos a folder of frames named by
    their original number, centre lines ``points/ID.json``.  No patient is in both training and test.

    Raises InputError for an unknown family or layout, a folder that holds something, and a layout that cannot hold
    the family (several raters and videos fit ``folders`` and ``csv`` only, ``msd`` has no nested objects).
    """
    folder = Path(folder)
    per_patient = cases_per_patient(family)
    first_test = -(-n // per_patient) * per_patient  # the next patient
    train = make(family, n, size=size, difficulty=difficulty, seed=seed)
    held_out = make(family, test, size=size, difficulty=difficulty, seed=seed, start=first_test)
    if layout not in LAYOUTS:
        raise InputError(f"Unknown layout {layout!r}", f"one of {', '.join(LAYOUTS)}")
    if family in CANNOT_HOLD.get(layout, {}):
        raise InputError(f"The layout {layout} cannot hold {CANNOT_HOLD[layout][family]} ({family})", "folders or csv")
    if n < 1:
        raise InputError(f"{n} training cases", "at least one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder", "a new folder", "Remove it or choose another")

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)
        if layout in ("nnunet", "msd"):
            _decathlon(draft, family, layout, train, held_out)
        else:
            _folders(draft, layout, train, held_out)
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder / "cases.csv" if layout == "csv" else folder


def _folders(root: Path, layout: str, train: Iterator[Phantom], test: Iterator[Phantom]) -> None:
    rows: list[dict[str, str]] = []
    classes: tuple[ClassInfo, ...] = ()
    masks = "masks" if layout == "folders" else "labels"
    for split, cases in (("train", train), ("test", test)):
        base = root / "test" if layout == "folders" and split == "test" else root
        for case in cases:
            classes = case.classes
            images = _image_files(case, base / "images")
            raters = [""] if len(case.labels) == 1 else [chr(ord("a") + i) for i in range(len(case.labels))]
            for rater, labels in zip(raters, case.labels, strict=True):
                drawn = _label_files(case, labels, base / (f"labels_{rater}" if rater else masks))
                for image, label in zip(images, drawn, strict=True):
                    row = {"image": image.relative_to(root).as_posix(), "label": label.relative_to(root).as_posix()}
                    rows.append({**row, "patient": case.patient, "split": split, "rater": rater})
            _points_file(case, base / "points")
    if layout == "csv":
        with open(root / "cases.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    write_classes(root / "classes.json", classes)


def _decathlon(root: Path, family: str, layout: str, train: Iterator[Phantom], test: Iterator[Phantom]) -> None:
    classes: tuple[ClassInfo, ...] = ()
    names: dict[str, list[str]] = {"Tr": [], "Ts": []}
    nifti, ending = layout == "msd", ".nii.gz"
    for part, cases in (("Tr", train), ("Ts", test)):
        for case in cases:
            classes = case.classes
            ending = ".nii.gz" if nifti or case.affine is not None else ".png"
            mark = "_0000" if layout == "nnunet" else ""
            image, label = root / f"images{part}/{case.id}{mark}{ending}", root / f"labels{part}/{case.id}{ending}"
            if ending == ".png":
                _write_png(image, case.image[0])
                _write_png(label, case.labels[0][0])
            else:
                _write_nifti(image, case.image, case.affine)
                _write_nifti(label, case.labels[0], case.affine)
            _points_file(case, root / f"points{part}")
            names[part].append(case.id)
    channels = {str(i): c for i, c in enumerate(CHANNELS.get(family, ("ultrasound",)))}
    described: dict[str, object] = {"name": family}
    if layout == "nnunet":
        values = {c.name: c.values[0] if len(c.values) == 1 else list(c.values) for c in classes}
        described |= {"channel_names": channels, "labels": {"background": 0, **values}}
        if any(len(c.values) > 1 for c in classes):
            described["regions_class_order"] = [c.label for c in classes]
        described |= {"numTraining": len(names["Tr"]), "file_ending": ending}
    else:
        listed = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in names["Tr"]]
        described |= {"modality": channels, "tensorImageSize": "3D"}
        described |= {"labels": {"0": "background", **{str(c.label): c.name for c in classes}}}
        described |= {"numTraining": len(names["Tr"]), "numTest": len(names["Ts"])}
        described |= {"training": listed, "test": [f"./imagesTs/{i}.nii.gz" for i in names["Ts"]]}
    (root / "dataset.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _image_files(case: Phantom, folder: Path) -> list[Path]:
    """Write the image below ``folder``: one file, or one per frame of a video."""
    if case.affine is not None:
        return [_write_nifti(folder / f"{case.id}.nii.gz", case.image, case.affine)]
    if case.frames is None:
        return [_write_png(folder / f"{case.id}.png", case.image[0])]
    shown = zip(case.frames, case.image, strict=True)
    return [_write_png(folder / case.id / f"{number:06d}.png", frame) for number, frame in shown]


def _label_files(case: Phantom, labels: np.ndarray, folder: Path) -> list[Path]:
    """Write one rater's labels below ``folder``, named as the images are."""
    if case.affine is not None:
        return [_write_nifti(folder / f"{case.id}.nii.gz", labels, case.affine)]
    if case.frames is None:
        return [_write_png(folder / f"{case.id}.png", labels[0], palette=True)]
    shown = zip(case.frames, labels, strict=True)
    return [_write_png(folder / case.id / f"{number:06d}.png", frame, palette=True) for number, frame in shown]


def _points_file(case: Phantom, folder: Path) -> None:
    """Write ``folder/ID.json``: each list of points in voxels (z, y, x) and, with an affine, in RAS+ mm (x, y, z)."""
    if case.points is None:
        return
    content: dict[str, object] = {"id": case.id, "axes": "zyx"}
    for name, points in case.points.items():
        content[name] = points.tolist()
        if case.affine is not None:
            world = points[:, ::-1] @ case.affine[:3, :3].T + case.affine[:3, 3]
            content[f"{name}_ras_mm"] = world.tolist()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case.id}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_png(path: Path, array: np.ndarray, palette: bool = False) -> Path:
    """``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if palette:
        image.putpalette([channel for colour in PALETTE for channel in colour])
    image.save(path)
    return path


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None) -> Path:
    """``(D, H, W)`` or ``(D, H, W, 1)`` as NIfTI ``(x, y, z)``; without an affine it states no geometry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image((array[..., 0] if array.ndim == 4 else array).transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    if affine is not None:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    nib.save(image, path)
    return path
