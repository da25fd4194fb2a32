"""Folders: outputs, manifest, background reading, bad files, interruption and going on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from samsans import config as configuration
from samsans import io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.data.classes import read_classes
from samsans.errors import InputError
from samsans.inference import Manifest, Segmenter
from samsans.inference.pipeline import Behind, ahead
from samsans.types import Progress
from threshold_method import DISC_CUP, Threshold, picture, run_config, segmenter, write_pictures, write_run

PAIR = [picture(100)]


def write_volume(path: Path, shape: tuple[int, int, int] = (12, 10, 6)) -> np.ndarray:
    """A NIfTI file with a bright block; its mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(shape, np.uint8)
    mask[3:8, 3:8, 1:4] = 1
    nibabel.save(nibabel.Nifti1Image((20 + 100 * mask).astype(np.int16), np.diag([1.0, 1, 3, 1])), path)
    return mask


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_outputs_of_a_mixed_folder(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    for name in ("a.png", "sub/b.jpg", "sub/c.bmp"):
        (inputs / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(len(name), 40 + len(name))[0]).save(inputs / name)
    write_volume(inputs / "sub/v.nii.gz")
    seen: list[Progress] = []
    manifest = segmenter().predict_folder(inputs, tmp_path / "out", support=PAIR, on_progress=seen.append)
    beside = {"classes.json", "config.yaml", "manifest.json"}
    assert files(tmp_path / "out") == {"a.png", "sub/b.png", "sub/c.png", "sub/v.nii.gz"} | beside
    assert not manifest.failures
    assert set(manifest.outputs) == {"a", "sub/b", "sub/c", "sub/v"}
    with Image.open(tmp_path / "out/a.png") as image:
        assert image.mode == "P"
        assert image.size == (48, 45)
        assert set(np.unique(np.asarray(image))) == {0, 1, 2}
    written = nibabel.load(tmp_path / "out/sub/v.nii.gz")
    assert written.shape == (12, 10, 6)
    assert written.get_data_dtype() == np.uint8
    assert read_classes(tmp_path / "out/classes.json") == DISC_CUP
    assert [(p.done, p.total) for p in seen] == [(i, 4) for i in (1, 2, 3, 4)]


def test_label_maps_do_not_depend_on_the_company(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 5, sizes=True)
    alone = segmenter()
    segmenter().predict_folder(data, tmp_path / "out", support=PAIR, batch_size=3)
    for i in range(5):
        written = io.read_labels(tmp_path / f"out/c{i}.png").array
        assert written.shape == (1, 40 + 3 * i, 48 + i)
        assert np.array_equal(written, alone.predict(data / f"images/c{i}.png", PAIR).labels)


def test_images_are_batched_where_they_share_their_supports(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 5, sizes=True)
    model = segmenter()
    model.predict_folder(data, tmp_path / "out", support=PAIR, batch_size=2)
    assert [size for size, _ in model.method.batches] == [2, 2, 1]


def test_every_image_has_its_own_draw(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 8)
    supports = [picture(n) for n in range(100, 108)]
    sizes, written = [], []
    for mixes in (False, True):
        model = Segmenter(Threshold(bank_per_image=mixes), run_config(k_test=1), DISC_CUP, device="cpu")
        manifest = model.predict_folder(data, tmp_path / str(mixes), support=supports, batch_size=4)
        found = model.supports(supports, None)
        for name, record in manifest.records.items():
            assert record.supports == found.bank.select(found.draw(name, 1, 0)).ids
        sizes.append([size for size, _ in model.method.batches])
        written.append([path.read_bytes() for _, path in sorted(manifest.outputs.items())])
    assert len({record.supports for record in manifest.records.values()}) > 2
    assert len(sizes[0]) > 2
    assert sizes[1] == [4, 4]
    assert written[0] == written[1]


def test_manifest_tells_what_was_done(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", ["c0", "c1"])
    model = Segmenter(Threshold(), run_config(data), DISC_CUP, run=run, device="cpu")
    model.predict_folder(data, tmp_path / "out", objects=["cup"], batch_size=2)
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert told["method"] == "threshold"
    assert told["backbone"]["name"] == "tiny"
    assert told["backbone"]["licence"] == "Apache-2.0"
    assert told["support"]["ids"] == ["c0", "c1"] or told["support"]["ids"] == ["c1", "c0"]
    assert told["options"]["objects"] == ["cup"]
    assert set(told["versions"]) == {"samsans", "torch", "transformers", "python"}
    assert told["versions"]["torch"] == torch.__version__
    assert (told["device"].split()[0], told["precision"]) == ("cpu", "fp32")
    case = told["cases"]["c0"]
    assert case["input"] == [str(data / "images/c0.png")]
    assert len(case["sha256"]) == 64
    assert case["output"] == "c0.png"
    assert case["supports"] == ["c1"]  # never its own pair
    assert {"read", "prepare", "model", "decode", "restore", "write"} == set(case["seconds"])
    assert told["seconds"]["model"] >= 0
    call = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert call["inputs"] == str(data)
    assert call["seed"] == 0
    again = Manifest.load(tmp_path / "out")
    assert again.records.keys() == told["cases"].keys()


def test_probabilities_are_written_beside(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    Image.fromarray(picture(1)[0]).save(inputs / "sub name.png")
    write_volume(inputs / "v.nii.gz")
    segmenter().predict_folder(inputs, tmp_path / "out", support=PAIR, probabilities=True)
    soft = tmp_path / "out/probabilities"
    assert files(soft) == {"sub name_disc.png", "sub name_cup.png", "v_disc.nii.gz", "v_cup.nii.gz"}
    labels = io.read_labels(tmp_path / "out/sub name.png").array
    cup = io.read_image(soft / "sub name_cup.png").array[..., 0]
    assert cup.dtype == np.uint16
    assert np.array_equal(labels == 2, cup > 65535 / 2)
    image = nibabel.load(soft / "v_disc.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert 0 <= image.get_fdata().min() <= image.get_fdata().max() <= 1


def test_bad_files_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4, labels=False)
    (data / "images/c1.png").write_bytes((data / "images/c1.png").read_bytes()[:60])
    (data / "images/empty.nii.gz").touch()
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 3, 5), np.int16), np.eye(4)), data / "images/five.nii.gz")
    manifest = segmenter().predict_folder(data / "images", tmp_path / "out", support=PAIR)
    assert set(manifest.failures) == {"c1", "empty", "five"}
    assert all(f"{id}." in message for id, message in manifest.failures.items())
    assert set(manifest.outputs) == {"c0", "c2", "c3"}
    assert manifest.text().startswith(f"3 segmented, 0 there already, {len(manifest.failures)} failed")
    assert "\n  c1: " in manifest.text()
    assert all(path.is_file() for path in manifest.outputs.values())
    assert json.loads((tmp_path / "out/manifest.json").read_text())["failures"] == manifest.failures


def test_missing_file_in_a_list(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 2)
    inputs = [data / "images/c0.png", data / "images/gone.png", data / "images/c1.png"]
    manifest = segmenter().predict_folder(inputs, tmp_path / "out", support=PAIR)
    assert set(manifest.outputs) == {"c0", "c1"}
    assert "does not exist" in manifest.failures["gone"] or "No such file" in manifest.failures["gone"]


def break_after(model: Segmenter, calls: int) -> Segmenter:
    """A model whose power fails in the middle of call ``calls + 1``."""
    predict: Callable[..., Any] = model.method.predict

    def failing(batch: Any, support: Any = None) -> Any:
        if len(model.method.batches) == calls:
            raise KeyboardInterrupt
        return predict(batch, support)

    model.method.predict = failing
    return model


def test_interrupted_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 5)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        break_after(segmenter(), 3).predict_folder(data, out, support=PAIR, batch_size=1)
    assert files(out) == {"c0.png", "c1.png", "c2.png", "classes.json", "config.yaml", "manifest.json"}
    before = {name: (out / name).stat().st_mtime_ns for name in ("c0.png", "c1.png", "c2.png")}
    model = segmenter()
    manifest = model.predict_folder(data, out, support=PAIR, batch_size=1)
    assert manifest.skipped == ("c0", "c1", "c2")
    assert len(model.method.batches) == 2
    assert set(manifest.records) == {f"c{i}" for i in range(5)}
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    segmenter().predict_folder(data, tmp_path / "whole", support=PAIR)
    for i in range(5):
        assert (out / f"c{i}.png").read_bytes() == (tmp_path / f"whole/c{i}.png").read_bytes()


def test_changed_input_and_lost_output_are_done_again(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 3)
    out = tmp_path / "out"
    segmenter().predict_folder(data, out, support=PAIR)
    Image.fromarray(picture(77)[0]).save(data / "images/c0.png")
    (out / "c1.png").unlink()
    manifest = segmenter().predict_folder(data, out, support=PAIR)
    assert manifest.skipped == ("c2",)
    assert np.array_equal(io.read_labels(out / "c0.png").array[0], segmenter().predict(picture(77)[0], PAIR).labels[0])
    assert segmenter().predict_folder(data, out, support=PAIR, overwrite=True).skipped == ()


def test_other_weights_supports_or_options_never_mix(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1)
    out = tmp_path / "out"
    segmenter().predict_folder(data, out, support=PAIR)
    before = (out / "c0.png").read_bytes()
    for options in ({"support": [picture(7)]}, {"support": PAIR, "objects": ["cup"]}, {"support": PAIR, "seed": 9}):
        with pytest.raises(InputError, match="other weights, supports or options"):
            segmenter().predict_folder(data, out, **options)
    with pytest.raises(InputError, match="other weights"):
        segmenter(size=48).predict_folder(data, out, support=PAIR)
    assert (out / "c0.png").read_bytes() == before
    manifest = segmenter().predict_folder(data, out, support=PAIR, objects=["cup"], overwrite=True)
    assert not manifest.skipped
    assert 1 not in np.unique(io.read_labels(out / "c0.png").array)


def test_files_of_others_and_inputs_are_not_overwritten(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1, labels=False)
    with pytest.raises(InputError, match="overwrite an input"):
        segmenter().predict_folder(data / "images", data / "images", support=PAIR, overwrite=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "c0.png").write_text("drawn by hand")
    with pytest.raises(InputError, match="not made by this prediction"):
        segmenter().predict_folder(data, out, support=PAIR)
    assert files(out) == {"c0.png"}
    assert (out / "c0.png").read_text() == "drawn by hand"


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(0)[0]).save(tmp_path / folder / "same.png")
    with pytest.raises(InputError, match="both be written to same"):
        segmenter().predict_folder([tmp_path / "a/same.png", tmp_path / "b/same.png"], tmp_path / "out", support=PAIR)
    with pytest.raises(InputError, match="nothing to segment"):
        segmenter().predict_folder([], tmp_path / "out", support=PAIR)


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"cases": 3}')
    with pytest.raises(InputError, match="not a manifest"):
        segmenter().predict_folder(data, tmp_path / "out", support=PAIR)


def test_cases_of_a_data_set_and_stacks(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(picture(number)[0]).save(folder / f"head_{number}.png")
    stack = find_cases(DataConfig(path=str(folder), volume=r"(\w+)_(\d+)", spacing=[5, 1, 1]))
    segmenter().predict_folder(stack, tmp_path / "out", support=PAIR)
    made = io.read_labels(tmp_path / "out/head.nii.gz")
    assert made.shape == (3, 40, 48)
    assert made.spacing == (5, 1, 1)
    flat = find_cases(DataConfig(path=str(folder)))
    some = replace(flat, cases=flat.cases[:1])
    assert set(segmenter().predict_folder(some, tmp_path / "out2", support=PAIR).outputs) == {"head_0"}


def test_methods_without_prompts_never_read_the_masks(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 2)
    for mask in (data / "labels").iterdir():
        mask.write_bytes(b"not an image")
    manifest = segmenter().predict_folder(data, tmp_path / "out", support=PAIR)
    assert not manifest.failures
    with pytest.raises(InputError, match="needs no prompt"):
        segmenter().predict_folder(data, tmp_path / "out2", support=PAIR, labels=data / "labels")


def test_prompted_baseline_finds_its_labels(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 3)
    config = configuration.from_dict({"backbone.name": "tiny"}, method="prompted", preset="box")
    model = Segmenter.from_config(config, DISC_CUP, device="cpu")
    own = model.predict_folder(data, tmp_path / "own")
    given = model.predict_folder(data / "images", tmp_path / "given", labels=data / "labels")
    assert set(own.outputs) == set(given.outputs) == {"c0", "c1", "c2"}
    for name in own.outputs:
        assert own.outputs[name].read_bytes() == given.outputs[name].read_bytes()
    (data / "labels/c1.png").unlink()
    with pytest.raises(InputError, match="c1 has no true mask"):
        model.predict_folder(data / "images", tmp_path / "none", labels=data / "labels")
    assert not (tmp_path / "none").exists()


def test_reading_runs_ahead_and_keeps_the_order() -> None:
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        assert threading.current_thread() is not threading.main_thread()
        return number * 10

    stream = ahead(read, range(10), 3, lambda _: 1)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(started) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started == [0, 1, 2, 3]
    assert list(stream) == [10 * n for n in range(1, 10)]
    assert list(ahead(read, [], 3, lambda _: 1)) == []


def test_heavy_items_wait_one_at_a_time() -> None:
    started: list[int] = []
    stream = ahead(lambda n: started.append(n) or n, range(5), 4, lambda _: 4)
    assert next(stream) == 0
    time.sleep(0.05)
    assert len(started) <= 2
    stream.close()  # type: ignore[attr-defined]
    assert len(started) <= 2


def test_writing_behind_is_bounded_and_ordered() -> None:
    gate, done = threading.Event(), []

    def write(number: int) -> int:
        gate.wait(5)
        done.append(number)
        return number

    with Behind(write, 2) as behind:
        assert behind.put(0) == []
        assert behind.put(1) == []
        gate.set()
        out = [n for number in range(2, 6) for n in behind.put(number)]
        out += behind.rest()
    assert out == done == list(range(6))
