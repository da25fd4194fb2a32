"""Training in stages: what each learns from, how long, with which weights it begins, and what chooses the best ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dummy_training import SIDE, DummySlices, log_rows, make_config
from samsans.config import AugmentConfig, RunConfig
from samsans.data.augment import changes
from samsans.display import Display
from samsans.errors import InputError
from samsans.methods.prob_unet.config import ProbUNetConfig
from samsans.training.data import TrainingData, stage_source
from samsans.training.errors import TrainingStopped
from samsans.training.log import read
from samsans.training.run import fit
from samsans.training.schedule import Duration, Position, build_optimizer
from samsans.training.validation import ambiguity, dice, told
from samsans.types import Batch, Needs, ParamGroup, Progress, Stage

MODEL = ProbUNetConfig(samples=3)


class Annotated(DummySlices):
    """The disc and the square as one object, of two annotators; the second one leaves out the square."""

    def batch(self, indices: Sequence[int], rank: int = 0, world: int = 1) -> Batch:
        batch = super().batch(indices)
        assert batch.masks is not None
        disc, square = batch.masks.unbind(1)
        annotations = torch.stack([disc | square, disc], 1)[:, :, None]
        drawn = torch.ones(len(batch.ids), 2, dtype=torch.bool)
        valid = torch.full((len(batch.ids), 2), SIDE)
        return Batch(batch.images, annotations[:, 0], batch.ids, ("object",), None, valid, annotations, drawn)


class Source:
    """Batches of two, in order; of the first slices alone where asked."""

    def __init__(self, count: int) -> None:
        self.count, self.slices = count, Annotated(count)
        self.steps_per_epoch = -(-count // 2)
        self.seen: list[tuple[str, ...]] = []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        made = self.slices.batch([(2 * step + i) % self.count for i in range(2)])
        self.seen.append(made.ids)
        return made

    def first(self, count: int) -> Source:
        fewer = Source(min(count, self.count))
        fewer.seen = self.seen
        return fewer


class TwoStages(nn.Module):
    """Stage one trains a convolution; stage two the level that a random number is added with."""

    def __init__(self, needs: Needs | None = None, **second: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.needs = needs or Needs(annotators=True, samples=True)
        self.second = {"images": 4, "begins": "best", "selects": "ged"} | second
        self.backbone = nn.Identity()
        self.body, self.norm = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.level = nn.Parameter(torch.zeros(1))
        self.begun: list[tuple[str, bool]] = []
        self.told: list[tuple[float, float]] = []
        self.seeds: list[int] = []

    def stages(self, config: RunConfig | None = None) -> list[Stage]:
        first = ParamGroup((*self.body.parameters(), *self.norm.parameters()))
        return [Stage("one", (first,), 0.5), Stage("two", (ParamGroup((self.level,)),), 0.5, **self.second)]

    def begin(self, stage: Stage, augmented: bool) -> None:
        self.begun.append((stage.name, augmented))

    def schedule(self, epoch: float, used: float) -> None:
        self.told.append((epoch, used))

    def forward(self, batch: Batch) -> Tensor:
        return self.norm(self.body(batch.images)) + self.level * torch.randn(1)

    def loss(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        assert batch.annotations is not None
        truth = batch.annotations[:, torch.randint(2, ()), :].float()
        return {"loss": nn.functional.binary_cross_entropy_with_logits(output, truth)}

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        return self.norm(self.body(batch.images))

    def sample(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
        self.seeds += seeds
        draws = [torch.randn(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.predict(batch)[:, None] + (1 + self.level) * torch.stack(draws).view(-1, count, 1, 1, 1)


class OneStage(TwoStages):
    """The first stage alone."""

    def stages(self, config: RunConfig | None = None) -> list[Stage]:
        return super().stages(config)[:1]


def run(folder: Path, method: nn.Module | None = None, resume: bool = False, **train: Any) -> Any:
    """Two stages of three epochs each: 15 steps of ten slices, 6 of four."""
    told = train.pop("on_progress", lambda _: None)
    options = {"steps": 0, "epochs": 6, "validate_every": 2, "warmup": 0, "save_every": 0, "batch_size": 3}
    count = train.pop("count", 10)
    config = dataclasses.replace(make_config(**options | train), model=MODEL, augment=AugmentConfig())
    method, source = method or TwoStages(), Source(count)
    data = TrainingData(source, Annotated(count), Annotated(4, first=100), ("object",))
    with Display("training", told) as display:
        fit(config, method, data, folder, display, resume=resume)
    return SimpleNamespace(method=method, source=source, rows=read(folder / "log.csv"))


def stored(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return load_file(folder / "model" / f"{name}.safetensors")


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_after(step: int) -> Any:
    def told(progress: Progress) -> None:
        if progress.item == f"step {step}" and progress.message.startswith("loss"):
            import signal

            signal.raise_signal(signal.SIGINT)

    return told


def test_each_stage_has_its_epochs_and_its_images(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert [row["stage"] for row in done.rows] == ["one"] * 15 + ["two"] * 6
    assert {name for ids in done.source.seen[15:] for name in ids} == {f"image{i}" for i in range(4)}
    assert len({name for ids in done.source.seen[:15] for name in ids}) == 10
    epochs, shares = zip(*done.method.told, strict=True)
    assert epochs == pytest.approx([i / 5 for i in range(15)] + [3 + i / 2 for i in range(6)])
    assert shares == pytest.approx([i / 30 for i in range(15)] + [0.5 + i / 12 for i in range(6)])
    assert done.method.begun == [("one", False), ("two", False)]


def test_the_second_stage_begins_with_the_best_of_the_first(tmp_path: Path) -> None:
    for begins, name in (("best", "best"), ("last", "last")):
        whole = tmp_path / begins
        run(whole, TwoStages(begins=begins), lr=2.0)
        run(tmp_path / f"{begins}-one", OneStage(), lr=2.0, epochs=3)
        began, ended = stored(tmp_path / f"{begins}-one", name), stored(whole)
        assert all(torch.equal(began[k], ended[k]) for k in began if k.startswith("body"))
    rows = read(tmp_path / "best" / "log.csv")
    scores = [float(row["val/dice"]) for row in rows[:15] if row["val/dice"]]
    assert scores.index(max(scores)) < len(scores) - 1, "the best weights of the first stage are not its last"
    assert rows[14]["val/dice"], "the end of a stage is validated"


@pytest.mark.parametrize(
    ("second", "steps"), [({}, range(1, 9)), ({"begins": "last", "selects": "last", "images": None}, (5, 6, 7))]
)
def test_interrupted_at_every_step(tmp_path: Path, second: dict[str, Any], steps: Sequence[int]) -> None:
    options = {"count": 6, "epochs": 4, "lr": 2.0}  # steps 1 to 6 and 7 to 10 (or 12)
    run(tmp_path / "whole", TwoStages(**second), **options)
    for step in steps:
        parts = tmp_path / str(step)
        with pytest.raises(TrainingStopped):
            run(parts, TwoStages(**second), **options, on_progress=interrupt_after(step))
        saved = torch.load(parts / "resume.ckpt", weights_only=True)["position"]
        assert step <= saved["step"] <= step + 1
        run(parts, TwoStages(**second), **options, resume=True)
        for name in ("last", "best"):
            assert same(stored(tmp_path / "whole", name), stored(parts, name)), (step, name)
        assert log_rows(tmp_path / "whole") == log_rows(parts)


def test_killed_at_the_border(tmp_path: Path) -> None:
    run(tmp_path / "whole", lr=2.0)

    class Killed(Exception):
        pass

    def begin(stage: Stage, augmented: bool) -> None:
        if stage.name == "two":
            raise Killed

    method = TwoStages()
    method.begin = begin  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(tmp_path / "parts", method, lr=2.0)
    saved = torch.load(tmp_path / "parts" / "resume.ckpt", weights_only=True)
    assert saved["optimizer"] is None
    assert (saved["position"]["stage"], saved["position"]["best"], saved["position"]["stage_epoch"]) == (1, None, 3.0)
    assert same(saved["weights"], stored(tmp_path / "parts", "best"))
    (tmp_path / "parts" / "model" / "best.safetensors").unlink()  # what the next stage begins with is saved already
    run(tmp_path / "parts", lr=2.0, resume=True)
    assert same(stored(tmp_path / "whole"), stored(tmp_path / "parts"))


def test_best_by_energy_distance(tmp_path: Path) -> None:
    done = run(tmp_path, lr=0.3)
    first, second = done.rows[:15], [row for row in done.rows[15:] if row["val/ged"]]
    assert not any(row["val/ged"] for row in first)
    assert len(second) == 4  # steps 16, 18, 20 and the last
    distances = [float(row["val/ged"]) for row in second]
    told_by_run = json.loads((tmp_path / "train.json").read_text())
    assert (told_by_run["selects"], told_by_run["best_score"]) == ("ged", pytest.approx(-min(distances)))
    assert all(0 <= float(row["val/hm_iou"]) <= 1 and float(row["val/sample_diversity"]) >= 0 for row in second)
    assert done.method.seeds == [*range(4)] * 4
    assert float(stored(tmp_path, "best")["level"]) != 0


def test_last_is_best_where_nothing_selects(tmp_path: Path) -> None:
    done = run(tmp_path, TwoStages(selects="last"), lr=2.0, patience=1)
    assert same(stored(tmp_path), stored(tmp_path, "best"))
    assert len(done.rows) == 21
    assert done.rows[-1]["val/ged"]


def test_patience_ends_the_last_stage_alone(tmp_path: Path) -> None:
    done = run(tmp_path, TwoStages(selects="dice"), patience=2, lr=0.0)
    assert [row["stage"] for row in done.rows] == ["one"] * 15 + ["two"] * 5  # validated at 16, 18 and 20
    assert "2 validations" in json.loads((tmp_path / "train.json").read_text())["stopped_by"]


def test_validations_by_epochs(tmp_path: Path) -> None:
    done = run(tmp_path, validate_epochs=2)
    assert [int(row["step"]) for row in done.rows if row["val/dice"]] == [10, 15, 19, 21]


def test_a_longer_run_goes_on_with_its_last_stage(tmp_path: Path) -> None:
    run(tmp_path)
    done = run(tmp_path, epochs=8, resume=True)
    assert [row["stage"] for row in done.rows] == ["one"] * 15 + ["two"] * 10


def test_durations_of_stages_with_epochs_of_their_own() -> None:
    config = make_config(steps=0, epochs=200).train
    stages = (Stage("one", (), 0.5), Stage("two", (), 0.5, images=500))
    duration = Duration.of(config, stages, [906, 50])
    assert duration.end(Position()) == 90_600 + 5_000
    assert duration.stage_end(Position(step=7)) == 90_600
    at = Position(step=93_100, stage=1, stage_step=90_600, stage_epoch=100.0)
    assert (duration.end(at), duration.used(at), duration.share(at), duration.epochs(at)) == (95_600, 0.5, 0.75, 150)
    short = Duration.of(dataclasses.replace(config, stop_epoch=120), stages, [906, 50])
    assert (short.end(Position()), short.finished(at)) == (91_600, True)
    with pytest.raises(InputError, match=r"train\.stop_epoch"):
        Duration.of(dataclasses.replace(config, stop_epoch=201), stages, [906, 50])


def test_first_slices_need_plain_batches() -> None:
    with pytest.raises(InputError, match="stage 'two' of the first 4 slices"):
        stage_source(object(), Stage("two", (), images=4))  # type: ignore[arg-type]


def test_eps_of_a_group() -> None:
    method = TwoStages()
    own = ParamGroup((method.level,), eps=1e-4)
    stage = Stage("all", (own, ParamGroup(tuple(method.body.parameters()))))
    for name in ("adam", "adamw"):
        groups = build_optimizer(make_config(optimizer=name, eps=1e-6).train, stage).param_groups
        assert [group["eps"] for group in groups] == [1e-4, 1e-6]
    assert all("eps" not in group for group in build_optimizer(make_config(optimizer="sgd").train, stage).param_groups)


def test_dice_against_the_annotators_who_drew() -> None:
    truth = torch.zeros(2, 3, 1, 2, 4, dtype=torch.bool)
    truth[0, 0, 0, 0], truth[0, 1, 0, 0, :2] = True, True
    logits = torch.full((2, 1, 2, 4), -1.0)
    logits[:, :, 0] = 1.0
    batch = Batch(torch.zeros(2, 3, 2, 4), truth[:, 0], ("a", "b"), ("x",), annotations=truth)
    scores = dice(logits, batch)
    assert scores[0].tolist() == pytest.approx([(1 + 2 * 2 / 6) / 2])
    assert scores[1].isnan().all()


def test_samples_are_compared_with_the_annotations_that_are_there() -> None:
    class Slices(Annotated):
        def batch(self, indices: Sequence[int], rank: int = 0, world: int = 1) -> Batch:
            batch = super().batch(indices)
            assert batch.drawn is not None
            known = batch.drawn.clone()
            known[:, 1] = False
            known[[i for i, index in enumerate(indices) if index == 2]] = False
            return dataclasses.replace(batch, drawn=known)

    class Knows(TwoStages):
        def sample(self, batch: Batch, seeds: Sequence[int], count: int) -> Tensor:
            assert batch.annotations is not None
            return batch.annotations[:, :1].float().expand(-1, count, -1, -1, -1) - 0.5

    perfect = {"val/ged": 0.0, "val/sample_diversity": 0.0, "val/hm_iou": 1.0}
    assert ambiguity(Knows(), Slices(3), 4, 2, torch.device("cpu")) == perfect
    assert told(perfect | {"val/dice": 0.5}) == "GED 0.000, sample diversity 0.000, HM-IoU 1.000, Dice 0.500"
    cut = ambiguity(Knows(), Annotated(3), 4, 2, torch.device("cpu"))
    assert cut["val/ged"] > 0


def test_pictures_of_samples(tmp_path: Path) -> None:
    run(tmp_path, pictures_every=20)
    assert np.frombuffer((tmp_path / "pictures" / "samples_000020.png").read_bytes()[16:24], ">u4")[1] > 600  # two rows


def test_what_counts_as_augmentation() -> None:
    assert not changes(AugmentConfig())
    assert all(changes(AugmentConfig(**one)) for one in ({"flip": 0.5}, {"intensity": 0.1}, {"policy": "samed"}))
