"""Methods that give SAM masks, under bfloat16 autocast: training steps, support banks, videos."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from medical_sam2_tools import SIDE, batch, target
from samsans import config as configuration
from samsans.methods import build

HALF = torch.autocast("cpu", dtype=torch.bfloat16)


def make(method: str, backbone: str, **model: Any) -> Any:
    settings = {"backbone.name": backbone, **{f"model.{key}": value for key, value in model.items()}}
    return build(configuration.from_dict(settings, method=method), ("a", "b"))


@pytest.mark.parametrize(
    ("method", "backbone", "model"),
    [
        ("medical_sam2", "sam2-tiny-test", {}),
        ("vrp_sam", "tiny", {"features": "backbone", "queries": 4, "direct": True, "read": 1.0}),
        ("proxy_prompt", "tiny", {"csm.encoder.depth": 1, "ccm.ffn": 32, "direct": True, "read": 1.0}),
    ],
)
def test_steps_and_banks(method: str, backbone: str, model: dict[str, Any]) -> None:
    made = make(method, backbone, **model)
    with HALF:
        losses = made.loss(made.train()(batch(3)), batch(3))
    losses["loss"].backward()
    assert all(torch.isfinite(one) for one in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
    made.eval()
    want = made.predict(target(), made.encode_support(batch(2)))
    with HALF:
        found = made.predict(target(), made.encode_support(batch(2)))
    assert found.dtype == torch.float32
    assert 0 < (found - want).abs().max() < 0.1 * want.abs().max()


@pytest.mark.parametrize("prompt", ["mask", "box"])
def test_a_tracked_video(prompt: str) -> None:
    made = make("tracked", "sam2-tiny-test", prompt=prompt, gate_by_object_score=False)
    shown = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.bool)
    shown[:, :, 8:40, 8:40] = True
    frames = [dataclasses.replace(target(seed=i), masks=shown if i == 0 else None) for i in range(2)]
    full, half = made.follow(("a", "b")), made.follow(("a", "b"))
    for frame in frames:
        want = full.step(frame)
        with HALF:
            found = half.step(frame)
        assert found.dtype == torch.float32
        assert (found - want).abs().max() < 0.1 * want.abs().max()
