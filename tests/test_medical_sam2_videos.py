"""Medical SAM 2 in videos: which frames are remembered, how they are read, and that memory does not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import samsans
from medical_sam2_tools import CHANNELS, SIDE, batch, eager, make, part, target
from samsans import cli, io
from samsans.backbones.sam2_video import ABSENT, Found, Memory, Tracker
from samsans.data.phantoms import write
from samsans.methods.episodes import upsample
from samsans.methods.medical_sam2.config import BANKS
from samsans.methods.medical_sam2.model import MedicalSam2
from samsans.methods.medical_sam2.sorting import SortedTracker, least_telling
from samsans.methods.medical_sam2.support import TemplateBank
from samsans.types import Batch, Embedding


@pytest.fixture(scope="module")
def method() -> MedicalSam2:
    return eager()


# -- sorted memory ----------------------------------------------------------------------------------------------------


def test_the_memory_that_tells_least_by_hand() -> None:
    memories = torch.tensor([[1.0, 0], [0, 2], [3, 0.1]])
    assert least_telling(memories, torch.ones(3)) == 2  # like the first, and a little like the second
    assert least_telling(memories, torch.tensor([0.5, 1, 1])) == 0
    assert least_telling(memories, torch.tensor([1, 0.4, 1])) == 1
    assert least_telling(torch.ones(3, 4), torch.ones(3)) == 0  # the oldest of equals


def test_frames_are_kept_by_confidence_and_read_by_likeness(method: MedicalSam2) -> None:
    tracker = SortedTracker(method.backbone, 1, size=2, min_confidence=0.5, gate=False, gate_memories=True)
    maps = torch.eye(3)[:, :, None, None]  # three frames that have nothing in common

    def see(frame: int, image: torch.Tensor, memory: list[float], iou: float = 1.0, score: float = 1.0) -> None:
        kept = Memory(frame, torch.tensor(memory), torch.zeros(CHANNELS))
        none = torch.zeros(1)
        found = Found(none, torch.tensor(score), torch.tensor(iou), none, none, prompted=False)
        tracker.keep(0, kept, found, Embedding(image))

    see(0, maps[:1], [1.0, 0])
    see(1, maps[1:2], [0.0, 1], iou=0.4)  # not sure enough
    see(2, maps[1:2], [0.0, 1], score=-1)  # not there
    see(3, maps[1:2], [0.0, 1])
    assert [one.memory.frame for one in tracker.best[0]] == [0, 3]
    for here, order in ((maps[:1], [0, 3]), (maps[1:2], [3, 0]), (maps[1:2] + 0.1 * maps[:1], [3, 0])):
        recalled = tracker.recall(0, Embedding(here))
        assert [(one.memory.frame, one.place, one.age) for one in recalled] == [(order[0], 1, 1), (order[1], 2, 2)]
    branch = tracker.branch()
    see(4, maps[2:], [0.1, 1], iou=0.9)  # much like frame 3, and less sure
    assert [one.memory.frame for one in tracker.best[0]] == [0, 3]
    see(5, maps[2:], [-1.0, 0])  # unlike both: frame 0 or 3 goes, and of these two the one in between
    assert [one.memory.frame for one in tracker.best[0]] == [0, 5]
    assert [one.memory.frame for one in branch.best[0]] == [0, 3]


# -- videos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", BANKS)
def test_the_first_frame_is_an_image_and_views_are_banks(method: MedicalSam2, view: str) -> None:
    bank, film = method.encode_support(batch(2)), target(3)
    still = method.predict(film, bank, view=view)
    follower = method.follow(("a", "b"), bank, view)
    frames = []
    for i in range(3):
        frames.append(follower.step(Batch(film.images[i : i + 1], None, ("x",), ("a", "b"))))
        assert follower.quality is not None
        assert follower.quality.shape == (2,)
        assert ((follower.quality >= 0) & (follower.quality <= 1)).all()
    torch.testing.assert_close(frames[0], still[:1], rtol=0, atol=1e-5)
    independent = bool((torch.cat(frames) - still).abs().max() < 1e-4)
    assert independent == (view == "none") == (not method.follows(view))


def test_recent_is_sam2s_own_bank_beside_the_templates(method: MedicalSam2) -> None:
    bank, film = method.encode_support(batch(1)), target(3)
    follower = method.follow(("a", "b"), bank, "recent")
    tracker = Tracker(method.backbone, 2, frames=6, multimask=False, gate=False, gate_memories=True)
    templates = method.templates(bank.spatial[None], bank.pointers[None])
    for i in range(3):
        want = tracker.step(film.images[i], proxy=templates)
        got = follower.step(Batch(film.images[i : i + 1], None, ("x",), ("a", "b")))
        assert torch.equal(got, upsample(want.logits[None], SIDE))


@pytest.mark.parametrize("view", ["sorted", "recent"])
def test_objects_in_a_video_do_not_meddle_and_branches_neither(method: MedicalSam2, view: str) -> None:
    pairs, film = batch(1), target(3)
    steps = [Batch(film.images[i : i + 1], None, ("x",), ("a", "b")) for i in range(3)]
    follower = method.follow(("a", "b"), method.encode_support(pairs), view)
    together = [follower.step(steps[0])]
    branch = follower.branch()
    together += [follower.step(one) for one in steps[1:]]
    assert all(torch.equal(branch.step(one), want) for one, want in zip(steps[1:], together[1:], strict=True))
    for n in range(2):
        alone = method.follow(("a",), method.encode_support(part(pairs, slice(None), slice(n, n + 1))), view)
        for one, want in zip(steps, together, strict=True):
            torch.testing.assert_close(alone.step(one)[0, 0], want[0, n], rtol=0, atol=1e-4)


def test_templates_can_be_chosen_for_every_frame(method: MedicalSam2) -> None:
    banks, asked = [method.encode_support(batch(1, seed=seed)) for seed in (1, 2)], []

    def choose(features: torch.Tensor) -> list[TemplateBank]:
        asked.append(features.shape)
        return [banks[len(asked) > 1]]

    follower = method.follow(("a", "b"), choose, "none")
    frames = [follower.step(target()) for _ in range(2)]
    assert asked == [(1, CHANNELS, 4, 4)] * 2
    for frame, bank in zip(frames, banks, strict=True):
        torch.testing.assert_close(frame, method.predict(target(), bank), rtol=0, atol=1e-5)


def test_memory_does_not_grow(method: MedicalSam2) -> None:
    follower = method.follow(("a", "b"), method.encode_support(batch(1)))
    assert isinstance(follower.tracker, SortedTracker)
    sizes = []
    for i in range(12):
        follower.step(target(seed=i))
        sizes.append([len(kept) for kept in follower.tracker.best])
        assert not any(len(kept) for kept in (*follower.tracker.recent, *follower.tracker.conditioning))
    assert sizes[4:] == [[5, 5], *[[6, 6]] * 7]


@pytest.mark.parametrize("scores", [0.0, 1.0])
def test_frames_without_the_object_are_not_remembered_where_scores_are_learnt(scores: float) -> None:
    method = make(model__min_confidence=0.0, model__scores=scores).eval()
    with torch.no_grad():
        method.backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-100)
    follower = method.follow(("a", "b"), method.encode_support(batch(1)), "sorted")
    assert isinstance(follower.tracker, SortedTracker)
    assert (follower.step(target()) > ABSENT / 2).all()  # the answer is not gated
    assert [len(kept) for kept in follower.tracker.best] == ([0, 0] if scores else [1, 1])


def test_nothing_is_made_in_vain(method: MedicalSam2, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, made, own = method.encode_support(batch(1)), [], method.templates
    monkeypatch.setattr(method, "templates", lambda *given: made.append(len(given)) or own(*given))
    monkeypatch.setattr(method.backbone, "remember", lambda *_: pytest.fail("no frame is remembered"))
    follower = method.follow(("a", "b"), bank, "none")
    frames = [follower.step(target()) for _ in range(3)]
    assert made == [2]  # once
    assert torch.equal(frames[0], frames[2])


def test_unsure_frames_and_absent_objects() -> None:
    unsure = make(model__min_confidence=1.0).eval()
    bank, film = unsure.encode_support(batch(1)), target(3)
    follower = unsure.follow(("a", "b"), bank)
    frames = [follower.step(Batch(film.images[i : i + 1], None, ("x",), ("a", "b"))) for i in range(3)]
    torch.testing.assert_close(torch.cat(frames), unsure.predict(film, bank), rtol=0, atol=1e-4)
    gated = make(model__gate_by_object_score=True).eval()
    with torch.no_grad():
        gated.backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-100)
    bank = gated.encode_support(batch(1))
    assert (gated.predict(film, bank) == ABSENT).all()
    assert (gated.follow(("a", "b"), bank).step(target()) == ABSENT).all()
    unlearned = make(model__scores=0.0).eval()
    follower = unlearned.follow(("a", "b"), unlearned.encode_support(batch(1)))
    follower.step(target())
    assert follower.quality is None, "nothing taught this network from nothing to judge itself"


# -- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands_on_images_videos_and_a_volume(tmp_path: Path) -> None:
    data = write("video", tmp_path / "data", n=3, size=64, difficulty=0.0)
    tiny = ("--backbone", "sam2-tiny-test", "--train.accelerator", "cpu")
    run, pair = tmp_path / "run", "{0}/images/video-0000/{1}:{0}/masks/video-0000/{1}"
    episodes = ("--episodes.images", "2", "--episodes.targets", "1", "--split.test", "0.34")
    train = ("train", "medical_sam2", data, "-o", run, "--steps", "2", *episodes, *tiny)
    assert cli.main([str(part) for part in train]) == 0
    assert {"loss", "dice", "bce", "iou", "there", "gauge/rel_answer"} <= set(
        (run / "log.csv").read_text().splitlines()[0].split(",")
    )
    film = data / "images/video-0001"
    first = sorted((data / "images/video-0000").glob("*.png"))[0].name
    asked = ("predict", run, "-i", film, "--support", pair.format(data, first), "--task", "head", "--device", "cpu")
    assert cli.main([str(part) for part in (*asked, "-o", tmp_path / "video", "--video")]) == 0
    assert (
        cli.main([str(part) for part in ("predict", run, "-i", film, "-o", tmp_path / "still", "--task", "head")]) == 0
    )
    names = sorted(frame.name for frame in film.glob("*.png"))
    for folder in (tmp_path / "video/video-0001", tmp_path / "still"):
        assert sorted(frame.name for frame in folder.glob("*.png")) == names
    model = samsans.load(run, device="cpu")
    picture = io.read_image(film / names[0]).array[0].repeat(3, -1)  # in colour, slices are shown as images are
    volume = np.stack([picture[::-1], picture, picture[:, ::-1]])
    outwards = {view: model.predict(volume, task="head", view=view, probabilities=True) for view in BANKS}
    assert not np.array_equal(outwards["sorted"].probabilities, outwards["none"].probabilities)
    middle = model.predict(volume[1], task="head", probabilities=True)
    for made in outwards.values():  # followed from the middle slice outwards, which is a still image
        np.testing.assert_allclose(made.probabilities[:, 1], middle.probabilities[:, 0], atol=2e-3)
