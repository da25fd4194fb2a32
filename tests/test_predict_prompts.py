"""Where points of inference come from, folders and commands, and SPD itself from end to end."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import samsans
from discs_method import LESION, bright, disc, kept, segmenter
from samsans import cli, io, methods
from samsans import config as configuration
from samsans.config import DataConfig, PromptConfig
from samsans.data.cases import find_cases
from samsans.data.classes import write_classes
from samsans.data.slices import SliceDataset
from samsans.errors import InputError
from samsans.inference.prompts import Prompting, as_points, placed
from samsans.inference.slices import SliceJob
from samsans.methods.weights import save_weights
from samsans.training.prompts import VolumePrompts
from samsans.types import Batch, Volume

CLICKS = np.array([[4, 10, 20], [8, 5, 6]])


def shown(labels: np.ndarray) -> list[int]:
    return [t for t, part in enumerate(labels) if part.any()]


# -- folders ----------------------------------------------------------------------------------------------------------


def tubes(folder: Path, count: int = 2, depth: int = 8) -> Path:
    """Bright tubes in the middle of dark volumes, with masks and, in ``points``, a click in every other slice."""
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    for part in ("images", "labels", "points"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((depth, 36, 48), np.uint8)
        mask[2:6] = disc(36, 48, 16 + 2 * i, 20, 6)
        image = (mask * 180 + rng.integers(0, 40, mask.shape)).astype(np.uint8)
        for part, array in (("images", image), ("labels", mask)):
            nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), folder / part / f"c{i}.nii.gz")
        rows = "".join(f"20,{16 + 2 * i},{z}\n" for z in range(0, depth, 2))
        (folder / "points" / f"c{i}.csv").write_text("x,y,z\n" + rows)
    return folder


def test_files_beside_the_images(tmp_path: Path) -> None:
    data, out = tubes(tmp_path / "data"), tmp_path / "out"
    model = segmenter(tmp_path / "run", neighbours=1)
    manifest = model.predict_folder(data, out)
    assert not manifest.failures
    assert "points: given on 8 slices, all turned down on 4; 8 decoded with some" in manifest.text()
    for i in range(2):
        labels = io.read_labels(out / f"c{i}.nii.gz").array
        assert shown(labels) == [2, 3, 4, 5]
        assert labels[3, 16 + 2 * i, 20] == 2
    told = json.loads((out / "manifest.json").read_text())
    assert told["options"]["prompts"] == {"source": "files", "keep": None}
    assert told["cases"]["c0"]["prompts"] == {
        **{"source": "files", "keep": None, "points": 4},
        **{"slices_given": 4, "slices_silenced": 2, "slices_prompted": 4, "points_shown": 4},
    }
    assert model.predict_folder(data, out).skipped == ("c0", "c1")
    (data / "points/c1.csv").write_text("x,y,z\n20,20,3\n")
    assert segmenter(tmp_path / "run", neighbours=1).predict_folder(data, out).skipped == ("c0",)
    assert shown(io.read_labels(out / "c1.nii.gz").array) == [2, 3, 4]
    with pytest.raises(InputError, match="other weights, supports or options"):
        model.predict_folder(data, out, prompt_noise="L2")


def test_a_template_and_single_files(tmp_path: Path) -> None:
    data = tubes(tmp_path / "data")
    (data / "points").rename(data / "clicks")
    model = segmenter()
    with pytest.raises(InputError, match="no point prompts in"):
        segmenter(prompts=PromptConfig(source="files")).predict_folder(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.predict_folder(data, tmp_path / "out", points="clicks/{stem}.csv")
    file = data / "images/c0.nii.gz"
    model.predict_folder([file], tmp_path / "one", points=str(data / "clicks") + "/{stem}.csv")
    alone = model.predict(file, points=data / "clicks/c0.csv").labels
    for folder in ("out", "one"):
        np.testing.assert_array_equal(io.read_labels(tmp_path / folder / "c0.nii.gz").array, alone)


def test_simulated_from_the_masks(tmp_path: Path) -> None:
    data, out = tubes(tmp_path / "data"), tmp_path / "out"
    model = segmenter(distill="none")
    clean = model.predict_folder(data, out, prompt_noise="L0").records["c0"].prompts
    statistics = {
        "points": 8,
        "on_target": 8,
        "slices": 8,
        "object_slices": 4,
        "reached": 4,
        "misled": 0,
        "unprompted": 4,
    }
    assert clean == {
        **{"source": "noise", "keep": None, "level": "L0", "mode": "hard", "draw": 0},
        **statistics,
        **{"slices_given": 4, "slices_silenced": 0, "slices_prompted": 4, "shown": statistics},
    }
    labels = io.read_labels(out / "c0.nii.gz").array
    assert shown(labels) == [2, 3, 4, 5]
    assert labels[3, 16, 20] == 2
    drawn = [
        model.predict_folder(data, tmp_path / f"{draw}", prompt_noise="L4", seed=draw, prompt_mode="uniform")
        for draw in (3, 3, 4)
    ]
    first, again, other = (
        {k: (r.prompts, io.read_labels(m.folder / r.output).array.tolist()) for k, r in m.records.items()}
        for m in drawn
    )
    assert first == again
    assert first != other
    assert {k: first["c0"][0][k] for k in ("level", "mode", "draw")} == {"level": "L4", "mode": "uniform", "draw": 3}
    assert first["c0"][0]["on_target"] < first["c0"][0]["points"]


@pytest.mark.parametrize("mode", ["hard", "uniform"])
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_the_points_of_training(mode: str, resize: str, tmp_path: Path) -> None:
    data = find_cases(DataConfig(path=str(tubes(tmp_path))))
    model = segmenter()
    model.preprocess = replace(model.preprocess, resize=resize)
    slices = SliceDataset(data, [case.id for case in data.cases], model.preprocess)
    for source, prompting in (("noise", Prompting("noise", "L4", mode, 2)), ("files", Prompting("files"))):
        trained = VolumePrompts(
            slices, PromptConfig(source=source, level="L4", mode=mode), lambda _, points: list(points)
        )
        for case in data.cases:
            job = model.open(case.id, data.read_image(case), None, ())
            assert isinstance(job, SliceJob)
            given = prompting.prompt(data, case, job, model.preprocess, data.classes, False).points
            for ours, theirs in zip(given, trained.raw(case.id, 2), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_prompts_as_the_run_has_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tubes(tmp_path / "data")
    noise = segmenter(prompts=PromptConfig(source="noise", level="L1", draw=5, keep=1))
    prompts = noise.predict_folder(data, tmp_path / "noise").records["c1"].prompts
    assert {k: prompts[k] for k in ("source", "level", "draw", "keep")} == {
        **{"source": "noise", "level": "L1", "draw": 5, "keep": 1}
    }
    assert segmenter().predict_folder(data, tmp_path / "files").records["c1"].prompts["source"] == "files"
    assert not caplog.text
    for file in (data / "points").iterdir():
        file.unlink()
    (data / "points").rmdir()
    assert segmenter().predict_folder(data, tmp_path / "auto").records["c1"].prompts["level"] == "L2"
    assert "they are simulated from its masks (L2)" in caplog.text
    (data / "labels/c1.nii.gz").unlink()
    for told in ({}, {"prompt_noise": "L2"}):
        with pytest.raises(InputError, match="c1 has neither points nor a mask"):
            segmenter().predict_folder(data, tmp_path / "failed", **told)
    for told, said in (
        ({"prompt_noise": "L7"}, "one of L0, L1"),
        ({"prompt_noise": "L2", "prompt_mode": "soft"}, "hard or uniform"),
        ({"prompt_noise": "L2", "points": "p/{stem}.csv"}, "one of the two"),
    ):
        with pytest.raises(InputError, match=said):
            segmenter().predict_folder(data, tmp_path / "failed", **told)
    assert not (tmp_path / "failed").exists()


def test_pictures_share_batches(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    for i in range(5):
        Image.fromarray(bright(1)[0]).save(tmp_path / f"p{i}.png")
        (tmp_path / f"points/p{i}.csv").write_text(f"x,y\n{5 + 4 * i},9\n" if i != 3 else "x,y\n")
    model = segmenter()
    manifest = model.predict_folder(tmp_path, tmp_path / "out", batch_size=4)
    assert model.method.encoded == [4, 1]
    for i in range(5):
        labels = io.read_labels(manifest.outputs[f"p{i}"]).array[0]
        np.testing.assert_array_equal(labels == 2, disc(32, 32, 9, 5 + 4 * i, 3) & (i != 3))


# -- the method itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of SPD whose saliency, of random features, lets about half of all points through."""
    folder = tmp_path_factory.mktemp("spd")
    told = {
        "backbone.name": "tiny",
        "backbone.input_size": 64,
        "model.head_bias": 0.0,
        "data.window": [0, 255],
        "data.levels": "volume",
    }
    config = configuration.from_dict(told, method="spd", preset="paper")
    method = methods.build(config, ["lesion"])
    method.begin(method.stages(config)[1], augmented=False)
    (folder / "model").mkdir()
    (folder / "config.yaml").write_text(configuration.dump(config))
    write_classes(folder / "classes.json", LESION)
    save_weights(method, folder / "model" / "last.safetensors")
    return folder


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    volume = rng.integers(0, 255, (12, 8, 8)).repeat(6, 1).repeat(6, 2).astype(np.uint8)
    clicks = np.column_stack([rng.integers(0, 12, 30), rng.integers(0, 48, 30), rng.integers(0, 48, 30)])
    return volume, clicks


def test_spd_cached_and_not(run: Path, scan: tuple[np.ndarray, np.ndarray]) -> None:
    volume, clicks = scan
    made = [
        samsans.load(run, device="cpu").predict(volume, points=clicks, probabilities=True, cache=cache)
        for cache in (False, True, True)
    ]
    assert len(kept(run)) == 2
    assert made[0].labels.any()
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].labels, other.labels)
        np.testing.assert_array_equal(made[0].probabilities, other.probabilities)


@pytest.mark.parametrize("t", [0, 5, 11])
def test_spd_an_edit_stays_within_reach(t: int, run: Path, scan: tuple[np.ndarray, np.ndarray]) -> None:
    volume, clicks = scan
    model = samsans.load(run, device="cpu")
    before = model.predict(volume, points=clicks, probabilities=True).probabilities
    everywhere = np.array([[t, y, x] for y in range(3, 48, 6) for x in range(3, 48, 6)])
    after = model.predict(volume, points=np.concatenate([clicks, everywhere]), probabilities=True).probabilities
    changed = [i for i in range(12) if (before[:, i] != after[:, i]).any()]
    assert set(changed) <= set(range(t - 2, t + 3))
    assert t in changed
    assert len(changed) > 1


def test_spd_without_points(run: Path, scan: tuple[np.ndarray, np.ndarray]) -> None:
    assert not samsans.load(run, device="cpu").predict(scan[0], points=[]).labels.any()


def test_spd_whose_prior_is_one_everywhere_is_sam(run: Path, scan: tuple[np.ndarray, np.ndarray]) -> None:
    volume, clicks = scan
    model = samsans.load(run, device="cpu")
    model.cache = None  # the weights are no longer those of the run
    model.method.head.last.bias.data.fill_(80.0)
    model.method.config.neighbours = 0
    judged = model.predict(volume, points=clicks, probabilities=True).probabilities
    assert judged is not None
    given = placed(
        as_points(clicks, Volume(volume)), model.open("a", Volume(volume[..., None]), None, ()), model.preprocess
    )
    for t, rows in enumerate(given):
        image = model.preprocess.image(volume[t, ..., None], (np.zeros(1, np.float32), np.full(1, 255, np.float32)))
        points = (torch.from_numpy(rows).float(),)
        batch = Batch(model.preprocess.normalize(image[None]), None, ("a",), ("lesion",), points=points)
        native = model.preprocess.restore(model.method.predict(batch)[0], (64, 64), (48, 48))
        np.testing.assert_allclose(judged[0, t], native[0].sigmoid(), atol=2e-3)


def test_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tubes(tmp_path / "data")
    (data / "points").rename(data / "clicks")
    before = kept(run)

    def call(out: str, *options: str) -> int:
        return cli.main(["predict", str(run), "-i", str(data), "-o", str(tmp_path / out), "--device", "cpu", *options])

    assert call("files", "--points", "clicks/{stem}.csv", "--no-cache") == 0
    assert kept(run) == before
    assert call("noise", "--prompt-noise", "L3", "--prompt-mode", "uniform", "--seed", "2") == 0
    assert len(kept(run) - before) == 4
    told = json.loads((tmp_path / "noise/manifest.json").read_text())
    assert told["options"]["prompts"] == {
        **{"source": "noise", "keep": None, "level": "L3", "mode": "uniform", "draw": 2}
    }
    assert told["cases"]["c0"]["prompts"]["object_slices"] == 4
    assert call("again", "--prompt-noise", "L3", "--prompt-mode", "uniform", "--seed", "2") == 0
    told = json.loads((tmp_path / "again/manifest.json").read_text())
    assert told["cases"]["c0"]["prompts"]["kept"] == "consensus"
    for name in ("c0.nii.gz", "c1.nii.gz"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "noise" / name).read_bytes()
    capsys.readouterr()
    for options, said in (
        (["--prompt-noise", "L9"], "prompt noise 'L9'. Expected one of L0"),
        (["--points", "nowhere/{stem}.csv"], "no image has points"),
        (["--points", "clicks/{stem}.csv", "--prompt-noise", "L1"], "one of the two"),
    ):
        assert call("failed", *options) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not os.path.exists(tmp_path / "failed")
