"""Training with points: a learning rate that follows the held-out loss, and stages that learn from pairs of slices."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import dummy_training as dummy
from point_method import SMALL, Run, make_config
from samsans import config as configuration
from samsans.config import PromptConfig, TrainConfig
from samsans.data.cases import find_cases
from samsans.data.phantoms import write
from samsans.data.prompt_noise import LEVELS, simulate
from samsans.data.slices import SliceDataset
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.training import train
from samsans.training.errors import TrainingStopped
from samsans.training.log import read
from samsans.training.prompts import PromptedSlices, VolumePrompts, whole_volumes
from samsans.training.schedule import Position, follow, learning_rate, require_usable
from samsans.training.validation import told
from samsans.types import Batch

PLATEAU = TrainConfig(lr=1e-4, warmup=0, schedule="plateau", validate_epochs=1)


def rates(losses: list[float], config: TrainConfig) -> list[float]:
    """The learning rate after each validation."""
    at, out = Position(), []
    for loss in losses:
        follow(at, loss, config)
        out.append(learning_rate(config, at, 0.5))
    return out


def test_a_constant_loss_cuts_the_rate_at_the_sixth_validation() -> None:
    assert rates([0.7] * 11, PLATEAU) == [1e-4] * 5 + [5e-5] * 5 + [2.5e-5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 0.99995, 1.0, 1.00005, 1.2, float("nan")]), max_size=25), st.integers(0, 3))
def test_plateaus_are_pytorchs(losses: list[float], patience: int) -> None:
    config = dataclasses.replace(PLATEAU, lr=0.1, plateau_patience=patience, plateau_factor=0.7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=patience)
    expected = []
    for loss in losses:
        oracle.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(losses, config) == pytest.approx(expected)


@pytest.mark.parametrize("change", [{"plateau_factor": 1.0}, {"plateau_patience": -1}, {"validate_epochs": 0}])
def test_plateaus_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="plateau"):
        require_usable(dataclasses.replace(PLATEAU, **change))


class Level(dummy.DummyMethod):
    """Its loss hardly falls: by a share of a millionth a step."""

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": 1 + 1e-6 * output.mean()}


STEADY = {"schedule": "plateau", "warmup": 0, "validate_every": 1, "plateau_patience": 1, "plateau_factor": 0.5}


def test_every_stage_has_its_plateau(tmp_path: Path) -> None:
    dummy.train(tmp_path, method=Level(stages=2), **STEADY, steps=14, lr=0.01)
    rows = read(tmp_path / "log.csv")
    one = [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert [float(row["lr"]) / 0.01 for row in rows] == pytest.approx(one * 2)
    assert all(abs(float(row["val/loss"]) - 1) < 1e-3 for row in rows)


def test_a_resumed_plateau_goes_on(tmp_path: Path) -> None:
    options = STEADY | {"lr": 0.01, "validate_every": 2, "save_every": 0}
    dummy.train(tmp_path / "whole", method=Level(stages=1), **options, steps=15)
    for end in range(1, 13, 2):
        parts = tmp_path / str(end)
        dummy.train(parts, method=Level(stages=1), **options, steps=end + 1)
        dummy.train(parts, method=Level(stages=1), **options, steps=15, resume=True)
        assert [r["lr"] for r in read(parts / "log.csv")] == [r["lr"] for r in read(tmp_path / "whole" / "log.csv")]
        assert dummy.log_rows(parts) == dummy.log_rows(tmp_path / "whole")


def test_the_held_out_loss_is_the_mean_over_slices(tmp_path: Path) -> None:
    data = dummy.make_data(val=5)
    method = dummy.train(tmp_path, data=data, **STEADY, steps=2, batch_size=3)
    method.eval()
    with torch.no_grad():
        parts = [data.val.batch(i) for i in ([0, 1, 2], [3, 4])]
        losses = [float(method.loss(method(batch), batch)["loss"]) for batch in parts]
    last = read(tmp_path / "log.csv")[-1]
    assert float(last["val/loss"]) == pytest.approx((3 * losses[0] + 2 * losses[1]) / 5)
    assert told({"val/loss": 0.25, "val/dice": 0.5}) == "loss 0.2500, Dice 0.500"


def test_a_plateau_needs_held_out_slices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no slices are held out.*split\.val"):
        dummy.train(tmp_path / "a", data=dummy.make_data(val=0), **STEADY)
    with pytest.raises(InputError, match="episodes"):
        dummy.train(tmp_path / "b", method=dummy.DummyMethod(supports=True), **STEADY)


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write("distractors", tmp_path_factory.mktemp("tubes") / "tubes", n=3, size=32)
    shutil.rmtree(data / "points")  # the centre lines
    return data


def slices_of(data: Path, side: int = 32, only: list[str] | None = None) -> SliceDataset:
    dataset = find_cases(configuration.from_dict({"data.path": str(data)}, method="spd").data)
    return SliceDataset(dataset, [case.id for case in dataset.cases], Preprocess(side), only=only)


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_simulated_points(tubes: Path) -> None:
    slices = slices_of(tubes)
    case = slices.cases[0].id
    for mode in ("uniform", "hard"):
        prompts = VolumePrompts(slices, PromptConfig(level="L3", mode=mode), lambda _, points: list(points))
        items = [slices[i] for i in range(12)]
        mask = np.stack([item.masks[0].numpy() for item in items])
        image = np.stack([item.image[0].numpy() for item in items]).astype(np.float32)
        noise = dataclasses.replace(LEVELS["L3"], mode=mode)
        for draw in (0, 3):
            expected = simulate(mask, noise, volume=case, draw=draw, image=image)
            raw = prompts.raw(case, draw)
            found = [(t, y, x) for t, rows in enumerate(raw) for x, y, _ in rows]
            assert found == [tuple(p) for p in expected.positions.tolist()]
            assert all((rows[:, 2] == 1).all() and rows.shape[1] == 3 for rows in raw)
        assert equal(prompts(case, 2), prompts.raw(case, 3))
        assert not equal(prompts(case, 0), prompts.raw(case, 0))  # the draw of held-out slices
    few = VolumePrompts(slices, PromptConfig(level="L5", keep=1), lambda _, points: list(points))
    assert max(map(len, few.raw(case, 0))) == 1


def test_points_of_files_where_there_are_some(tubes: Path, tmp_path: Path) -> None:
    data = tmp_path / "tubes"
    shutil.copytree(tubes, data)
    plain = slices_of(data)
    folder = plain.cases[0].images[0].parent.parent / "points"
    folder.mkdir()
    (folder / f"{Path(plain.cases[0].id).name}.csv").write_text("i,j,k,label\n3,5,2,1\n4,6,2,0\n7,8,9,1\n")
    with pytest.raises(InputError, match=r"no point prompts.*data\.points"):
        VolumePrompts(slices_of(tubes), PromptConfig(source="files"), lambda _, points: list(points))
    slices = slices_of(data, side=64)
    case, other = slices.cases[0].id, slices.cases[1].id
    prompts = VolumePrompts(slices, PromptConfig(), lambda _, points: list(points))
    raw = prompts.raw(case, 0)
    assert sorted(len(rows) for rows in raw if len(rows)) == [1, 2]
    volume = slices.dataset.read_image(slices.cases[0])
    native = slices.dataset.read_points(slices.cases[0], volume)
    assert len(native) == 3
    assert sum(map(len, raw)) == 3
    assert all(((rows[:, :2] + 0.5) % 2 == 1).all() for rows in raw)  # centres of pixels twice as large
    assert equal(raw, prompts(case, 7))
    assert sum(map(len, prompts.raw(other, 0))) == 0
    assert not VolumePrompts(slices, PromptConfig(source="noise"), lambda _, points: list(points)).reads


def test_slices_in_between_are_needed(tubes: Path) -> None:
    case = slices_of(tubes).cases[0].id
    assert len(whole_volumes(slices_of(tubes))) == 3
    with pytest.raises(InputError, match="left out"):
        whole_volumes(slices_of(tubes, only=[f"{case}#000", f"{case}#002"]))


def test_held_out_pairs(tubes: Path) -> None:
    prompts = VolumePrompts(slices_of(tubes), PromptConfig(), lambda _, points: list(points))
    pairs = []
    for batch in PromptedSlices(prompts).pairs(4):
        assert batch.following is not None
        assert batch.points is not None
        assert len(batch.ids) <= 5
        assert len(batch.points) == len(batch.ids)
        pairs += [(batch.ids[i], batch.ids[j]) for i, j in enumerate(batch.following.tolist()) if j >= 0]
    ids = prompts.slices.ids
    assert pairs == [(a, b) for a, b in itertools.pairwise(ids) if a[:-4] == b[:-4]]


def test_points_are_distilled_by_the_frozen_prior(tubes: Path, tmp_path: Path) -> None:
    done = Run(make_config(tubes), tmp_path)
    method, train_ids, val_ids = done.method, done.data.train.slices.ids, done.data.val.slices.ids
    assert [row["stage"] for row in done.rows] == ["prior"] * 6 + ["points"] * 6
    judged = [name for ids, _, _ in method.judged for name in ids]
    assert judged == [*train_ids, *val_ids]  # each once
    assert not any(training or gradients for _, training, gradients in method.judged)
    assert all(batch.points is None for batch in method.seen[:6])
    assert all(batch.points is not None and batch.following is not None for batch in method.seen[6:])
    calls = [logits for logits, _ in method.distiller.calls]
    assert all(map_.dtype == np.float32 and map_.shape == (12, SMALL, SMALL) for map_ in calls)
    # two volumes for two epochs, the two that were measured before, and the held-out one
    draws = {tuple(np.concatenate(points).ravel().tolist()) for _, points in method.distiller.calls}
    assert len(draws) in (5, 7)  # a batch may straddle the end of the second epoch
    (line,) = done.said("points of training")
    assert "from noise L2 (hard): on the object" in line
    assert line.count("->") == 4
    assert len(done.said("points of held-out")) == 1
    scored = [batch for batch in method.predicted if batch.points is not None]
    assert len(scored) == 2 * 2  # two validations of twelve slices, eight a batch
    prompts = VolumePrompts(done.data.val.slices, PromptConfig(), method.distiller)
    with torch.no_grad():
        prompts.judge(method.eval(), 8, torch.device("cpu"))
    expected = prompts.points(val_ids[0][:-4], 0)
    found = [points.numpy() for batch in scored[:2] for points in batch.points or ()]
    assert equal([rows.astype(np.float32) for rows in expected], found)
    assert all(row["val/loss"] for row in done.rows if row["val/dice"])
    assert not any("learning rate" in line for line in done.lines)


def test_points_as_they_are(tubes: Path, tmp_path: Path) -> None:
    done = Run(make_config(tubes, model__distill="none", prompts__level="L0"), tmp_path)
    assert not done.method.judged
    assert all(logits is None for logits, _ in done.method.distiller.calls)
    (line,) = done.said("points of training")
    assert "->" not in line
    assert "on the object 100%, slices of the object reached 100%, empty slices with points 0%" in line


def same(a: Path, b: Path) -> bool:
    for name in ("last", "best"):
        first, second = (load_file(run / "model" / f"{name}.safetensors") for run in (a, b))
        if first.keys() != second.keys() or any(not torch.equal(first[key], second[key]) for key in first):
            return False
    return dummy.log_rows(a) == dummy.log_rows(b)


def test_pairs_resumed_to_the_last_bit(tubes: Path, tmp_path: Path) -> None:
    config = make_config(tubes, augment__policy="spd", augment__flip=0.5, augment__rotate=15.0)
    Run(config, tmp_path / "whole")
    for step in (4, 5, 7, 10):
        parts = tmp_path / str(step)
        with pytest.raises(TrainingStopped):
            Run(config, parts, stop_after=step)
        again = Run(config, parts, resume=True)
        assert len(again.method.judged) > 0
        assert same(tmp_path / "whole", parts), step


def test_worker_processes_know_the_points(tubes: Path, tmp_path: Path) -> None:
    Run(make_config(tubes), tmp_path / "none")
    Run(make_config(tubes, train__workers=1), tmp_path / "one")
    assert same(tmp_path / "none", tmp_path / "one")


def test_pictures_have_points(tubes: Path, tmp_path: Path) -> None:
    done = Run(make_config(tubes, train__pictures_every=12, train__schedule="constant"), tmp_path)
    assert (tmp_path / "pictures" / "samples_000012.png").is_file()
    assert done.method.predicted[-1].points is not None
    assert len(done.method.predicted[-1].ids) == 1


def spd(data: Path, **options: Any) -> configuration.RunConfig:
    """SPD on the tiny backbone."""
    values: dict[str, Any] = {"data.path": str(data), "split.val": 0.34, "split.test": 0.0, "backbone.name": "tiny"}
    values |= {"backbone.input_size": 64, "train.accelerator": "cpu", "train.pictures_every": 0, "train.batch_size": 4}
    values |= {
        "train.epochs": None,
        "train.steps": 30,
        "train.validate_epochs": 1,
        "model.tau": 0.3,
        "model.head_bias": 0.0,
    }
    return configuration.from_dict(values | options, method="spd", preset="paper")


def test_spd_from_files_to_weights(tubes: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = spd(tubes, **{"train.lr": 1e-3, "train.plateau_patience": 0})
    train(config, tmp_path / "whole", on_progress=lambda p: told.append(p.message))
    rows = read(tmp_path / "whole" / "log.csv")
    assert [row["stage"] for row in rows] == ["saliency"] * 15 + ["decoder"] * 15
    assert all(float(row["val/loss"]) > 0 for row in rows if row["val/dice"])
    assert sum(line.startswith("points of") for line in told) == 2

    def interrupt(progress: Any) -> None:
        if progress.item in ("step 8", "step 22") and progress.message.startswith("loss"):
            import signal

            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with pytest.raises(TrainingStopped):
            train(config, tmp_path / "parts", resume=True, on_progress=interrupt)
    train(config, tmp_path / "parts", resume=True, on_progress=lambda _: None)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_plain_prompt_tuning(tubes: Path, tmp_path: Path) -> None:
    config = spd(tubes, **{"model.distill": "none", "train.steps": 4, "split.val": 0.0, "train.schedule": "constant"})
    train(config, tmp_path, on_progress=lambda _: None)
    assert [row["stage"] for row in read(tmp_path / "log.csv")] == ["tuning"] * 4
