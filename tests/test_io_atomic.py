"""Outputs appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from samsans.errors import InputError
from samsans.io import atomic_path, read_labels, suffix, sweep, write_json, write_labels, write_text


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = write_text(tmp_path / "report.txt", "old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.txt"]


def test_the_temporary_file_is_hidden_beside_the_target_and_named_like_no_image(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "a.b.nii.gz") as temporary:
        assert temporary.parent == tmp_path / "new"
        assert temporary.name.startswith(".")
        assert suffix(temporary) == ".tmp"
        temporary.write_bytes(b"whole")
    assert (tmp_path / "new" / "a.b.nii.gz").read_bytes() == b"whole"


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_json_is_utf8_and_refuses_nan(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"Größe": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"Größe": 1.5}
    assert "Größe" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"dice": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"Größe": 1.5}


def test_a_killed_writer_leaves_the_old_label_map(tmp_path: Path) -> None:
    target = write_labels(tmp_path / "labels.nii.gz", np.ones((2, 3, 4), np.uint8))
    script = textwrap.dedent(
        """
        import sys, time
        from samsans.io import atomic_path
        with atomic_path(sys.argv[1]) as temporary:
            temporary.write_bytes(b"half")
            print("written", flush=True)
            time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    process.stdout.close()
    assert read_labels(target).array.sum() == 24
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"] == ["labels.nii.gz"]
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["labels.nii.gz"]


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nrrd", "a.tif", "a.mha"])
def test_refused_labels_leave_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="integers"):
        write_labels(tmp_path / name, np.zeros((1, 4, 4), np.float32))
    assert os.listdir(tmp_path) == []
