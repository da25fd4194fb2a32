"""Weights: original and transformers' files, strictness, other input sides, safety, absence."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from samsans import architectures, config, methods, zoo
from samsans.backbones import load_backbone
from samsans.backbones.checkpoints import FOURIER_TWIN, find_weights, infer_architecture, read_state, rename
from samsans.backbones.geometry import resize_pos_embed, resize_rel_pos
from samsans.backbones.sam import build_network
from samsans.backbones.start import initialise
from samsans.config import BackboneConfig
from samsans.errors import InputError
from samsans.methods import weights

ARCH = dataclasses.replace(architectures.TINY, decoder_heads=8)  # an original file does not state its heads: SAM has 8


def network(arch: architectures.SamArchitecture = ARCH, size: int = 64):
    model = initialise(build_network(arch, size), 0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or name.endswith("bias"):
                nn.init.normal_(parameter, generator=generator)
    return model


def attention_names(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.{p}_proj.{w}": f"{ours}.{p}_proj.{w}" for p in ("q", "k", "v", "out") for w in ("weight", "bias")
    }


def original_names(depth: int) -> dict[str, str]:
    """Every tensor of the original implementation, and what it is in transformers: written out, not derived."""
    pairs = {
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
        "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight": "mask_decoder.mask_tokens.weight",
        "image_encoder.neck.0.weight": "vision_encoder.neck.conv1.weight",
        "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
    }
    for i in range(4):
        pairs[f"prompt_encoder.point_embeddings.{i}.weight"] = f"prompt_encoder.point_embed.{i}.weight"
    modules = {
        "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
        "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
        "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
        "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
        "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
        "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
        "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
        "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
        "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
        "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
        "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
        "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
        "mask_decoder.iou_prediction_head.layers.0": "mask_decoder.iou_prediction_head.proj_in",
        "mask_decoder.iou_prediction_head.layers.1": "mask_decoder.iou_prediction_head.layers.0",
        "mask_decoder.iou_prediction_head.layers.2": "mask_decoder.iou_prediction_head.proj_out",
    }
    for i in range(4):
        theirs = ours = f"mask_decoder.output_hypernetworks_mlps.{i}"
        modules[f"{theirs}.layers.0"] = f"{ours}.proj_in"
        modules[f"{theirs}.layers.1"] = f"{ours}.layers.0"
        modules[f"{theirs}.layers.2"] = f"{ours}.proj_out"
    for i in range(depth):
        theirs, ours = f"image_encoder.blocks.{i}", f"vision_encoder.layers.{i}"
        for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"):
            modules[f"{theirs}.{name}"] = f"{ours}.{name}"
        for n in (1, 2):
            modules[f"{theirs}.norm{n}"] = f"{ours}.layer_norm{n}"
        for axis in "hw":
            pairs[f"{theirs}.attn.rel_pos_{axis}"] = f"{ours}.attn.rel_pos_{axis}"
    for i in range(2):
        layer = f"mask_decoder.transformer.layers.{i}"
        for name in ("mlp.lin1", "mlp.lin2"):
            modules[f"{layer}.{name}"] = f"{layer}.{name}"
        for n in (1, 2, 3, 4):
            modules[f"{layer}.norm{n}"] = f"{layer}.layer_norm{n}"
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            pairs |= attention_names(f"{layer}.{name}", f"{layer}.{name}")
    final = "mask_decoder.transformer.final_attn_token_to_image"
    pairs |= attention_names(final, final)
    for theirs, ours in modules.items():
        pairs |= {f"{theirs}.{w}": f"{ours}.{w}" for w in ("weight", "bias")}
    return pairs


def original_state(model) -> dict[str, Tensor]:
    """The network's tensors as an original SAM file holds them."""
    state = model.state_dict()
    return {theirs: state[ours].clone() for theirs, ours in original_names(ARCH.depth).items()}


def load(path, **options):
    return load_backbone(BackboneConfig(name=str(path), **options))


def check_same(sam, model) -> None:
    want = model.state_dict()
    got = sam.model.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.fixture
def original(tmp_path) -> Path:
    path = tmp_path / "sam.pth"
    torch.save(original_state(network()), path)
    return path


def test_every_original_name_is_known():
    names = original_names(ARCH.depth)
    assert {theirs: rename(theirs) for theirs in names} == names
    assert set(names.values()) == network().state_dict().keys() - {FOURIER_TWIN}
    assert len(original_names(12)) == 314  # tensors of sam_vit_b_01ec64.pth


def test_original_file(original, caplog):
    with caplog.at_level(logging.INFO, logger="samsans"):
        sam = load(original)
    check_same(sam, network())
    assert not sam.from_scratch
    assert sam.load_report.resized == ()
    assert str(original) in caplog.text
    shared = sam.model.shared_image_embedding.positional_embedding
    assert sam.model.prompt_encoder.shared_embedding.positional_embedding is shared


def test_architecture_is_read_off_the_shapes(original):
    assert infer_architecture(read_state(original), original) == ARCH


@pytest.mark.parametrize("name", ["sam-vit-b", "sam-vit-l", "sam-vit-h"])
@pytest.mark.parametrize("size", [1024, 224])
def test_architecture_of_the_published_sizes(name, size):
    arch = zoo.BACKBONES[name].architecture
    found = infer_architecture(build_network(arch, size).state_dict(), Path("nowhere.pth"))
    assert found == dataclasses.replace(arch, input_size=size)  # at 224 px windows are as large as the grid


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module."])
def test_wrapped_original_files(tmp_path, wrap):
    state = original_state(network())
    content = (
        {f"module.{key}": value for key, value in state.items()} if wrap == "module." else {wrap: state, "epoch": 3}
    )
    torch.save(content, tmp_path / "medsam.pth")
    check_same(load(tmp_path / "medsam.pth"), network())


def test_half_precision_files_become_float32(tmp_path):
    torch.save({key: value.half() for key, value in original_state(network()).items()}, tmp_path / "half.pth")
    assert {p.dtype for p in load(tmp_path / "half.pth").parameters()} == {torch.float32}


@pytest.mark.parametrize("arch", [architectures.TINY, ARCH], ids=["2 heads", "8 heads"])
def test_folder_of_transformers(tmp_path, arch):
    model = network(arch)
    model.save_pretrained(tmp_path)
    sam = load(tmp_path)
    check_same(sam, model)
    assert sam.model.config.mask_decoder_config.num_attention_heads == arch.decoder_heads
    check_same(load(tmp_path / "model.safetensors"), model)


def test_folder_with_tensors_in_torchs_own_format(tmp_path):
    model = network(architectures.TINY)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    check_same(load(tmp_path), model)


def test_another_input_side_resizes_and_says_so(original):
    want = network().state_dict()
    sam = load(original, input_size=96)
    assert (sam.input_size, sam.grid) == (96, 6)
    got = sam.model.state_dict()
    changed = {key for key in want if want[key].shape != got[key].shape}
    assert changed == {
        "vision_encoder.pos_embed",
        "vision_encoder.layers.1.attn.rel_pos_h",
        "vision_encoder.layers.1.attn.rel_pos_w",
    }
    assert all(torch.equal(want[key], got[key]) for key in want.keys() - changed)
    assert len(sam.load_report.resized) == 3
    assert "vision_encoder.pos_embed (1, 4, 4, 32) -> (1, 6, 6, 32) (bilinear)" in str(sam.load_report)
    # the library's own attention interpolates relative positions at run time: the same values
    attn = network().vision_encoder.layers[1].attn
    with torch.no_grad():
        steps = torch.arange(6)
        table = got["vision_encoder.layers.1.attn.rel_pos_h"][steps[:, None] - steps[None] + 5]
        torch.testing.assert_close(table, attn.get_rel_pos(6, 6, attn.rel_pos_h))


@pytest.mark.parametrize("attention", ["fast", "naive"])
def test_encoder_at_512_from_tables_of_1024(tmp_path, attention):
    """SAM's grids and window: the library resizes relative positions itself, on every call."""
    arch = dataclasses.replace(ARCH, window=14, input_size=1024)
    model = network(arch, 1024)
    model.save_pretrained(tmp_path)
    sam = load(tmp_path, input_size=512, attention=attention)
    assert sam.grid == 32
    theirs = build_network(arch, 512, "naive")
    encoder, tables = theirs.vision_encoder, model.vision_encoder
    state = tables.state_dict()
    positions = state["pos_embed"].permute(0, 3, 1, 2)
    state["pos_embed"] = nn.functional.interpolate(positions, (32, 32), mode="bilinear").permute(0, 2, 3, 1)
    for side in ("h", "w"):  # the library is left with the tables of 1024
        name = f"rel_pos_{side}"
        setattr(encoder.layers[1].attn, name, nn.Parameter(torch.empty(127, 16)))
    encoder.to_empty(device="cpu").load_state_dict(state)
    images = torch.randn(2, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = encoder.eval()(images).last_hidden_state
        found = sam.eval().encode(images).features
    assert want.shape == (2, 32, 32, 32)
    assert want.std() > 0.1
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_resizing_by_hand():
    table = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, ..., None]
    assert resize_pos_embed(table, 2) is table
    rows = torch.tensor([0.0, 0.5, 1.5, 2.0])  # pixel centres, edges repeated
    columns = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(resize_pos_embed(table, 4)[0, ..., 0], rows[:, None] + columns[None])
    relative = torch.tensor([[0.0], [3.0], [6.0]])
    assert resize_rel_pos(relative, 2) is relative
    torch.testing.assert_close(resize_rel_pos(relative, 5)[:, 0], torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 6.0]))


def test_refuses_what_does_not_fit(tmp_path):
    state = original_state(network())
    del state["mask_decoder.iou_token.weight"], state["prompt_encoder.no_mask_embed.weight"]
    state["image_encoder.blocks.0.adapter.weight"] = torch.zeros(1)
    state["mask_decoder.output_upscaling.0.weight"] = torch.zeros(32, 5, 2, 2)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError) as error:
        load(tmp_path / "odd.pth")
    for line in (
        "missing: mask_decoder: 1 (mask_decoder.iou_token.weight)",
        "missing: prompt_encoder: 1 (prompt_encoder.no_mask_embed.weight)",
        "unexpected: vision_encoder: 1 (vision_encoder.layers.0.adapter.weight)",
        "of another shape: mask_decoder: 1 (mask_decoder.upscale_conv1.weight is (32, 5, 2, 2) in the file and "
        "(32, 8, 2, 2) in the model)",
    ):
        assert line in str(error.value)


def test_refuses_another_architecture(tmp_path, monkeypatch, original):
    monkeypatch.setattr(zoo, "where", lambda name: original)
    with pytest.raises(InputError, match=r"ViT of 2 blocks of width 32. Expected 12 blocks of width 768 for sam-vit-b"):
        load("sam-vit-b")


def test_refuses_what_is_no_sam(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is not a SAM"):
        load(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="dictionary of tensors"):
        load(tmp_path / "list.pth")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="'bert' model"):
        load(tmp_path)


class Executes:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Executes()}, "evil.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load("evil.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_files(tmp_path, original, name):
    (tmp_path / name).write_bytes(original.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load(tmp_path / name)


def test_official_names_promise_their_digest(tmp_path, original, monkeypatch):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(original.read_bytes())
    with pytest.raises(InputError, match=r"has MD5 .* beginning with 01ec64"):
        load(path)
    digest = hashlib.md5(path.read_bytes()).hexdigest()[:6]
    entry = dataclasses.replace(zoo.BACKBONES["sam-vit-b"], url=f"{zoo.backbones.META_URL}sam_vit_b_{digest}.pth")
    monkeypatch.setitem(zoo.BACKBONES, "sam-vit-b", entry)
    check_same(load(path.rename(tmp_path / entry.file_name)), network())


def test_absent_weights_without_a_connection(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(InputError) as error:
        load("sam-vit-b")
    assert "no connection" in str(error.value)
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in str(error.value)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match=r"huggingface\.co/some/body into a folder"):
        load("some/body")


def test_fetches_what_is_absent_and_older_formats(tmp_path, monkeypatch):
    asked = []

    def download(hub_id, file):
        asked.append((hub_id, file))
        if file == "model.safetensors":
            raise EntryNotFoundError("absent")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    assert find_weights("medsam-vit-b") == tmp_path / "pytorch_model.bin"
    assert [file for _, file in asked] == ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert {hub_id for hub_id, _ in asked} == {"wanglab/medsam-vit-base"}


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="Try 'sam-vit-b'"):
        load("sam-vitb")
    with pytest.raises(InputError, match="No weights in"):
        load(tmp_path)


def test_a_run_from_random_weights_needs_no_equal_draw(tmp_path: Path) -> None:
    """Another version may draw the first weights differently: the file holds them all."""
    values = {"backbone.name": "tiny", "backbone.input_size": 64}
    first = methods.build(config.from_dict(values | {"seed": 1}, method="proxy_prompt"), ["a"])
    other = methods.build(config.from_dict(values | {"seed": 2}, method="proxy_prompt"), ["a"])
    assert first.backbone.base_hash != other.backbone.base_hash
    weights.load_weights(other, weights.save_weights(first, tmp_path / "all.safetensors"))
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", ["spd", "p2sam", "samed", "medsa"])
def test_what_was_trained_of_published_weights_is_read_again(name: str, tmp_path: Path) -> None:
    """Also where SAM's own decoder is trained: the hash is that of the weights as they were loaded."""
    network().save_pretrained(tmp_path / "base")
    settings = {"backbone.name": str(tmp_path / "base")}
    made, again = (methods.build(config.from_dict(settings, method=name), ("a",)) for _ in range(2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(parameter.requires_grad * 0.1)
    weights.save_weights(made, tmp_path / "w.safetensors")
    weights.load_weights(again, tmp_path / "w.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in made.state_dict().items())
