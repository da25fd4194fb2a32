"""SPD on the tiny backbone: counts, stages, decoding by points, what is left out of the loss, and back to plain SAM."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samsans import config as configuration
from samsans import zoo
from samsans.backbones import LoadReport, Sam, add_lora, load_backbone
from samsans.backbones.geometry import resize_state
from samsans.backbones.sam import build_network
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.methods import build
from samsans.methods.spd import losses
from samsans.methods.spd.config import SpdConfig
from samsans.methods.spd.model import ABSENT, DECODER, SALIENCY, TUNING, Spd
from samsans.methods.weights import load_weights, save_weights
from samsans.types import Batch, Embedding, Masks, Prompt, Stage
from slice_methods import make as make_method
from slice_methods import toy

HERE = torch.tensor([[12.0, 9.0, 1.0]])
TWO = torch.tensor([[12.0, 9.0, 1.0], [20.0, 25.0, 1.0]])
NONE = torch.zeros(0, 3)


def make(preset: str = "paper", stage: str | None = None, **options: Any) -> Spd:
    method: Spd = make_method("spd", preset, objects=1, **options)
    if stage is not None:
        method.begin(stage_of(method, stage), augmented=True)
    return method


def stage_of(method: Spd, name: str) -> Stage:
    return next(stage for stage in method.stages(None) if stage.name == name)  # type: ignore[arg-type]


def batch_of(*points: Tensor, following: list[int] | None = None, seed: int = 0) -> Batch:
    """One image of the toy task for each set of points; the object is the top left quarter."""
    batch = toy(len(points), 1, seed)
    chain = None if following is None else torch.tensor(following)
    return dataclasses.replace(batch, points=points, following=chain)


def trained(stage: Stage) -> list[Any]:
    return [p for group in stage.groups for p in group.parameters]


def train_step(method: Spd, stage: Stage, batch: Batch, lr: float = 1e-3) -> dict[str, float]:
    """One step as training takes it: all that is not the stage's is frozen."""
    ours = trained(stage)
    for parameter in method.parameters():
        parameter.requires_grad_(any(parameter is p for p in ours))
    method.train()
    terms = method.loss(method(batch), batch)
    optimizer = torch.optim.Adam(ours, lr)
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    return {name: float(value.detach()) for name, value in terms.items()}


# -- counts (16.5) ----------------------------------------------------------------------------------------------------


def full_size() -> Spd:
    """SPD at ViT-B and 512 px on the meta device: shapes only."""
    network = build_network(zoo.BACKBONES["sam-vit-b"].architecture, 512)
    sam = Sam(network, name="sam-vit-b", from_scratch=False, report=LoadReport("nothing", 0))
    sam._base_hash = "of no weights"
    add_lora(sam, LoraConfig(rank=8, alpha=16.0, dropout=0.1, decoder=[]))
    return Spd(sam, SpdConfig())


def test_published_counts() -> None:
    method = full_size()
    first, second = (sum(p.numel() for p in trained(stage)) for stage in method.stages(None))  # type: ignore[arg-type]
    adapters = [p for name, p in method.named_parameters() if "lora_" in name]
    assert method.head is not None
    assert sum(p.numel() for p in adapters) == 294_912
    assert sum(p.numel() for p in method.head.parameters()) == 73_985
    assert first == 368_897
    decoder = dict(method.backbone.model.mask_decoder.named_parameters())
    assert sum(p.numel() for p in decoder.values()) == 4_058_340
    iou_head, hypernetworks = 132_612, 419_424  # never have a gradient: of other masks, and of their scores
    assert second == 4_058_340 - iou_head - hypernetworks
    idle = [name for name, p in decoder.items() if not p.requires_grad]
    assert {name.split(".")[0] for name in idle} == {"iou_prediction_head", "output_hypernetworks_mlps"}
    assert method.backbone.grid == 32


def test_positions_of_vit_b_at_half_the_side() -> None:
    state = {"vision_encoder.pos_embed": torch.randn(1, 64, 64, 3)}
    for layer in range(12):
        for axis in "hw":
            length = 127 if layer in (2, 5, 8, 11) else 27
            table = torch.arange(float(length))[:, None].expand(-1, 2)
            state[f"vision_encoder.layers.{layer}.attn.rel_pos_{axis}"] = table
    architecture = zoo.BACKBONES["sam-vit-b"].architecture
    halved, lines = resize_state(state, architecture, 32)
    assert len(lines) == 9
    pooled = torch.nn.functional.avg_pool2d(state["vision_encoder.pos_embed"].permute(0, 3, 1, 2), 2)
    torch.testing.assert_close(halved["vision_encoder.pos_embed"].permute(0, 3, 1, 2), pooled, rtol=0, atol=1e-6)
    moved = halved["vision_encoder.layers.2.attn.rel_pos_h"][:, 0]
    wanted = torch.tensor([0.5079, 2.5238, 63.0, 125.4921])
    torch.testing.assert_close(moved[[0, 1, 31, 62]], wanted, rtol=0, atol=1e-4)
    same, lines = resize_state(state, architecture, 64)
    assert lines == ()
    assert all(torch.equal(same[name], state[name]) for name in state)


def test_the_preset_is_the_published_one() -> None:
    config = configuration.from_dict({}, method="spd", preset="paper")
    lora, train = config.lora, config.train
    assert (lora.rank, lora.alpha, lora.dropout, lora.encoder, lora.decoder) == (8, 16.0, 0.1, ["q", "v"], [])
    assert (train.optimizer, train.lr, train.weight_decay, train.schedule) == ("adam", 1e-4, 1e-5, "plateau")
    model = config.model
    assert (model.tau, model.neighbours, model.dice, model.focal, model.psc) == (0.5, 2, 0.7, 0.3, 0.1)


# -- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_stages_train_what_they_should_and_nothing_else(preset: str) -> None:
    method = make(preset)
    first, second = method.stages(None)  # type: ignore[arg-type]
    assert (first.name, first.batches, second.name, second.batches) == (SALIENCY, "slices", DECODER, "pairs")
    assert {id(p) for p in trained(first) + trained(second)} == {id(p) for p in method.parameters() if p.requires_grad}
    for stage, batch in ((first, batch_of(NONE, NONE)), (second, batch_of(TWO, HERE, following=[1, -1]))):
        method.begin(stage, augmented=True)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        train_step(method, stage, batch)
        ours = {id(p) for p in trained(stage)}
        for name, parameter in method.named_parameters():
            if id(parameter) in ours:
                assert parameter.grad is not None, name
            else:
                assert parameter.grad is None or not parameter.grad.any(), name
                assert torch.equal(parameter, before[name]), name
        names = {name for name, p in method.named_parameters() if id(p) in ours}
        moved = {name for name in names if not torch.equal(method.state_dict()[name], before[name])}
        assert len(moved) > len(names) // 2
        method.zero_grad()
    prompts = {name for name in names if "prompt_encoder" in name}
    assert len(prompts) == (3 if preset == "scratch" else 0)
    assert not any("positional" in name or "vision_encoder" in name for name in names)


def test_adapters_start_as_the_base_and_the_frozen_prior_has_no_dropout() -> None:
    sam, method, batch = load_backbone(BackboneConfig(name="tiny")), make(), toy()
    torch.testing.assert_close(
        method.eval().features(batch.images), sam.encode(batch.images).features, rtol=0, atol=1e-6
    )
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    method.train()
    assert not torch.equal(method.features(batch.images), method.features(batch.images))
    method.begin(stage_of(method, DECODER), augmented=True)
    method.train()
    features = method.features(batch.images)
    assert not features.requires_grad
    assert torch.equal(features, method.features(batch.images))


def test_prompt_tuning_is_one_stage_without_a_head() -> None:
    method = make(model__distill="none")
    (stage,) = method.stages(None)  # type: ignore[arg-type]
    assert (stage.name, stage.batches, method.head) == (TUNING, "pairs", None)
    assert method.prompted
    names = {name for name, p in method.named_parameters() if any(p is q for q in trained(stage))}
    assert {"lora" if "lora_" in name else name.split(".")[2] for name in names} == {"lora", "mask_decoder"}
    train_step(method, stage, batch_of(HERE, NONE, following=[1, -1]))
    assert [len(own) for own in method.distil(None, [TWO.numpy(), NONE.numpy()])] == [2, 0]
    with pytest.raises(InputError, match="distill none"):
        method.saliency(toy())


@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_learns(preset: str) -> None:
    method = make(preset)
    first, second = method.stages(None)  # type: ignore[arg-type]
    for stage, batch in ((first, batch_of(NONE, NONE)), (second, batch_of(TWO, HERE, following=[1, -1]))):
        method.begin(stage, augmented=True)
        ours = torch.optim.Adam(trained(stage), 5e-3)
        found = []
        for _ in range(15):
            ours.zero_grad()
            loss = method.train().loss(method(batch), batch)["loss"]
            loss.backward()
            ours.step()
            found.append(float(loss.detach()))
        assert found[-1] < 0.75 * found[0], found


def test_a_pair_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(stage=DECODER)
    seen: list[int] = []
    encode = method.backbone.encode

    def counted(images: Tensor) -> Embedding:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(method.backbone, "encode", counted)
    method(batch_of(TWO, HERE, HERE, following=[1, 2, -1]))
    assert seen == [3]


# -- decoding ---------------------------------------------------------------------------------------------------------


def test_shapes_and_types() -> None:
    method = make().eval()
    assert method.backbone.encode(toy().images).features.shape == (2, 32, 4, 4)
    logits = method.saliency(toy())
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((2, 16, 16), torch.float32, False)
    method.begin(stage_of(method, DECODER), augmented=False)
    answer = method.predict(batch_of(TWO, NONE))
    assert (answer.shape, answer.dtype, answer.requires_grad) == ((2, 1, 64, 64), torch.float32, False)
    assert (answer[1] == ABSENT).all()
    assert set(method.timer.reset()) >= {"encode", "decode", "prompt"}


def test_images_of_equally_many_points_are_decoded_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(stage=DECODER).eval()
    points = (TWO, HERE, NONE, TWO + 3, HERE + torch.tensor([5.0, 1, 0]))
    batch = batch_of(*points)
    calls: list[int] = []
    decode = method.backbone.decode

    def counted(embedding: Embedding, prompt: Prompt) -> Masks:
        calls.append(len(prompt.sparse))
        return decode(embedding, prompt)

    monkeypatch.setattr(method.backbone, "decode", counted)
    together = method.predict(batch)
    assert calls == [2, 2]
    for i, own in enumerate(points):
        alone = method.predict(dataclasses.replace(batch, images=batch.images[i : i + 1], points=(own,)))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_decoding_is_that_of_transformers() -> None:
    method = make(stage=DECODER).eval()
    batch = batch_of(TWO)
    features = method.features(batch.images)
    theirs = method.backbone.model(
        image_embeddings=features,
        input_points=TWO[None, None, :, :2],
        input_labels=TWO[None, None, :, 2].long(),
        multimask_output=False,
    ).pred_masks[:, 0]
    assert theirs.shape == (1, 1, 16, 16)
    wanted = torch.nn.functional.interpolate(theirs, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.predict(batch), wanted, rtol=1e-4, atol=1e-5)


def test_what_sam_makes_of_points() -> None:
    method = make(stage=DECODER, model__empty="no_prompt").eval()
    features = method.features(toy(1).images)

    def answer(points: Tensor) -> Tensor:
        return method.answer(features, [points])

    def told(*labels: int) -> Tensor:
        places = torch.cat([TWO[:, :2], torch.zeros(len(labels) - 2, 2)])
        prompt = method.backbone.embed_prompts(
            torch.tensor([0]), points=places[None], point_labels=torch.tensor([labels])
        )
        return method.backbone.decode(Embedding(features), prompt).logits

    def apart(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() > 1e-4 * a.std())

    torch.testing.assert_close(answer(TWO), answer(TWO.flip(0)), rtol=1e-4, atol=1e-5)
    assert apart(answer(torch.cat([TWO, TWO])), answer(TWO))
    assert apart(told(1, 1), told(1, 1, -10))
    assert apart(told(1, 1), told(1, 1, -1))
    assert apart(answer(TWO), answer(TWO * torch.tensor([1.0, 1, 0])))
    empty = method.backbone.embed_prompts(
        torch.tensor([0]), points=torch.zeros(1, 0, 2), point_labels=torch.zeros(1, 0, dtype=torch.long)
    )
    assert empty.sparse.shape[1] == 1  # "not a point"
    nothing = method.backbone.decode(Embedding(features), empty).logits
    assert apart(
        nothing, method.backbone.decode(Embedding(features), method.backbone.embed_prompts(torch.tensor([0]))).logits
    )


def test_no_prompt_decodes_slices_without_points() -> None:
    method, batch = make(stage=DECODER, model__empty="no_prompt"), batch_of(NONE, NONE)
    assert len(method(batch).decoded) == 2
    assert (method.eval().predict(batch) != ABSENT).all()


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_loss_of_the_prior_is_at_full_size_and_of_all_slices() -> None:
    method, batch = make(stage=SALIENCY).eval(), batch_of(NONE, NONE)
    assert batch.masks is not None
    output = method(batch)
    assert output.logits.shape == (2, 64, 64)
    small = method.saliency(batch)
    wanted = torch.nn.functional.interpolate(small[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(output.logits, wanted)
    dice, focal = losses.segmentation_terms(wanted, batch.masks[:, 0])
    assert float(method.loss(output, batch)["loss"].detach()) == pytest.approx(
        float(0.7 * dice + 0.3 * focal), abs=1e-6
    )
    torch.testing.assert_close(method.predict(batch)[:, 0], wanted)


def test_loss_of_pairs() -> None:
    method = make(stage=DECODER).eval()
    batch = batch_of(TWO, HERE, HERE, NONE, following=[1, -1, 3, -1])
    assert batch.masks is not None
    terms = {name: float(value.detach()) for name, value in method.loss(method(batch), batch).items()}
    logits = method.predict(batch)[:, 0]
    dice, focal = losses.segmentation_terms(logits[:3], batch.masks[:3, 0])
    pair = losses.pair_loss(*logits[:2].sigmoid().split(1)).mean()  # slice 3 is not decoded: no second pair
    assert terms["psc"] == pytest.approx(float(pair), abs=1e-6)
    assert terms["loss"] == pytest.approx(float(0.7 * dice + 0.3 * focal + 0.1 * pair), abs=1e-6)
    assert (terms["empty"], terms["empty_object"]) == (0.25, 0.25)


@pytest.mark.parametrize(("skip", "some"), [(True, False), (False, True)])
def test_pairs_without_any_object(skip: bool, some: bool) -> None:
    method = make(stage=DECODER, model__psc_skip_empty=skip)
    batch = batch_of(TWO, HERE, following=[1, -1])
    assert batch.masks is not None
    nothing = dataclasses.replace(batch, masks=torch.zeros_like(batch.masks))
    assert bool(method.loss(method(nothing), nothing)["psc"] > 0) == some
    one = batch.masks.clone()
    one[0] = False
    half = dataclasses.replace(batch, masks=one)
    assert float(method.loss(method(half), half)["psc"].detach()) > 0


def test_consistency_can_be_switched_off() -> None:
    batch = batch_of(TWO, HERE, following=[1, -1])
    for options in ({"model__psc": 0.0}, {"model__psc_direction": "none"}):
        method = make(stage=DECODER, **options)
        assert "psc" not in method.loss(method(batch), batch)


def test_a_batch_without_points_is_a_step_of_nothing() -> None:
    method = make(stage=DECODER)
    stage = stage_of(method, DECODER)
    terms = train_step(method, stage, batch_of(NONE, NONE, following=[1, -1]))
    assert (terms["loss"], terms["empty"]) == (0.0, 1.0)
    assert all(p.grad is not None and not p.grad.any() for p in trained(stage))


def test_gauges_tell_how_loose_the_prior_is() -> None:
    method = make(stage=DECODER)
    assert method.head is not None
    torch.nn.init.zeros_(method.head.last.weight)
    assert method.head.last.bias is not None
    torch.nn.init.constant_(method.head.last.bias, 1.0)
    gauges = method.eval().gauges(toy(2, 1))
    assert gauges == {"prior_recall": 1.0, "prior_area": 4.0}  # everything is salient, a quarter is the object
    method.distil(np.full((2, 16, 16), -1.0), [TWO.numpy(), NONE.numpy()])
    gauges = method.gauges(toy(2, 1))
    assert (gauges["silenced"], gauges["empty"], gauges["fallback"]) == (1.0, 1.0, 0.0)
    assert "turns down all points" in str(method.gauge_warning(gauges, 10, 0))
    assert method.gauge_warning({"silenced": 0.2}, 10, 0) is None


# -- whole volumes (16.12) --------------------------------------------------------------------------------------------


def answers(method: Spd, images: Tensor, points: list[np.ndarray], logits: np.ndarray | None = None) -> Tensor:
    """A volume through saliency, distillation and decoding, ``(T, 64, 64)``."""
    batch = Batch(images, None, tuple(f"v#{t}" for t in range(len(images))), ("a",))
    judged = method.saliency(batch).numpy() if logits is None else logits
    shown = method.distil(judged, points)
    tensors = tuple(torch.from_numpy(own).float() for own in shown)
    rows = [method.answer(method.features(images[t : t + 1]), tensors[t : t + 1]) for t in range(len(images))]
    return torch.cat(rows)[:, 0]


def test_invariances_of_whole_volumes() -> None:
    method = make(stage=DECODER, model__neighbours=1, model__head_bias=0.5).eval()
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    points = [np.array([[10.0 * t, 30, 1]]) for t in range(5)] + [np.empty((0, 3))]
    sure = np.full((6, 16, 16), 8.0, np.float32)
    whole = answers(method, images, points, sure)
    assert (whole[5] != ABSENT).all()  # prompted by its neighbour
    assert (answers(method, images, [np.empty((0, 3))] * 6) == ABSENT).all()
    assert (answers(method, images, points, -sure) == ABSENT).all()
    edited = [*points[:2], np.array([[33.0, 7, 1]]), *points[3:]]
    changed = (answers(method, images, edited, sure) != whole).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, True, False, False]
    judged = method.saliency(Batch(images, None, tuple("abcdef"), ("a",))).numpy()
    assert torch.equal(answers(method, images, points, judged), answers(method, images, points))

    plain = make(stage=DECODER, model__distill="local", model__head_bias=0.5).eval()
    plain.load_state_dict(method.state_dict())
    raw = make(model__distill="none").eval()
    raw.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("head.")})
    assert torch.equal(answers(plain, images, points, sure), answers(raw, images, points, sure))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_restore_sam_is_sam_bit_for_bit(preset: str, finished: bool) -> None:
    method = make(preset, stage=DECODER)
    with torch.no_grad():
        for parameter in [p for p in method.parameters() if p.requires_grad]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    if finished:
        method.finish()
    batch = batch_of(TWO)
    before = method.eval().predict(batch)
    sam = load_backbone(BackboneConfig(name="tiny"))
    assert method.restore_sam() is method.backbone
    theirs, ours = sam.model.state_dict(), method.backbone.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    prompt = sam.embed_prompts(torch.tensor([0]), points=TWO[None, :, :2], point_labels=TWO[None, :, 2].long())
    wanted = sam.decode(sam.encode(batch.images), prompt).logits
    enlarged = torch.nn.functional.interpolate(wanted, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(method.predict(batch), enlarged)
    assert not torch.equal(before, enlarged)


def test_finish_answers_the_same() -> None:
    method, batch = make(stage=DECODER).eval(), batch_of(TWO, HERE)
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = method.predict(batch)
    method.finish()
    torch.testing.assert_close(method.predict(batch), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_saves_what_was_trained_and_the_stage(preset: str, tmp_path: Path) -> None:
    made, again = make(preset, stage=DECODER), make(preset)
    for method in (made, again):
        method.backbone.from_scratch = False  # so that only what was trained is stored
    save = tmp_path / "weights.safetensors"
    with torch.no_grad():
        for parameter in [p for p in made.parameters() if p.requires_grad]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_weights(made, save)
    load_weights(again, save)
    assert again.prompted
    batch = batch_of(TWO, NONE)
    assert torch.equal(again.eval().predict(batch), made.eval().predict(batch))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__tau": 1.0}, "tau"),
        ({"model__neighbours": -1}, "neighbours"),
        ({"model__cap": 0}, "cap"),
        ({"model__psc": -0.1}, "psc"),
        ({"model__stage2_share": 1.0}, "stage2_share"),
        ({"model__distill": "none", "model__empty": "saliency_peak"}, "has no saliency"),
        ({"lora__decoder": ["q"]}, "trained as a whole"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)


def test_one_object_and_points() -> None:
    settings = {"backbone.name": "tiny", "backbone.input_size": 64}
    config = configuration.from_dict(settings, method="spd", preset="paper")
    with pytest.raises(InputError, match=r"data\.classes"):
        build(config, ("a", "b"))
    with pytest.raises(InputError, match="no points"):
        make(stage=DECODER).predict(toy(1, 1))


def test_a_low_threshold_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="rests at"):
        make(model__tau=0.2)


def test_the_seed_decides() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (make(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.last.weight"], other["head.last.weight"])


def test_shares_of_the_stages() -> None:
    method = make(model__stage2_share=0.3, model__stage2_from="last")
    first, second = method.stages(SimpleNamespace())  # type: ignore[arg-type]
    assert (first.share, second.share, second.begins) == (0.7, 0.3, "last")
