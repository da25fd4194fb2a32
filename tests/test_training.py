"""The training loop on a small method: what it computes, writes, says and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dummy_training import (
    DummyMethod,
    DummySlices,
    DummySource,
    WatchingMethod,
    log_rows,
    make_config,
    make_data,
    train,
)
from samsans import config as configuration
from samsans import methods
from samsans.config import RunConfig
from samsans.data.classes import read_classes
from samsans.data.phantoms import write
from samsans.errors import InputError
from samsans.methods import weights
from samsans.training import TrainingError, TrainingStopped
from samsans.training import train as run_training
from samsans.training.data import loader
from samsans.training.log import CsvLog, read
from samsans.training.run import check_folder
from samsans.training.schedule import Duration, Position, build_optimizer, learning_rate
from samsans.training.validation import dice, found, support_indices
from samsans.types import Batch, Progress, Stage


def test_a_run_learns_and_writes_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    method = train(tmp_path / "run", steps=40, pictures_every=20, method=DummyMethod(supports=True))
    run = tmp_path / "run"
    rows = read(run / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["val/dice"]) > 0.8
    assert rows[19]["gauge/weight"]
    assert not rows[18]["gauge/weight"]
    for name in ("config.yaml", "resume.ckpt", "model/last.safetensors", "model/best.safetensors"):
        assert (run / name).is_file()
    for name in ("loss", "samples_000020", "samples_000040"):
        assert (run / "pictures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((run / "tensorboard").glob("events.*"))
    assert not list(run.rglob("*.tmp*"))
    assert configuration.load(run / "config.yaml") == make_config(steps=40, pictures_every=20)
    told = json.loads((run / "train.json").read_text())
    assert told["finished"]
    assert told["steps"] == 40
    assert told["loss"] == float(rows[-1]["loss"])
    assert told["parameters"] == {"trained": sum(p.numel() for p in method.parameters()) - 112, "frozen": 112}
    assert told["step_seconds"] + told["data_wait_seconds"] <= told["seconds"] + 0.01
    out, err = capfd.readouterr()
    assert out == ""
    assert "best" in err
    assert "GPU" not in err
    assert "litlogger" not in err.lower()


def test_weights_go_round(tmp_path: Path) -> None:
    method = train(tmp_path)
    path = weights.best_or_last(tmp_path)
    assert path.name == "best.safetensors"
    fresh = DummyMethod()
    notes = weights.load_weights(fresh, tmp_path / "model" / "last.safetensors")
    assert notes["step"] == "20"
    assert notes["backbone"] == "dummy"
    assert notes["method"] == "proxy_prompt"
    trained = method.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())
    assert not any("backbone" in name for name in weights.trained_names(fresh))
    assert "norm.running_mean" in weights.trained_names(fresh)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = weights.save_weights(DummyMethod(), tmp_path / "a.safetensors")
    other = DummyMethod()
    other.backbone.name = "sam-vit-b"
    with pytest.raises(InputError, match=r"trained on dummy, not on sam-vit-b.*backbone\.name=dummy"):
        weights.load_weights(other, path)
    other.backbone.name, other.backbone.base_hash = "dummy", "xyz"
    with pytest.raises(InputError, match="other weights of dummy"):
        weights.load_weights(other, path)
    larger = DummyMethod()
    larger.extra = torch.nn.Conv2d(1, 1, 1)
    larger.last = torch.nn.Conv2d(8, 3, 1)
    del larger.norm
    with pytest.raises(InputError, match=r"missing: extra\.bias .*unexpected: norm\.bias .*last\.bias is \(2,\)"):
        weights.load_weights(larger, path)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a safetensors file"):
        weights.load_weights(DummyMethod(), tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="no trained weights"):
        weights.best_or_last(tmp_path)


def test_stages_freeze_in_turn(tmp_path: Path) -> None:
    before = DummyMethod(stages=2)
    method = train(tmp_path, method=DummyMethod(stages=2), steps=10, optimizer="adamw", weight_decay=0.1)
    assert [row["stage"] for row in read(tmp_path / "log.csv")] == ["head"] * 5 + ["body"] * 5
    assert torch.equal(before.backbone.weight, method.backbone.weight)
    assert not torch.equal(before.last.weight, method.last.weight)
    assert not torch.equal(before.first.weight, method.first.weight)
    assert all(p.requires_grad == ("backbone" not in name) for name, p in method.named_parameters())


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    method = DummyMethod()
    calls = iter(range(100))
    loss = method.loss

    def poison(output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        method.poison_at = batch.ids if next(calls) == 11 else ()
        return dict(loss(output, batch))

    method.loss = poison
    with pytest.raises(TrainingError, match=r"step 12: loss = nan.*image\d") as caught:
        train(tmp_path, method=method)
    assert all(name in str(caught.value) for name in make_data().source.batch(11).ids)
    saved = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert saved["position"]["step"] == 10
    assert all(torch.isfinite(value).all() for value in saved["weights"].values())


def test_a_longer_training_that_fails_is_not_the_shorter_one_that_was_finished(tmp_path: Path) -> None:
    train(tmp_path, steps=5)
    assert json.loads((tmp_path / "train.json").read_text())["finished"]
    method = DummyMethod()
    method.loss = lambda output, batch: {"loss": output.sum() * torch.nan}
    with pytest.raises(TrainingError):
        train(tmp_path, method=method, steps=10, resume=True)
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(progress: Progress) -> None:
        if progress.done == 7:
            signal.raise_signal(number)

    with pytest.raises(TrainingStopped, match=r"after step 8; .*--resume"):
        train(tmp_path, on_progress=interrupt)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert torch.load(tmp_path / "resume.ckpt", weights_only=True)["position"]["step"] == 8
    assert not json.loads((tmp_path / "train.json").read_text())["finished"]


def test_minutes_end_in_time_and_move_the_schedule(tmp_path: Path) -> None:
    train(tmp_path, minutes=0.02, schedule="cosine", warmup=0, save_every=0, data=make_data(delay=0.01))
    rows = read(tmp_path / "log.csv")
    assert 1.2 <= float(rows[-1]["seconds"]) < 1.6
    rates = [float(row["lr"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]
    assert len(rows) > 5


def test_folders_in_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        train(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        train(tmp_path / "file")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(configuration.dump(make_config(lr=0.1)))
    with pytest.raises(InputError, match=r"train\.lr was 0\.1 and is 0\.05"):
        train(run, resume=True)


def test_methods_without_stages_only_remember_their_settings(tmp_path: Path) -> None:
    write("fundus", tmp_path / "data", n=2, size=64)
    settings = {"backbone.name": "tiny", "data.path": str(tmp_path / "data")}
    run_training(configuration.from_dict(settings, method="prompted", preset="box"), tmp_path / "run")
    assert configuration.load(tmp_path / "run" / "config.yaml").preset == "box"
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("fundus", tmp_path_factory.mktemp("phantoms") / "fundus", n=8, size=64)


def proxy_prompt(data: Path, **options: Any) -> RunConfig:
    """Proxy Prompt on a network of two blocks."""
    values = {"data.path": str(data), "backbone.name": "tiny", "split.val": 0.25, "episodes.images": 4}
    values |= {"episodes.targets": 2, "model.k_test": 2, "train.accelerator": "cpu", "train.pictures_every": 0}
    return configuration.from_dict(values | options, method="proxy_prompt")


def test_from_files_to_weights(tmp_path: Path, phantoms: Path) -> None:
    run = run_training(proxy_prompt(phantoms, **{"train.steps": 3, "train.pictures_every": 3}), tmp_path / "run")
    split = json.loads((run / "split.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (6, 2)  # two eyes a patient: one patient of four held out
    names = tuple(c.name for c in read_classes(run / "classes.json"))
    config = configuration.load(run / "config.yaml")
    method = methods.build(config, names)
    notes = weights.load_weights(method, weights.best_or_last(run))
    assert (notes["backbone"], notes["step"], notes["method"]) == ("tiny", "3", "proxy_prompt")
    assert notes["base_hash"] == method.backbone.base_hash
    assert (run / "pictures" / "samples_000003.png").is_file()
    # a longer resume keeps the split it has, whatever the seed would draw now
    (run / "split.json").write_text(json.dumps({"train": split["val"] + split["train"][2:], "val": split["train"][:2]}))
    run_training(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4)), run, resume=True)
    assert json.loads((run / "split.json").read_text())["val"] == split["train"][:2]


def test_data_that_cannot_be_used_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_training(proxy_prompt(tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_progress_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Progress] = []
    train(tmp_path, steps=6, on_progress=told.append)
    assert [p.done for p in told if p.message.startswith("loss")] == [1, 2, 3, 4, 5, 6]
    assert {p.total for p in told} == {6}
    assert any("held-out" in p.message for p in told)
    assert capfd.readouterr() == ("", "")


def test_slow_data_is_noticed(tmp_path: Path) -> None:
    told: list[Progress] = []
    train(tmp_path, steps=25, save_every=0, data=make_data(val=0, delay=0.02), on_progress=told.append)
    assert any("raise train.workers (now 0)" in p.message for p in told)
    assert not (tmp_path / "model" / "best.safetensors").exists()
    assert weights.best_or_last(tmp_path).name == "last.safetensors"


def test_patience_and_empty_predictions(tmp_path: Path) -> None:
    method = DummyMethod()
    method.predict = lambda batch, support=None: torch.full((len(batch.ids), 2, 16, 16), -1.0)
    with pytest.warns(UserWarning, match="not a single pixel"):
        train(tmp_path, method=method, validate_every=2, patience=3)
    told = json.loads((tmp_path / "train.json").read_text())
    assert told["steps"] == 8  # the first validation is the best, three more do not improve on it
    assert "3 validations" in told["stopped_by"]


def test_gauges_may_warn(tmp_path: Path) -> None:
    method = DummyMethod()
    method.gauge_warning = lambda gauges, step, warmup: f"weak at {step}, {warmup}"
    with pytest.warns(UserWarning, match="weak at 3, 5"):
        train(tmp_path, method=method, steps=3, pictures_every=2)


@pytest.mark.parametrize("told", [{}, {"weight": 2.0}], ids=["no gauges", "no warnings"])
def test_gauges_may_be_silent(tmp_path: Path, told: dict[str, float]) -> None:
    method = DummyMethod()
    method.gauges = lambda batch: told
    if told:
        method.gauge_warning = None  # type: ignore[assignment]
    train(tmp_path, method=method, steps=2, pictures_every=2)
    assert [row.get("gauge/weight", "") for row in read(tmp_path / "log.csv")] == ["", "2.0" if told else ""]


def test_bfloat16_and_workers(tmp_path: Path) -> None:
    train(tmp_path / "a", steps=4, precision="bf16", workers=2)
    train(tmp_path / "b", steps=4, precision="bf16")
    assert log_rows(tmp_path / "a") == log_rows(tmp_path / "b")


def test_loader_order_is_the_step() -> None:
    source = DummySource(12)
    for workers in (0, 2):
        ids = [batch.ids for batch in loader(source, range(3, 7), 1, 2, workers)]
        assert ids == [source.batch(step, 1, 2).ids for step in range(3, 7)]


def test_durations() -> None:
    stages = (Stage("a", (), 0.25), Stage("b", (), 0.75))
    train_config = make_config().train
    assert Duration.of(train_config, stages, [7, 7]).ends == (5, 20)
    assert Duration.of(dataclasses.replace(train_config, epochs=4), stages, [7, 7]).ends == (1, 4)
    clock = Duration.of(dataclasses.replace(train_config, minutes=2.0, epochs=3), stages, [7, 7])
    assert (clock.unit, clock.ends) == ("seconds", (30, 120))
    at = Position(step=40, seconds=75, stage=1, stage_step=12, stage_seconds=30)
    assert clock.used(at) == 0.5
    for bad in ({"steps": 0}, {"minutes": 0.0}, {"epochs": 0}):
        with pytest.raises(InputError, match="at least one step"):
            Duration.of(dataclasses.replace(train_config, **bad), stages, [7, 7])


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("cosine", 0.5), ("poly", 0.5**0.9)])
def test_learning_rate(schedule: str, half: float) -> None:
    config = make_config(lr=2.0, warmup=4, schedule=schedule).train
    ramp = [learning_rate(config, Position(step=10 + i, stage_step=10), 0.0) for i in range(6)]
    assert ramp == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert learning_rate(config, Position(step=50), 0.5) == pytest.approx(2 * half)
    if schedule != "constant":
        assert learning_rate(config, Position(step=100), 1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("total", "wanted"),
    [
        (4200, {0: 0.004, 1: 0.004, 249: 0.996, 250: 1.0, 251: 1.0, 2100: 0.5932, 4199: 0.07949}),
        (2100, {1050: 0.64991, 2099: 0.14834}),
    ],
)
def test_samed_schedule_to_the_published_digits(total: int, wanted: dict[int, float]) -> None:
    config = make_config(lr=1.0, warmup=250, schedule="samed", steps=total).train
    steps = Duration.of(config, (Stage("all", ()),), [7])
    clock = Duration.of(dataclasses.replace(config, minutes=1.0), (Stage("all", ()),), [7])
    for step, rate in wanted.items():
        found = learning_rate(config, Position(step=step), steps.used(Position(step=step)))
        assert found == pytest.approx(rate, abs=0.5 * 10 ** -len(str(rate).partition(".")[2]))
        at = Position(step=step, seconds=60 * step / total)  # steps of equal length: the clock gives the same
        assert learning_rate(config, at, clock.used(at)) == pytest.approx(found, rel=1e-9)
    cold = dataclasses.replace(config, warmup=0)
    assert [learning_rate(cold, Position(step=s), s / total) for s in (0, 1)] == [1.0, 1.0]
    assert learning_rate(cold, Position(step=2), 2 / total) == pytest.approx((1 - 1 / total) ** 0.9)


def test_halving_after_every_ten_epochs_of_a_stage() -> None:
    """As the library's own step decay, stepped once an epoch; each stage begins anew."""
    config = make_config(lr=0.8, warmup=0, schedule="halving", epochs=35).train
    duration = Duration.of(config, (Stage("first", (), 0.2), Stage("second", ())), [3, 7])
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.8)
    theirs, wanted = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5), []
    for _ in range(31):
        wanted += [optimizer.param_groups[0]["lr"]] * 7
        optimizer.step()
        theirs.step()
    places = [Position(step=19 + i, stage=1, stage_step=19, stage_epoch=19 / 3) for i in range(31 * 7)]
    rates = [learning_rate(config, at, duration.used(at), duration.stage_epochs(at)) for at in places]
    assert rates == pytest.approx(wanted)
    assert [rates[epoch * 7] for epoch in (0, 9, 10, 20, 30)] == pytest.approx([0.8, 0.8, 0.4, 0.2, 0.1])
    assert rates[69:71] == pytest.approx([0.8, 0.4])
    warm = dataclasses.replace(config, warmup=4)
    assert learning_rate(warm, places[1], 0.5, 0.0) == pytest.approx(0.4)


def test_a_run_halves_by_its_epochs(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=12, schedule="halving", warmup=0, lr=0.05)
    rates = [float(row["lr"]) for row in read(tmp_path / "run" / "log.csv")]
    assert rates == pytest.approx([0.05] * 30 + [0.025] * 6)  # three steps an epoch


def test_stopping_at_an_epoch_leaves_the_schedule_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 5, "schedule": "samed", "lr": 0.05}
    train(tmp_path / "whole", **options)
    told: list[Progress] = []
    train(tmp_path / "stopped", **options, stop_epoch=2, on_progress=told.append)
    whole, stopped = read(tmp_path / "whole" / "log.csv"), read(tmp_path / "stopped" / "log.csv")
    assert (len(whole), len(stopped)) == (15, 6)
    assert [row["lr"] for row in stopped] == [row["lr"] for row in whole[:6]]
    assert {p.total for p in told} == {6}
    note = json.loads((tmp_path / "stopped" / "train.json").read_text())
    assert note["finished"]
    assert stopped[-1]["val/dice"]
    for bad in ({"epochs": None, "steps": 9}, {"minutes": 1.0}, {"stop_epoch": 6}, {"stop_epoch": 0}):
        config = make_config(**options | {"stop_epoch": 2} | bad).train
        with pytest.raises(InputError, match=r"train\.stop_epoch"):
            Duration.of(config, (Stage("all", ()),), [3])


def test_a_stop_in_an_earlier_stage(tmp_path: Path) -> None:
    train(tmp_path, method=DummyMethod(stages=2), epochs=4, stop_epoch=2)
    assert [row["stage"] for row in read(tmp_path / "log.csv")] == ["head"] * 6
    train(tmp_path, method=DummyMethod(stages=2), epochs=4, stop_epoch=3, resume=True)
    assert [row["stage"] for row in read(tmp_path / "log.csv")] == ["head"] * 6 + ["body"] * 3


def test_recipes_are_documentation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = make_config()
    (run / "config.yaml").write_text(configuration.dump(config))
    renamed = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, name="synapse", tolerance=0.1))
    check_folder(renamed, run, resume=True)


def test_optimizer_groups() -> None:
    method = DummyMethod()
    config = make_config(weight_decay=0.1, optimizer="adamw").train
    groups = build_optimizer(config, method.stages(make_config())[0]).param_groups
    group_of = {id(p): group for group in groups for p in group["params"]}
    found = {name: group_of[id(p)] for name, p in method.named_parameters() if p.requires_grad}
    assert (found["last.weight"]["weight_decay"], found["last.weight"]["lr_scale"]) == (0.1, 2.0)
    assert (found["last.bias"]["weight_decay"], found["last.bias"]["lr_scale"]) == (0.0, 2.0)
    assert (found["first.weight"]["weight_decay"], found["first.weight"]["lr_scale"]) == (0.0, 1.0)
    adam = build_optimizer(dataclasses.replace(config, optimizer="adam"), method.stages(make_config())[0])
    assert type(adam) is torch.optim.Adam
    with pytest.raises(InputError, match="trains no parameter"):
        build_optimizer(config, Stage("empty", ()))


def test_dice_by_hand_leaves_padding_out() -> None:
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    masks[0, 0, :2, :2] = True
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :2, :] = 1.0  # 4 of 8 right; the last column is padding, so 4 of 6
    logits[0, 1, 0, 0] = 1.0
    batch = Batch(torch.zeros(1, 3, 4, 4), masks, ("a",), ("x", "y", "z"), valid=torch.tensor([[4, 3]]))
    scores = dice(logits, batch)[0].tolist()
    assert scores[:2] == [pytest.approx(2 * 4 / (6 + 4)), 0.0]
    assert math.isnan(scores[2])


def test_exclusive_objects_share_no_pixel() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0, 3.0], [2.0, 1.0, -2.0, 3.0]]).view(1, 2, 1, 4).expand(1, 2, 4, 4)
    batch = Batch(torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4, dtype=torch.bool), ("a",), ("x", "y"))
    assert found(logits, batch, exclusive=True)[0, :, 0].int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]
    assert found(logits, batch)[0, :, 0].int().tolist() == [[1, 1, 0, 1], [1, 1, 0, 1]]
    assert dice(logits, batch, exclusive=True)[0].tolist() == [pytest.approx(2 * 8 / 24), pytest.approx(2 * 4 / 20)]


def test_validation_of_exclusive_methods_asks_for_winners(tmp_path: Path) -> None:
    for exclusive, score in ((False, 1.0), (True, 0.0)):
        method = WatchingMethod(exclusive)

        def predict(batch: Batch, support: Any = None) -> torch.Tensor:
            assert batch.masks is not None
            logits = batch.masks.float() - 0.5
            logits[:, 1] = 2 * logits.amax(1)  # where the disc is, the square is more likely
            return logits

        method.predict = predict
        train(tmp_path / str(exclusive), method=method, steps=2, pictures_every=2)
        row = read(tmp_path / str(exclusive) / "log.csv")[-1]
        assert float(row["val/dice/disc"]) == score


def test_supports_show_objects_and_are_fixed_by_the_seed() -> None:
    class Half(DummySlices):
        present = torch.tensor([[i % 2 == 0, i == 4] for i in range(12)]).numpy()

    assert support_indices(Half(12), 1, 0) == [4]
    some = support_indices(Half(12), 4, 0)
    assert some == support_indices(Half(12), 4, 0)
    assert len(set(some)) == 4
    assert all(i % 2 == 0 for i in some)
    assert sorted(support_indices(Half(12), 99, 1)) == [0, 2, 4, 6, 8, 10]


def test_log_grows_and_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    log.write({"step": 1, "loss": 0.1 + 0.2})
    log.write({"step": 2, "loss": 0.5, "val/dice": 1.0})
    log.close()
    path.write_text(path.read_text() + "1")  # a killed process was writing step 10
    assert [row["step"] for row in read(path)] == ["1", "2"]
    assert float(read(path)[0]["loss"]) == 0.1 + 0.2
    log = CsvLog(path, 1)
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert read(path) == [
        {"step": "1", "loss": repr(0.1 + 0.2), "val/dice": ""},
        {"step": "2", "loss": "0.25", "val/dice": ""},
    ]
