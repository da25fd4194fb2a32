"""PerSAM and PerSAM-F: likeness, points, guided decoding, the learned mixture, banks, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from colour_backbone import Colours, painted
from proxy_training import two_objects
from samsans import cli, io
from samsans import config as configuration
from samsans.config import BackboneConfig, RunConfig
from samsans.errors import InputError
from samsans.inference import VideoSegmenter, load
from samsans.methods import build
from samsans.methods.persam.config import PRESETS, PersamConfig
from samsans.methods.persam.mixture import learn_mixture, mix, mixture_loss, reduced
from samsans.methods.persam.model import Persam
from samsans.methods.persam.prior import extremes, guidance, likeness, masked_means
from samsans.methods.persam.support import Concept, PersamBank
from samsans.methods.prompted.untrained import ABSENT
from samsans.types import Batch, Prompt

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"))
FINE = {"fine_tuned": True, "steps": 20, "attention": False, "target": False}


def make(**model: Any) -> Persam:
    tiny = BackboneConfig(name="tiny", train="none")
    return build(RunConfig(method="persam", backbone=tiny, model=PersamConfig(**model)), ("disc", "cup"))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 0) -> Batch:
    """Three images, two objects; the second object is absent from image 1."""
    masks = torch.zeros(3, 2, 64, 64, dtype=torch.bool)
    masks[:, 0, 10:31, 20:41] = True
    masks[0, 1, 40:44, 5:9] = True
    masks[2, 1, 50, 60] = True
    return Batch(rand(3, 3, 64, 64, seed=seed), masks, ("a", "b", "c"), ("disc", "cup"))


def part(whole: Batch, images: list[int]) -> Batch:
    assert whole.masks is not None
    ids = tuple(whole.ids[i] for i in images)
    return replace(whole, images=whole.images[images], masks=whole.masks[images], ids=ids)


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_configurations(preset: str) -> None:
    made = configuration.from_dict({"data.path": "x"}, method="persam", preset=preset)
    assert made.train.steps == 0
    assert made.backbone.train == "none"
    fine = preset == "fine_tuned"
    assert (made.model.fine_tuned, made.model.attention, made.model.target) == (fine, not fine, not fine)


# -- likeness, points, guidance ---------------------------------------------------------------------------------------


def test_means_and_likeness_equal_naive_loops() -> None:
    features, masks = rand(2, 5, 4, 4), rand(2, 3, 16, 16, seed=1) > 0.8
    masks[1, 2] = False
    means = masked_means(features, masks)
    directions = F.normalize(means, dim=-1)
    found = likeness(features, directions)
    for k in range(2):
        for n in range(3):
            total, weight = torch.zeros(5), 0
            for y in range(16):
                for x in range(16):
                    if masks[k, n, y, x]:
                        total, weight = total + features[k, :, y // 4, x // 4], weight + 1
            mean = total / weight if weight else total
            torch.testing.assert_close(means[k, n], mean)
            for y in range(4):
                for x in range(4):
                    token = features[k, :, y, x]
                    cosine = torch.dot(token, mean) / (token.norm() * mean.norm()) if weight else torch.tensor(0.0)
                    torch.testing.assert_close(found[k, n, y, x], cosine)


def test_points_are_centres_of_the_most_and_the_least_alike_tokens() -> None:
    similarity = torch.zeros(2, 4, 4)
    similarity[0, 1, 3], similarity[0, 2, 0] = 0.9, -0.3
    similarity[1, 0, 0], similarity[1, 3, 3] = 0.5, -0.5
    visible = torch.ones(2, 4, 4, dtype=torch.bool)
    golden = [[[55.5, 23.5], [7.5, 39.5]], [[7.5, 7.5], [55.5, 55.5]]]
    assert extremes(similarity, visible, 16).tolist() == golden
    visible[1, 0, 0] = visible[1, 3] = False  # then the first of equals
    assert extremes(similarity, visible, 16)[1].tolist() == [[23.5, 7.5], [23.5, 7.5]]


def test_guidance_is_standardised_over_what_is_image() -> None:
    similarity, visible = rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    visible[1, 2:] = False
    similarity[1, 2:] = 1e6
    found = guidance(similarity, visible)
    for number in range(2):
        seen = similarity[number][visible[number]].numpy().astype(float)
        want = 1 / (1 + np.exp(-(seen - seen.mean()) / seen.std()))
        np.testing.assert_allclose(found[number][visible[number]].numpy(), want, rtol=1e-4)
    assert (found[1, 2:] == 0).all()
    assert (guidance(torch.full((1, 4, 4), 0.75), visible[:1]) == 0.5).all()


# -- the decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["fast", "naive"])
def test_guided_decoding_is_the_librarys_and_matters(attention: str) -> None:
    from samsans.backbones import load_backbone

    sam = load_backbone(BackboneConfig(name="tiny", train="none", attention=attention))
    with torch.no_grad():
        embedding = sam.encode(rand(2, 3, 64, 64))
        index = torch.tensor([0, 1, 1])
        points, labels = rand(3, 2, 2).abs() * 20, torch.tensor([1, 0]).expand(3, -1)
        prompt = sam.embed_prompts(index, points=points, point_labels=labels)
        bias, target = rand(3, 4, 4, seed=1) * 3, rand(3, 32, seed=2)
        plain = sam.decode(embedding, prompt).logits
        guided = sam.decode(embedding, prompt, attention=bias, target=target).logits
        own = sam.model(
            image_embeddings=embedding.features[index],
            input_points=points[:, None],
            input_labels=labels[:, None],
            multimask_output=False,
            attention_similarity=bias.flatten(1)[:, None, None],
            target_embedding=target[:, None, None],
        ).pred_masks[:, 0]
        torch.testing.assert_close(guided, own)
        changes = [sam.decode(embedding, prompt, **one).logits for one in ({"attention": bias}, {"target": target})]
        for changed in (*changes, guided):
            assert (changed - plain).abs().amax((1, 2, 3)).min() > 1e-3
        constant = sam.decode(embedding, prompt, attention=torch.full_like(bias, 3.0)).logits
        torch.testing.assert_close(constant, plain, atol=1e-5, rtol=1e-5)  # a softmax knows no constants
        single = sam.decode(embedding, Prompt(prompt.sparse[2:], prompt.dense, index[2:]), attention=bias[2:])
        torch.testing.assert_close(single.logits, changes[0][2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", [{"attention": False}, {"target": False}, {"refinements": 1}, {"refinements": 0}])
def test_every_part_changes_the_answer(option: dict[str, Any]) -> None:
    given = batch()
    whole, less = make(), make(**option)
    changed = whole.predict(given, whole.encode_support(given)) - less.predict(given, less.encode_support(given))
    assert changed[:, 0].abs().max() > 1e-3


# -- PerSAM-F ---------------------------------------------------------------------------------------------------------


def test_mixture_and_loss_by_hand() -> None:
    logits = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert mix(logits, torch.tensor([[0.5, 0.25]]))[0, 0, 0].item() == pytest.approx(0.5 + 2.5 + 25)
    # p is 1/2 everywhere, one of four cells is true: Dice 1 - (2 * 0.5 + 1) / (2 + 1 + 1), focal log(2) / 4
    truth = torch.tensor([[[True, False], [False, False]]])
    found = mixture_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2), truth)
    assert found.item() == pytest.approx(0.5 + math.log(2) / 4)


def test_weights_fit_the_support_each_object_by_itself() -> None:
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 30:60, 2:20] = masks[2, 7, 9] = True
    logits = rand(3, 3, 16, 16)
    for number, best in enumerate((0, 1, 2)):
        logits[number, best] += 4 * (reduced(masks, 16)[number].float() - 0.5)
    third = torch.full((3, 2), 1 / 3)
    learned = learn_mixture(logits, masks, 150, 0.02)
    before, after = (mixture_loss(logits, weights, reduced(masks, 16)) for weights in (third, learned))
    assert (after < 0.9 * before).all()
    every = torch.cat([learned, 1 - learned.sum(1, keepdim=True)], 1)
    assert every.argmax(1).tolist() == [0, 1, 2]
    for number in range(3):
        alone = learn_mixture(logits[number : number + 1], masks[number : number + 1], 150, 0.02)
        torch.testing.assert_close(alone[0], learned[number], atol=1e-5, rtol=1e-4)
    assert torch.equal(learned, learn_mixture(logits, masks, 150, 0.02))
    with torch.inference_mode():
        assert torch.equal(learned, learn_mixture(logits.clone(), masks, 150, 0.02))
    assert torch.equal(learn_mixture(logits, masks, 0, 0.01), third)


def test_masks_are_reduced_and_none_is_lost() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 4:10, 4:8] = True
    masks[1, 3, 15] = True
    found = reduced(masks, 4)
    assert found[0].nonzero().tolist() == [[1, 1], [2, 1]]
    assert found[1].nonzero().tolist() == [[0, 3]]


def test_fine_tuning_lowers_the_loss_of_the_first_pass_on_the_supports() -> None:
    given, method = batch(), make(**FINE | {"steps": 100})
    bank = method.encode_support(given)
    assert given.masks is not None
    with torch.no_grad():
        logits = method._first(method.backbone.encode(given.images), given, Concept.of_pairs(bank))[0]
    truth = reduced(given.masks[bank.present], logits.shape[-1])
    third = torch.full((len(truth), 2), 1 / 3)
    before, after = (mixture_loss(logits, weights, truth).sum() for weights in (third, bank.mixture[bank.present]))
    assert after < before - 1e-3
    assert (bank.mixture[1, 1] == 1 / 3).all()  # nothing to learn from


# -- banks ------------------------------------------------------------------------------------------------------------


def test_pairs_are_averaged_where_they_show_the_object() -> None:
    bank = make().encode_support(batch())
    assert bank.present.tolist() == [[True, True], [True, False], [True, True]]
    bank = replace(bank, mixture=rand(3, 2, 2))
    concept = Concept.of_banks([bank, bank.select([1])])
    unit = bank.means / bank.means.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(concept.direction[0, 0], (unit[0, 0] + unit[1, 0] + unit[2, 0]) / 3)
    torch.testing.assert_close(concept.direction[0, 1], (unit[0, 1] + unit[2, 1]) / 2)
    torch.testing.assert_close(concept.target[0, 1], (bank.means[0, 1] + bank.means[2, 1]) / 2)
    torch.testing.assert_close(concept.mixture[0, 1], (bank.mixture[0, 1] + bank.mixture[2, 1]) / 2)
    assert concept.known.tolist() == [[True, True], [True, False]]
    assert not concept.direction[1, 1].any()


@pytest.mark.parametrize("options", [{}, FINE])
def test_banks_are_kept_joined_and_chosen_from(options: dict[str, Any], tmp_path: Path) -> None:
    given, method = batch(), make(**options)
    whole = method.encode_support(given)
    joined = PersamBank.concat([method.encode_support(part(given, [0])), method.encode_support(part(given, [1, 2]))])
    assert joined.ids == whole.ids
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(joined.tensors[name], tensor, atol=1e-5, rtol=1e-4)
    target = Batch(rand(2, 3, 64, 64, seed=9), None, ("x", "y"), given.objects)
    logits = method.predict(target, whole)
    assert torch.equal(logits, method.predict(target, method.load_support(str(whole.save(tmp_path / "bank")))))
    assert torch.equal(logits, method.predict(target, method.encode_support(given)))  # cached or not
    assert torch.equal(logits, method.predict(target, lambda features: [whole] * len(features)))
    torch.testing.assert_close(whole.select([2, 0]).means, whole.means[[2, 0]])
    assert not torch.equal(logits, method.predict(target, whole.select([0])))
    mixed = method.predict(target, [whole, whole.select([1])])
    torch.testing.assert_close(mixed[0], logits[0], atol=1e-4, rtol=1e-4)
    assert (mixed[1, 1] == ABSENT).all()
    assert mixed.isfinite().all()


def test_banks_of_another_learning_are_refused(tmp_path: Path) -> None:
    path = make().encode_support(batch()).save(tmp_path / "bank")
    assert make(refinements=0).load_support(str(path)).K == 3
    with pytest.raises(InputError, match="made by weights"):
        make(**FINE).load_support(str(path))


@pytest.mark.parametrize("options", [{}, FINE])
def test_objects_and_images_together_are_as_alone(options: dict[str, Any]) -> None:
    given, method = batch(), make(**options)
    together = method.predict(replace(given, masks=None), method.encode_support(given))
    assert together.shape == (3, 2, 64, 64)
    assert together.dtype == torch.float32
    assert given.masks is not None
    for item in range(2):
        shown = replace(given, masks=given.masks[:, item : item + 1], objects=given.objects[item : item + 1])
        bank = method.encode_support(shown)
        for image in range(3):
            target = Batch(given.images[image : image + 1], None, ("x",), shown.objects)
            alone = method.predict(target, bank)[0, 0]
            torch.testing.assert_close(alone, together[image, item], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("options", [{}, FINE])
def test_devices_and_precision(device: str, options: dict[str, Any]) -> None:
    given, method = batch(), make(**options)
    wanted = method.predict(given, method.encode_support(given))
    method, moved = method.to(device), given.to(device)
    found = method.predict(moved, method.encode_support(moved))
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-2)
    with torch.autocast(device, torch.bfloat16), torch.inference_mode():
        rough = method.predict(moved, method.encode_support(moved))
    assert rough.dtype == torch.float32
    assert rough.isfinite().all()


# -- the right object: a backbone whose features are colours ----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, FINE | {"steps": 50, "lr": 0.05}])
def test_the_support_mask_decides_what_is_clicked_and_segmented(options: dict[str, Any]) -> None:
    sam = Colours()
    method = Persam(sam, PersamConfig(**options))
    image, masks = painted((8, 8), (40, 32))
    target, truth = painted((32, 40), (0, 16))
    answers = []
    for shown in (masks, masks.flip(0)):
        bank = method.encode_support(Batch(image[None], shown[None], ("s",), ("a", "b")))
        answers.append(method.predict(Batch(target[None], None, ("x",), ("a", "b")), bank)[0] > 0)
    assert torch.equal(answers[0], truth)
    assert torch.equal(answers[1], truth.flip(0))
    first, second, third = sam.asked[-3:]
    assert set(first) == {"points", "point_labels"}
    assert set(second) == {"points", "point_labels", "masks"}
    assert set(third) == {"points", "point_labels", "masks", "boxes"}
    assert third["boxes"].tolist() == [[16, 0, 31, 15], [40, 32, 55, 47]]
    assert third["point_labels"].tolist() == [[1, 0]] * 2
    for n, (x, y) in enumerate(third["points"][:, 0].tolist()):
        assert truth.flip(0)[n, round(y), round(x)]
    if options:
        assert (bank.mixture[0, :, 1] > 0.7).all()  # SAM's second mask is right


def test_an_empty_mask_gets_no_box_and_padding_no_click() -> None:
    sam = Colours(blind=True)
    method = Persam(sam, PersamConfig())
    image, masks = painted((8, 8), (40, 32))
    bank = method.encode_support(Batch(image[None], masks[None], ("s",), ("a", "b")))
    logits = method.predict(Batch(image[None], None, ("x",), ("a", "b"), valid=torch.tensor([[29, 64]])), bank)
    assert not (logits > 0).any()
    assert len(sam.asked) == 2
    points = sam.asked[0]["points"]
    assert points[0, 0].tolist() == [11.5, 11.5]  # the first of the red tokens
    assert (points[..., 1] <= 28).all()


# -- what it refuses, and the commands --------------------------------------------------------------------------------


def test_it_trains_nothing_and_needs_supports() -> None:
    given, method = batch(), make()
    assert method.stages(RunConfig()) == ()
    assert not any(p.requires_grad for p in method.parameters())
    with pytest.raises(InputError, match="nothing to train"):
        method.loss(None, given)
    with pytest.raises(InputError, match="no support pairs"):
        method.predict(given)
    with pytest.raises(InputError, match="without masks"):
        method.encode_support(replace(given, masks=None))
    with pytest.raises(InputError, match="refinements 3"):
        make(refinements=3)
    with pytest.raises(InputError, match=r"model\.steps -1"):
        make(steps=-1)


def test_train_predict_task_evaluate_and_video(tmp_path: Path) -> None:
    data, run = two_objects(tmp_path), tmp_path / "run"

    def done(*argv: object) -> None:
        assert cli.main([str(a) for a in argv]) == 0

    options = ("--backbone", "tiny", "--input-size", "64", "--split.test", "0.34")
    done("train", "persam", data, "-o", run, "--preset", "fine_tuned", "--model.steps", 5, *options)
    assert {p.name for p in run.iterdir()} == {"config.yaml", "classes.json", "split.json"}
    split = json.loads((run / "split.json").read_text())
    done("predict", run, "-i", data, "--split", "test", "-o", tmp_path / "out", "--device", "cpu")
    assert (run / "tasks" / "train.safetensors").is_file()
    done("evaluate", tmp_path / "out", data, "-o", tmp_path / "report")
    assert len((tmp_path / "report" / "cases.csv").read_text().splitlines()) == 1 + 2 * len(split["test"])

    id, own = split["test"][0], split["train"][0]
    image, support = data / "images" / f"{id}.png", (data / "images" / f"{own}.png", data / "masks" / f"{own}.png")
    pair = ":".join(str(path) for path in support)
    done("predict", run, "-i", image, "-o", tmp_path / "a", "--support", pair, "--task", "mine", "--device", "cpu")
    done("predict", run, "-i", image, "-o", tmp_path / "b", "--task", "mine", "--device", "cpu")
    done("predict", run, "-i", image, "-o", tmp_path / "c", "--choose", "similar", "--device", "cpu")
    first, again = (io.read_labels(tmp_path / o / f"{id}.png").array for o in "ab")
    assert np.array_equal(first, again)

    model = load(run, device="cpu")
    frames = [np.asarray(Image.open(data / "images" / f"{i}.png").convert("RGB")) for i in split["test"]]
    bank = model.encode_support([support])
    for frame, found in zip(frames, VideoSegmenter(model, bank).run(frames), strict=True):
        assert np.array_equal(found.labels, model.predict(frame, bank).labels[0])
