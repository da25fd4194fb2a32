"""Files appear whole or not at all: write beside the target, flush to disk, then rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"


def suffix(path: str | Path) -> str:
    """The suffix that states the format, in lower case: ``.nii.gz`` of ``a.b.NII.GZ``, ``""`` where there is none."""
    name = Path(Path(path).name.lower())
    return ".nii.gz" if name.suffixes[-2:] == [".nii", ".gz"] else name.suffix


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` (made if absent), hidden and without a format suffix.

    When the block ends well and the temporary file was written, it is flushed to disk and takes the place of
    ``path`` in one step; when it raises, the temporary file is removed and ``path`` stays as it was.  A killed process
    leaves at most the hidden temporary file (see ``sweep``), never half of ``path`` nor anything named like an image.

    Raises FileNotFoundError where the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}{TEMPORARY}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left below ``folder``; nobody else may be writing there."""
    for path in Path(folder).rglob(f".????????????{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 ``text`` with ``\\n`` line ends at ``path``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON at ``path``, atomically; raises ValueError for NaN and Inf, unknown to JSON."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
