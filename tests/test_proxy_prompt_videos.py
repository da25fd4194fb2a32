"""Proxy Prompt on SAM 2 in videos: the three memory modes, what is read and kept, several objects, branches, gating."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from proxy_sam2 import SIDE, batch, make, rand, read, spread, target
from samsans.backbones.sam2_video import ABSENT
from samsans.errors import InputError
from samsans.methods.followers import TrackedVideo
from samsans.methods.proxy_prompt.config import MODES
from samsans.methods.proxy_prompt.model import ProxyPrompt
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Batch


@pytest.fixture(scope="module")
def method() -> ProxyPrompt:
    return spread(make()).eval()


def film(count: int, side: int = SIDE) -> list[Batch]:
    """Frames that change little by little."""
    start, end = rand(2, 3, side, side, seed=40)
    shares = torch.linspace(0, 1, count)
    return [Batch((start.lerp(end, w))[None], None, (f"f{i}",), ("a", "b")) for i, w in enumerate(shares)]


def watch(method: ProxyPrompt, frames: list[Batch], bank: SupportBank, view: str) -> torch.Tensor:
    """``(frames, N, S, S)``."""
    if not method.follows(view):
        return torch.cat([method.predict(frame, bank, view=view) for frame in frames])
    follower = method.follow(bank.objects, bank, view)
    return torch.cat([follower.step(frame) for frame in frames])


def objects_of(bank: SupportBank, n: int) -> SupportBank:
    return dataclasses.replace(bank, values=bank.values[:, :, n : n + 1], objects=bank.objects[n : n + 1])


def test_which_modes_follow(method: ProxyPrompt) -> None:
    assert (method.views, method.own_view) == (MODES, "proxy_only")
    assert [method.follows(view) for view in (None, *MODES)] == [False, False, True, True]
    other = make(model__memory_mode="proxy_first_frame")
    assert (other.own_view, other.follows(), other.follows("proxy_only")) == ("proxy_first_frame", True, False)
    with pytest.raises(InputError, match="to follow with proxy_only"):
        method.follow(("a", "b"), None)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("options", [{}, {"preset": "scratch", "backbone__train": "all"}], ids=["paper", "scratch"])
def test_a_still_image_equals_the_first_frame_of_a_video(mode: str, options: dict[str, Any]) -> None:  # check 22
    made = spread(make(model__memory_mode=mode, **options)).eval()
    bank = made.encode_support(batch(2))
    frame = watch(made, [target()], bank, mode)
    still = made.predict(target(), bank)
    assert still.abs().max() > 1e-2
    torch.testing.assert_close(frame, still, rtol=0, atol=2e-5)
    assert torch.equal(still, made.predict(target(), bank, view="proxy_only"))


@pytest.mark.parametrize("mode", MODES)
def test_objects_together_equal_objects_alone(mode: str) -> None:  # check 10
    made = spread(make(model__csm__cbam_scope="per_object", model__memory_mode=mode)).eval()
    episode, frames = batch(2), film(4)
    bank = made.encode_support(episode)
    together = watch(made, frames, bank, mode)
    assert episode.masks is not None
    for n in range(2):
        one = dataclasses.replace(episode, masks=episode.masks[:, n : n + 1], objects=episode.objects[n : n + 1])
        alone = watch(made, frames, made.encode_support(one), mode)
        torch.testing.assert_close(alone[:, 0], together[:, n], rtol=0, atol=1e-4)
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_cached_supports_equal_uncached_in_videos(method: ProxyPrompt, mode: str, tmp_path: Path) -> None:  # check 13
    bank = method.encode_support(batch(3))
    stored = method.load_support(str(bank.save(tmp_path / "task.safetensors")))
    want = watch(method, film(3), bank, mode)
    assert torch.equal(watch(method, film(3), stored, mode), want)
    assert torch.equal(watch(method, film(3), method.encode_support(batch(3)), mode), want)


def test_modes_differ_from_the_second_frame_on(method: ProxyPrompt) -> None:
    bank, frames = method.encode_support(batch(2)), film(3)
    only, beside, first = (watch(method, frames, bank, mode) for mode in MODES)
    for other in (beside, first):
        torch.testing.assert_close(other[0], only[0], rtol=0, atol=2e-5)
        assert (other[1:] - only[1:]).abs().amax((1, 2, 3)).min() > 1e-4
    assert (beside[1:] - first[1:]).abs().amax((1, 2, 3)).min() > 1e-4
    assert torch.equal(watch(method, frames[::-1], bank, "proxy_only").flip(0), only)  # check 22
    assert (watch(method, frames[::-1], bank, "proxy_plus_bank").flip(0)[0] - beside[0]).abs().max() > 1e-4


@torch.no_grad()
def test_what_is_read_beside_the_bank(method: ProxyPrompt, monkeypatch: pytest.MonkeyPatch) -> None:  # decision D-14
    seen: list[tuple[torch.Tensor, ...]] = []
    attend = method.backbone.attend

    def record(features: torch.Tensor, memory: torch.Tensor, positions: torch.Tensor, pointers: int) -> torch.Tensor:
        seen.append((memory, positions.expand_as(memory), torch.tensor(pointers)))
        return attend(features, memory, positions, pointers)

    monkeypatch.setattr(method.backbone, "attend", record)
    bank, frames = method.encode_support(batch(2)), film(9)
    watch(method, frames, bank, "proxy_plus_bank")
    grid, prompt, pointer = 64, 8, 2  # tokens of a spatial memory, of a prompt (4 of 128 channels), of a pointer
    for t, (memory, positions, pointers) in enumerate(seen):
        assert memory.shape == (grid * min(t, 6) + pointer * t + prompt, 2, 64)
        assert int(pointers) == pointer * t + prompt
        tokens = read(method, frames[t].images, bank)[1]
        assert method.memory is not None
        torch.testing.assert_close(memory[-prompt:], method.memory.tokens(tokens))
        now = method.backbone.pointer_positions(torch.zeros(1)).expand(prompt, 64)
        assert torch.equal(positions[-prompt:, 0], now)
        assert all(not torch.equal(pointer, now[0]) for pointer in positions[:-prompt, 0])
    seen.clear()
    watch(method, frames, bank, "proxy_first_frame")
    sizes = [memory.shape[0] for memory, _, _ in seen]
    assert sizes[0] == prompt
    assert sizes[1:] == [(grid + pointer) * t for t in range(1, 8)] + [grid * 7 + pointer * 8]


def test_supports_are_asked_for_where_a_frame_is_prompted(method: ProxyPrompt) -> None:
    bank, asked = method.encode_support(batch(2)), list[int]()

    def choose(features: torch.Tensor) -> list[SupportBank]:
        asked.append(len(features))
        return [bank]

    for mode, times in (("proxy_plus_bank", 4), ("proxy_first_frame", 1)):
        asked.clear()
        follower = method.follow(bank.objects, choose, mode)
        chosen = torch.cat([follower.step(frame) for frame in film(4)])
        assert torch.equal(chosen, watch(method, film(4), bank, mode))
        assert asked == [1] * times
        assert follower.quality is None  # nothing teaches the predicted IoU


@pytest.mark.parametrize("mode", MODES[1:])
def test_branches_go_on_by_themselves(method: ProxyPrompt, mode: str) -> None:
    bank, frames = method.encode_support(batch(2)), film(4)
    follower = method.follow(bank.objects, bank, mode)
    follower.step(frames[0])
    other = follower.branch()
    straight = [follower.step(frame) for frame in frames[1:]]
    assert torch.equal(torch.cat([other.step(frame) for frame in frames[1:]]), torch.cat(straight))
    assert other.tracker is not follower.tracker


def kept(follower: TrackedVideo) -> list[torch.Tensor]:
    memories = (one for part in (follower.tracker.conditioning, follower.tracker.recent) for own in part for one in own)
    return [tensor for one in memories for tensor in (one.spatial, one.pointer) if tensor is not None]


@pytest.mark.parametrize(("mode", "spatial", "pointers"), [(MODES[1], 6, 15), (MODES[2], 7, 16)])
def test_memory_does_not_grow(mode: str, spatial: int, pointers: int) -> None:
    small = make(backbone__input_size=64).eval()  # a 4 x 4 grid
    bank = small.encode_support(batch(2, side=64))
    follower, sizes = small.follow(bank.objects, bank, mode), {}
    for count, frame in enumerate(film(60, side=64), 1):
        follower.step(frame)
        tensors = kept(follower)
        sizes[count] = (len(tensors), sum(one.untyped_storage().nbytes() for one in tensors))
    assert sizes[10] < sizes[60] == sizes[20]
    assert sizes[60] == (2 * (spatial + pointers), 2 * (spatial * 16 * 64 * 2 + pointers * 128 * 4))


def test_gating_by_the_object_score(monkeypatch: pytest.MonkeyPatch) -> None:  # decision D-15
    for gate in (False, True):
        made = make(model__gate_by_object_score=gate).eval()
        bank, head = made.encode_support(batch(2)), made.backbone.model.mask_decoder.pred_obj_score_head
        head.register_forward_hook(lambda *_: torch.tensor([[3.0], [-3.0]]))  # of objects a and b
        for found in (watch(made, [target()], bank, mode) for mode in MODES):
            assert bool((found[0, 1] == ABSENT).all()) is gate
            assert (found[0, 0] > ABSENT / 2).all()
        for scratch in (False, True):  # memories follow a score that was published
            made.backbone.from_scratch = scratch
            for mode in MODES[1:]:
                follower = made.follow(bank.objects, bank, mode)
                follower.step(target())
                tracker = follower.tracker
                kept = tracker.conditioning if mode == "proxy_first_frame" else tracker.recent
                nothing = made.backbone.model.no_object_pointer[0]
                assert torch.equal(kept[1][0].pointer, nothing) is (gate or not scratch)
                assert not torch.equal(kept[0][0].pointer, nothing)
        trained = made.train()(dataclasses.replace(batch(2), targets=torch.tensor([0]))).logits
        assert (trained > ABSENT / 2).all()
