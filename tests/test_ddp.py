"""Two processes on one machine train together."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from dummy_training import DummySource
from hsam_training import digest, make_hsam
from samsans.methods.weights import load_weights
from samsans.training.log import read


def train_as_script(name: str, run: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name(name)
    source = Path(__file__).resolve().parents[1] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_two_stages(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train_as_script("dummy_training.py", run)
    rows = read(run / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [row["stage"] for row in rows] == ["head"] * 10 + ["body"] * 10
    assert json.loads((run / "train.json").read_text())["finished"]
    assert done.stderr.count("step 20: Dice") == 1  # one process speaks


def test_two_processes_train_an_hsam(tmp_path: Path) -> None:
    """Every parameter gets a gradient in both, and both end with the same weights and pixel counts."""
    run = tmp_path / "run"
    done = train_as_script("hsam_training.py", run)
    held = dict(re.findall(r"process (\d) holds (.*)", done.stdout))
    assert held.keys() == {"0", "1"}
    assert held["0"] == held["1"]
    assert held["0"].endswith(" [900, 80, 20]")
    _, method = make_hsam()
    assert digest(method) not in held["0"]  # something was learned
    rows = read(run / "log.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("loss", "stage1", "stage2"))
    load_weights(method, run / "model" / "last.safetensors")
    assert digest(method) in held["0"]


def test_processes_draw_their_own_batches() -> None:
    source = DummySource(12)
    assert source.batch(3, 0, 2).ids != source.batch(3, 1, 2).ids
