"""Videos through prediction: as single images, bounded memory, numbers and gaps, going on, switching, the command."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UltrasoundMultiFrameImageStorage

from samsans import api, cli, io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.errors import InputError
from samsans.inference import Manifest, Segmenter, VideoSegmenter, predict_video
from samsans.inference import video_folders as folders
from samsans.inference.video_folders import find_videos, predict_videos
from samsans.io.video_file import write_mp4
from samsans.types import ClassInfo, Progress
from test_io_video import multi_frame
from threshold_method import DISC_CUP, Threshold, picture, run_config, segmenter

PAIRS = [picture(100), picture(101)]
NUMBERS = (3, 4, 7, 8, 20)


def bank_of(value: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A support whose only object is what is as bright as the disc (1) or the cup (2)."""
    image, mask = picture(100)
    return [(image, (mask == value).astype(np.uint8) * 7)]


def frames(folder: Path, numbers: tuple[int, ...] = NUMBERS) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(picture(number)[0]).save(folder / f"f_{number:03d}.png")
    return folder


def rows(table: Path) -> list[list[str]]:
    return list(csv.reader(table.read_text().splitlines()))


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_frame_is_segmented_as_the_same_image() -> None:
    model = segmenter(k_test=1)  # of two pairs one is drawn
    stream = VideoSegmenter(model, PAIRS)
    images = [picture(n)[0] for n in range(5)]
    for image, batched in zip(images, VideoSegmenter(model, PAIRS, batch_size=3).run(images), strict=True):
        alone, result = model.predict(image, PAIRS), stream.step(image)
        assert np.array_equal(result.labels, alone.labels[0])
        assert np.array_equal(batched.labels, alone.labels[0])
        assert result.labels.dtype == alone.labels.dtype
        assert result.areas == ((result.labels > 0).sum(), (result.labels == 2).sum())  # the disc with its cup
        assert result.areas[0] > result.areas[1] > 0
        assert len(result.supports) == 1


def test_supports_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = segmenter()
    calls: list[int] = []
    encode = model.method.encode_support
    monkeypatch.setattr(model.method, "encode_support", lambda batch: calls.append(1) or encode(batch))
    stream = VideoSegmenter(model, PAIRS[:1])
    for number in range(4):
        stream.step(picture(number)[0])
    assert calls == [1]


def test_the_task_is_switched_at_a_frame() -> None:
    model = segmenter(classes=(ClassInfo("it", 1, (7,)),))
    stream = VideoSegmenter(model, bank_of(1))
    first, second = picture(5)[0], picture(6)[0]
    assert np.array_equal(stream.step(first).labels, model.predict(first, bank_of(1)).labels[0])
    stream.switch(model.encode_support(bank_of(2)))
    result = stream.step(second)
    assert np.array_equal(result.labels, model.predict(second, bank_of(2)).labels[0])
    assert not np.array_equal(result.labels, model.predict(second, bank_of(1)).labels[0])
    with pytest.raises(InputError, match="nothing"):
        stream.switch(bank_of(1), objects=["nothing"])
    assert np.array_equal(stream.step(second).labels, result.labels)  # as before


def test_memory_is_flat() -> None:
    held: list[int] = []

    def film(count: int) -> Iterator[np.ndarray]:
        for number in range(count):
            if number in (60, count - 1):
                held.append(tracemalloc.get_traced_memory()[0])
            yield np.full((40, 48, 3), number % 200, np.uint8)

    stream = VideoSegmenter(segmenter(), PAIRS, batch_size=4)
    stream.segmenter.method.batches = type("Nothing", (), {"append": lambda *_: None})()
    tracemalloc.start()
    count = sum(1 for _ in stream.run(film(300)))
    tracemalloc.stop()
    assert count == 300
    assert held[1] - held[0] < 239 * 40 * 48 / 2  # of 239 more frames less than half their label maps alone


def test_strange_frames_are_refused() -> None:
    stream = VideoSegmenter(segmenter(), PAIRS)
    for frame in (np.zeros((40, 48), np.uint8), np.zeros((40, 48, 3), np.float32)):
        with pytest.raises(InputError, match="a frame"):
            stream.step(frame)


@pytest.mark.parametrize("need", ["points", "labels_at_predict", "volumes"])
def test_other_methods_are_refused(need: str, tmp_path: Path) -> None:
    method = Threshold()
    method.needs = replace(method.needs, **{need: True})
    with pytest.raises(InputError, match="a video for threshold, which"):
        predict_video(Segmenter(method, run_config(), DISC_CUP, device="cpu"), frames(tmp_path / "a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_numbers_and_gaps_are_kept(tmp_path: Path) -> None:
    video, out, model = frames(tmp_path / "in/seq"), tmp_path / "out", segmenter()
    seen: list[Progress] = []
    manifest = predict_video(model, video, out, support=PAIRS, on_progress=seen.append, batch_size=2)
    names = [f"seq/f_{n:03d}.png" for n in NUMBERS]
    assert files(out) == {*names, "seq.csv", "classes.json", "config.yaml", "manifest.json"}
    header, *body = rows(out / "seq.csv")
    assert header[:4] == ["frame", "file", "time_s", "disc area_px"]
    assert [(int(row[0]), row[1]) for row in body] == list(zip(NUMBERS, names, strict=True))
    for name, row in zip(names, body, strict=True):
        labels = io.read_labels(out / name).array[0]
        assert np.array_equal(labels, model.predict(video / Path(name).name, PAIRS).labels[0])
        assert [int(row[3]), int(row[6])] == [(labels > 0).sum(), (labels == 2).sum()]
    assert [(p.done, p.total, p.item) for p in seen] == [(i, 5, "seq") for i in range(1, 6)]
    record = Manifest.load(out).records["seq"]
    assert (record.output, record.input) == ("seq.csv", (str(video),))
    assert {"model", "write"} <= set(record.seconds)
    assert len(record.supports) == 2
    assert "1 segmented" in manifest.text()


def test_a_half_done_video_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, out = frames(tmp_path / "in/seq"), tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_video(segmenter(), video, out, support=PAIRS, on_progress=stop, batch_size=1)
    there = {p: p.stat().st_mtime_ns for p in (out / "seq").iterdir()}
    assert len(there) == 3
    assert not (out / "seq.csv").exists()
    model = segmenter()
    assert "seq" in predict_video(model, video, out, support=PAIRS, batch_size=1).records
    assert len(model.method.batches) == 2
    assert {p: p.stat().st_mtime_ns for p in there} == there
    assert len(rows(out / "seq.csv")) == 6
    again = segmenter()
    assert predict_video(again, video, out, support=PAIRS).skipped == ("seq",)
    assert again.method.batches == []
    with pytest.raises(InputError, match="other weights, supports or options"):
        predict_video(segmenter(), video, out, support=PAIRS, seed=7)
    Image.fromarray(picture(50)[0]).save(video / "f_003.png")  # other bytes: all anew
    predict_video(again, video, out, support=PAIRS, batch_size=1)
    assert len(again.method.batches) == 5


def test_a_damaged_video_stops_no_other(tmp_path: Path) -> None:
    bad, good = frames(tmp_path / "bad"), frames(tmp_path / "good")
    Image.fromarray(picture(1, 50)[0]).save(bad / "f_007.png")
    sources = [folders.source_of(bad), folders.source_of(good)]
    manifest = predict_videos(segmenter(), sources, tmp_path / "out", support=PAIRS)
    assert "size" in manifest.failures["bad"]
    assert len(rows(tmp_path / "out/good.csv")) == 6
    assert "1 segmented, 0 there already, 1 failed" in manifest.text()


def test_outputs_never_fall_on_inputs(tmp_path: Path) -> None:
    video = frames(tmp_path / "seq")
    before = {p: p.read_bytes() for p in video.iterdir()}
    with pytest.raises(InputError, match="mix with an input"):
        predict_video(segmenter(), video, tmp_path, support=PAIRS)
    sources = [folders.source_of(video), folders.source_of(frames(tmp_path / "other/seq"))]
    with pytest.raises(InputError, match="both called seq"):
        predict_videos(segmenter(), sources, tmp_path / "out", support=PAIRS)
    assert {p: p.read_bytes() for p in video.iterdir()} == before


def test_what_is_a_video(tmp_path: Path) -> None:
    data = tmp_path / "data/images"
    for name in ("p1/seq1", "p2/seq2"):
        frames(data / name)
    model = segmenter()
    assert find_videos(model, data) == []  # pictures, as ever
    assert [s.id for s in find_videos(model, data, True)] == ["p1/seq1", "p2/seq2"]
    assert [s.id for s in find_videos(model, data / "p1/seq1", True)] == ["seq1"]
    assert find_videos(model, [data / "p1/seq1/f_003.png"]) == []
    Image.fromarray(picture(0)[0]).save(data / "alone.png")
    with pytest.raises(InputError, match="no frames"):
        find_videos(model, tmp_path / "data", True)
    with pytest.raises(InputError, match="is no video"):
        find_videos(model, [data / "p1/seq1", data / "alone.png"], True)
    cine = multi_frame(tmp_path / "us.dcm", np.zeros((4, 8, 8), np.uint8))
    still = multi_frame(tmp_path / "ct.dcm", np.zeros((4, 8, 8), np.uint8))
    told = pydicom.dcmread(still)
    assert told.SOPClassUID == UltrasoundMultiFrameImageStorage
    told.SOPClassUID = told.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"  # CT, several slices
    told.save_as(still)
    assert (io.is_video(cine), io.is_video(still)) == (True, False)
    assert [s.id for s in find_videos(model, cine)] == ["us"]
    assert find_videos(model, still) == find_videos(model, cine, False) == []


def test_a_part_of_a_data_set(tmp_path: Path) -> None:
    for name in ("p1/seq1", "p2/seq2"):
        frames(tmp_path / "data/images" / name)
    dataset = find_cases(DataConfig(path=str(tmp_path / "data")))
    part = replace(dataset, cases=tuple(c for c in dataset.cases if c.video == dataset.videos[0].id and c.frame != 4))
    manifest = predict_videos(segmenter(), find_videos(segmenter(), part, True), tmp_path / "out", support=PAIRS)
    assert set(manifest.records) == {"p1/seq1"}
    assert [int(row[0]) for row in rows(tmp_path / "out/p1/seq1.csv")[1:]] == [3, 7, 8, 20]


def test_training_frames_of_the_video_itself_are_left_out() -> None:
    model = segmenter()
    found = model.supports(PAIRS, None)
    own = replace(found, own=True, bank=replace(found.bank, ids=("seq/000003", "other/000004")))
    image = picture(1)[0]
    assert VideoSegmenter(model, own, id="seq").step(image).supports == ("other/000004",)
    assert len(VideoSegmenter(model, own, id="third").step(image).supports) == 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install samsans[video]")
    monkeypatch.setattr(api, "load", lambda *_, **__: segmenter())
    support = tmp_path / "support"
    for name, array in zip(("images", "labels"), picture(100), strict=True):
        (support / name).mkdir(parents=True)
        Image.fromarray(array).save(support / name / "s.png")
    clip = tmp_path / "clip.mp4"
    with write_mp4(clip, 10, (40, 48)) as add:
        for number in range(6):
            add(picture(number)[0], number / 10)

    def run(*argv: Any) -> int:
        return cli.main(["predict", "RUN", "--support", str(support), *map(str, argv)])

    out = tmp_path / "out"
    assert run("-i", clip, "-o", out, "--overlay") == 0
    assert {"clip.csv", "clip.mp4", "clip/000000.png", "clip/000005.png"} <= files(out)
    assert [row[2] for row in rows(out / "clip.csv")[1:3]] == ["0.0000", "0.1000"]
    with io.open_video(clip) as video, io.open_video(out / "clip.mp4") as painted:
        model = segmenter()
        for number, image in video:
            written = io.read_labels(out / f"clip/{video.name(number)}.png").array[0]
            assert np.array_equal(written, model.predict(image, support).labels[0])
        assert painted.count == 6
    (out / "clip.mp4").unlink()
    assert run("-i", clip, "-o", out, "--overlay") == 0  # painted again, nothing segmented again
    assert (out / "clip.mp4").is_file()
    assert json.loads((out / "manifest.json").read_text())["cases"]["clip"]["beside"] == ["clip.mp4"]
    assert run("-i", clip, "-o", tmp_path / "no", "--probabilities", "--samples", 2) == 2
    assert "--probabilities, --samples with videos" in capsys.readouterr().err
    folder = frames(tmp_path / "seq")
    assert run("-i", folder, "-o", tmp_path / "images") == 0
    assert "f_003.png" in files(tmp_path / "images")
    assert run("-i", folder, "-o", tmp_path / "video", "--video") == 0
    assert {"seq/f_003.png", "seq.csv"} <= files(tmp_path / "video")
