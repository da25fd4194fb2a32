"""The Probabilistic U-Net: its loss, its draws, what is trained and what is used, and a task with two answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from samsans import config, methods, zoo
from samsans.backbones import load_backbone
from samsans.errors import InputError
from samsans.methods import weights
from samsans.methods.prob_unet import model as prob_unet
from samsans.methods.prob_unet.model import ProbUNet
from samsans.methods.prob_unet.networks import Combine, UNet
from samsans.types import Batch

SIDE = 16


def made(**model: Any) -> ProbUNet:
    options = {"widths": [8, 16], "latent": 3} | model
    told = {"backbone.input_size": SIDE, **{f"model.{key}": value for key, value in options.items()}}
    method = methods.build(config.from_dict(told, method="prob_unet", preset="scratch"), ["lesion"])
    assert isinstance(method, ProbUNet)
    return method


def batch_of(count: int, annotators: int = 2) -> Batch:
    """Noise around a square; annotators draw it in different sizes, the last one nothing."""
    images = 0.1 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images[..., 4:12, 4:12] += 0.5
    annotations = torch.zeros(count, annotators, 1, SIDE, SIDE, dtype=torch.bool)
    for a in range(annotators - 1):
        annotations[:, a, :, 4 + a : 12 - a, 4 + a : 12 - a] = True
    drawn = torch.ones(count, annotators, dtype=torch.bool)
    ids = tuple(f"image{i}" for i in range(count))
    return Batch(images, annotations[:, 0], ids, ("lesion",), annotations=annotations, drawn=drawn)


def test_divergence_is_that_of_torch() -> None:
    method, batch = made(), batch_of(5)
    output = method(batch)
    first, second = (Independent(Normal(g.mean, g.log_sigma.exp()), 1) for g in (output.posterior, output.prior))
    expected = kl_divergence(first, second).mean()
    assert expected > 0.01
    torch.testing.assert_close(method.loss(output, batch)["kl"], expected)
    assert output.prior.divergence(output.prior).abs().max() < 1e-6


def test_loss_is_the_evidence_bound() -> None:
    method, batch = made(beta=3.0), batch_of(2)
    output = method(batch)
    terms = method.loss(output, batch)
    pixels = F.binary_cross_entropy_with_logits(output.logits, output.target.float(), reduction="none")
    torch.testing.assert_close(terms["bce"], pixels.sum((1, 2, 3)).mean())
    torch.testing.assert_close(terms["loss"], terms["bce"] + 3 * terms["kl"])


def test_shapes_of_any_side() -> None:
    assert UNet(3, [4, 6, 8])(torch.rand(2, 3, 13, 10)).shape == (2, 4, 13, 10)
    method, batch = made(widths=[4, 6, 8]), batch_of(2)
    assert method.predict(batch).shape == (2, 1, SIDE, SIDE)
    found = method.sample(batch, [1, 2], 5)
    assert found.shape == (2, 5, 1, SIDE, SIDE)
    assert found.dtype == torch.float32


def test_draws_are_joined_by_one_by_one_layers_over_all_pixels() -> None:
    """The same as repeating the draw over the pixels and concatenating it to the features."""
    combine, features, draws = Combine(4, 3), torch.rand(2, 4, 5, 5), torch.rand(2, 6, 3)
    for k in range(6):
        repeated = draws[:, k, :, None, None].expand(-1, -1, 5, 5)
        alone = combine.rest(combine.first(torch.cat([features, repeated], 1)))[:, 0]
        torch.testing.assert_close(combine(features, draws)[:, k], alone)


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = made(), batch_of(3)
    found = method.sample(batch, [7, 8, 7], 16)
    torch.manual_seed(99)
    assert torch.equal(found, method.sample(batch, [7, 8, 7], 16))
    alone = replace(batch, images=batch.images[1:2], ids=batch.ids[1:2])
    torch.testing.assert_close(method.sample(alone, [8], 16), found[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.sample(batch, [7, 8, 7], 4), found[:, :4], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(prob_unet, "MOST_VALUES", 1)  # one draw after the other
    torch.testing.assert_close(method.sample(batch, [7, 8, 7], 16), found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], method.sample(batch, [9, 8, 7], 16)[0])


def test_all_networks_learn() -> None:
    method, batch = made(), batch_of(2)
    method.loss(method(batch), batch)["loss"].backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    (stage,) = method.stages(config.from_dict({}, method="prob_unet"))
    assert stage.selects == "ged"
    assert sum(p.numel() for group in stage.groups for p in group.parameters) == sum(
        p.numel() for p in method.parameters()
    )


def test_posterior_is_for_training_alone() -> None:
    class Refusing(nn.Module):
        def forward(self, *args: Any) -> None:
            raise AssertionError("the posterior was asked")

    method, batch = made(), batch_of(2)
    before = method.predict(batch), method.sample(batch, [1, 2], 3)
    seen = replace(batch, masks=None, annotations=None, drawn=None)
    method.posterior = Refusing()  # type: ignore[assignment]
    assert torch.equal(method.predict(seen), before[0])
    assert torch.equal(method.sample(seen, [1, 2], 3), before[1])
    with pytest.raises(AssertionError, match="was asked"):
        method(batch)
    method.finish()
    assert torch.equal(method.predict(seen), before[0])


def test_posterior_sees_the_annotation_and_the_prior_does_not() -> None:
    method, batch = made(), batch_of(2, annotators=3)
    assert batch.annotations is not None
    outputs = [method(replace(batch, masks=batch.annotations[:, a], annotations=None, drawn=None)) for a in (0, 1)]
    assert torch.equal(outputs[0].prior.mean, outputs[1].prior.mean)
    assert not torch.allclose(outputs[0].posterior.mean, outputs[1].posterior.mean)


def test_one_annotation_at_random() -> None:
    batch = batch_of(600, annotators=4)
    assert batch.drawn is not None
    batch = replace(batch, drawn=batch.drawn & torch.tensor([True, False, True, True]))

    def sizes(empty: bool) -> dict[int, int]:
        found = made(train_on_empty=empty)(batch).target.flatten(1).sum(1)
        return {int(size): int((found == size).sum()) for size in found.unique()}

    torch.manual_seed(0)
    with_empty, without = sizes(True), sizes(False)
    assert set(with_empty) == {0, 16, 64}
    assert min(with_empty.values()) > 160
    assert set(without) == {16, 64}
    assert min(without.values()) > 260
    nothing = replace(batch, annotations=torch.zeros(600, 4, 1, SIDE, SIDE, dtype=torch.bool))
    assert not made(train_on_empty=False)(nothing).target.any()
    with pytest.raises(InputError, match="without masks"):
        made()(replace(batch, annotations=None, drawn=None, masks=None))


def test_learns_both_of_two_equally_likely_answers() -> None:
    """One image, of which one annotator draws a square and the other nothing: samples show the two and no third."""
    torch.manual_seed(0)
    method, batch = made(beta=1.0), batch_of(8)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        method.loss(method(batch), batch)["loss"].backward()
        optimizer.step()
    samples = method.sample(replace(batch, images=batch.images[:1], ids=("a",)), [3], 64)[0, :, 0] > 0
    shares = [share(samples, answer) for answer in batch.annotations[0, :, 0]]  # type: ignore[index]
    assert min(shares) > 0.25, shares
    assert sum(shares) > 0.9, shares


def share(samples: Tensor, answer: Tensor) -> float:
    """How many of the samples are this answer, to 3 % of the pixels."""
    return float(((samples ^ answer).flatten(1).float().mean(1) < 0.03).float().mean())


def test_weights_go_to_disk_and_back(tmp_path: Path) -> None:
    method, batch = made(), batch_of(1)
    weights.save_weights(method, tmp_path / "w.safetensors")
    other = methods.build(
        config.from_dict(
            {"seed": 5, "backbone.input_size": SIDE, "model.widths": [8, 16], "model.latent": 3},
            method="prob_unet",
            preset="scratch",
        ),
        ["lesion"],
    )
    assert not torch.allclose(other.predict(batch), method.predict(batch))
    assert weights.load_weights(other, tmp_path / "w.safetensors")["backbone"] == "none"
    assert torch.equal(other.predict(batch), method.predict(batch))


@pytest.mark.parametrize("preset", zoo.METHODS["prob_unet"].presets)
def test_presets(preset: str) -> None:
    told = config.from_dict({}, method="prob_unet", preset=preset)
    method = methods.build(told, ["lesion"])
    assert (told.preset, told.backbone.name, method.backbone.input_size) == (preset, "none", 128)
    assert config.from_dict({"backbone.name": "none"}, method="prob_unet").preset == "paper"


@pytest.mark.parametrize(
    ("options", "objects", "said"),
    [
        ({"backbone.name": "scratch"}, ["lesion"], "no SAM inside"),
        ({}, ["disc", "cup"], "2 objects"),
        ({"model.latent": 0}, ["lesion"], "model.latent 0"),
        ({"model.widths": [8]}, ["lesion"], r"model.widths \[8\]"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], objects: Sequence[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        methods.build(config.from_dict(options, method="prob_unet"), objects)


def test_methods_with_sam_refuse_to_be_without() -> None:
    with pytest.raises(InputError, match=r"backbone\.name none"):
        load_backbone(config.from_dict({"backbone.name": "none"}, method="samed").backbone)
