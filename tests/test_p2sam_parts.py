"""The parts of P2SAM alone: generator, fusion, mask weights, losses, annotations, snapshots, configuration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans import config as configuration
from samsans.data import transforms
from samsans.errors import InputError
from samsans.methods.p2sam import generator as generators
from samsans.methods.p2sam import losses
from samsans.methods.p2sam.config import P2SamConfig, check
from samsans.methods.p2sam.decoder import MaskWeights, enlarged
from samsans.methods.p2sam.generator import Fusion, Generator, Prompter, grey_image
from samsans.methods.p2sam.snapshots import Snapshots


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- generator ---------------------------------------------------------------------------------------------------------


def test_generator_has_the_published_size() -> None:
    torch.manual_seed(0)
    network = Generator(256)
    assert count(network.blocks) == 1_365_504
    assert count(network.head) == 98_816
    assert count(Fusion(256)) == 328_704
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 12
    sizes = []
    for block in network.blocks:
        block[-1].register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape)))  # type: ignore[index]
    found = network(torch.rand(2, 1, 128, 128))
    assert sizes == [(2, 32, 128, 128), (2, 64, 64, 64), (2, 128, 32, 32), (2, 192, 16, 16)]
    assert found.mean.shape == found.log_sigma.shape == (2, 256)


@torch.no_grad()
def test_generator_equals_its_steps_written_out() -> None:
    torch.manual_seed(0)
    network, x = Generator(16, clamp=None), torch.rand(2, 1, 37, 37)  # an odd side: the last row is pooled as well
    y = x
    for i, block in enumerate(network.blocks):
        y = F.avg_pool2d(y, 2, 2, ceil_mode=True) if i else y
        for convolution in block:  # type: ignore[attr-defined]
            y = F.conv2d(y, convolution.weight, convolution.bias, padding=1).clamp_min(0)
    assert y.shape[-2:] == (5, 5)
    head = F.conv2d(y.mean((2, 3), keepdim=True), network.head.weight[..., None, None], network.head.bias)[..., 0, 0]
    found = network(x)
    torch.testing.assert_close(torch.cat([found.mean, found.log_sigma], 1), head)


@torch.no_grad()
def test_first_distributions() -> None:  # section 5 of the specification
    torch.manual_seed(0)
    images = 0.6 * torch.rand(4, 1, 64, 64)
    drawn = Generator(256, head_bias="normal", clamp=None)(images)
    assert 0.85 < drawn.mean.std() < 1.25
    assert 0.8 < drawn.log_sigma.std() < 1.2
    assert 0.75 < drawn.log_sigma.exp().median() < 1.35
    prompts = drawn.draw(random(4, 50, 256))
    assert 25 < prompts.norm(dim=-1).mean() < 80
    torch.manual_seed(0)
    level = Generator(256, log_sigma=-1.0)(images)
    assert 0.85 < level.mean.std() < 1.25
    assert abs(float(level.log_sigma.mean()) + 1) < 0.1
    assert level.log_sigma.std() < 0.4
    wide = Generator(256, log_sigma=9.0, clamp=(-10.0, 3.0))(images)
    assert wide.log_sigma.max() == 3
    biases = torch.cat([m.bias for m in Generator(8).blocks.modules() if isinstance(m, nn.Conv2d)])
    assert 0.0005 < biases.std() < 0.0012


def test_generator_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network, fusion, x = Generator(16), Fusion(16), torch.rand(2, 1, 32, 32)
    plain = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x.bfloat16().float())
        entering = fusion(found.mean[:, None], torch.zeros(16))
    assert found.mean.dtype == found.log_sigma.dtype == entering.dtype == torch.float32
    torch.testing.assert_close(found.mean, plain.mean, rtol=0, atol=0.02)


def test_grey_image_undoes_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    for statistics in ("sam", "unit"):
        preprocess = transforms.Preprocess(8, statistics=statistics)
        grey = grey_image(preprocess.normalize(pixels), statistics)
        torch.testing.assert_close(grey, pixels[:, :1] / 255, rtol=0, atol=1e-6)
    assert (generators.SAM_MEAN, generators.SAM_STD) == (transforms.MEAN, transforms.STD)


# -- fusion ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fusion_equals_the_convolutions_over_constant_maps() -> None:
    torch.manual_seed(0)
    fusion, prompts, no_mask = Fusion(16), random(2, 3, 16), random(16, seed=1)
    maps = torch.cat([no_mask.expand(6, -1), prompts.flatten(0, 1)], 1)[..., None, None].expand(-1, -1, 8, 8)
    for i, layer in enumerate(fusion.layers):
        maps = F.conv2d(maps, layer.weight[..., None, None], layer.bias)  # type: ignore[arg-type, index]
        maps = maps if i == 3 else maps.relu()
    assert maps.std((2, 3)).max() < 1e-6
    torch.testing.assert_close(fusion(prompts, no_mask).flatten(0, 1), maps[..., 3, 3])
    for layer in fusion.layers:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        torch.testing.assert_close(weight @ weight.T, torch.eye(16), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_residual_fusion_starts_as_the_no_mask_vector() -> None:
    no_mask = random(16)
    assert torch.equal(Fusion(16, residual=True)(random(2, 3, 16), no_mask), no_mask.expand(2, 3, -1))


# -- mask weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "learnt"), [("affine", 7), ("free", 8), ("fixed", 0)])
def test_weights_start_as_the_mean(kind: str, learnt: int) -> None:
    weights, maps = MaskWeights(8, kind), random(2, 3, 8, 4, 4)
    assert count(weights) == learnt
    torch.testing.assert_close(weights(maps), maps.mean(2))


def test_affine_weights_sum_to_one_after_any_steps() -> None:
    weights = MaskWeights(8)
    optimizer = torch.optim.AdamW(weights.parameters(), 0.1, weight_decay=0.01)
    for step in range(20):
        optimizer.zero_grad()
        (weights(random(2, 8, 4, 4, seed=step)) * random(2, 4, 4, seed=99)).sum().backward()
        optimizer.step()
    assert weights.values.detach().min() < 0
    assert abs(float(weights.values.detach().sum()) - 1) < 1e-6


@torch.no_grad()
def test_assembling_before_or_after_upsampling_is_the_same() -> None:
    weights, maps = MaskWeights(8, "free"), random(2, 3, 8, 8, 8).double()
    weights.learnt.copy_(random(8, seed=1))
    after = F.interpolate(maps.flatten(0, 1), (32, 32), mode="bilinear", align_corners=False).unflatten(0, (2, 3))
    expected = torch.einsum("m,bkmhw->bkhw", weights.values.double(), after)
    torch.testing.assert_close(enlarged(weights(maps), 32), expected.float(), rtol=0, atol=1e-5)


# -- losses (sections 8 and 17 of the specification) -------------------------------------------------------------------


def test_values_of_the_losses() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    target[:, :2, :2] = True
    zero = torch.zeros(1, 4, 4)
    assert [round(float(x), 6) for x in losses.paper_terms(zero, target)] == [0.693147, 0.108304, 0.615385]
    _, focal, dice = losses.reference_terms(zero, torch.zeros(1, 8, 4, 4), target)
    assert (round(float(focal), 6), round(float(dice), 6)) == (0.346574, 0.426667)
    sure = torch.where(target, 10.0, -10.0)
    bce, focal, dice = losses.paper_terms(sure, target)
    assert float(bce) == pytest.approx(4.54e-5, rel=0.01)
    assert float(focal) < 1e-12
    assert float(dice) == pytest.approx(8.06e-5, rel=0.01)
    empty = torch.zeros_like(target)
    assert [float(x) for x in losses.paper_terms(torch.full((1, 4, 4), -100.0), empty)] == [0, 0, 0]


def test_paper_losses_are_means_over_images() -> None:
    logits, target = random(3, 8, 8), random(3, 8, 8, seed=1) > 0.5
    each = torch.tensor([[*losses.paper_terms(logits[i : i + 1], target[i : i + 1])] for i in range(3)])
    torch.testing.assert_close(torch.stack(losses.paper_terms(logits, target)), each.mean(0))
    p = logits.sigmoid()
    right = torch.where(target, p, 1 - p)
    focal = torch.where(target, 0.25, 0.75) * (1 - right) ** 2 * -right.log()
    torch.testing.assert_close(losses.paper_terms(logits, target)[1], focal.mean())


@pytest.mark.parametrize(
    ("logit", "dice", "focal"), [(0.0, 242.8, 4189), (math.log(0.01 / 0.99), 158.5, 904), (None, 122.2, 0.024)]
)
def test_magnitudes_of_the_reference_losses(logit: float | None, dice: float, focal: float) -> None:
    target = torch.zeros(10, 128, 128, dtype=torch.bool)
    target[:, 50:70, 50:70] = True
    logits = torch.where(target, 4.6, -4.6) if logit is None else torch.full(target.shape, logit)
    terms = losses.reference_terms(logits, torch.zeros(10, 8, 128, 128), target)
    assert float(terms[0]) == pytest.approx(2.08, rel=0.01)
    assert float(terms[1]) == pytest.approx(focal, rel=0.02)
    assert float(terms[2]) == pytest.approx(dice, rel=0.002)


def test_reference_cross_entropy_reads_maps_as_classes() -> None:
    weighted, target = random(2, 8, 4, 4), random(2, 4, 4, seed=1) > 0
    p = weighted.softmax(1)
    expected = -torch.where(target, p[:, 1], p[:, 0]).log().mean()
    torch.testing.assert_close(losses.reference_terms(weighted.sum(1), weighted, target)[0], expected)


def test_norms() -> None:
    assert float(losses.norms([torch.tensor([3.0, 4.0]), torch.tensor([[2.0]])])) == pytest.approx(7e-5)


# -- the set loss ------------------------------------------------------------------------------------------------------


def test_jaccard_distance_is_that_of_masks_and_a_metric_of_soft_ones() -> None:
    masks = (random(3, 400) > 0.5).float()
    inter, union = (masks[0] * masks[1]).sum(), (masks[0] + masks[1]).clamp_max(1).sum()
    assert float(losses.jaccard_distance(masks[0], masks[1], eps=0.0)) == pytest.approx(float(1 - inter / union))
    assert losses.jaccard_distance(torch.zeros(9), torch.zeros(9)) == 0
    for seed in range(20):
        a, b, c = random(3, 50, seed=seed).sigmoid()
        distance = losses.jaccard_distance
        assert distance(a, a) == 0
        assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-6


def test_energy_distance_against_loops() -> None:
    logits, annotations = 2 * random(2, 3, 5, 5), random(2, 4, 5, 5, seed=1) > 0
    drawn = torch.tensor([[True] * 4, [True, False, True, False]])
    expected = []
    for soft, masks, there in zip(logits.sigmoid(), annotations.float(), drawn, strict=True):

        def distance(a: Tensor, b: Tensor) -> float:
            return 1 - float((torch.minimum(a, b).sum() + 1) / (torch.maximum(a, b).sum() + 1))

        cross = [distance(s, y) for s in soft for y in masks[there]]
        among = [distance(soft[i], soft[j]) for i in range(3) for j in range(3) if i != j]
        expected.append(2 * sum(cross) / len(cross) - sum(among) / len(among))
    torch.testing.assert_close(losses.energy_distance(logits, annotations, drawn), torch.tensor(expected))


def test_energy_distance_prefers_the_set_to_its_average() -> None:
    """What the paper's objective does not see: answers as different as the annotators are better than one for all."""
    annotations = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    annotations[0, 0, :4], annotations[0, 1, 4:] = True, True
    spread = torch.where(annotations, 20.0, -20.0)
    same = spread[:, :1].expand(-1, 2, -1, -1)
    assert losses.energy_distance(spread, annotations) < losses.energy_distance(same, annotations) - 0.3
    logits = (0.1 * random(1, 2, 8, 8)).requires_grad_()
    losses.energy_distance(logits, annotations).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


# -- snapshots ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_snapshots_answer_as_the_network_did() -> None:
    torch.manual_seed(0)
    network = Prompter(Generator(8), Fusion(8))
    inputs = (torch.rand(2, 1, 16, 16), random(2, 3, 8), random(8, seed=1))
    kept = Snapshots(network, [50, 10, 100, 10])
    assert kept.copies.shape == (2, count(network))
    assert kept.pool(network) == [network]
    answers = []
    for used in (0.05, 0.1, 0.3, 0.5, 0.9):
        for parameter in network.parameters():
            parameter.add_(0.01 * random(*parameter.shape, seed=int(100 * used)))
        kept.update(network, used)
        answers.append(network(*inputs))
    first, second, last = kept.pool(network)
    for call, answer in ((first, answers[1]), (second, answers[3]), (last, answers[4])):
        torch.testing.assert_close(call(*inputs), answer)
    again = Snapshots(network, [10, 50])
    again.load_state_dict(kept.state_dict())
    assert len(again.pool(network)) == 2
    assert Snapshots(network, []).pool(network) == [network]


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 1}, "model.masks is 1"),
        ({"clamp": [3.0, -10.0]}, "model.clamp"),
        ({"stage2_share": 0.0}, "model.stage2_share is 0.0"),
        ({"stage2_images": 0}, "model.stage2_images is 0"),
        ({"snapshots": [0, 50]}, "model.snapshots"),
        ({"set_loss": 1}, "model.set_loss is 1"),
        ({"kl": -1.0}, "model.kl is -1.0"),
        ({"dense_residual": True}, "model.dense_residual"),
        ({"posterior": True, "set_loss": 4}, "posterior and model.set_loss"),
    ],
)
def test_configurations_that_cannot_be_used(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(P2SamConfig(**options), 1e-3)  # type: ignore[arg-type]


def test_presets() -> None:
    paper, reference = (configuration.from_dict({}, method="p2sam", preset=name) for name in ("paper", "reference"))
    check(paper.model, paper.train.lr)
    check(reference.model, reference.train.lr)
    with pytest.raises(InputError, match=r"train\.lr is 0"):
        check(paper.model, 0.0)
    assert (paper.model.loss, paper.model.injection, paper.model.weights) == ("paper", "token", "affine")
    assert (paper.train.optimizer, paper.train.weight_decay) == ("adam", 0)
    assert (reference.train.optimizer, reference.train.weight_decay) == ("adamw", 0.01)
    assert (reference.model.loss, reference.model.injection) == ("reference", "dense")
    assert (reference.model.snapshots, reference.model.stage2_lr) == ([10, 50, 70, 100], 1e-6)
    assert (reference.model.stage2_from, reference.model.stage2_select) == ("last", "last")
