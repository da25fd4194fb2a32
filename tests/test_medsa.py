"""Medical SAM Adapter on the tiny backbone: it starts as SAM, adapters by hand, prompts, losses, and a whole run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from proxy_training import two_objects
from samsans import architectures, cli
from samsans import config as configuration
from samsans.backbones import LoadReport, Sam, load_backbone
from samsans.backbones.sam import build_network
from samsans.config import BackboneConfig
from samsans.errors import InputError
from samsans.inference import load
from samsans.methods import build
from samsans.methods.medsa.config import MedsaConfig
from samsans.methods.medsa.model import Medsa
from samsans.methods.prompted.untrained import ABSENT
from samsans.training.log import read
from samsans.types import Batch
from slice_methods import check_step, make, optimizer_of, step, toy, unlabelled
from test_resume import same_weights


def stir(method: Medsa) -> Medsa:
    """The method with adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if ".adapter.up." in name:
                parameter.normal_(std=0.1, generator=generator)
    return method.eval()


def some_absent() -> Batch:
    """Three images, two objects: all there, one missing, none there; they overlap in the first."""
    masks = torch.zeros(3, 2, 64, 64, dtype=torch.bool)
    masks[:2, 0, 10:31, 20:41] = True
    masks[0, 1, 25:44, 15:29] = True
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Batch(images, masks, ("a", "b", "c"), ("disc", "cup"))


def only(batch: Batch, image: int, item: int) -> Batch:
    """One image and object of a batch."""
    assert batch.masks is not None
    masks = batch.masks[image : image + 1, item : item + 1]
    return Batch(batch.images[image : image + 1], masks, (batch.ids[image],), (batch.objects[item],))


def without_objects(batch: Batch) -> Batch:
    """The same images showing nothing."""
    assert batch.masks is not None
    return dataclasses.replace(batch, masks=torch.zeros_like(batch.masks))


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_starts_as_sam_prompted_in_the_same_way(prompt: str) -> None:
    batch = some_absent()
    asked = {"backbone__train": "none", "model__prompt": prompt, "model__seed": 3}
    sam = make("prompted", prompt, **asked).predict(batch)
    assert torch.equal(make("medsa", **asked).eval().predict(batch), sam)
    assert not torch.equal(stir(make("medsa", **asked)).predict(batch), sam)


def counts(arch: architectures.SamArchitecture, **model: Any) -> int:
    """Trained parameters at 1024 px, on the meta device."""
    sam = Sam(build_network(arch, 1024), name="sam", from_scratch=False, report=LoadReport("nothing", 0))
    return sum(p.numel() for p in Medsa(sam, MedsaConfig(**model)).parameters() if p.requires_grad)


def test_counts_by_formula() -> None:
    vit_b = 12 * 2 * (2 * 768 * 48 + 48 + 768)
    assert counts(architectures.VIT_B, decoder=False) == vit_b == 1_789_056
    assert counts(architectures.VIT_B, decoder=False, ratio=0.25) == 12 * 2 * (2 * 768 * 192 + 192 + 768)
    decoder = 4_058_340 - 132_612 - 419_424  # all but the IoU head and the hypernetworks of three masks never asked for
    assert counts(architectures.VIT_B) == vit_b + decoder
    vit_h = 32 * 2 * (2 * 1280 * 80 + 80 + 1280)
    assert counts(architectures.VIT_H, decoder=False) == vit_h == 13_194_240  # the published 13 million


@pytest.mark.parametrize("side", [64, 80])
def test_the_fast_order_of_work_is_exact_with_adapters(side: int) -> None:
    """In grids of 4 and 5 tokens and windows of 3, so that windows are filled up."""
    options = {"backbone__train": "none", "backbone__input_size": side}
    fast, naive = (stir(make("medsa", backbone__attention=a, **options)).double() for a in ("fast", "naive"))
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = naive.backbone.encode(images, blocks=True)
    found = fast.backbone.encode(images, blocks=True)
    for a, b in zip((*found.blocks, found.features), (*want.blocks, want.features), strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)  # the library's softmax is in float32


def test_a_block_by_hand() -> None:
    plain = load_backbone(BackboneConfig(name="tiny")).double()
    method = stir(make("medsa", model__scale=0.3)).double()
    x = torch.randn(1, 4, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole, adapted = plain.encoder_blocks[1], method.backbone.encoder_blocks[1]  # a block without windows

    def bottleneck(adapter: Any, z: Tensor) -> Tensor:
        hidden = (z @ adapter.down.weight.T + adapter.down.bias).clamp_min(0)
        return hidden @ adapter.up.weight.T + adapter.up.bias

    seen = whole.attn(whole.layer_norm1(x))[0]
    want = x + seen + bottleneck(adapted.attn.proj.adapter, seen)
    normed = whole.layer_norm2(want)
    want = want + whole.mlp(normed) + 0.3 * bottleneck(adapted.mlp.adapter, normed)
    torch.testing.assert_close(method.backbone._block(adapted, x), want, atol=1e-12, rtol=1e-10)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        method = stir(make("medsa", backbone__checkpointing=again)).train()
        torch.manual_seed(0)
        method.loss(method(toy()), toy())["loss"].backward()
        found.append([p.grad for p in method.parameters() if p.requires_grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"preset": "box"},
        {"model__decoder": False},
        {"preset": "scratch"},
        {"preset": "scratch", "model__prompt": "box"},
    ],
    ids=str,
)
def test_gradients_reach_all_that_is_trained_and_nothing_else_moves(variant: dict[str, Any]) -> None:
    check_step(stir(make("medsa", **variant)), toy())


def trained(**options: Any) -> set[str]:
    """Parts of SAM with trained weights, adapters apart."""
    names = [name for name, p in make("medsa", **options).named_parameters() if p.requires_grad]
    return {"adapter" if ".adapter." in name else name.split(".")[2] for name in names}


def test_what_is_trained() -> None:
    assert trained(model__decoder=False) == {"adapter"}
    assert trained() == {"adapter", "mask_decoder"}
    assert trained(preset="scratch") == {"adapter", "mask_decoder", "vision_encoder", "prompt_encoder"}


def test_every_step_prompts_anew_and_the_generator_decides() -> None:
    method, batch = make("medsa").train(), some_absent()
    torch.manual_seed(0)
    first, second = method(batch).logits, method(batch).logits
    torch.manual_seed(0)
    assert torch.equal(method(batch).logits, first)
    assert not torch.equal(second, first)
    torch.manual_seed(1)
    one = method.eval().predict(batch)
    assert torch.equal(method.predict(batch), one)  # the names decide here
    boxes = make("medsa", "box")
    assert torch.equal(boxes(batch).logits, boxes(batch).logits)


def test_loss_is_of_the_objects_that_are_there() -> None:
    method, batch = make("medsa"), some_absent()
    output = method(batch)
    assert output.present.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert (output.logits.shape, output.logits.dtype) == ((3, 64, 64), torch.float32)
    flat = dataclasses.replace(output, logits=torch.zeros(3, 64, 64))
    losses = method.loss(flat, batch)
    assert float(losses["bce"]) == pytest.approx(np.log(2))
    sizes = [441, 19 * 14, 441]
    dice = np.mean([1 - (n + 1) / (64 * 64 / 2 + n + 1) for n in sizes])
    assert float(losses["dice"]) == pytest.approx(dice, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(np.log(2) + dice, rel=1e-5)
    weighted = make("medsa", model__bce=0.5, model__dice=2.0).loss(flat, batch)
    assert float(weighted["loss"]) == pytest.approx(0.5 * np.log(2) + 2 * dice, rel=1e-5)


def test_a_batch_that_shows_nothing_teaches_nothing() -> None:
    method, batch = stir(make("medsa")).train(), without_objects(some_absent())
    losses = method.loss(method(batch), batch)
    assert losses["loss"].item() == 0
    losses["loss"].backward()
    assert all((p.grad is not None and not p.grad.any()) == p.requires_grad for p in method.parameters())
    assert (method.eval().predict(batch) == ABSENT).all()


@pytest.mark.parametrize(
    ("options", "lr", "share"),
    [({}, 3e-3, 0.75), ({"model__decoder": False, "model__ratio": 0.25}, 3e-2, 0.97)],
    ids=["decoder", "adapters"],
)
def test_learns(options: dict[str, Any], lr: float, share: float) -> None:
    """Also by its adapters alone, as far as the frozen random decoder lets them."""
    method, batch = make("medsa", "box", **options).train(), toy()
    optimizer = optimizer_of(method, lr)
    losses = [step(method, batch, optimizer) for _ in range(30)]
    assert losses[-1] < share * losses[0], losses


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_half_precision(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    method, batch = stir(make("medsa", "box")).to(device), some_absent().to(device)
    exact = method.predict(batch)
    with torch.autocast(device, torch.bfloat16):
        method.loss(method(batch), batch)["loss"].backward()
        found = method.predict(batch)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 0.25 * float(exact[0].std())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "box"])
def test_objects_and_images_are_independent(preset: str) -> None:
    method, batch = stir(make("medsa", preset)), some_absent()
    together = method.predict(batch)
    assert (together.shape, together.dtype) == ((3, 2, 64, 64), torch.float32)
    assert not together.requires_grad
    for image, item in ((0, 0), (0, 1), (1, 0)):
        alone = method.predict(only(batch, image, item))[0, 0]
        torch.testing.assert_close(alone, together[image, item], atol=1e-4, rtol=1e-4)
    for image, item in ((1, 1), (2, 0), (2, 1)):
        assert (together[image, item] == ABSENT).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone__train": "lora"}, "adapters of its own"),
        ({"model__ratio": 0.001}, "one hidden channel"),
        ({"model__dice": -1.0}, "model.dice is -1.0"),
        ({"backbone__name": "sam2-tiny-test"}, "family sam2"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("medsa", **options)


def test_needs_the_truth() -> None:
    method = make("medsa").eval()
    assert method.needs.labels_at_predict
    assert not method.needs.supports
    for ask in (method, method.predict):
        with pytest.raises(InputError, match="no true mask"):
            ask(unlabelled(some_absent()))


def test_presets() -> None:
    paper, box, scratch = (configuration.from_dict({}, method="medsa", preset=p) for p in ("paper", "box", "scratch"))
    for made in (paper, box):
        assert (made.train.optimizer, made.train.lr, made.train.schedule) == ("adam", 1e-4, "halving")
        assert (made.backbone.name, made.backbone.train) == ("sam-vit-h", "none")
    assert (paper.model.prompt, box.model.prompt) == ("point", "box")
    assert (scratch.backbone.name, scratch.backbone.train) == ("scratch", "all")


def test_the_seed_decides_and_the_global_state_stays() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (make("medsa", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "backbone.model.vision_encoder.layers.0.mlp.adapter.down.weight"
    assert not torch.equal(one[name], other[name])


# -- a whole run ------------------------------------------------------------------------------------------------------

TINY = ("--backbone", "tiny", "--input-size", "64", "--train.accelerator", "cpu", "--train.epochs", "null")


def run(*argv: object) -> int:
    return cli.main([str(a) for a in argv])


def test_train_resume_predict_evaluate(tmp_path: Path) -> None:
    data, made = two_objects(tmp_path, 6), tmp_path / "run"
    fixed = (
        "--preset",
        "paper",
        "--split.test",
        0.3,
        "--split.val",
        0.3,
        "--train.validate_every",
        2,
        *TINY,
        "--train.pictures_every",
    )
    assert run("train", "medsa", data, "-o", tmp_path / "whole", *fixed, 0, "--steps", 4) == 0
    assert run("train", "medsa", data, "-o", made, *fixed, 0, "--steps", 2) == 0
    assert run("train", "medsa", data, "-o", made, *fixed, 4, "--steps", 4, "--resume") == 0
    assert same_weights(made, tmp_path / "whole")
    rows = read(made / "log.csv")
    assert [row["step"] for row in rows if row["val/dice"]] == ["2", "4"]
    assert all(float(row["bce"]) > 0 for row in rows)
    assert list((made / "pictures").glob("samples_*.png"))

    out, scores = tmp_path / "out", tmp_path / "scores"
    assert run("predict", made, "-i", data, "-o", out, "--split", "test", "--device", "cpu") == 0
    assert run("evaluate", out, data, "-o", scores) == 0
    rows = read(scores / "cases.csv")
    assert [row["class"] for row in rows] == ["disc", "square"] * 2
    assert all(float(row["dice"]) >= 0 for row in rows)

    segmenter = load(made, device="cpu")
    image, mask = (sorted((data / part).glob("*.png"))[0] for part in ("images", "masks"))
    first = segmenter.predict(image, labels=mask).labels
    assert np.array_equal(segmenter.predict(image, labels=mask).labels, first)
    with pytest.raises(InputError, match="no true mask"):
        segmenter.predict(image)
    fresh = build(segmenter.config, ("disc", "square"))
    changed = [n for n, p in segmenter.method.named_parameters() if not torch.equal(p, fresh.get_parameter(n))]
    assert any(".adapter." in name for name in changed)
    assert all(".adapter." in name or ".mask_decoder." in name for name in changed)
