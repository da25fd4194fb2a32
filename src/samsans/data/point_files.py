"""Which files hold the point prompts of which case: by the template ``data.points``, or in the usual places."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from samsans import io
from samsans.errors import InputError
from samsans.io.files import KNOWN_SUFFIXES, PACKED_SUFFIXES
from samsans.io.points import point_suffix
from samsans.io.scribbles import people
from samsans.types import Case, PointFiles

FOLDER = re.compile(r"points(?:tr|va|ts)?(?:[_-](.+))?", re.IGNORECASE)  # points: nobody's; points_ann: ann's
BESIDE = (".mrk.json", ".fcsv", "_points.csv")  # what follows the name of an image, in its own folder
CHOSEN = re.compile(r"#(\d+)$")  # at the end of a template: the points of this person alone, counted from 1
FIELDS = "{stem}, {name}, {case}, {parent} and {below}"


def with_points(
    cases: Sequence[Case], root: Path, template: str | None = None, images: str | None = None
) -> tuple[tuple[Case, ...], list[str]]:
    """The cases with the files of their points, without cases that are such files themselves; notes for people.

    template: the file of the points of an image, with the fields of ``data.labels`` and ``{case}``; where it holds
    ``*``, what stands for it names the person.  images: the glob of the images, of which ``{below}`` is told.

    None: ``<name>.mrk.json``, ``.fcsv``, ``.csv`` or a mask of scribbles in a folder ``points`` or ``points_<person>``
    beside the folder of the images or above it; or ``<name>.mrk.json``, ``<name>.fcsv`` or ``<name>_points.csv`` beside
    the image; or the array ``scribbles`` in the file of the image.

    The name is that of the image or of the case.  A stack has one file by its case, or files of its slices.
    Raises InputError where the template is not understood or finds nothing.
    """
    finder = _Finder(root if root.is_dir() else root.parent, template, images)
    given = [replace(case, points=finder.of(case)) for case in cases]
    taken = {path for case in given for files in case.points for path in files.paths if path not in case.images}
    out = tuple(case for case in given if not taken.intersection(case.images))
    there = [case for case in out if case.points]
    if template is not None and not there:
        raise InputError(f"no image has points at {template!r} in {root}", "a template such as points/{stem}.mrk.json")
    if not there:
        return out, []
    persons = sorted({files.person for case in there for files in case.points} - {""}, key=_natural)
    by = f", by {', '.join(persons)}" if persons else ""
    return out, [f"point prompts with {len(there)} of {len(out)} cases{by}"]


class _Finder:
    """Looks up the points of images below ``root``."""

    def __init__(self, root: Path, template: str | None, images: str | None) -> None:
        self.root = root
        chosen = CHOSEN.search(template or "")
        self.template = template[: chosen.start()] if template and chosen else template
        self.chosen = int(chosen[1]) if chosen else None
        parts = Path(images).parts if images else ()
        fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), max(len(parts) - 1, 0))
        self.base = root.joinpath(*parts[:fixed])
        self._folders: dict[Path, dict[str, Path]] = {}
        self._named: dict[Path, dict[str, Path]] = {}

    def of(self, case: Case) -> tuple[PointFiles, ...]:
        """The points of each person, in order of their names."""
        found: list[PointFiles] = []
        whole = self._find(case, case.images[0], slice=False)
        for person in sorted(whole, key=_natural):
            path = whole[person]
            count = people(path) if io.suffix(path) in PACKED_SUFFIXES else 1
            names = [person] if count == 1 else [str(i + 1) for i in range(count)]
            found += [PointFiles((path,), (), name, member) for member, name in enumerate(names)]
        if case.stacked and not found:
            slices: dict[str, dict[int, Path]] = {}
            for index, image in enumerate(case.images):
                for person, path in self._find(case, image, slice=True).items():
                    slices.setdefault(person, {})[index] = path
            found = [PointFiles(tuple(slices[p].values()), tuple(slices[p]), p) for p in sorted(slices, key=_natural)]
        if self.chosen is not None:
            found = found[self.chosen - 1 : self.chosen]
        return tuple(found)

    def _find(self, case: Case, image: Path, *, slice: bool) -> dict[str, Path]:
        """The file of each person's points of ``image``: of one slice of a stack, or of a whole case."""
        if self.template is not None:
            of_slice = case.stacked and re.search(r"{(stem|name)", self.template) is not None
            found = self._by_template(self.template, case, image) if of_slice == slice else {}
        else:
            found = self._by_habit(case, image, slice)
            if not found and io.suffix(image) in PACKED_SUFFIXES:
                found = {"": image}
        own = image if io.suffix(image) in PACKED_SUFFIXES and people(image) else None  # an image with its scribbles
        return {person: path for person, path in found.items() if path == own or path not in case.images}

    def _by_template(self, template: str, case: Case, image: Path) -> dict[str, Path]:
        def below(folder: Path) -> str:
            inside = image.parent.is_relative_to(folder)
            return image.parent.relative_to(folder).as_posix() if inside else image.parent.as_posix()

        fields = {"stem": io.stem(image), "name": image.name, "case": case.id}
        fields |= {"parent": below(self.root), "below": below(self.base)}
        try:
            wanted = os.path.normpath(template.format(**{k: glob.escape(v) for k, v in fields.items()}))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"the template of points {template!r} is not understood ({error})", FIELDS) from error
        person = _person(os.path.normpath(template), wanted)
        found: dict[str, Path] = {}
        for path in sorted(glob.glob(wanted, root_dir=self.root)):
            who = person.fullmatch(path)
            found.setdefault("-".join(who.groups()) if who else path, self.root / path)
        return found

    def _by_habit(self, case: Case, image: Path, slice: bool) -> dict[str, Path]:
        names = [] if slice else [PurePosixPath(case.id).name]
        names = [io.stem(image), *names] if slice or not case.stacked else names
        beside = self._files(image.parent)
        near = [beside[key] for name in names for end in BESIDE if (key := (name + end).casefold()) in beside]
        found = {"": near[0]} if near else {}
        for above in (image.parent, *image.parent.parents):
            below = image.parent.relative_to(above)
            inner = [below / name for name in names] + [Path(*below.parts[1:], name) for name in names]
            keys = [path.as_posix().casefold() for path in inner] + ([] if slice else [case.id.casefold()])
            for folder, points in self._points_folders(above):
                hit = next((points[key] for key in keys if key in points), None)
                if hit is not None:
                    found.setdefault(folder, hit)
            if above == self.root or not above.is_relative_to(self.root):
                break
        return found

    def _files(self, folder: Path) -> dict[str, Path]:
        """The files in a folder by their lower-case names."""
        if folder not in self._folders:
            there = sorted(folder.iterdir()) if folder.is_dir() else []
            self._folders[folder] = {path.name.casefold(): path for path in there}
        return self._folders[folder]

    def _points_folders(self, above: Path) -> list[tuple[str, dict[str, Path]]]:
        """Person and files, by relative name without suffix, of every folder of points in ``above``."""
        hits = [(FOLDER.fullmatch(path.name), path) for path in self._files(above).values()]
        return [(hit[1] or "", self._below(path)) for hit, path in hits if hit is not None and path.is_dir()]

    def _below(self, folder: Path) -> dict[str, Path]:
        if folder not in self._named:
            named: dict[str, Path] = {}
            for path in sorted(folder.rglob("*")):
                ending = point_suffix(path) or (io.suffix(path) if io.suffix(path) in KNOWN_SUFFIXES else "")
                if ending in ("", ".json") or not path.is_file() or path.name.startswith("."):
                    continue  # .json of another name than .mrk.json may hold anything
                name = (path.relative_to(folder).parent / path.name[: -len(ending)]).as_posix().casefold()
                if name in named:
                    raise InputError(
                        f"{named[name]} and {path} have the same name", "one file of points an image a folder"
                    )
                named[name] = path
            self._named[folder] = named
        return self._named[folder]


def _person(template: str, wanted: str) -> re.Pattern[str]:
    """Takes the parts of a path that stand for ``*`` in a template."""
    pieces = [re.escape(re.sub(r"\[(.)\]", r"\1", piece)) for piece in wanted.split("*") if template]
    return re.compile("(.*)".join(pieces))


def _natural(name: str) -> list[str | int]:
    """Key by which ``r2`` comes before ``r10``."""
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", name))]
