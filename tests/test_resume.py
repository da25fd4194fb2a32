"""A run that was killed goes on as if it had never stopped, to the last bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dummy_training import DummyMethod, WatchingMethod, log_rows, make_data, train
from samsans.errors import InputError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(run / "model" / "last.safetensors") for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_growing_a_run_equals_one_run(tmp_path: Path, optimizer: str) -> None:
    options = {"optimizer": optimizer, "lr": 0.01, "validate_every": 4}
    train(tmp_path / "whole", **options, steps=20)
    train(tmp_path / "parts", **options, steps=12)
    torch.manual_seed(99)  # what happened in between must not matter
    train(tmp_path / "parts", **options, steps=20, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert log_rows(tmp_path / "whole") == log_rows(tmp_path / "parts")


def test_hooks_of_a_resumed_run_equal_those_of_one_run(tmp_path: Path) -> None:
    options = {"epochs": 6, "schedule": "samed", "validate_every": 4}
    whole, first, second = WatchingMethod(), WatchingMethod(), WatchingMethod()
    train(tmp_path / "whole", method=whole, **options)
    train(tmp_path / "parts", method=first, **options, stop_epoch=4)
    train(tmp_path / "parts", method=second, **options, resume=True)
    assert (whole.observed, first.observed, second.observed) == (1, 1, 0)
    assert second.pixels.tolist() == [900, 80, 20]
    assert whole.told == [(step / 3, step / 18) for step in range(18)]
    assert first.told + second.told == whole.told
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert log_rows(tmp_path / "whole") == log_rows(tmp_path / "parts")


@needs_fork
@pytest.mark.parametrize("stages", [1, 2])
def test_killed_at_any_moment(tmp_path: Path, stages: int) -> None:
    train(tmp_path / "whole", method=DummyMethod(stages), steps=30, validate_every=7)
    run, chance = tmp_path / "killed", random.Random(stages)
    fork = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(6):
        options = {"steps": 30, "validate_every": 7, "save_every": 2, "data": make_data(delay=0.01), "resume": True}
        process = fork.Process(target=train, args=(run,), kwargs=options | {"method": DummyMethod(stages)})
        process.start()
        time.sleep(chance.uniform(0.1, 0.5))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills >= 2
    train(run, method=DummyMethod(stages), steps=30, validate_every=7, save_every=2, resume=True)
    assert same_weights(tmp_path / "whole", run)
    assert log_rows(tmp_path / "whole") == log_rows(run)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path, steps=6)
    before = (tmp_path / "resume.ckpt").read_bytes(), (tmp_path / "log.csv").read_text()
    train(tmp_path, steps=6, resume=True)
    assert before == ((tmp_path / "resume.ckpt").read_bytes(), (tmp_path / "log.csv").read_text())


def test_seconds_and_patience_are_counted_over_resumes(tmp_path: Path) -> None:
    train(tmp_path, steps=6, validate_every=2)
    first = torch.load(tmp_path / "resume.ckpt", weights_only=True)["position"]
    train(tmp_path, steps=8, validate_every=2, resume=True)
    second = torch.load(tmp_path / "resume.ckpt", weights_only=True)["position"]
    assert second["seconds"] > first["seconds"] > 0
    assert second["best"] >= first["best"]
    assert second["wait"] >= first["wait"]


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=4)
    path = tmp_path / "resume.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        train(tmp_path, steps=6, resume=True)
    torch.save({"other": 1}, path)
    with pytest.raises(InputError, match="no checkpoint of this version"):
        train(tmp_path, steps=6, resume=True)
    values = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert values == {"other": 1}
