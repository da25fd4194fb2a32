"""``log.csv``: one row a step, readable while the training runs, cut back to the checkpoint on resume."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from samsans.io.atomic import atomic_path


class CsvLog:
    """A table that grows by rows and, when a new stage or a validation brings new names, by columns.

    Args:
        path: The file; made if absent.
        last_step: Rows of later steps are dropped, so that no step appears twice after a resume.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        rows = [row for row in read(path) if int(row["step"]) <= last_step]
        self.columns = list(rows[0]) if rows else ["step"]
        self._rewrite(rows)

    def write(self, row: Mapping[str, object]) -> None:
        """Append a row, numbers in full precision, and hand it to the operating system at once."""
        new = [name for name in row if name not in self.columns]
        if new:
            self._file.close()
            self.columns += new
            self._rewrite(read(self.path))
        self._writer.writerow(row)
        self._file.flush()

    def amend(self, row: Mapping[str, object]) -> None:
        """Add to the last row."""
        rows = read(self.path)
        self._file.close()
        self.columns += [name for name in row if name not in self.columns]
        rows[-1] |= {name: str(value) for name, value in row.items()}
        self._rewrite(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n")


def read(path: Path) -> list[dict[str, str]]:
    """The whole rows of a log; a last line that a killed process left unfinished is no row.  Empty if absent."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))
