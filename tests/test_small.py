"""The backbone that is part of the package: its file, what becomes of it in a run, and that it segments."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

from samsans import config, zoo
from samsans.architectures import SMALL
from samsans.backbones import add_lora, load_backbone
from samsans.config import BackboneConfig, LoraConfig
from samsans.data.classes import class_masks
from samsans.data.phantoms import make
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.methods.weights import load_weights, read_metadata, save_weights, stored_names
from samsans.recipes import catalogue
from samsans.zoo import backbones

NAME = "samsans-small"
ENTRY = zoo.backbone_entry(NAME)


@pytest.fixture(scope="module")
def small():
    return load_backbone(BackboneConfig(name=NAME))


class Segmenter(nn.Module):
    """The least that can be stored as a run."""

    def __init__(self, train: str) -> None:
        super().__init__()
        self.backbone = load_backbone(BackboneConfig(name=NAME, train=train))
        if train == "lora":
            add_lora(self.backbone, LoraConfig())


def test_the_file_is_small_and_says_what_it_is():
    file = ENTRY.embedded_file
    assert file == zoo.where(NAME)
    assert file.stat().st_size <= 16e6
    assert (file.parent / "LICENSE").read_text(encoding="utf-8").startswith("samsans-small")
    notes = read_metadata(file)
    assert notes["licence"] == "CC BY-SA 4.0"
    assert "steps" in notes["training"]
    with safe_open(file, framework="pt") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F16"}  # noqa: SIM118


def test_it_is_loaded_in_float32_and_the_same_every_time(small):
    again = load_backbone(BackboneConfig(name=NAME), seed=1)
    assert again.base_hash == small.base_hash
    assert not small.from_scratch
    assert small.frozen
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    learnt = [p for name, p in small.named_parameters() if not name.endswith("positional_embedding")]
    assert sum(p.numel() for p in learnt) == ENTRY.parameters <= 8_000_000
    with safe_open(ENTRY.embedded_file, framework="pt") as opened:
        stored = opened.get_tensor("vision_encoder.neck.conv1.weight")
    assert torch.equal(small.model.vision_encoder.neck.conv1.weight, stored.float())


def test_the_file_by_its_path_is_the_same_network(small):
    by_path = load_backbone(BackboneConfig(name=str(ENTRY.embedded_file)))
    assert by_path.base_hash == small.base_hash
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(by_path.encode(images).features, small.encode(images).features)
    assert [layer.window_size for layer in by_path.model.vision_encoder.layers] == [0] * SMALL.depth


def test_an_architecture_that_is_not_understood_is_refused(tmp_path, small):
    from safetensors.torch import save_file

    state = {k: v.clone() for k, v in small.model.state_dict().items()}
    save_file(state, tmp_path / "odd.safetensors", {"architecture": '{"width": 3}'})
    with pytest.raises(InputError, match="architecture that is not understood"):
        load_backbone(BackboneConfig(name=str(tmp_path / "odd.safetensors")))


def test_tables_of_positions_are_resized_for_other_inputs():
    sam = load_backbone(BackboneConfig(name=NAME, input_size=128))
    assert (sam.patch, sam.grid) == (16, 8)
    assert len(sam.load_report.resized) == 1 + 2 * SMALL.depth
    with torch.no_grad():
        assert sam.encode(torch.zeros(1, 3, 128, 128)).features.shape == (1, 128, 8, 8)


def test_the_same_network_from_nothing_has_the_same_shapes(small):
    scratch = load_backbone(BackboneConfig(name="small-scratch"))
    assert scratch.from_scratch
    shapes = {name: p.shape for name, p in scratch.named_parameters()}
    assert shapes == {name: p.shape for name, p in small.named_parameters()}


def test_presets_and_listings_know_it():
    assert config.choose_preset("samed", None, NAME) == "scratch"
    assert config.choose_preset("samed", None, "sam-vit-b") == "paper"
    assert config.choose_preset("samed", "paper", NAME) == "paper"
    assert "part of samsans" in zoo.show(NAME)
    assert "CC-BY-SA-4.0" in zoo.show(NAME)
    assert catalogue("where", NAME).endswith(str(ENTRY.embedded_file))
    assert any(line.split()[:1] == [NAME] and " yes " in line for line in zoo.table().splitlines())


def test_a_package_without_the_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    assert zoo.where(NAME) is None
    with pytest.raises(InputError, match=r"samsans-small\.safetensors is missing, a part of this package"):
        load_backbone(BackboneConfig(name=NAME))


def test_a_run_that_trained_it_whole_holds_all_of_it(tmp_path):
    method = Segmenter("all")
    first = method.backbone.base_hash
    with torch.no_grad():
        method.backbone.model.vision_encoder.neck.conv2.weight.add_(1)
    method.backbone.train_whole()
    assert stored_names(method) == tuple(method.state_dict())
    path = save_weights(method, tmp_path / "run.safetensors")
    assert read_metadata(path)["base_hash"] == first
    other = Segmenter("all")
    other.backbone._base_hash = "of other embedded weights"
    load_weights(other, path)
    assert torch.equal(
        other.backbone.model.vision_encoder.neck.conv2.weight, method.backbone.model.vision_encoder.neck.conv2.weight
    )


def test_a_run_that_adapted_it_holds_its_adapters_and_needs_the_same_file(tmp_path):
    method = Segmenter("lora")
    assert all("lora_" in name for name in stored_names(method))
    path = save_weights(method, tmp_path / "run.safetensors")
    load_weights(Segmenter("lora"), path)
    other = Segmenter("lora")
    other.backbone._base_hash = "of other embedded weights"
    with pytest.raises(InputError, match="other weights of samsans-small"):
        load_weights(other, path)


@torch.no_grad()
def test_a_box_is_filled_with_the_object(small):
    """Better than the whole box, which is a good guess at round objects."""
    scores = {name: [] for name in ("small", "box", "scratch")}
    scratch, prepare = load_backbone(BackboneConfig(name="small-scratch")), Preprocess(256)
    for family in ("two_objects", "ultrasound"):
        for case in make(family, 3, seed=2_000):
            image = prepare.image(case.image[0], prepare.levels(case.image))
            masks = prepare.labels(class_masks(case.labels[0][0], case.classes))[:2]
            masks = masks[masks.flatten(1).any(1)]
            boxes = torch.stack(
                [torch.cat([m.nonzero().amin(0).flip(0), m.nonzero().amax(0).flip(0) + 1]) for m in masks]
            )
            whole = torch.zeros_like(masks)
            for one, (left, top, right, bottom) in zip(whole, boxes.tolist(), strict=True):
                one[top:bottom, left:right] = True
            answers = {"box": whole}
            for name, sam in (("small", small), ("scratch", scratch)):
                prompt = sam.embed_prompts(torch.zeros(len(masks), dtype=torch.int64), boxes=boxes.float())
                logits = sam.decode(sam.encode(prepare.normalize(image[None])), prompt).logits
                answers[name] = nn.functional.interpolate(logits, (256, 256), mode="bilinear")[:, 0] > 0
            for name, drawn in answers.items():
                both = 2 * (drawn & masks).sum((1, 2)) / (drawn.sum((1, 2)) + masks.sum((1, 2)))
                scores[name] += both.tolist()
    mean = {name: sum(values) / len(values) for name, values in scores.items()}
    assert mean["small"] > max(0.85, mean["box"] + 0.02)
    assert mean["scratch"] < 0.6
