"""Losses against values computed by hand and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samsans.ops.losses import area_loss, cross_entropy, dice_loss, softmax_dice_loss


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


# -- softmax losses of classes that exclude each other -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "ce", "dice", "total"), [(9, 2.197225, 0.975610, 1.097771), (2, 0.693147, 0.6, 0.609315)]
)
def test_zero_logits_on_background(classes: int, ce: float, dice: float, total: float) -> None:  # check 6
    logits, labels = torch.zeros(2, classes, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    found = cross_entropy(logits, labels), softmax_dice_loss(logits, labels)
    assert [float(value) for value in found] == pytest.approx([ce, dice], abs=2e-6)
    assert float(0.1 * found[0] + 0.9 * found[1]) == pytest.approx(total, abs=2e-6)


def test_softmax_losses_equal_a_float64_oracle() -> None:
    rng = np.random.default_rng(3)
    logits, labels = 2 * rng.normal(size=(3, 5, 12, 10)), rng.integers(0, 4, size=(3, 12, 10))  # class 4 is absent
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.stack([labels == k for k in range(5)], 1)
    ratio = (2 * (p * truth).sum((0, 2, 3)) + 1e-5) / ((p**2).sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1e-5)
    found = softmax_dice_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx((1 - ratio).mean(), rel=1e-5)
    entropy = -np.log((p * truth).sum(1)).mean()
    assert float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))) == pytest.approx(entropy, rel=1e-5)


def test_softmax_dice_loss_keeps_its_precision_over_millions_of_pixels() -> None:
    logits = torch.randn(8, 2, 512, 512, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(8, 512, 512, dtype=torch.int64)
    p = logits.double().softmax(1)
    ratio = torch.stack([2 * p[:, 0].sum() / (p[:, 0].square().sum() + labels.numel()), torch.zeros(())])
    assert float(softmax_dice_loss(logits, labels)) == pytest.approx(float((1 - ratio).mean()), rel=1e-6)


def test_confident_truth_costs_nothing_even_with_absent_classes() -> None:  # check 6
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    logits = 200.0 * torch.nn.functional.one_hot(labels, 9).permute(0, 3, 1, 2) - 100
    assert float(cross_entropy(logits, labels)) == pytest.approx(0, abs=1e-6)
    assert float(softmax_dice_loss(logits, labels)) == pytest.approx(0, abs=1e-6)


def test_softmax_losses_are_float32_under_autocast() -> None:
    logits = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    for function in (cross_entropy, softmax_dice_loss):
        with torch.autocast("cpu", torch.bfloat16):
            value = function(logits, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(logits.float(), labels))


def test_shares_of_cells_by_hand_and_never_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.tensor([[[[1, 1, 0, 0], [1, 0, 0, 0]]]], dtype=torch.bool)  # in cells of 1 x 2: 1, 0 and 1/2, 0
    shares = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    asked, own = [], torch.nn.functional.binary_cross_entropy

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        asked.append((torch.is_autocast_enabled("cpu"), arguments[0].dtype))
        return own(*arguments)

    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy", watched)  # refused on CUDA under autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = area_loss(shares.bfloat16(), target)
    assert asked == [(False, torch.float32)]
    assert float(found) == pytest.approx((2 * 1e-4 + 2 * 0.6931) / 4, abs=1e-4)
