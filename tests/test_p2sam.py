"""P2SAM: the network, its loading, its counts and its samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from p2sam_method import SIDE, batch, begin, count, encodes, learn, make, random, ready, rng
from samsans import architectures
from samsans import config as configuration
from samsans.backbones import Sam, add_lora, load_backbone
from samsans.backbones.checkpoints import FOURIER_TWIN
from samsans.backbones.geometry import resize_pos_embed
from samsans.backbones.sam import LoadReport, build_network
from samsans.backbones.start import draw_heads, initialise
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.methods.p2sam.config import P2SamConfig
from samsans.methods.p2sam.model import P2Sam
from samsans.types import Batch

# -- ViT-B at 128 pixels: counts and shapes (sections 2 and 4.5 of the specification) ----------------------------------


def vit_b(blocks: int = 12, device: str = "meta") -> Sam:
    arch = dataclasses.replace(architectures.VIT_B, depth=blocks, global_blocks=tuple(range(2, blocks, 3)), multimask=8)
    network = build_network(arch, 128)
    network = network if device == "meta" else network.to_empty(device="cpu")
    if device != "meta":
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.02, generator=rng(0))
    with torch.device(device):
        return Sam(network, name="vit-b", from_scratch=True, report=LoadReport("nothing", 0)).eval()


def test_census() -> None:
    sam = vit_b()
    sam._base_hash = "none"  # of meta tensors there is none
    model = sam.model
    assert count(model.vision_encoder.parameters()) == 86_516_992
    positions = count(model.shared_image_embedding.parameters())
    assert positions == 256
    assert count(model.prompt_encoder.parameters()) - positions == 6_220
    assert count(model.mask_decoder.parameters()) == 4_759_945
    assert count(model.mask_decoder.iou_prediction_head.parameters()) == 133_897
    assert count(model.mask_decoder.output_hypernetworks_mlps[0].parameters()) == 139_808
    add_lora(sam, LoraConfig(decoder=[]))
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(adapters) == 12 * 2 * 2
    assert count(adapters) == 147_456
    with torch.device("meta"):
        method = P2Sam(sam, P2SamConfig(injection="dense"))
    first, second = method.stages(configuration.from_dict({}, method="p2sam"))
    assert count(first.groups[0].parameters) == 147_456 + 4_759_945 - 133_897 - 139_808 + 256
    assert count(first.groups[1].parameters) == 7
    assert count(second.groups[0].parameters) == 1_464_320 + 328_704


@torch.no_grad()
def test_shapes() -> None:
    sam = vit_b(3, "cpu")
    for injection in ("token", "dense"):
        method = P2Sam(sam, P2SamConfig(injection=injection)).eval()  # type: ignore[arg-type]
        images = torch.rand(2, 3, 128, 128, generator=rng(0))
        features = sam.encode(images).features
        assert features.shape == (2, 256, 8, 8)
        maps = method.decode(features, random(2, 5, 256))
        assert maps.shape == (2, 5, 8, 32, 32)
        assert method.assemble(maps).shape == (2, 5, 128, 128)
        method.prompted.fill_(True)
        shown = Batch(images, None, ("a", "b"), ("lesion",))
        assert method.sample(shown, [1, 2], 5).shape == (2, 5, 1, 128, 128)
        assert method.predict(shown).shape == (2, 1, 128, 128)


# -- loading (section 4.2) ---------------------------------------------------------------------------------------------


def test_a_file_gives_all_but_the_heads_of_the_masks(tmp_path: Path) -> None:
    arch = dataclasses.replace(architectures.TINY, decoder_heads=8)
    network = initialise(build_network(arch, SIDE), 0)
    with torch.no_grad():
        network.vision_encoder.pos_embed.fill_(0.7)
        for name, parameter in network.named_parameters():
            if "rel_pos" in name:
                parameter.copy_(random(*parameter.shape))
    source = network.state_dict()
    source.pop(FOURIER_TWIN)
    save_file({key: value.clone() for key, value in source.items()}, tmp_path / "model.safetensors")
    options = BackboneConfig(name=str(tmp_path / "model.safetensors"), input_size=32)
    sam = load_backbone(options, seed=3, masks=8)
    state = sam.model.state_dict()
    heads = (
        "mask_decoder.mask_tokens.",
        "mask_decoder.output_hypernetworks_mlps.",
        "mask_decoder.iou_prediction_head.",
    )
    assert set(sam.load_report.drawn) == {name for name in state if name.startswith(heads)}
    resized = {"vision_encoder.pos_embed", *(f"vision_encoder.layers.1.attn.rel_pos_{axis}" for axis in "hw")}
    for name, value in source.items():
        if name.startswith(heads):
            assert name not in state or value.shape != state[name].shape or not torch.equal(state[name], value)
        elif name not in resized:
            assert torch.equal(state[name], value), name  # the tables of windows too
    positions = state["vision_encoder.pos_embed"]
    assert torch.equal(positions, resize_pos_embed(source["vision_encoder.pos_embed"], 2))
    torch.testing.assert_close(positions, torch.full_like(positions, 0.7))
    # the same weights again, and another seed: other heads, and a base with the same name
    again, other = (load_backbone(options, seed=seed, masks=8) for seed in (3, 4))
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(other.model.mask_decoder.mask_tokens.weight, sam.model.mask_decoder.mask_tokens.weight)
    assert sam.base_hash == again.base_hash == other.base_hash
    assert "drew 61 tensors at random" in str(sam.load_report)
    plain = load_backbone(options, seed=3)
    assert plain.load_report.drawn == ()
    assert plain.base_hash != sam.base_hash


def test_heads_start_as_in_the_original_sam() -> None:
    drawn = draw_heads({"mask_tokens.weight": (9, 256), "proj_in.weight": (256, 256), "proj_in.bias": (256,)}, 0)
    assert 0.95 < drawn["mask_tokens.weight"].std() < 1.05
    assert 0.034 < drawn["proj_in.weight"].std() < 0.038
    assert drawn["proj_in.weight"].abs().max() <= 1 / 16
    assert 0.03 < drawn["proj_in.bias"].std() < 0.042


@torch.no_grad()
def test_adapters_change_queries_and_values_alone() -> None:
    sam, plain = (load_backbone(BackboneConfig(name="tiny")) for _ in range(2))
    add_lora(sam, LoraConfig(decoder=[]))
    x = random(1, 4, 4, 32)
    layers = [s.model.vision_encoder.layers[0].attn.qkv for s in (sam, plain)]
    assert torch.equal(layers[0](x), layers[1](x))
    for name, parameter in sam.model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(random(*parameter.shape))
    changed = [not torch.equal(a, b) for a, b in zip(*(layer(x).chunk(3, -1) for layer in layers), strict=True)]
    assert changed == [True, False, True]


# -- the decoder -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_is_that_of_transformers() -> None:
    """One batched call equals a call a draw; a token on the library's point-batch axis, a vector as dense prompt."""
    method = ready()
    features, prompts, decoder = random(2, 32, 4, 4), random(2, 3, 32, seed=1), method.backbone.model.mask_decoder
    dense, positions = method.backbone.dense_default(), method.backbone.image_pe.repeat(2, 1, 1, 1)
    expected, _ = decoder(features, positions, prompts[:, :, None], dense, True)
    found = method.decode(features, prompts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for k in range(3):
        torch.testing.assert_close(method.decode(features, prompts[:, k : k + 1])[:, 0], found[:, k])
    expected, _ = decoder(features, positions, None, dense, True)
    torch.testing.assert_close(method.decode(features), expected, rtol=1e-5, atol=1e-5)

    method = ready(injection="dense")
    assert method.prompter is not None
    entering = method.prompter.enter(prompts, method.no_mask)
    found, decoder = method.decode(features, entering), method.backbone.model.mask_decoder
    for k in range(3):
        expected, _ = decoder(features, positions, None, entering[:, k, :, None, None].expand(-1, -1, 4, 4), True)
        torch.testing.assert_close(found[:, k], expected[:, 0], rtol=1e-5, atol=1e-5)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"injection": "dense"}, {"snapshots": [10, 100]}])
def test_samples_depend_on_image_and_seed_alone(options: dict[str, Any]) -> None:
    method, shown = ready(**options), batch(3, annotated=False)
    method.schedule(0.0, 0.6)
    samples = method.sample(shown, [7, 8, 9], 16)
    assert samples.shape == (3, 16, 1, SIDE, SIDE)
    assert samples.dtype == torch.float32
    assert samples.std(1).mean() > 1e-3
    last = dataclasses.replace(shown, images=shown.images[2:], ids=shown.ids[2:])
    torch.testing.assert_close(method.sample(last, [9], 16)[0], samples[2])
    torch.testing.assert_close(method.sample(shown, [7, 8, 9], 4), samples[:, :4])
    torch.manual_seed(1234)
    assert torch.equal(method.sample(shown, [7, 8, 9], 16), samples)
    assert not torch.allclose(method.sample(shown, [1, 8, 9], 16)[0], samples[0])


@torch.no_grad()
def test_many_samples_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    method, shown = ready(), batch(annotated=False)
    samples = method.sample(shown, [1, 2], 7)
    monkeypatch.setattr("samsans.methods.p2sam.model.POSITIONS", 2 * 2 * 16)
    torch.testing.assert_close(method.sample(shown, [1, 2], 7), samples)
    seen = encodes(method, monkeypatch)
    method.sample(shown, [1, 2], 7)
    assert seen == [2]


def test_samples_after_a_prediction_need_no_second_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    method, shown = ready(), batch(annotated=False)
    samples = method.sample(shown, [1, 2], 3)
    seen = encodes(method, monkeypatch)
    method.predict(shown)
    assert torch.equal(method.sample(shown, [1, 2], 3), samples)
    assert seen == [2]
    method.predict(batch(annotated=False, first=5))
    assert torch.equal(method.sample(shown, [1, 2], 3), samples)
    assert seen == [2] * 3


@torch.no_grad()
def test_without_deviation_all_samples_are_the_mean_prompt() -> None:
    method = ready(log_sigma=-30.0)  # clamped to -10
    shown = batch(annotated=False)
    samples, mean = method.sample(shown, [1, 2], 4), method.predict(shown)
    assert (samples - mean[:, None]).abs().max() < 1e-3
    sure = mean.abs() > 1e-3
    assert torch.equal((samples > 0)[:, 1][sure], (mean > 0)[sure])


@torch.no_grad()
def test_predict_is_one_draw_at_the_mean() -> None:
    method, shown = ready(), batch(annotated=False)
    assert method.prompter is not None
    mean = method.prompter.generator(shown.images[:, :1]).mean
    features = method.backbone.encode(shown.images).features
    expected = method.assemble(method.decode(features, mean[:, None]))
    torch.testing.assert_close(method.predict(shown), expected)


def test_copies_of_the_generator_answer_in_turn() -> None:
    method, config = make(snapshots=[10, 50, 100])
    stage = begin(method, config, 1)
    shown = batch(annotated=False)
    alone = []
    for used in (0.55, 0.75, 0.99):  # a tenth of stage 2, its middle, nearly its end
        learn(method, stage, 1, lr=0.2)
        method.eval()
        method.schedule(0.0, used)
        fresh, config = make()
        begin(fresh, config, 1)
        assert fresh.prompter is not None
        assert method.prompter is not None
        fresh.prompter.load_state_dict(method.prompter.state_dict())
        alone.append(fresh.eval().sample(shown, [1, 2], 8))
        method.train()
    samples = method.eval().sample(shown, [1, 2], 8)
    for k in range(8):
        torch.testing.assert_close(samples[:, k], alone[k % 3][:, k])
        assert not torch.allclose(samples[:, k], alone[(k + 1) % 3][:, k])


def test_snapshots_before_stage_two_are_none() -> None:
    method, config = make(snapshots=[10])
    begin(method, config, 0)
    method.schedule(0.0, 0.4)
    assert method.snapshots is not None
    assert not method.snapshots.taken.any()


@torch.no_grad()
def test_rows_of_the_ablation() -> None:  # Table 4
    shown = batch(annotated=False)
    vanilla, _ = make(prompts=False, assembling=False)
    maps = vanilla.decode(vanilla.backbone.encode(shown.images).features)[:, 0]
    masks = F.interpolate(maps, (SIDE, SIDE), mode="bilinear", align_corners=False)
    samples = vanilla.sample(shown, [1, 2], 11)[:, :, 0]
    torch.testing.assert_close(samples[:, :8], masks)
    assert torch.equal(samples[:, 8:], samples[:, :3])
    torch.testing.assert_close(vanilla.predict(shown)[:, 0], masks.mean(1))

    assembled, _ = make(prompts=False)
    assembled.weights.learnt += random(7)
    samples, answer = assembled.sample(shown, [1, 2], 3), assembled.predict(shown)
    assert torch.equal(samples, answer[:, None].expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(
        answer[:, 0], torch.einsum("m,bmhw->bhw", assembled.weights.values, masks), atol=1e-5, rtol=0
    )

    prompted, config = make(assembling=False)
    begin(prompted, config, 1)
    assert count(prompted.weights.parameters()) == 0
    torch.testing.assert_close(prompted.weights.values, torch.full((8,), 1 / 8))
    assert prompted.eval().sample(shown, [1, 2], 3).std(1).mean() > 0


def test_stage_one_answers_without_prompts_and_has_no_samples() -> None:
    method, config = make()
    begin(method, config, 0)
    method.eval()
    shown = batch(annotated=False)
    answer = method.predict(shown)
    with torch.no_grad():
        expected = method.assemble(method.decode(method.backbone.encode(shown.images).features))
    assert torch.equal(answer, expected)
    with pytest.raises(InputError, match=r"2 samples of a p2sam whose training ended in its first stage.*--resume"):
        method.sample(shown, [1, 2], 2)
