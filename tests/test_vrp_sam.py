"""VRP-SAM on the tiny backbone and a tiny ResNet: parts by hand, episodes, banks, training and prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

import samsans
from proxy_training import TINY, two_objects
from samsans import cli
from samsans import config as configuration
from samsans.data.phantoms import make as phantoms
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.vrp_sam.features import load_resnet
from samsans.methods.vrp_sam.model import Output, VrpSam
from samsans.methods.vrp_sam.reading import Reader, likeness, prototypes, read_masks
from samsans.methods.vrp_sam.support import VrpBank
from samsans.methods.weights import load_weights
from samsans.types import Batch


def save_resnet(folder: Path, seed: int = 0, stages: int = 4, kind: Any = ResNetForImageClassification) -> Path:
    """A folder with a ResNet of 8, 16, 24 and 32 channels."""
    torch.manual_seed(seed)
    layout = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32][:stages], depths=[1] * stages)
    kind(layout).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet(tmp_path_factory.mktemp("resnet"))


def make(**options: Any) -> VrpSam:
    preset = options.pop("preset", "paper")
    settings = {"backbone.name": "tiny", "model.features": "backbone", "model.queries": 6, "model.resnet_size": 64}
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    return build(configuration.from_dict(settings, method="vrp_sam", preset=preset), ("a", "b")).double()


ARMS: dict[str, dict[str, Any]] = {
    "resnet50": {"model__features": "resnet50"},
    "backbone": {},
    "direct": {"model__direct": True},
    "scratch": {"preset": "scratch"},
}


@pytest.fixture(scope="module", params=["resnet50", "backbone", "direct"])
def method(request: pytest.FixtureRequest, resnet: Path) -> VrpSam:
    return make(model__resnet=str(resnet), **ARMS[request.param]).eval()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(images: int = 3, objects: int = 2, seed: int = 0, **changes: Any) -> Batch:
    masks = F.interpolate(rand(images, objects, 8, 8, seed=seed + 1), (64, 64)) > 0.5
    ids, names = tuple(f"image{i}" for i in range(images)), tuple("abcdef"[:objects])
    return dataclasses.replace(Batch(rand(images, 3, 64, 64, seed=seed), masks, ids, names), **changes)


def target(count: int = 1, seed: int = 9) -> Batch:
    return Batch(rand(count, 3, 64, 64, seed=seed), None, tuple("xyz"[:count]), ("a", "b"))


def part(whole: Batch, rows: list[int], objects: list[int] | None = None) -> Batch:
    assert whole.masks is not None
    columns = list(range(len(whole.objects))) if objects is None else objects
    names = tuple(whole.objects[i] for i in columns)
    return Batch(whole.images[rows], whole.masks[rows][:, columns], tuple(whole.ids[i] for i in rows), names)


# -- parts by hand ----------------------------------------------------------------------------------------------------


def test_prototypes_are_means_under_the_masks() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]]])
    covers = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert prototypes(maps, covers).tolist() == [[[2.5, 25.0], [2.0, 20.0], [0.0, 0.0]]]


def test_likeness_is_the_largest_cosine_to_the_foreground_stretched_over_the_image() -> None:
    keys = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]])
    covers = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]])  # (pair, token, object)
    targets = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [9.0, 0.0]])
    visible = torch.tensor([True, True, True, False])
    root = 0.5**0.5
    found = likeness(targets, keys, covers, visible)
    raw = [[1.0, 0.5, root], [0.0, 1.0, root]]
    first = [(v - 0.5) / 0.5 for v in raw[0]]
    expected = torch.tensor([[[*first, 0.0], [*raw[1], 0.0], [0.0] * 4]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_masks_are_read_by_what_looks_alike() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [7.0, 7.0]]])
    covers = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])  # (pair, token, object)
    visible = torch.tensor([[True, True], [True, False]])
    found = read_masks(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), keys, covers, visible)
    one, e = 1 + 2 * np.exp(-10), np.exp(-10)
    two = 2 + e
    expected = torch.tensor([[(1 + e) / one, (1 + e) / two], [e / one, 1 / two]], dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_mask_enters_every_token_times_its_gain(method: VrpSam) -> None:
    g, c = method.grid, method.backbone.channels
    maps, means = rand(2, c, g, g), rand(2, 1, c, seed=1)
    with torch.no_grad():
        empty = method._merged(maps, means, torch.zeros(2, 1, g, g))
        full = method._merged(maps, means, torch.ones(2, 1, g, g))
        stranger = method._merged(maps, means + 1, torch.zeros(2, 1, g, g))
    weight = method.merge.weight[:, :, 0, 0].detach()
    torch.testing.assert_close(full - empty, (10 * weight[:, -1]).expand_as(full))
    torch.testing.assert_close(stranger - empty, weight[:, c : 2 * c].sum(1).expand_as(full))


def test_readers_ignore_hidden_tokens_and_the_order_of_the_others() -> None:
    torch.manual_seed(0)
    reader = Reader(32, 4).double().eval()
    queries, tokens = rand(2, 5, 32), rand(2, 9, 32, seed=1)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[:, 6:] = True
    read = reader(queries, tokens, hidden)
    torch.testing.assert_close(read, reader(queries, tokens[:, :6]))
    torch.testing.assert_close(read, reader(queries, tokens[:, [3, 5, 0, 1, 4, 2]]))
    order = [4, 2, 0, 1, 3]
    torch.testing.assert_close(read[:, order], reader(queries[:, order], tokens, hidden))
    assert not torch.allclose(read, reader(queries, tokens))


def test_counts_of_trained_parameters() -> None:
    with torch.device("meta"):
        parts = [torch.nn.Conv2d(1536, 256, 1), torch.nn.Conv2d(513, 256, 1), Reader(256, 8), Reader(256, 8)]
    assert sum(p.numel() for part in parts for p in part.parameters()) + 50 * 256 == 2_119_424


# -- the whole --------------------------------------------------------------------------------------------------------


def test_shapes_and_tokens_of_several_supports(method: VrpSam) -> None:
    bank = method.encode_support(batch(3))
    assert bank.queries.shape == (3, 2, 6, 32)
    assert bank.prototypes.shape == (3, 2, 32)
    assert bank.keys.shape == ((3, 16, 32) if method.network is None else (3, 4, 32))
    seen = method._see(method._look(target(2).images), target(2))
    for k in (1, 2, 3):
        assert method.prompt(seen, 1, bank.select(range(k))).shape == (2, k * 6, 32)
    logits = method.predict(target(2), bank)
    assert logits.shape == (2, 2, 64, 64)
    assert logits.dtype == torch.float32


def test_a_kept_bank_gives_the_same_bits(method: VrpSam, tmp_path: Path) -> None:
    supports = batch(3)
    logits = method.predict(target(2), method.encode_support(supports))
    assert torch.equal(logits, method.predict(target(2), method.encode_support(supports)))
    path = method.encode_support(supports).save(tmp_path / "task.safetensors")
    kept = method.load_support(str(path))
    assert torch.equal(logits, method.predict(target(2), kept))
    joined = VrpBank.concat([kept.select([0]), kept.select([1, 2])])
    assert joined.ids == kept.ids
    assert torch.equal(logits, method.predict(target(2), joined))
    single = VrpBank.concat([method.encode_support(part(supports, [i])) for i in range(3)])
    torch.testing.assert_close(method.predict(target(2), single), logits, atol=1e-4, rtol=1e-4)


def test_the_order_of_supports_does_not_matter(method: VrpSam) -> None:
    bank = method.encode_support(batch(3))
    mixed = bank.select([2, 0, 1])
    assert not torch.equal(mixed.queries, bank.queries)
    torch.testing.assert_close(method.predict(target(), mixed), method.predict(target(), bank), atol=1e-4, rtol=1e-4)


def test_objects_together_equal_each_alone(method: VrpSam) -> None:
    supports = batch(2, objects=3)
    both = method.predict(target(), method.encode_support(supports))
    for n in range(3):
        alone = method.predict(target(), method.encode_support(part(supports, [0, 1], [n])))
        torch.testing.assert_close(both[:, n : n + 1], alone, atol=1e-5, rtol=1e-5)


def test_one_bank_for_each_image_equals_single_runs(method: VrpSam) -> None:
    banks = [method.encode_support(batch(k, seed=k)) for k in (1, 3)]
    images = target(2)
    both = method.predict(images, banks)
    chosen = method.predict(images, lambda deep: [banks[0], banks[1]] if len(deep) == 2 else [])
    assert torch.equal(both, chosen)
    for i, bank in enumerate(banks):
        alone = method.predict(Batch(images.images[i : i + 1], None, ("x",), ("a", "b")), bank)
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_leave_one_out_equals_supports_without_the_target(method: VrpSam) -> None:
    episode = batch(4, targets=torch.tensor([2]))
    with torch.no_grad():
        together = method(episode)
    assert together.prompts.shape == (1, 2, 18, 32)
    bank = method.encode_support(part(episode, [0, 1, 3]))
    alone = method.predict(Batch(episode.images[2:3], None, ("t",), episode.objects), bank)
    torch.testing.assert_close(together.logits.float(), alone, atol=1e-4, rtol=1e-4)


def test_switching_the_task_and_back_is_exact(method: VrpSam) -> None:
    supports = batch(2)
    first = method.encode_support(supports)
    second = method.encode_support(dataclasses.replace(supports, masks=supports.masks.flip(1)))
    before = method.predict(target(), first)
    assert torch.equal(method.predict(target(), second), before.flip(1))
    assert not torch.equal(before, before.flip(1))
    assert torch.equal(method.predict(target(), first), before)


def test_padding_is_never_read(method: VrpSam) -> None:
    half = torch.tensor([[64, 32], [64, 64], [64, 32]])
    supports = batch(3, valid=half)
    seen = method._see(method._look(supports.images), supports)
    g = method.grid
    assert seen.hidden is not None
    assert seen.hidden.unflatten(1, (g, g))[0].tolist() == [[False] * (g // 2) + [True] * (g // 2)] * g
    inside = supports.masks & (torch.arange(64) < half[:, 1:, None, None])  # nothing is drawn on padding
    noise = dataclasses.replace(seen, maps=seen.maps.clone(), deep=seen.deep.clone())
    for i in (0, 2):
        noise.maps[i, :, :, g // 2 :] += 100
        noise.deep[i, ~seen.visible[i]] += 100
    with torch.no_grad():
        blind = dataclasses.replace(noise, hidden=None)
        prompts = [method._prompts(one, inside, torch.arange(3), supports)[0] for one in (seen, noise, blind)]
    torch.testing.assert_close(prompts[0], prompts[1])
    assert not torch.allclose(prompts[0], prompts[2])


def test_the_loss_is_cross_entropy_plus_dice() -> None:
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[1, :, :32] = True
    both = batch(2, objects=1, masks=masks, targets=torch.tensor([1]))
    logits = torch.full((1, 1, 64, 64), float(np.log(3)))  # probability 3/4 everywhere
    read = torch.tensor([[1.0, 0.8], [0.2, 0.0]]).expand(1, 1, 2, 2)  # the truth is 1, 1, 0, 0
    output = Output(logits, torch.zeros(1, 1, 1, 1), read)
    losses = make().loss(output, both)
    bce = -(np.log(0.75) + np.log(0.25)) / 2
    dice = 1 - (2 * 0.75 * 2048 + 1) / (0.75 * 4096 + 2048 + 1)
    assert float(losses["bce"]) == pytest.approx(bce)
    assert float(losses["dice"]) == pytest.approx(dice)
    assert float(losses["loss"]) == pytest.approx(bce + dice)
    losses = make(model__read=3.0).loss(output, both)
    assert float(losses["read"]) == pytest.approx(-(np.log(0.8) + np.log(1 - 1e-4)) / 2, abs=1e-5)
    assert float(losses["loss"]) == pytest.approx(bce + dice + 3 * float(losses["read"]))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_gradients_reach_what_is_trained_and_nothing_frozen(arm: str, resnet: Path) -> None:
    fresh = make(model__resnet=str(resnet), **ARMS[arm]).train()
    episode = batch(3)
    fresh.loss(fresh(episode), episode)["loss"].backward()
    for name, parameter in fresh.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    trained = {name.partition(".")[0] for name, p in fresh.named_parameters() if p.requires_grad}
    own = {"reduce", "merge", "queries", "read_support", "read_target"}
    assert trained == (own | {"backbone"} if arm == "scratch" else own)
    (stage,) = fresh.stages(configuration.RunConfig())
    assert {id(p) for group in stage.groups for p in group.parameters} == {
        id(p) for p in fresh.parameters() if p.requires_grad
    }


def test_the_loss_falls_on_images_of_two_objects() -> None:
    cases = list(phantoms("two_objects", 3, size=64, difficulty=0.2))
    images = torch.stack([torch.from_numpy(case.image[0, ..., 0].astype(np.float32)) for case in cases])
    images = ((images - 128) / 64)[:, None].expand(-1, 3, -1, -1)
    masks = torch.stack([torch.stack([torch.from_numpy(c.labels[0][0] == v) for v in (1, 2)]) for c in cases])
    episode = Batch(images, masks, tuple("xyz"), ("disc", "square"))
    fresh = make(preset="scratch").float().train()
    optimizer = torch.optim.AdamW([p for p in fresh.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(25):
        loss = fresh.loss(fresh(episode), episode)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_gauges_see_whether_the_prompt_depends_on_the_mask(method: VrpSam) -> None:
    for episode in (batch(4), batch(4, objects=1)):
        gauges = method.gauges(episode)
        assert set(gauges) == ({"rel_prompt", "rel_read"} if method.config.direct else {"rel_prompt"})
        assert min(gauges.values()) > 1e-3
    same = batch(3)
    assert same.masks is not None
    alike = dataclasses.replace(same, masks=same.masks[:, :1].expand(-1, 2, -1, -1))
    assert method.gauges(alike) == {}  # swapped they are the same
    assert "model.mask_gain" in str(method.gauge_warning({"rel_prompt": 0.01}, step=200, warmup=100))
    assert method.gauge_warning({"rel_prompt": 0.01}, step=50, warmup=100) is None
    assert "0.010" in str(method.gauge_warning({"rel_prompt": 0.01, "rel_read": 1.0}, step=200, warmup=100))
    assert method.gauge_warning({"rel_prompt": 0.3, "rel_read": 0.0}, step=200, warmup=100) is None


def test_train_predict_and_evaluate(tmp_path: Path, resnet: Path) -> None:
    data, run = two_objects(tmp_path, 6), tmp_path / "run"
    options = ("--preset", "paper", "--model.resnet", resnet, "--model.resnet_size", 64, "--model.k_test", 2)
    argv = ("train", "vrp_sam", data, "-o", run, "--steps", 3, "--split.test", 0.34, *options, *TINY)
    assert cli.main([str(a) for a in argv]) == 0
    for out, choose in (("random", ()), ("similar", ("--choose", "similar"))):
        argv = ("predict", run, "-i", data, "-o", tmp_path / out, "--device", "cpu", *choose)
        assert cli.main([str(a) for a in argv]) == 0
    report = tmp_path / "report"
    assert cli.main([str(a) for a in ("evaluate", tmp_path / "similar", data, "-o", report)]) == 0
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["classes"]) == {"disc", "square"}
    segmenter = samsans.load(run, device="cpu")
    assert not segmenter.method.network.training
    image = segmenter.dataset(data).read_image(segmenter.dataset(data).cases[0])
    again = samsans.load(run, device="cpu")
    assert np.array_equal(segmenter.predict(image).labels, again.predict(image).labels)
    path = save_resnet(tmp_path / "other", seed=1)
    other = make(model__features="resnet50", model__resnet=str(path), model__queries=50).float()
    with pytest.raises(InputError, match="trained with a ResNet of hash"):
        load_weights(other, next((run / "model").glob("*.safetensors")))


# -- the ResNet -------------------------------------------------------------------------------------------------------


def test_features_are_stages_two_and_three_joined_and_four(resnet: Path) -> None:
    network, model = load_resnet(str(resnet), 64).train(), ResNetModel.from_pretrained(resnet).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
    found = network(images)
    assert found.maps.shape == (2, 40, 8, 8)
    assert torch.equal(found.maps[:, :16], states[2])
    third = F.interpolate(states[3], (8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(found.maps[:, 16:], third)
    assert torch.equal(found.deep, states[4])
    assert network(torch.randn(1, 3, 128, 128)).maps.shape == (1, 40, 8, 8)
    assert not network.model.training, "batch norm keeps its statistics"
    assert not any(p.requires_grad for p in network.parameters())


def test_weights_of_a_resnet_alone_are_read_too(tmp_path: Path, resnet: Path) -> None:
    state = ResNetModel.from_pretrained(resnet).state_dict()
    plain = ResNetModel.from_pretrained(resnet)
    plain.save_pretrained(tmp_path)
    found = load_resnet(str(tmp_path), 64)
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())
    assert found.hash == load_resnet(str(resnet), 64).hash
    assert found.hash != load_resnet(str(save_resnet(tmp_path / "other", seed=1)), 64).hash


def test_a_resnet_that_is_absent_or_not_whole(tmp_path: Path, resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(InputError, match=r"microsoft/resnet-50 are not on this machine.*no connection.*model\.resnet"):
        make(model__features="resnet50")
    with pytest.raises(InputError, match="is a file"):
        load_resnet(str(resnet / "model.safetensors"), 64)
    with pytest.raises(InputError, match="No weights in"):
        load_resnet(str(tmp_path), 64)
    with pytest.raises(InputError, match="one of four"):
        load_resnet(str(save_resnet(tmp_path / "three", stages=3)), 64)
    with pytest.raises(InputError, match="multiple of 32"):
        load_resnet(str(resnet), 100)
    broken = save_resnet(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not a file")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_resnet(str(broken), 64)
    fewer = tmp_path / "fewer"
    save_resnet(fewer, stages=3, kind=ResNetModel)
    (fewer / "config.json").write_bytes((resnet / "config.json").read_bytes())
    with pytest.raises(InputError, match="Missing key"):
        load_resnet(str(fewer), 64)
    (fewer / "config.json").write_text('{"model_type": "sam"}', encoding="utf-8")
    with pytest.raises(InputError, match="holds a sam"):
        load_resnet(str(fewer), 64)
    (fewer / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json can be read"):
        load_resnet(str(fewer), 64)


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora for vrp_sam"):
        make(backbone__train="lora")
    with pytest.raises(InputError, match="family sam2"):
        make(backbone__name="sam2-tiny-test")
    with pytest.raises(InputError, match="5 heads"):
        make(model__heads=5)
    tiny = make().eval()
    with pytest.raises(InputError, match="no support pairs"):
        tiny.predict(target())
    with pytest.raises(InputError, match="an episode of one image"):
        tiny(batch(1))
    with pytest.raises(InputError, match="without masks"):
        tiny.encode_support(batch(2, masks=None))
    path = tiny.encode_support(batch(2)).save(tmp_path / "task.safetensors")
    with pytest.raises(InputError, match="support bank made by weights"):
        make(seed=3).load_support(str(path))
