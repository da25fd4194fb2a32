"""MaskSAM at the published sizes, counted to the unit; adapters and encoder against SAM's own and by hand."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from masksam_tools import count, seeded, tiny
from samsans import config as configuration
from samsans.architectures import TINY, VIT_B, VIT_H
from samsans.backbones.attention import to_windows
from samsans.backbones.sam import LoadReport, Sam, build_network, tie_positions
from samsans.backbones.start import initialise
from samsans.errors import InputError
from samsans.methods.masksam.adapters import Adapter, DConv, DMlp
from samsans.methods.masksam.config import MaskSamConfig
from samsans.methods.masksam.encoder import Conv3d, Encoder, Stem, read_blocks
from samsans.methods.masksam.model import MaskSam
from samsans.methods.masksam.outputs import class_scores
from samsans.methods.masksam.prompt_generator import (
    PromptGenerator,
)
from samsans.types import Batch

ACDC = MaskSamConfig(queries=8, upsample=2, output_cnn=False, stem=16, widths=[128, 128], fusions=2)
LAYOUTS: dict[str, tuple[Any, int, int, int, MaskSamConfig]] = {  # network, side SAM sees, slices, objects
    "acdc": (VIT_B, 1024, 4, 3, ACDC),
    "synapse": (VIT_H, 256, 26, 8, MaskSamConfig()),
    "amos": (VIT_H, 512, 9, 15, MaskSamConfig()),
}
COUNTS = {  # encoder adapters, slice embedding, that of places, decoder, stem, trunk, masks, boxes, tokens, output
    "acdc": (7_239_168, 3_072, 4_194_304, 304_209, 33_945, 9_458_432, 1_032, 6_160, 165_912, 0),
    "synapse": (53_145_600, 33_280, 1_703_936, 343_224, 897, 9_775_360, 1_560, 15_408, 414_792, 116_056),
    "amos": (53_145_600, 11_520, 2_359_296, 311_108, 897, 9_775_360, 1_560, 15_408, 414_792, 116_056),
}
TOTALS = {"acdc": 21_406_234, "synapse": 65_550_113, "amos": 66_151_597}


def on_meta(arch: Any, side: int) -> Sam:
    with torch.device("meta"):
        network = build_network(arch, side)
        tie_positions(network)
        return Sam(network, name="meta", from_scratch=False, report=LoadReport("", 0), canvas=1024)


# -- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters of every group, and shapes of every answer, without memory."""
    arch, side, depth, objects, config = LAYOUTS[name]
    recipe = configuration.load(f"masksam_{name}")
    assert replace(recipe.model, matching=config.matching) == config
    assert (recipe.backbone.input_size, len(recipe.data.classes or ())) == (side, objects)
    backbone = on_meta(arch, side)
    with torch.device("meta"):
        method = MaskSam(backbone, config, objects, depth)
        made, encoder, decoder = method.generator, method.encoder, method.decoder
        assert made is not None
        trunk = (made.start, made.below, made.skips, made.blocks, made.fusions)
        groups = (
            count(encoder.space, encoder.mlp),
            count(encoder.slice_embedding),
            count(decoder.slice_embedding),
            count(decoder) - count(decoder.slice_embedding),
            count(method.stem),
            count(*trunk),
            count(made.masks),
            count(made.boxes, made.box_norm),
            count(made.tokens),
            count(method.enlarge),
        )
        assert groups == COUNTS[name]
        assert sum(p.numel() for p in method.parameters() if p.requires_grad) == sum(groups) == TOTALS[name]
        assert len(encoder.space) + len(encoder.mlp) == 2 * arch.depth
        adapters = [module for module in decoder.modules() if isinstance(module, Adapter)]
        assert [isinstance(a, DMlp) for a in adapters].count(True) == 7
        assert len(adapters) == 9

        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
        grid, patch = side // 16, method.side
        with torch.no_grad():
            seen = method.stem(torch.empty(1, 1, depth, patch, patch))
            assert seen.shape == (1, 3, depth, side, side)
            embedding, maps = encoder(backbone, seen)
            assert embedding.shape == (1, 256, depth, grid, grid)
            assert [tuple(m.shape) for m in maps] == [(1, arch.hidden, depth, grid, grid)] * 4
            levels = made.levels(embedding, maps)
            finer = (256, *config.widths, *config.widths[-1:] * config.fusions)
            sides = [grid * 2 ** min(i, len(config.widths)) for i in range(5)]
            assert [tuple(x.shape) for x in levels] == [(1, c, depth, s, s) for c, s in zip(finer, sides, strict=True)]
            output = method(Batch(torch.empty(1, 1, depth, patch, patch), None, (), ()))
        masks = (depth, config.queries, patch, patch)
        assert output.mask_logits.shape == output.auxiliary_logits.shape == masks
        assert output.class_logits.shape == (depth, config.queries, objects + 2)
        assert output.boxes.shape == (depth, config.queries, 4)
        assert class_scores(output).shape == (1, objects + 1, depth, patch, patch)


@pytest.mark.parametrize(("arch", "parameters"), [(VIT_B, 93_735_728), (VIT_H, 641_090_864)])
def test_all_of_sam_is_frozen(arch: Any, parameters: int) -> None:
    """The Fourier matrix too, which is a parameter here."""
    backbone = on_meta(arch, 1024)
    assert count(backbone) == parameters
    assert not any(p.requires_grad for p in backbone.parameters())


def test_adapters_have_the_published_sizes() -> None:
    with torch.device("meta"):
        for width, parameters in ((768, 301_632), (1280, 830_400), (256, 35_008)):
            assert count(DConv(width, skip=True)) == parameters
        for depth, parameters in ((4, 33_236), (9, 33_781), (26, 38_626)):
            assert count(DMlp(256, depth, skip=True)) == parameters


# -- adapters ---------------------------------------------------------------------------------------------------------


def changed(one: Tensor, two: Tensor) -> list[int]:
    """Indices along axis 1 where the two differ."""
    return [i for i in range(one.shape[1]) if not torch.equal(one[:, i], two[:, i])]


def test_a_slice_reaches_its_neighbours_by_convolution_and_all_by_mlp() -> None:
    for adapter, shape, reached in (
        (DConv(32, skip=True), (2, 6, 3, 4, 32), [1, 2, 3]),
        (DMlp(32, 6, skip=True), (2, 6, 5, 32), list(range(6))),
    ):
        x = seeded(*shape)
        moved = x.clone()
        moved[:, 2] += 1
        assert changed(adapter(x), adapter(moved)) == reached
        assert adapter(x).shape == x.shape


@pytest.mark.parametrize("skip", [True, False])
def test_adapters_that_start_as_nothing(skip: bool) -> None:
    x = seeded(1, 3, 2, 2, 16)
    assert torch.equal(DConv(16, skip=skip, zero_init=True)(x), x if skip else torch.zeros_like(x))
    assert torch.equal(DMlp(16, 3, skip=skip, zero_init=True)(x[:, :, 0]), x[:, :, 0] * skip)
    assert not torch.equal(DConv(16, skip=False)(x), torch.zeros_like(x))


def test_adapters_by_hand() -> None:
    """The formulas of sections 5.3 and 8.1, one voxel and one depth column at a time."""
    conv, x = DConv(8, skip=False), seeded(1, 3, 4, 5, 8)
    z = F.gelu(x @ conv.down.weight.T + conv.down.bias)
    padded = F.pad(z, (0, 0, 1, 1, 1, 1, 1, 1))
    cube = padded[0, 0:3, 1:4, 2:5]  # around voxel (0, 1, 2)
    mixed = torch.einsum("zyxc,czyx->c", cube, conv.convolution.weight[:, 0]) + conv.convolution.bias
    mixed = F.gelu(F.layer_norm(mixed, (2,), conv.norm.weight, conv.norm.bias, 1e-6))
    torch.testing.assert_close(conv(x)[0, 0, 1, 2], conv.up(z[0, 0, 1, 2] + mixed))

    mlp, x = DMlp(8, 3, skip=True), seeded(1, 3, 4, 8)
    z = F.gelu(mlp.down(x))
    u = torch.stack([mlp.narrow(F.gelu(mlp.widen(z[0, :, 1, c]))) for c in range(2)], -1)
    torch.testing.assert_close(mlp(x)[0, :, 1], x[0, :, 1] + mlp.up(z[0, :, 1] + u))


# -- encoder ----------------------------------------------------------------------------------------------------------


def test_which_blocks_are_read() -> None:
    assert read_blocks(12, (2, 5, 8, 11)) == (2, 5, 8, 11)
    assert read_blocks(32, (7, 15, 23, 31)) == (7, 15, 23, 31)
    assert read_blocks(4, (3,)) == (0, 1, 2, 3)
    assert read_blocks(2, (1,)) == (0, 0, 1, 1)


@pytest.mark.parametrize("attention", ["fast", "naive"])
@pytest.mark.parametrize("unwindowed", [True, False])
def test_without_adapters_the_encoder_is_sam(unwindowed: bool, attention: str) -> None:
    """Padded tokens too: the norm comes before the windows, in both layouts."""
    backbone = tiny(attention=attention)
    encoder = Encoder(backbone, 3, unwindowed=unwindowed, zero_init=True)
    images = seeded(2, 3, 3, 64, 64)
    flat = images.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        embedding, maps = encoder(backbone, images)
        wanted = backbone.model.vision_encoder(flat, output_hidden_states=True)
    torch.testing.assert_close(embedding.transpose(1, 2).flatten(0, 1), wanted.last_hidden_state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        maps[-1].transpose(1, 2).flatten(0, 1).movedim(1, -1), wanted.hidden_states[-1], atol=1e-5, rtol=1e-4
    )


def test_padding_is_zero_since_the_norm_comes_before_the_windows() -> None:
    """Check 14: a norm after padding would make its bias of the zeros."""
    backbone = tiny()
    norm = backbone.model.vision_encoder.layers[0].layer_norm1
    nothing = torch.zeros(1, 1, 1, 32)
    assert torch.equal(norm(nothing)[0, 0, 0], norm.bias)
    assert norm.bias.any()
    windows = to_windows(norm(seeded(1, 4, 4, 32)), None, 3)  # one row and one column of the last windows are real
    assert windows.shape == (4, 3, 3, 32)
    assert not windows[3, 1:].any()
    assert windows[3, 0, 0].any()


def test_every_slice_has_a_vector_of_its_own() -> None:
    backbone = tiny()
    encoder = Encoder(backbone, 3, unwindowed=True, zero_init=True)
    images = seeded(1, 3, 1, 64, 64).expand(-1, -1, 3, -1, -1)
    assert changed(*[encoder(backbone, images)[0].transpose(1, 2)] * 2) == []
    with torch.no_grad():
        encoder.slice_embedding[0, 1] = seeded(32)
        made = encoder(backbone, images)[0]
    assert torch.equal(made[:, :, 0], made[:, :, 2])
    assert not torch.equal(made[:, :, 0], made[:, :, 1])


def test_neighbours_in_depth_are_neighbours_unless_as_released() -> None:
    """A token in a block with windows: as released, a window hears of the next window, not of the next slice."""
    backbone, x = tiny(), seeded(6, 4, 4, 32)
    layer, moved = backbone.model.vision_encoder.layers[0], x.clone()
    moved[4, 0, 0] += seeded(32, seed=1)
    differ = {}
    for unwindowed in (True, False):
        encoder = Encoder(backbone, 6, unwindowed=unwindowed, zero_init=False)
        nothing = DConv(32, skip=False, zero_init=True)
        with torch.no_grad():
            one, two = (encoder.block(backbone, layer, encoder.space[0], nothing, given) for given in (x, moved))
        differ[unwindowed] = (one != two).any(-1)
    assert differ[True].flatten(1).any(1).tolist() == [False, False, False, True, True, True]
    assert differ[True][3, 0, 0]
    assert differ[True][5, 0, 0]
    assert differ[False].flatten(1).any(1).tolist() == [False, False, False, True, True, False]
    assert differ[False][3].nonzero().tolist() == [[3, 3]]  # in the last window of the slice before


@torch.no_grad()
def test_only_maps_that_are_read_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 blocks the published networks read four; the others' outputs are gone when the next block is through."""
    network = initialise(build_network(replace(TINY, depth=5), 64), seed=0)
    backbone = Sam(network, name="five blocks", from_scratch=True, report=LoadReport("", 0))
    encoder = Encoder(backbone, 3, unwindowed=True, zero_init=True)
    encoder.kept = (1, 1, 4, 4)
    block, made, alive = encoder.block, list[weakref.ref[Tensor]](), list[int]()

    def watched(*args: Any) -> Tensor:
        out = block(*args)
        made.append(weakref.ref(out))
        alive.append(sum(output() is not None for output in made))
        return out

    monkeypatch.setattr(encoder, "block", watched)
    encoder(backbone, seeded(1, 3, 3, 64, 64))
    assert alive == [1, 2, 2, 3, 3]  # what a block reads and makes, and the second


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 5, 1)])
@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 6), (1, 2, 1, 5, 4), (1, 2, 2, 1, 3), (2, 2, 3, 5, 4)])
def test_convolutions_of_one_patch_are_those_of_pytorch(kernel: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    layer, x = Conv3d(2, 4, kernel).double(), seeded(*shape).double().requires_grad_()
    plain = nn.Conv3d.forward(layer, x)
    torch.testing.assert_close(layer(x), plain)
    weights = seeded(*plain.shape, seed=1).double()
    wanted, grads = (torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]) for y in (plain, layer(x)))
    torch.testing.assert_close(grads, wanted)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a PyTorch without oneDNN")
def test_one_patch_on_a_cpu_is_not_convolved_by_the_slow_kernel() -> None:
    generator = PromptGenerator(32, 24, [16, 16, 8], 1, 4)
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
        generator(seeded(1, 32, 4, 4, 4), [seeded(1, 24, 4, 4, 4)] * 4)
    slow = [event.name for event in profile.events() if event.name == "aten::slow_conv3d_forward"]
    assert len(slow) <= 2  # heads of 1 x 1 x 1


@pytest.mark.parametrize(("doublings", "parameters"), [(0, 897), (2, 33_945)])
def test_stem(doublings: int, parameters: int) -> None:
    stem = Stem(1, 16 if doublings else 8, doublings)
    assert count(stem) == parameters
    assert stem(seeded(1, 1, 3, 8, 8)).shape == (1, 3, 3, 8 << doublings, 8 << doublings)
    assert Stem(3, 4, 1)(seeded(1, 3, 2, 8, 8)).shape == (1, 3, 2, 16, 16)


# -- positions on a larger canvas -------------------------------------------------------------------------------------


def test_an_image_may_be_the_corner_of_a_canvas(tmp_path: Path) -> None:
    large = tiny(input_size=128)
    save_file({k: v.clone() for k, v in large.model.state_dict().items()}, tmp_path / "model.safetensors")
    small = tiny(name=str(tmp_path), input_size=64, positions="crop")
    assert "(top left)" in str(small.load_report)
    torch.testing.assert_close(small.image_pe, large.image_pe[..., :4, :4], atol=1e-6, rtol=0)
    torch.testing.assert_close(large.image_pe, large.model.get_image_wide_positional_embeddings(), atol=0, rtol=0)
    table, whole = small.model.vision_encoder.pos_embed, large.model.vision_encoder.pos_embed
    assert torch.equal(table, whole[:, :4, :4])
    box, index = torch.tensor([[3.0, 7.0, 40.0, 60.0]]), torch.zeros(1, dtype=torch.int64)
    one, two = (sam.embed_prompts(index, boxes=box).sparse for sam in (small, large))
    assert torch.equal(one, two)
    resized = tiny(name=str(tmp_path), input_size=64)
    assert not torch.allclose(resized.image_pe, small.image_pe)
    with pytest.raises(InputError, match="Input side 256 px with cropped positions"):
        tiny(name=str(tmp_path), input_size=256, positions="crop")
