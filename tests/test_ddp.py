"""Two processes on one machine train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dummy_training import DummySource
from samsans.training.log import read


def test_two_processes_train_two_stages(tmp_path: Path) -> None:
    script = Path(__file__).with_name("dummy_training.py")
    source = Path(__file__).resolve().parents[1] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    rows = read(run / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [row["stage"] for row in rows] == ["head"] * 10 + ["body"] * 10
    assert json.loads((run / "train.json").read_text())["finished"]
    assert done.stderr.count("step 20: Dice") == 1  # one process speaks


def test_processes_draw_their_own_batches() -> None:
    source = DummySource(12)
    assert source.batch(3, 0, 2).ids != source.batch(3, 1, 2).ids
