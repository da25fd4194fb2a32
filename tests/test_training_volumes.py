"""Training on patches of volumes: from files to weights, the plan that the run keeps, scores, pictures, schedule."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import volume_method
from dummy_training import make_config
from samsans import config as configuration
from samsans import methods
from samsans.config import RunConfig
from samsans.data.cases import find_cases
from samsans.data.splits import make_split
from samsans.errors import InputError
from samsans.methods import weights
from samsans.training import train
from samsans.training.data import plan_patches, read_data
from samsans.training.log import read
from samsans.training.pictures import draw_sample, to_picture
from samsans.training.schedule import Duration, Position, build_optimizer, learning_rate, require_usable
from samsans.training.validation import dice, found
from samsans.types import Batch, Needs, Progress, Stage


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_method.volume_set(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    volume_method.register(monkeypatch)


def longer(config: RunConfig, **options: Any) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def test_a_run_learns_and_keeps_its_plan(tmp_path: Path, blocks: Path) -> None:
    options = {"train.steps": 150, "train.pictures_every": 150, "train.validate_every": 50, "augment.flip": 0.5}
    told: list[Progress] = []
    run = train(volume_method.settings(blocks, **options), tmp_path / "run", on_progress=told.append)
    config = configuration.load(run / "config.yaml")
    assert config.patches.spacing == [3.0, 1.0, 1.0]
    assert config.patches.size == [10, 16, 16]
    assert config.patches.intensity == "zscore"
    assert any("patches of 10 x 16 x 16 voxels" in p.message for p in told)
    assert any("held-out patches" in p.message for p in told)
    rows = read(run / "log.csv")
    assert float(rows[-1]["loss"]) < 0.3 * float(rows[0]["loss"])
    assert float(rows[-1]["val/dice/cube"]) > 0.8
    assert float(rows[-1]["val/dice/rod"]) > 0.8
    assert (run / "pictures" / "samples_000150.png").read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads((run / "split.json").read_text())["val"]) == 1
    method = methods.build(config, ("cube", "rod"))  # from what is written alone
    weights.load_weights(method, run / "model" / "best.safetensors")


def test_a_resumed_run_keeps_the_plan_and_equals_one_run(tmp_path: Path, blocks: Path) -> None:
    config = volume_method.settings(blocks, **{"augment.rotate": 20.0, "augment.intensity": 0.1})
    train(longer(config, steps=8), tmp_path / "whole")
    train(longer(config, steps=4), tmp_path / "parts")
    train(longer(config, steps=8), tmp_path / "parts", resume=True)  # with the open configuration
    whole, parts = (load_file(tmp_path / run / "model" / "last.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert configuration.load(tmp_path / "parts" / "config.yaml").patches.size == [10, 16, 16]
    written = configuration.load(tmp_path / "parts" / "config.yaml")
    train(longer(written, steps=9), tmp_path / "parts", resume=True)  # with the written one
    other = dataclasses.replace(config, patches=dataclasses.replace(config.patches, size=[4, 16, 16]))
    with pytest.raises(InputError, match=r"patches\.size was \[10, 16, 16\]"):
        train(longer(other, steps=10), tmp_path / "parts", resume=True)


def test_queries_left_open_are_decided_by_the_objects_and_kept(tmp_path: Path, blocks: Path) -> None:
    options = {"data.path": str(blocks), "data.classes": {"cube": [1], "rod": [2]}, "split.val": 0.25}
    options |= {"backbone.name": "tiny", "backbone.input_size": 32, "train.accelerator": "cpu", "train.batch_size": 1}
    options |= {
        "model.widths": [4, 4, 4, 4],
        "model.fusions": 0,
        "patches.size": [2, 32, 32],
        "train.pictures_every": 0,
    }
    config = configuration.from_dict(options, method="masksam", preset="scratch")
    assert config.model.queries is None
    train(longer(config, steps=1), tmp_path / "run")
    assert configuration.load(tmp_path / "run" / "config.yaml").model.queries == 8
    train(longer(config, steps=2), tmp_path / "run", resume=True)  # with the open configuration
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, queries=9))
    with pytest.raises(InputError, match=r"model\.queries was 8 and is 9"):
        train(longer(other, steps=3), tmp_path / "run", resume=True)


def test_the_plan_is_of_the_training_cases_alone(blocks: Path) -> None:
    config = volume_method.settings(blocks)
    dataset = find_cases(config.data)
    split = make_split(dataset, config.split, config.seed)
    read: list[str] = []

    class Watched(type(dataset)):  # type: ignore[misc]
        def read_image(self, case: Any) -> Any:
            read.append(case.id)
            return super().read_image(case)

    watched = Watched(**{f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)})
    planned = plan_patches(watched, split, config, 16)
    assert sorted(read) == sorted(split.train)
    assert config.patches.size is None  # what was given is left as it is
    data = read_data(watched, split, planned, Needs(volumes=True), 16)
    assert (len(data.train), len(data.val), data.objects) == (3, 1, ("cube", "rod"))
    assert data.train.class_pixels.shape == (3,)
    assert data.source.steps_per_epoch == 3
    batch = data.source.batch(0)
    assert batch.images.shape == (2, 1, 10, 16, 16)
    assert data.val.batch([0]).ids == split.val


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data.window": [0.0, 255.0]}, r"data\.window is \[0\.0, 255\.0\]"),
        ({"data.levels": "slice"}, r"data\.levels slice"),
        ({"split.slices": "foreground"}, "leaves out slices"),
        ({"split.slice_share": 0.5}, "leaves out slices"),
        ({"patches.size": [4, 32, 32]}, r"patches\.size is \[4, 32, 32\].*16 rows"),
        ({"augment.policy": "samed"}, "'samed' for 3D patches"),
    ],
)
def test_options_that_volumes_know_nothing_of(tmp_path: Path, blocks: Path, options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        train(volume_method.settings(blocks, **options), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_epochs_are_counts_of_steps(tmp_path: Path, blocks: Path) -> None:
    options = {"train.epochs": 3, "train.schedule": "poly_epoch", "train.lr": 1.0, "train.optimizer": "sgd"}
    run = train(volume_method.settings(blocks, **options, **{"train.nesterov": True}), tmp_path / "run")
    rates = [float(row["lr"]) for row in read(run / "log.csv")]
    assert rates == pytest.approx([1.0] * 3 + [(2 / 3) ** 0.9] * 3 + [(1 / 3) ** 0.9] * 3)


@pytest.mark.parametrize(
    ("epochs", "epoch", "wanted"),
    [(500, 0, 1e-3), (500, 250, 5.35887e-4), (500, 499, 3.72329e-6), (1000, 999, 1.99526e-6)],
)
def test_learning_rate_by_epochs_to_the_published_digits(epochs: int, epoch: int, wanted: float) -> None:
    config = make_config(lr=1e-3, warmup=0, schedule="poly_epoch", epochs=epochs).train
    duration = Duration.of(config, (Stage("all", ()),), [250])
    for step in (0, 1, 249):
        at = Position(step=250 * epoch + step)
        assert learning_rate(config, at, duration.used(at, whole_epochs=True)) == pytest.approx(wanted, rel=1e-5)
    at = Position(step=250 * epoch + 100)
    assert duration.used(at) == pytest.approx(at.step / (250 * epochs))
    clock = Duration.of(dataclasses.replace(config, minutes=1.0), (Stage("all", ()),), [250])
    assert clock.used(Position(step=10, seconds=15.0), whole_epochs=True) == 0.25


def test_nesterov() -> None:
    stage = Stage("all", methods_groups())
    config = make_config(optimizer="sgd", nesterov=True, momentum=0.99).train
    group = build_optimizer(config, stage).param_groups[0]
    assert (group["nesterov"], group["momentum"]) == (True, 0.99)
    assert not build_optimizer(make_config(optimizer="sgd").train, stage).param_groups[0]["nesterov"]
    with pytest.raises(InputError, match=r"train\.nesterov is True"):
        require_usable(make_config(nesterov=True, momentum=0.0).train)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_eps(optimizer: str) -> None:
    stage = Stage("all", methods_groups())
    assert build_optimizer(make_config(optimizer=optimizer).train, stage).param_groups[0]["eps"] == 1e-8
    assert build_optimizer(make_config(optimizer=optimizer, eps=1e-4).train, stage).param_groups[0]["eps"] == 1e-4


def methods_groups() -> tuple[Any, ...]:
    method = volume_method.VolumeMethod((4, 8, 8), 4, 2)
    return tuple(method.stages(None)[0].groups)  # type: ignore[arg-type]


def patch() -> tuple[Batch, torch.Tensor]:
    """A patch of two objects, and scores that find half of the first and nothing of the second."""
    masks = torch.zeros(1, 3, 4, 6, 6, dtype=torch.bool)
    masks[0, 0, 1:3, :2, :2] = True
    masks[0, 1, 2, 4:, 4:] = True
    scores = torch.zeros(1, 4, 4, 6, 6)
    scores[:, 0] = 0.5
    scores[0, 1, 1, :2, :2] = 0.6  # 4 of 8 right
    scores[0, 1, 3, 0, :4] = 0.7  # 4 wrong
    scores[0, 2, 2, 4:, 4:] = 0.5  # a tie with background is background
    return Batch(torch.randn(1, 1, 4, 6, 6), masks, ("a",), ("x", "y", "z")), scores


def test_dice_of_patches_by_hand() -> None:
    batch, scores = patch()
    pixels = found(scores, batch, exclusive=True)
    assert pixels.shape == batch.masks.shape  # type: ignore[union-attr]
    assert pixels[0].flatten(1).sum(1).tolist() == [8, 0, 0]
    values = dice(scores, batch, exclusive=True)[0].tolist()
    assert values[:2] == [0.5, 0.0]
    assert np.isnan(values[2])


def test_the_sample_picture_is_the_slice_with_most_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samsans.training import pictures

    shown: list[np.ndarray] = []
    monkeypatch.setattr(pictures, "overlay", lambda image, labels: (shown.append(labels), image)[1])
    batch, scores = patch()
    draw_sample(batch, scores, None, tmp_path / "sample.png", exclusive=True)
    assert (tmp_path / "sample.png").read_bytes()[:4] == b"\x89PNG"
    truth, predicted = shown
    assert truth.sum() == 4 * 1 + 4 * 2  # slice 2 shows both
    assert not predicted.any()
    assert to_picture(torch.randn(1, 5, 6)).shape == to_picture(torch.randn(4, 5, 6)).shape == (5, 6, 3)


def test_patch_side_is_known_before_the_method() -> None:
    def side(name: str, preset: str, **options: Any) -> int | None:
        return methods.patch_side(configuration.from_dict(options, method=name, preset=preset))

    assert side("hsam", "paper") is None
    assert side("masksam", "corrected") == 256
    acdc = {"backbone.name": "sam-vit-b", "backbone.input_size": 1024, "model.upsample": 2}
    assert side("masksam", "corrected", **acdc) == 256
    assert side("masksam", "scratch", **{"backbone.input_size": None}) == 256
    own: dict[str, Any] = {"backbone.name": "someone/sam", "backbone.input_size": None, "patches.size": None}
    with pytest.raises(InputError, match=r"Set backbone\.input_size"):
        side("masksam", "corrected", **own)
    assert side("masksam", "corrected", **own | {"patches.size": [4, 512, 512]}) == 512
