"""P2SAM trained on files: its two stages in one run, resumed, and what the weights then answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from samsans import config as configuration
from samsans.methods import build, weights
from samsans.training.log import read
from samsans.training.run import train

RATERS = "abc"
SIDE = 64


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of a blob that three annotators drew at three sizes; one of them now and then draws nothing."""
    folder = tmp_path_factory.mktemp("lesions")
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE]
    for name in ("images", *(f"labels_{rater}" for rater in RATERS)):
        (folder / name).mkdir()
    for i in range(9):
        distance = np.hypot(*(axis - centre for axis, centre in zip((y, x), rng.uniform(24, 40, 2), strict=True)))
        picture = 80 + 120 / (1 + np.exp((distance - 12) / 2)) + 5 * rng.standard_normal((SIDE, SIDE))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"case{i}.png")
        for k, rater in enumerate(RATERS):
            mask = (distance < 9 + 3 * k) & (k > 0 or i % 3 > 0)
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"labels_{rater}" / f"case{i}.png")
    return folder


def options(data: Path, preset: str = "paper", model: Any = None, **settings: Any) -> configuration.RunConfig:
    """Two epochs of two steps each stage."""
    values = {
        "data": {"path": str(data)},
        "split": {"val": 2 / 9, "test": 1 / 9},
        "backbone": {"name": "tiny", "input_size": SIDE},
        "train": {"epochs": 4, "batch_size": 3, "validate_epochs": 1, "pictures_every": 0, "accelerator": "cpu"},
        "model": {"samples": 4, "stage2_lr": 1e-3} | (model or {}),
    }
    values["train"] |= settings  # type: ignore[operator]
    return configuration.from_dict(values, method="p2sam", preset=preset)


def rows(run: Path) -> list[dict[str, str]]:
    """The log without the columns that tell the time."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read(run / "log.csv")]


def quiet(*_: Any) -> None:
    """No bar in the terminal."""


def test_a_run_of_two_stages_and_its_resumption(lesions: Path, tmp_path: Path) -> None:
    whole = train(options(lesions, model={"snapshots": [50, 100]}), tmp_path / "whole", on_progress=quiet)
    log = rows(whole)
    assert [row["stage"] for row in log] == ["sam"] * 4 + ["prompts"] * 4
    assert [bool(row["val/dice"]) for row in log] == [False, True] * 4
    assert [bool(row["val/ged"]) for row in log] == [False] * 4 + [False, True] * 2
    assert {float(row["lr"]) for row in log} == {1e-3}
    assert json.loads((whole / "train.json").read_text())["finished"]
    best = load_file(whole / "model" / "best.safetensors")
    assert best["prompted"]
    last = load_file(whole / "model" / "last.safetensors")
    assert last["snapshots.taken"].tolist() == [True]

    halves = [options(lesions, model={"snapshots": [50, 100]}, stop_epoch=stop) for stop in (3, None)]
    for i, config in enumerate(halves):  # interrupted in stage 2: the embeddings are made anew
        train(config, tmp_path / "halves", resume=i > 0, on_progress=quiet)
    assert rows(tmp_path / "halves") == log
    again = load_file(tmp_path / "halves" / "model" / "last.safetensors")
    assert last.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in last.items())


def test_the_released_code_s_settings_keep_four_generators(lesions: Path, tmp_path: Path) -> None:
    run = train(options(lesions, "reference", {"stage2_lr": 1e-5}), tmp_path / "run", on_progress=quiet)
    config = configuration.load(run / "config.yaml")
    method = build(config, ("foreground",))
    fresh = {name: value.clone() for name, value in method.state_dict().items()}
    weights.load_weights(method, run / "model" / "best.safetensors")
    state = method.state_dict()
    for name in ("prompter.fusion.layers.0.weight", "prompter.generator.head.weight", "weights.learnt"):
        assert not torch.equal(state[name], fresh[name]), name
    assert method.snapshots is not None
    assert method.snapshots.taken.all()
    assert len(method.snapshots.pool(method.prompter)) == 4  # type: ignore[arg-type]
    assert json.loads((run / "train.json").read_text())["selects"] == "last"


@pytest.mark.parametrize("model", [{"prompts": False}, {"posterior": True}, {"set_loss": 2, "train_on_empty": True}])
def test_other_objectives_train(model: dict[str, Any], lesions: Path, tmp_path: Path) -> None:
    run = train(options(lesions, model=model, epochs=2), tmp_path / "run", on_progress=quiet)
    log = rows(run)
    assert len(log) == 4
    assert all(np.isfinite(float(row["loss"])) for row in log)
    stages = {"sam"} if "prompts" in model else {"sam", "prompts"}
    assert {row["stage"] for row in log} == stages
    assert ("kl" in log[-1]) == ("posterior" in model)
    assert ("set" in log[-1]) == ("set_loss" in model)
