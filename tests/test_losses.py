"""Losses against values computed by hand and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samsans.ops.losses import dice_loss


def test_value_by_hand() -> None:
    logits = torch.zeros(1, 1, 2, 2)  # p = 1/2 everywhere
    target = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.bool)
    # 1 - (2 * 0.5 + 1) / (2 + 1 + 1) = 0.5
    assert dice_loss(logits, target).tolist() == [[0.5]]


def test_equals_float64_oracle_per_object() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, 16, 16)), rng.random((2, 3, 16, 16)) < 0.3
    p = 1 / (1 + np.exp(-logits))
    expected = 1 - (2 * (p * target).sum((2, 3)) + 0.5) / (p.sum((2, 3)) + target.sum((2, 3)) + 0.5)
    found = dice_loss(torch.from_numpy(logits), torch.from_numpy(target), eps=0.5)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_perfect_and_empty() -> None:
    target = torch.zeros(2, 1024, 1024, dtype=torch.bool)
    target[0, 100:400, 200:600] = True
    losses = dice_loss(target.float() * 40 - 20, target)
    assert losses[0] < 1e-3
    assert losses[1] == pytest.approx(0.002, rel=0.1)  # 2^20 pixels of sigmoid(-20) against eps = 1


def test_empty_target_pushes_every_logit_down() -> None:
    logits = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dice_loss(logits, torch.zeros(1, 8, 8, dtype=torch.bool)).sum().backward()
    assert (logits.grad > 0).all()


def test_small_logits_are_enlarged_and_low_precision_is_lifted() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    large = torch.nn.functional.interpolate(logits.float(), (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(dice_loss(logits, target), dice_loss(large, target))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dice_loss(logits, target), dice_loss(large, target))


def test_leading_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match="truth"):
        dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
