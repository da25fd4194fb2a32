"""The parts of H-SAM alone: masked attention, stage 2, pixel decoder, CMAttn, stage weights, parameter counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from samsans.errors import InputError
from samsans.methods.class_decoder import ClassMaps
from samsans.methods.hsam import cmattn
from samsans.methods.hsam.cmattn import CMAttn, frequency_deviations, head_count, rank_deviations
from samsans.methods.hsam.model import class_prior, mask_feature, stage2_weight
from samsans.methods.hsam.stage2 import Attention, Stage2, binary_mask, pixel_decoder


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stage2(classes: int = 3, **options: object) -> Stage2:
    torch.manual_seed(1)
    return Stage2(classes, **({"width": 32, "heads": 4, "mlp": 48} | options)).eval()  # type: ignore[arg-type]


# -- masked attention (Eq. 3, check 8) ---------------------------------------------------------------------------------


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(16, 8, 2)


@torch.no_grad()
def test_a_constant_prior_scales_the_attention(attention: Attention) -> None:
    tokens, image = random(2, 3, 16), random(2, 9, 16, seed=1)
    plain, bias = attention(tokens, image, image), attention.out_proj.bias
    for constant in (1.0, 0.25, 1 / 3, 0.0):
        read = attention(tokens, image, image, torch.full((2, 3, 9), constant))
        torch.testing.assert_close(read - bias, constant * (plain - bias))
    assert not torch.allclose(plain, bias.expand_as(plain), atol=1e-2)


@torch.no_grad()
def test_the_prior_multiplies_after_the_softmax_and_nothing_is_normalised_again(attention: Attention) -> None:
    tokens, image, prior = random(2, 3, 16), random(2, 9, 16, seed=1), random(2, 3, 9, seed=2).softmax(1)
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = (
            getattr(attention, f"{name}_proj")(x)[..., head] for name, x in (("q", tokens), ("k", image), ("v", image))
        )
        weights = prior * (q @ k.mT / math.sqrt(4)).softmax(-1)
        assert (weights.sum(-1) <= 1).all()
        expected.append(weights @ v)
    expected_read = attention.out_proj(torch.cat(expected, -1))
    torch.testing.assert_close(attention(tokens, image, image, prior), expected_read)


@torch.no_grad()
def test_a_binary_prior_hides_positions(attention: Attention) -> None:
    tokens, image = random(1, 3, 16), random(1, 9, 16, seed=1)
    prior = torch.full((1, 3, 9), 0.1)
    prior[0, 0, :4] = 0.6  # the other rows have nothing above the threshold
    mask = binary_mask(prior)
    assert mask[0, 0].tolist() == [True] * 4 + [False] * 5
    assert mask[0, 1:].all()
    read = attention(tokens, image, image, mask)
    torch.testing.assert_close(read[:, :1], attention(tokens[:, :1], image[:, :4], image[:, :4]))
    torch.testing.assert_close(read[:, 1:], attention(tokens[:, 1:], image, image))


def test_gradient_reaches_a_learnable_prior_only() -> None:
    for kind, learns in (("learnable", True), ("binary", False), ("off", False)):
        module = stage2(mask_attention=kind)
        prior = random(1, 3, 16).softmax(1).requires_grad_()
        tokens, image = module.transform(random(1, 32, 4, 4), random(1, 32, 4, 4, seed=1), prior)
        (tokens.square().sum() + image.square().sum()).backward()
        assert (prior.grad is not None and bool(prior.grad.any())) == learns


# -- stage 2 -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_stage2_equals_its_steps_written_out() -> None:  # sections 9 and 10 of the specification
    module = stage2()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(random(*parameter.shape), alpha=0.1)
    features, positions = random(2, 32, 4, 4), random(1, 32, 4, 4, seed=1)
    prior, upscaled = random(2, 3, 16, seed=2).softmax(1), random(2, 4, 16, 16, seed=3)
    pe = module.class_tokens.weight.expand(2, -1, -1)
    tokens, image, image_pe = pe, features.flatten(2).mT, positions.flatten(2).mT
    for i, block in enumerate(module.layers):
        read = block.token_to_image(tokens + pe, image + image_pe, image, prior)
        tokens = block.norm2(tokens + read)
        if i == 0:
            tokens = block.norm1(block.self_attention(tokens, tokens, tokens))
        else:
            tokens = block.norm1(tokens + block.self_attention(tokens + pe, tokens + pe, tokens))
        tokens = block.norm3(tokens + block.mlp(tokens))
        read = block.image_to_token(image + image_pe, tokens + pe, tokens, prior.mT)
        image = block.norm4(image + read)
    tokens = module.final_norm(tokens + module.final_attention(tokens + pe, image + image_pe, image))
    joined = torch.cat([module.upscale(image.mT.reshape(2, 32, 4, 4)), upscaled], 1)
    full = module.pixel_decoder(joined)
    weights = torch.stack([mlp(tokens[:, k]) for k, mlp in enumerate(module.hypernetworks)], 1)
    expected = torch.einsum("bkc,bchw->bkhw", weights, full)
    torch.testing.assert_close(module(features, positions, prior, upscaled), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stage1_features_reach_stage2_after_its_own() -> None:  # check 12
    module, features, positions = stage2(), random(1, 32, 4, 4), random(1, 32, 4, 4, seed=1)
    prior, upscaled = random(1, 3, 16, seed=2).softmax(1), random(1, 4, 16, 16, seed=3)
    logits = module(features, positions, prior, upscaled)
    assert logits.shape == (1, 3, 64, 64)
    assert not torch.allclose(module(features, positions, prior, upscaled + 1), logits, atol=1e-3)
    module.pixel_decoder[0].weight[4:].zero_()  # input channels of stage 1
    without = module(features, positions, prior, upscaled)
    torch.testing.assert_close(module(features, positions, prior, upscaled + 1), without)
    plain = stage2(hierarchical=False)
    assert plain(features, positions, prior, upscaled).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(("patch", "channels"), [(8, 4), (16, 2), (32, 1)])
def test_pixel_decoder_ends_at_full_size(patch: int, channels: int) -> None:
    assert pixel_decoder(32, patch)(random(1, 8, 12, 12)).shape == (1, channels, 3 * patch, 3 * patch)


@pytest.mark.parametrize("patch", [4, 12, 14])
def test_pixel_decoder_refuses_other_patches(patch: int) -> None:
    with pytest.raises(InputError, match=f"patches of {patch} pixels.*pixel_decoder=plain"):
        pixel_decoder(32, patch)


def test_counts() -> None:  # check 16 and section 18 of the specification
    with torch.device("meta"):
        nine, two = Stage2(9), Stage2(2)
        assert count(nine.layers[0]) == count(nine.layers[1]) == 1_842_432
        assert count(nine.final_attention) == 131_712
        assert count(nine.pixel_decoder) == 10_384
        assert count(nine.hypernetworks[0]) == 267_280
        assert count(nine) == 6_309_248
        assert count(two) == 4_436_496
        for side, classes, expected in ((32, 9, 12_598_282), (14, 9, 1_114_750), (32, 2, 12_598_275)):
            assert count(CMAttn(side * side, classes, 256)) == expected


# -- prior and mask feature --------------------------------------------------------------------------------------------


def test_prior_is_a_distribution_over_classes() -> None:  # check 7
    prior = class_prior(30 * random(2, 9, 56, 56), 14)
    assert prior.shape == (2, 9, 196)
    assert (prior >= 0).all()
    torch.testing.assert_close(prior.sum(1), torch.ones(2, 196), rtol=0, atol=1e-6)
    blocks = random(1, 3, 8, 8).repeat_interleave(4, -1).repeat_interleave(4, -2)  # the same value in every cell
    torch.testing.assert_close(class_prior(blocks, 8), blocks[..., ::4, ::4].softmax(1).flatten(2))


def test_mask_feature_is_float32_under_autocast() -> None:
    tokens, image = 16 * random(2, 3, 32), random(2, 16, 32, seed=1)
    first = ClassMaps(torch.zeros(()), tokens, image, torch.zeros(()))
    with torch.autocast("cpu", torch.bfloat16):
        feature = mask_feature(first)
    assert feature.dtype == torch.float32
    torch.testing.assert_close(feature, torch.einsum("bkc,btc->bkt", tokens, image))


# -- CMAttn (check 9) --------------------------------------------------------------------------------------------------


def gate(positions: int = 16, classes: int = 3, **options: object) -> CMAttn:
    torch.manual_seed(2)
    return CMAttn(positions, classes, 32, **({"hidden": 48} | options))  # type: ignore[arg-type]


def test_head_counts() -> None:
    assert [head_count(n) for n in (196, 1024, 16, 9, 169, 484)] == [7, 8, 8, 3, 1, 4]


@pytest.mark.parametrize("side", [14, 32])
def test_gate_has_mean_one_and_teaches_every_weight(side: int) -> None:
    torch.manual_seed(0)
    module, feature = CMAttn(side * side, 9, 256), 16 * random(2, 9, side * side)
    g = module(feature, torch.zeros(2, side * side, dtype=torch.int64))
    assert g.shape == (2, side * side)
    torch.testing.assert_close(g.mean(1), torch.ones(2))
    (g * random(2, side * side, seed=1)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        size = float(parameter.grad.abs().max())
        if name.endswith("k_proj.bias") or name == "score.bias":  # softmax does not see a shift
            assert size < 1e-4, name
        else:
            assert size > 0, name


@torch.no_grad()
def test_a_flat_score_doubles_the_embedding() -> None:
    module = gate().eval()
    module.score.weight.zero_()
    torch.testing.assert_close(module(random(2, 3, 16)), torch.ones(2, 16))


@torch.no_grad()
def test_gate_equals_its_steps_written_out() -> None:  # section 8.2 of the specification
    feature = 5 * random(2, 3, 16)
    for normalise in ("softmax", "none"):
        module = gate(normalise=normalise).eval()
        a = (feature / math.sqrt(32)).softmax(1) if normalise == "softmax" else feature
        a = module.norm1(module.attention1(a, a, a))
        a = module.attention2(a, a, a)
        a = module.norm2(a + module.mlp(a))
        scores = (a * module.score.weight[0, :, None]).sum(1) + module.score.bias
        torch.testing.assert_close(module(feature), 16 * scores.softmax(1))
        module.gate = "sigmoid"
        torch.testing.assert_close(module(feature), scores.sigmoid())


@torch.no_grad()
def test_noise_is_for_training_only_and_needs_labels() -> None:
    module, feature = gate(dropout=0.0), random(2, 3, 16)
    labels = torch.zeros(2, 16, dtype=torch.int64)
    module.observe(torch.tensor([100, 10, 1]))
    assert torch.equal(module.eval()(feature), module(feature, labels))
    module.train()
    torch.testing.assert_close(module(feature, labels), module.eval()(feature))  # background: deviation 0
    module.train()
    assert not torch.allclose(module(feature, labels + 2), module(feature, labels + 2))
    with pytest.raises(InputError, match=r"without masks.*noise=off"):
        module(feature)
    quiet = gate(dropout=0.0, noise="off")
    assert torch.equal(quiet(feature), quiet(feature))
    assert not torch.allclose(gate(noise="off")(feature), quiet(feature))  # dropout


@torch.no_grad()
def test_noise_has_the_deviation_of_the_true_class() -> None:
    module = gate(dropout=0.0, normalise="none")
    module.observe(torch.tensor([100, 10, 1]))
    labels = torch.tensor([0, 1, 2, 2]).repeat(4).expand(2, -1)
    torch.manual_seed(0)
    noise = torch.stack([module._noise(torch.zeros(2, 3, 16), labels) for _ in range(2000)])
    spread = noise.std((0, 1, 2))
    torch.testing.assert_close(spread, torch.tensor([0.0, 0.20, 0.35, 0.35]).repeat(4), rtol=0.03, atol=0)
    assert float(noise.mean().abs()) < 0.005
    channels = noise[..., 2].flatten(0, 1)
    assert float(torch.corrcoef(channels.T)[0, 1].abs()) < 0.1  # independent over classes


def test_rank_deviations() -> None:
    pixels = torch.tensor([10**9, 70, 60, 50, 40, 30, 20, 10, 5])
    torch.testing.assert_close(rank_deviations(pixels), torch.tensor(cmattn.DEVIATIONS[::-1]))
    shuffled = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rank_deviations(pixels[shuffled]), rank_deviations(pixels)[shuffled])
    torch.testing.assert_close(rank_deviations(torch.tensor([9, 1])), torch.tensor([0.0, 0.35]))
    torch.testing.assert_close(rank_deviations(torch.tensor([9, 1, 2])), torch.tensor([0.0, 0.35, 0.2]))
    torch.testing.assert_close(
        rank_deviations(torch.tensor([9, 1, 2, 3])), torch.tensor([0.0, 0.35, 0.3 - 0.1 * 2 / 3, 0.1])
    )
    unset = torch.full((9,), sum(cmattn.DEVIATIONS) / 9)
    torch.testing.assert_close(rank_deviations(torch.zeros(9, dtype=torch.int64)), unset)
    torch.testing.assert_close(rank_deviations(torch.tensor([9, 4, 4])), torch.tensor([0.0, 0.275, 0.275]))


def test_frequency_deviations() -> None:
    found = frequency_deviations(torch.tensor([10_000, 100, 400, 0]))
    torch.testing.assert_close(found, torch.tensor([0.035, 0.35, 0.175, 0.35]))
    torch.testing.assert_close(frequency_deviations(torch.zeros(3, dtype=torch.int64)), torch.full((3,), 0.35))


# -- stage weights (check 4) -------------------------------------------------------------------------------------------


def test_stage_weights() -> None:
    table = {
        0: 0.600000,
        1: 0.603073,
        10: 0.630034,
        50: 0.734142,
        100: 0.829461,
        150: 0.893041,
        200: 0.933849,
        250: 0.959439,
        299: 0.975013,
    }
    for epoch, weight in table.items():
        assert stage2_weight(epoch) == pytest.approx(weight, abs=1e-6)
    weights = [stage2_weight(epoch) for epoch in range(300)]
    assert weights == sorted(weights)
