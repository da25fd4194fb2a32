"""A small run of Proxy Prompt on SAM 2 over videos: memory modes as views, live, switched, resumed, by the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samsans import cli, io
from samsans.data.phantoms import write
from samsans.inference import Segmenter, VideoSegmenter, load
from samsans.methods.proxy_prompt.config import MODES

SMALL = ("--backbone", "sam2-tiny-test", "--input-size", "64", "--model.csm.encoder.dim", "32", "--train.accelerator")
SMALLER = (
    "cpu",
    "--model.scan",
    "chunked",
    "--model.csm.encoder.depth",
    "1",
    "--model.ccm.ffn",
    "32",
    "--train.pictures_every",
    "0",
)


def run(*argv: object) -> int:
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside the videos it learned from, whose answers depend on the frame and on the supports."""
    folder = tmp_path_factory.mktemp("proxy")
    data = write("video", folder / "data", n=3, size=64, difficulty=0.0)
    assert run("train", "proxy_prompt", data, "-o", folder / "run", "--steps", 3, *SMALL, *SMALLER) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def model(trained: Path) -> Segmenter:
    return load(trained, device="cpu")


def film(trained: Path, video: int = 0, count: int = 5) -> list[np.ndarray]:
    with io.open_video(trained.parent / f"data/images/video-000{video}") as frames:
        return [frames.frame(number) for number in frames.numbers[:count]]


def logits_of(model: Segmenter, video: VideoSegmenter, frames: list[np.ndarray]) -> np.ndarray:
    """``(frames, N, S, S)``, as the method answers the frames of a video."""
    kept: list[np.ndarray] = []
    paint = type(video._runner)._paint

    def keep(runner: object, job: object, index: int, logits: torch.Tensor, *rest: object) -> None:
        kept.append(logits.numpy().copy())
        paint(runner, job, index, logits, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(video._runner), "_paint", keep)
        for _ in video.run(frames):
            pass
    return np.stack(kept)


def test_the_prompt_alone_knows_no_other_frame(model: Segmenter, trained: Path) -> None:  # check 22
    frames = film(trained)
    stream = VideoSegmenter(model, batch_size=1)
    want = logits_of(model, stream, frames)
    assert np.array_equal(logits_of(model, stream, frames[::-1])[::-1], want)
    alone = [model.predict(frame, batch_size=1).labels[0] for frame in frames]
    assert np.array_equal(alone, [stream.step(frame).labels for frame in frames])
    for mode in MODES[1:]:
        stream = VideoSegmenter(model, view=mode)
        followed = logits_of(model, stream, frames)
        np.testing.assert_allclose(followed[0], want[0], rtol=0, atol=1e-4)
        assert np.abs(followed[1:] - want[1:]).max((1, 2, 3)).min() > 1e-4
        assert not np.array_equal(logits_of(model, stream, frames), followed)  # it has not forgotten
        stream.reset()
        assert np.array_equal(logits_of(model, stream, frames), followed)


def test_tasks_are_switched(model: Segmenter, trained: Path) -> None:  # check 23
    frames, bank = film(trained), model.supports(None, None).bank
    first, second = bank.select([0]), bank.select([bank.K - 1])
    stream = VideoSegmenter(model, first)
    a = logits_of(model, stream, frames)
    stream.switch(second)
    b = logits_of(model, stream, frames)
    stream.switch(first)
    assert np.array_equal(logits_of(model, stream, frames), a)
    assert np.abs(a - b).max() > 1e-4
    stream = VideoSegmenter(model, first, view=MODES[1])
    a = logits_of(model, stream, frames)
    stream.switch(second)
    b = logits_of(model, stream, frames)
    np.testing.assert_array_equal(b, logits_of(model, VideoSegmenter(model, second, view=MODES[1]), frames))
    stream.switch(first)
    assert np.array_equal(logits_of(model, stream, frames), a)


def test_similar_supports_are_chosen_where_a_frame_is_prompted(model: Segmenter, trained: Path) -> None:
    frames, known = film(trained), model.supports(None, None).bank.ids
    shared = {"choose": "similar", "id": "other"}
    model.k, before = 1, model.k
    try:
        single, beside, first = (
            [r.supports for r in VideoSegmenter(model, view=mode, **shared).run(frames)]  # type: ignore[arg-type]
            for mode in MODES
        )
    finally:
        model.k = before
    assert all(len(used) == 1 and used[0] in known for used in single)
    assert beside == single
    assert first == [single[0]] * len(frames)


def test_the_command_and_its_views(trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "data"
    outs = {view: tmp_path / view for view in MODES}
    for view, out in outs.items():
        argv = ("-i", data / "images/video-0001", "-o", out, "--video", "--view", view, "--device", "cpu")
        assert run("predict", trained, *argv, "--support", data) == 0
    tables = {view: list(csv.reader((out / "video-0001.csv").read_text().splitlines())) for view, out in outs.items()}
    frames = len(list((data / "images/video-0001").glob("*.png")))
    for view, out in outs.items():
        assert len(tables[view]) == frames + 1
        assert json.loads((out / "manifest.json").read_text())["options"]["view"] == view
        assert not any(row[5] for row in tables[view][1:])  # quality: nothing teaches it
    assert tables[MODES[0]][1] == tables[MODES[1]][1]
    assert any(tables[MODES[0]][n] != tables[MODES[1]][n] for n in range(2, frames + 1))


def test_a_run_with_its_own_mode(trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "data"
    options = ("--steps", 1, "--model.memory_mode", "proxy_plus_bank")
    assert run("train", "proxy_prompt", data, "-o", tmp_path / "run", *options, *SMALL, *SMALLER) == 0
    made = load(tmp_path / "run", device="cpu")
    assert (made.own_view, made.views, made.follows(None)) == ("proxy_plus_bank", MODES, True)
    frames = film(trained)
    own = logits_of(made, VideoSegmenter(made), frames)
    assert np.array_equal(logits_of(made, VideoSegmenter(made, view="proxy_plus_bank"), frames), own)
    assert not np.array_equal(logits_of(made, VideoSegmenter(made, view="proxy_only"), frames), own)
    volume = made.predict(np.stack(frames))  # slices outwards from the middle
    assert volume.labels.shape == (5, 64, 64)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_follows_nearly_alike(model: Segmenter, trained: Path, mode: str) -> None:
    frames, half = film(trained), load(trained, device="cpu", precision="bf16")
    want = logits_of(model, VideoSegmenter(model, view=mode, batch_size=1), frames)
    made = logits_of(half, VideoSegmenter(half, view=mode, batch_size=1), frames)
    assert np.isfinite(made).all()
    assert 0 < np.abs(made - want).max() < 0.1 * np.abs(want).max()
