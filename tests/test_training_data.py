"""From cases to training slices: which are learned from, what their masks are, and what a resumed run reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from samsans import config as configuration
from samsans.config import RunConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.phantoms import write
from samsans.data.slices import SliceDataset
from samsans.data.splits import Split, few_slices, make_split
from samsans.errors import InputError
from samsans.inference import load
from samsans.training import data as training_data
from samsans.training import train
from samsans.training.data import read_data, stage_source
from samsans.types import Needs, Stage

EXCLUSIVE = Needs(exclusive=True)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes of six axial slices, an organ in slices 1 to 3."""
    folder = tmp_path_factory.mktemp("volumes")
    mask = np.zeros((20, 24, 6), np.uint8)
    mask[4:12, 6:16, 1:4] = 1
    rng = np.random.default_rng(0)
    for number in range(4):
        for kind, array in (("images", 100 * mask + rng.integers(0, 50, mask.shape, np.uint8)), ("labels", mask)):
            (folder / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 4, 1])), folder / kind / f"p{number}.nii.gz")
    return folder


def samed(data: Path, **options: Any) -> RunConfig:
    """SAMed on two blocks of 32 x 32 pixels."""
    values: dict[str, Any] = {"data.path": str(data), "backbone.name": "tiny", "backbone.input_size": 32}
    values |= {"backbone.via": None, "train.accelerator": "cpu", "train.pictures_every": 0, "train.batch_size": 4}
    values |= {"train.epochs": 3, "train.stop_epoch": 2, "train.warmup": 2}
    return configuration.from_dict(values | options, method="samed", preset="paper")


def parts(config: RunConfig) -> tuple[Dataset, Split]:
    dataset = find_cases(config.data)
    return dataset, make_split(dataset, config.split, config.seed)


def test_all_or_foreground_slices_are_learned_from(volumes: Path) -> None:
    for which, wanted in (("all", 18), ("foreground", 9)):
        config = samed(volumes, **{"split.slices": which, "split.val": 0.25})
        dataset, split = parts(config)
        data = read_data(dataset, split, config, EXCLUSIVE, 32)
        assert (len(data.train), len(data.val)) == (wanted, 6)
        assert data.train.class_pixels.sum() == wanted * 32 * 32
        assert data.train.class_pixels[1] == pytest.approx(9 * 32 * 32 * 80 / 480, rel=0.1)
        assert data.source.steps_per_epoch == -(-wanted // 4)


@pytest.mark.parametrize("foreground", [0.0, 0.75, 1.0])
def test_the_share_of_slices_with_objects_is_an_option(volumes: Path, foreground: float) -> None:
    config = samed(volumes, **{"train.foreground": foreground})
    data = read_data(*parts(config), config, EXCLUSIVE, 32)
    shown = [data.source.batch(step).masks.flatten(1).any(1).sum().item() for step in range(6)]  # type: ignore[union-attr]
    assert min(shown) >= 4 * foreground
    assert foreground > 0 or sum(shown) == 12  # each slice once


def test_masks_of_exclusive_methods_do_not_overlap(tmp_path: Path) -> None:
    config = samed(write("fundus", tmp_path, n=4, size=64), **{"split.val": 0.5})
    dataset, split = parts(config)
    for exclusive in (True, False):
        data = read_data(dataset, split, config, Needs(exclusive=exclusive), 32)
        for batch in (data.source.batch(0), data.train.batch([0, 1]), data.val.batch([0])):
            assert batch.masks is not None
            assert batch.masks.any(dim=(2, 3)).all()
            assert bool((batch.masks.sum(1) > 1).any()) is not exclusive


def test_images_are_shown_by_the_statistics_of_the_run(volumes: Path) -> None:
    for statistics, low, high in (("unit", 0.0, 1.0), ("sam", -2.2, 2.7)):
        config = samed(volumes, **{"backbone.statistics": statistics})
        data = read_data(*parts(config), config, EXCLUSIVE, 32)
        for images in (data.train.batch([2, 3]).images, data.source.batch(0).images):
            assert low <= images.min() < low + 0.2
            assert high - 0.3 < images.max() <= high


def test_a_share_of_the_slices_is_drawn_once_and_kept(tmp_path: Path, volumes: Path) -> None:
    config = samed(volumes, **{"split.slices": "foreground", "split.slice_share": 0.5, "split.val": 0.25})
    dataset, split = parts(config)
    names = [f"{id}#{index:03d}" for id in split.train for index in (1, 2, 3)]
    data = read_data(dataset, split, config, EXCLUSIVE, 32)
    assert data.drawn == few_slices(names, 0.5, config.seed)
    assert (len(data.drawn), len(data.train)) == (4, 4)
    assert data.train.class_pixels.sum() == 4 * 32 * 32
    again = dataclasses.replace(split, slices=tuple(names[:5]))
    data_again = read_data(dataset, again, config, EXCLUSIVE, 32, complete=True)
    assert (data_again.drawn, len(data_again.train)) == ((), 5)
    assert read_data(dataset, split, samed(volumes), EXCLUSIVE, 32).drawn == ()

    run = train(config, tmp_path / "run")
    written = json.loads((run / "split.json").read_text())
    assert written["slices"] == list(data.drawn)
    assert json.loads((run / "train.json").read_text())["steps"] == 2  # 4 slices: one batch an epoch
    ids = split.train[:2]
    written["train"], written["slices"] = list(ids), [f"{id}#{index:03d}" for id in ids for index in (1, 2, 3)][:5]
    (run / "split.json").write_text(json.dumps(written))  # whatever would be drawn now
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_epoch=3)), run, resume=True)
    assert json.loads((run / "split.json").read_text()) == written
    assert json.loads((run / "train.json").read_text())["steps"] == 6  # 5 slices: two batches an epoch


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("lr", -1.0), ("betas", [0.9]), ("betas", [0.9, 1.0]), ("eps", -1.0), ("weight_decay", -1.0)),
        ("momentum", -0.1),
        *(("warmup", -1), ("validate_every", -1), ("pictures_every", -1), ("workers", -1), ("devices", 0)),
    ],
)
def test_options_that_no_training_can_have(tmp_path: Path, volumes: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"train\.{key} is"):
        train(samed(volumes, **{f"train.{key}": value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masks_are_scanned_once(tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    scan = SliceDataset._scan
    monkeypatch.setattr(SliceDataset, "_scan", lambda self, case: (scanned.append(case.id), scan(self, case))[1])
    train(samed(volumes, **{"split.slice_share": 0.5, "split.val": 0.25}), tmp_path / "run")
    assert sorted(scanned) == ["p0", "p1", "p2", "p3"]


def test_slices_are_drawn_even_when_another_process_writes_the_split_meanwhile(
    tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = samed(volumes, **{"split.slices": "foreground", "split.slice_share": 0.5, "split.val": 0.25})

    def decided_late(*args: Any) -> Split:
        split = make_split(*args)
        split.save(tmp_path / "run" / "split.json")
        return split

    monkeypatch.setattr(training_data, "make_split", decided_late)
    run = train(config, tmp_path / "run")
    assert len(json.loads((run / "split.json").read_text())["slices"]) == 4
    assert json.loads((run / "train.json").read_text())["steps"] == 2


def test_held_out_slices_are_prepared_as_in_predicting(volumes: Path) -> None:
    config = samed(volumes, **{"split.val": 0.25, "backbone.via_predict": 4, "backbone.resampling": "linear"})
    data = read_data(*parts(config), config, EXCLUSIVE, 32)
    fine, coarse = (slices.batch([2]).masks for slices in (data.train, data.val))
    assert fine is not None
    assert coarse is not None
    assert torch.equal(coarse, coarse[..., ::8, ::8].repeat_interleave(8, -1).repeat_interleave(8, -2))
    assert not torch.equal(fine, fine[..., ::8, ::8].repeat_interleave(8, -1).repeat_interleave(8, -2))


def test_hsam_resumes_to_the_last_bit_and_keeps_what_it_observed(tmp_path: Path, volumes: Path) -> None:
    values = {"data.path": str(volumes), "backbone.name": "tiny", "backbone.input_size": 32, "train.batch_size": 8}
    values |= {"train.accelerator": "cpu", "train.pictures_every": 0, "train.epochs": 2, "train.warmup": 2}
    values |= {"split.slices": "foreground"}
    config = configuration.from_dict(values, method="hsam", preset="paper")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_epoch=1))
    train(config, tmp_path / "whole")
    train(short, tmp_path / "parts")
    train(config, tmp_path / "parts", resume=True)
    whole, resumed = (load_file(tmp_path / run / "model" / "last.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    dataset, split = parts(config)
    pixels = read_data(dataset, split, config, EXCLUSIVE, 32).train.class_pixels
    assert resumed["cmattn.pixels"].tolist() == pixels.tolist()
    model = load(tmp_path / "parts", device="cpu")
    image = dataset.read_image(dataset.cases[0])
    labels = {view: model.predict(image, view=view).labels for view in (None, *model.views)}
    assert {"stage1", "stage2"} < labels.keys()
    np.testing.assert_array_equal(labels[None], labels["logit_mean"])


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of two annotators; on the third nobody drew anything, the fourth has the first annotator alone."""
    folder = tmp_path_factory.mktemp("annotated")
    for name in ("images", "labels_a", "labels_b"):
        (folder / name).mkdir()
    for number in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = number != 2
        Image.fromarray(100 * mask + number).save(folder / f"images/p{number}.png")
        Image.fromarray(mask).save(folder / f"labels_a/p{number}.png")
        if number != 3:
            mask[8:12] = 0
            Image.fromarray(mask).save(folder / f"labels_b/p{number}.png")
    return folder


def prob_unet(data: Path, **options: Any) -> RunConfig:
    values: dict[str, Any] = {"data.path": str(data), "backbone.input_size": 32, "train.batch_size": 3}
    values |= {"split.test": 0.0, "split.val": 0.0, "train.accelerator": "cpu"}
    return configuration.from_dict(values | options, method="prob_unet", preset="scratch")


def test_all_annotators_are_read_where_a_method_learns_from_them(annotated: Path) -> None:
    config = prob_unet(annotated, **{"model.train_on_empty": False, "split.val": 0.25})
    dataset, split = parts(config)
    split = dataclasses.replace(split, train=("p0", "p1", "p2", "p3"), val=("p2", "p4"))
    needs = Needs(annotators=True, samples=True)
    data = read_data(dataset, split, config, needs, 32)
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.notes == ("1 of 4 slices, on which nothing is drawn, are left out",)
    train_batch, source_batch = data.train.batch([0, 1, 2]), data.source.batch(0)
    for batch in (train_batch, source_batch):
        assert batch.annotations is not None
        assert batch.masks is not None
        assert batch.drawn is not None
        assert batch.annotations.shape == (3, 2, 1, 32, 32)
        assert torch.equal(batch.annotations[:, 0], batch.masks)
        assert dict(zip(batch.ids, batch.drawn.tolist(), strict=True))["p3"] == [True, False]
    assert train_batch.annotations is not None
    assert train_batch.annotations[0].sum((1, 2, 3)).tolist() == [144, 96]
    held_out = data.val.batch([0]).annotations
    assert held_out is not None
    assert not held_out.any()
    everything = read_data(dataset, split, prob_unet(annotated), needs, 32)
    assert (len(everything.train), everything.notes) == (4, ())
    assert read_data(dataset, split, config, Needs(), 32).train.batch([0]).annotations is None


def test_a_stage_may_learn_from_the_first_slices_alone(annotated: Path) -> None:
    config = prob_unet(annotated, **{"train.foreground": 1.0})
    source = read_data(*parts(config), config, Needs(annotators=True), 32).source
    first = stage_source(source, Stage("two", (), images=4))
    assert (source.steps_per_epoch, first.steps_per_epoch) == (3, 2)
    assert stage_source(source, Stage("one", ())) is source
    seen = [first.batch(step).ids for step in range(8)]
    assert {name for ids in seen for name in ids} == {"p0", "p1", "p3"}  # the third shows nothing, and is replaced
    assert seen == [first.batch(step).ids for step in range(8)]
    assert stage_source(source, Stage("all", (), images=99)).steps_per_epoch == 3
    with pytest.raises(InputError, match="the first 0 training slices"):
        stage_source(source, Stage("none", (), images=0))
