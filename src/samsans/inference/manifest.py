"""``manifest.json``: what was segmented with what, how long it took, and what can be skipped when it is done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samsans import io
from samsans.errors import InputError

FILE = "manifest.json"


@dataclass(frozen=True)
class Record:
    """One input that was segmented.

    input: its files.  sha256: of their bytes.  output: label map, relative to the manifest's folder.  beside: its other
    files, i.e. samples, probabilities and entropies, likewise.
    supports: ids of the support pairs drawn for it.  seconds: by part; ``model`` holds ``encode``, ``prompt`` and
    ``decode`` of methods that tell them apart.  prompts: of methods that are prompted with points: where these are
    from, on how many slices, and how good those given and those shown are (``PromptStatistics``, of simulated ones).
    """

    input: tuple[str, ...]
    sha256: str
    output: str
    supports: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    prompts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """The account of a folder of predictions.

    folder: where it lies.  about: model, weights, licence, supports, versions, device, options and, where
    there is something to know, a ``note``.
    records: by case id.  failures: message by case id.  skipped: cases whose output was there already.
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def outputs(self) -> dict[str, Path]:
        """Label map of every case that was segmented, by case id."""
        return {id: self.folder / record.output for id, record in self.records.items()}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part, summed over the cases."""
        total: dict[str, float] = {}
        for record in self.records.values():
            for part, seconds in record.seconds.items():
                total[part] = total.get(part, 0.0) + seconds
        return total

    def text(self) -> str:
        """What was done, for people: counts, seconds by part, failures with their reasons, what became of points."""
        done = len(self.records.keys() - self.failures.keys()) - len(self.skipped)
        lines = [f"{done} segmented, {len(self.skipped)} there already, {len(self.failures)} failed: {self.folder}"]
        lines += ["  " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.seconds.items())] if done else []
        lines += [f"  {id}: {message}" for id, message in self.failures.items()]
        lines += [f"  note: {self.about['note']}"] if "note" in self.about else []
        told = [record.prompts for record in self.records.values() if record.prompts]
        if told:
            given, turned_down, shown = (
                sum(prompts.get(f"slices_{kind}", 0) for prompts in told) for kind in ("given", "silenced", "prompted")
            )
            lines.append(
                f"  points: given on {given} slices, all turned down on {turned_down}; {shown} decoded with some"
            )
        return "\n".join(lines)

    def has(self, id: str, sha256: str) -> bool:
        """Whether the case was segmented from these very bytes and all its files are still there."""
        record = self.records.get(id)
        if record is None or record.sha256 != sha256:
            return False
        return all((self.folder / file).is_file() for file in (record.output, *record.beside))

    def save(self) -> Path:
        """Write ``manifest.json`` atomically."""
        rounded = {
            id: asdict(record) | {"seconds": {part: round(s, 4) for part, s in record.seconds.items()}}
            for id, record in self.records.items()
        }
        values = {
            **self.about,
            "seconds": {part: round(s, 3) for part, s in self.seconds.items()},
            "cases": rounded,
            "failures": self.failures,
        }
        return io.write_json(self.folder / FILE, values)

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """The manifest of a folder of predictions; an empty one where there is none.

        Raises:
            InputError: the file is damaged or something else.
        """
        folder = Path(folder)
        path = folder / FILE
        if not path.is_file():
            return cls(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            records = {
                id: Record(**r | {key: tuple(r[key]) for key in ("input", "supports", "beside") if key in r})
                for id, r in values.pop("cases").items()
            }
            failures = dict(values.pop("failures"))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a manifest of predictions ({error})",
                "the file that an earlier prediction wrote there, or none",
                "Choose another output folder, or remove the file",
            ) from error
        values.pop("seconds", None)
        return cls(folder, values, records, failures)


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, in order; of a folder (a DICOM series) its visible files by name."""
    digest = hashlib.sha256()
    for path in paths:
        inside = (
            sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
        )
        for file in inside:
            digest.update(bytes.fromhex(io.file_hash(file)))
    return digest.hexdigest()


def hash_values(*values: Any) -> str:
    """SHA-256 of plain values (numbers, texts, lists, dictionaries), in hexadecimal."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
