"""Point prompts in files: markups of 3D Slicer (``.mrk.json``, ``.fcsv``), tables (``.csv``), and masks of scribbles.

Which points are outside: in tables ``label`` 0; in markups a control point whose name begins with outside, negative,
neg, background or bg, or, where the name says nothing, whose description does.  All others are inside.  Coordinates of
markups are physical; where an image states no geometry its pixels are 1 mm apart and lie as 3D Slicer puts a picture:
columns to the left, rows to the back.
"""

from __future__ import annotations

import csv
import io as text_io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import suffix, write_json, write_text
from samsans.io.files import KNOWN_SUFFIXES, reading
from samsans.io.geometry import LPS_TO_RAS, affine_of_spacing
from samsans.types import Points, Volume

MARKUPS, FCSV, TABLE = (".mrk.json", ".json"), ".fcsv", ".csv"
TEXT_SUFFIXES = (*MARKUPS, FCSV, TABLE)
SYSTEMS = {"RAS": "RAS", "0": "RAS", "LPS": "LPS", "1": "LPS", "IJK": "IJK", "2": "IJK"}
SHAPES = ("Fiducial", "PointSet", "Line", "Curve", "ClosedCurve")  # markups whose control points are points
OUTSIDE = re.compile(r"(outside|negative|neg|background|bg)(?![a-z])", re.IGNORECASE)
INSIDE = re.compile(r"(inside|positive|pos|foreground|fg)(?![a-z])", re.IGNORECASE)
COLUMNS = "x,y,z or i,j,k (voxels from 0), x,y (pixels of a picture), or x_mm,y_mm,z_mm (RAS); optional label and tag"
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)

Row = tuple[Sequence[float], int, str]  # a position in file order (x, y, z), its label and its tag


def point_suffix(path: str | Path) -> str:
    """The suffix that states a format of points: ``.mrk.json`` of ``a.mrk.json``; ``""`` where it is none."""
    name = Path(path).name.lower()
    return next((ending for ending in TEXT_SUFFIXES if name.endswith(ending)), "")


def read_points(path: str | Path, volume: Volume, member: int = 0) -> tuple[Points, tuple[str, ...]]:
    """The points of a file on the grid of ``volume``, and notes for people on what was left out.

    ``.mrk.json``: control points of fiducials, lines and curves; those that were never placed are skipped.  ``.fcsv``:
    RAS, LPS or IJK as its header says.  ``.csv``: ``COLUMNS``.  Image formats: scribbles (see ``read_scribbles``).
    Points outside the image are left out with a note.  member: which person's, in a ``.npz`` or ``.h5`` of several.

    Raises InputError where the file is missing, damaged or no file of points, with what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file of points at {path}", "a file", "Check data.points")
    ending = point_suffix(path)
    if not ending and suffix(path) in KNOWN_SUFFIXES:
        from samsans.io.scribbles import read_scribbles  # SciPy takes a moment

        return read_scribbles(path, volume, member), ()
    if not ending:
        raise InputError(
            f"{path} ends in {suffix(path) or 'nothing'}",
            "points as .mrk.json, .fcsv or .csv, or a mask of scribbles in an image format",
        )
    with reading(path, f"{ending} text"):
        text = path.read_text(encoding="utf-8-sig")
    if ending == TABLE:
        system, rows, notes = _table(path, text, volume)
    else:
        system, rows, notes = _markups(path, text) if ending in MARKUPS else _fcsv(path, text)
    positions = np.array([row[0] for row in rows], np.float64).reshape(len(rows), 3)
    if not np.isfinite(positions).all():
        raise InputError(f"{path} holds positions that are no finite numbers", "three numbers a point")
    if system != "IJK":
        positions = _voxels(positions, volume, system)
    points = Points(
        positions[:, ::-1].copy(), np.array([row[1] for row in rows], np.int64), tuple(row[2] for row in rows)
    )
    kept = inside_image(points.positions, volume.shape)
    if not kept.all():
        first = ", ".join(f"{v:.4g}" for v in positions[~kept][0])
        size = " x ".join(map(str, volume.shape[::-1]))
        notes += [
            f"{path}: {int((~kept).sum())} of {len(points)} points lie outside the image and are left out, "
            f"such as voxel ({first}) of {size}"
        ]
    return select(points, kept), tuple(notes)


def select(points: Points, kept: np.ndarray) -> Points:
    """The points where ``kept`` ``(K,)`` bool, or of these indices."""
    index = np.arange(len(points))[kept]
    tags = tuple(points.tags[i] for i in index) if points.tags else ()
    return Points(points.positions[index], points.labels[index], tags)


def join(parts: Sequence[Points]) -> Points:
    """All points one after the other."""
    if not parts:
        return Points(np.zeros((0, 3)), np.zeros(0, np.int64))
    tagged = any(part.tags for part in parts)
    tags = tuple(tag for part in parts for tag in (part.tags or ("",) * len(part))) if tagged else ()
    return Points(np.concatenate([p.positions for p in parts]), np.concatenate([p.labels for p in parts]), tags)


def inside_image(positions: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``(K,)`` bool: which ``(K, D)`` positions, in voxels, lie in a voxel of a grid of ``shape`` ``(D,)``."""
    inside: np.ndarray = (positions >= -0.5) & (positions < np.asarray(shape) - 0.5)
    return np.asarray(inside.all(1))


def write_points(path: str | Path, points: Points, volume: Volume) -> Path:
    """Write points of ``volume`` atomically as the suffix says: physical (LPS) in ``.mrk.json`` and ``.fcsv``, voxels
    in ``.csv``.  Labels and tags are kept.  Raises InputError for other suffixes."""
    path = Path(path)
    ending = point_suffix(path)
    tags = points.tags or ("",) * len(points)
    names = [f"{'inside' if label else 'outside'}-{i}" for i, label in enumerate(points.labels, 1)]
    voxels = points.positions[:, ::-1]
    if ending == TABLE:
        lines: list[Sequence[Any]] = [("x", "y", "z", "label", "tag")]
        lines += [(*map(float, v), int(n), t) for v, n, t in zip(voxels, points.labels, tags, strict=True)]
        return write_text(path, _lines(lines))
    world = _world(voxels, volume)
    if ending == FCSV:
        head = (
            "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
            "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        )
        rows = [
            (i, *map(float, p), 0, 0, 0, 1, 1, 1, 0, n, t, "")
            for i, (p, n, t) in enumerate(zip(world, names, tags, strict=True), 1)
        ]
        return write_text(path, head + _lines(rows))
    if ending not in MARKUPS:
        raise InputError(f"{path} ends in {suffix(path) or 'nothing'}", ".mrk.json, .fcsv or .csv")
    placed = [
        {
            "id": str(i),
            "label": name,
            "description": tag,
            "associatedNodeID": "",
            "position": [float(v) for v in position],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for i, (position, name, tag) in enumerate(zip(world, names, tags, strict=True), 1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": placed}
    return write_json(path, {"@schema": SCHEMA, "markups": [markup]})


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    out = text_io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _affine(volume: Volume) -> np.ndarray:
    """Voxel ``(x, y, z, 1)`` to RAS mm."""
    return affine_of_spacing((1.0, 1.0, 1.0)) if volume.affine is None else volume.affine


def _voxels(positions: np.ndarray, volume: Volume, system: str) -> np.ndarray:
    """Voxels ``(x, y, z)`` of physical ``(K, 3)`` positions in RAS or LPS."""
    ras = positions * (LPS_TO_RAS.diagonal()[:3] if system == "LPS" else 1.0)
    affine = _affine(volume)
    return np.linalg.solve(affine[:3, :3], (ras - affine[:3, 3]).T).T


def _world(voxels: np.ndarray, volume: Volume) -> np.ndarray:
    """LPS positions of voxels ``(x, y, z)``."""
    affine = LPS_TO_RAS @ _affine(volume)
    return voxels @ affine[:3, :3].T + affine[:3, 3] + 0.0


def _label_of(name: str, description: str) -> int:
    for text in (name.strip(), description.strip()):
        if OUTSIDE.match(text):
            return 0
        if INSIDE.match(text):
            return 1
    return 1


def _system(path: Path, found: Any) -> str:
    system = SYSTEMS.get(str(found).strip().upper())
    if system is None:
        raise InputError(f"{path} has the coordinate system {found!r}", "RAS or LPS (0 or 1)", "Save it from 3D Slicer")
    return system


def _markups(path: Path, text: str) -> tuple[str, list[Row], list[str]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}", "markups of 3D Slicer", "Save it again") from error
    lists = found.get("markups") if isinstance(found, Mapping) else None
    if not isinstance(lists, list) or not all(isinstance(m, Mapping) for m in lists):
        keys = ", ".join(list(found)[:5]) if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"{path} holds {keys or 'nothing'}", "the key markups, as 3D Slicer saves points and curves")
    rows: list[Row] = []
    notes: list[str] = []
    for markup in lists:
        kind = str(markup.get("type", "Fiducial"))
        if kind not in SHAPES:
            notes.append(f"{path}: a markup of type {kind} is no list of points and is left out")
            continue
        units = markup.get("coordinateUnits", "mm")
        if set(units if isinstance(units, list) else [units]) != {"mm"}:
            raise InputError(f"{path} has coordinates in {units!r}", "mm", "Save it from 3D Slicer with units mm")
        system = _system(path, markup.get("coordinateSystem", "LPS"))
        placed = [_control_point(path, point) for point in markup.get("controlPoints") or ()]
        signs = LPS_TO_RAS.diagonal()[:3] if system == "LPS" else np.ones(3)
        if system == "IJK":
            raise InputError(f"{path} has the coordinate system IJK", "RAS or LPS in markups")
        rows += [(np.array(row[0]) * signs, row[1], row[2]) for row in placed if row is not None]
        if unplaced := placed.count(None):
            notes.append(f"{path}: {unplaced} of {len(placed)} control points were never placed")
    if lists and len(notes) == len(lists) and all("is no list of points" in note for note in notes):
        kinds = ", ".join(str(m.get("type")) for m in lists)
        raise InputError(f"{path} holds markups of type {kinds}", "points or curves: " + ", ".join(SHAPES))
    return "RAS", rows, notes


def _control_point(path: Path, point: Any) -> Row | None:
    """A control point as a row; ``None`` where it has not been placed."""
    if not isinstance(point, Mapping):
        raise InputError(f"{path} has the control point {point!r}", "an object with position and positionStatus")
    position, name = point.get("position"), str(point.get("label") or "")
    if point.get("positionStatus", "defined") in ("undefined", "preview") or position is None:
        return None
    if not isinstance(position, list) or len(position) != 3 or not all(_is_number(v) for v in position):
        raise InputError(f"{path}: control point {name or point.get('id')} is at {position!r}", "three numbers")
    description = str(point.get("description") or "")
    return position, _label_of(name, description), description or name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fcsv(path: Path, text: str) -> tuple[str, list[Row], list[str]]:
    lines = text.splitlines()
    head = [line.lstrip("# ").partition("=") for line in lines if line[:1] == "#" and "=" in line]
    said = {key.strip(): value.strip() for key, _, value in head}
    columns = [c.strip() for c in said.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc").split(",")]
    if "CoordinateSystem" not in said or not {"x", "y", "z"} <= set(columns):
        raise InputError(
            f"the header of {path} says {said or 'nothing'}", "# CoordinateSystem = and # columns =, as of 3D Slicer"
        )
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if line[:1] == "#" or not line.strip():
            continue
        row = dict(zip(columns, next(csv.reader([line])), strict=False))
        name, description = row.get("label", ""), row.get("desc", "")
        position = [_number(path, number, row, column) for column in "xyz"]
        rows.append((position, _label_of(name, description), description or name))
    return _system(path, said["CoordinateSystem"]), rows, []


def _table(path: Path, text: str, volume: Volume) -> tuple[str, list[Row], list[str]]:
    """Coordinate system (IJK or RAS) and rows of a simple table."""
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and line[:1] != "#"]
    head = lines[0][1] if lines else ""
    delimiter = max(",;\t", key=head.count)
    columns = [c.strip().strip('"').lower() for c in head.split(delimiter)]
    ways = (("x_mm", "y_mm", "z_mm"), ("x", "y", "z"), ("i", "j", "k"), ("x", "y"), ("i", "j"))
    way = next((w for w in ways if set(w) <= set(columns)), None)
    if way is None:
        raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}", COLUMNS)
    if len(way) == 2 and volume.shape[0] > 1:
        raise InputError(
            f"{path} has the columns {', '.join(columns)}, for {volume.shape[0]} slices", "a column z (or k)"
        )
    if way[0] == "x_mm" and volume.affine is None:
        raise InputError(
            f"{path} gives millimetres, and {volume.path or 'the image'} states no geometry", "pixels, x and y"
        )
    rows: list[Row] = []
    for number, line in lines[1:]:
        row = dict(zip(columns, (v.strip() for v in next(csv.reader([line], delimiter=delimiter))), strict=False))
        position = [_number(path, number, row, column) for column in way]
        label = row.get("label") or "1"
        if label not in ("0", "1"):
            raise InputError(f"line {number} of {path} has the label {label!r}", "1 (inside) or 0 (outside)")
        rows.append(([*position, 0.0][:3], int(label), row.get("tag", "")))
    return ("RAS" if way[0] == "x_mm" else "IJK"), rows, []


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column])
    except (KeyError, ValueError):
        raise InputError(
            f"line {line} of {path} has {row.get(column, 'nothing')!r} in the column {column}", "a number"
        ) from None
