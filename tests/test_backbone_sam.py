"""Sam: encode and decode against transformers, many prompts at once, positions, seeds, freezing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samsans import architectures, zoo
from samsans.backbones import Sam, add_lora, load_backbone
from samsans.backbones.sam import build_network
from samsans.backbones.start import initialise
from samsans.config import BackboneConfig, LoraConfig
from samsans.errors import InputError
from samsans.types import Embedding, Prompt


def tiny(seed: int = 0, **options) -> Sam:
    sam = load_backbone(BackboneConfig(name="tiny", **options), seed=seed)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():  # relative positions start at zero: give them a say
        for name, parameter in sam.model.named_parameters():
            if "rel_pos" in name:
                nn.init.normal_(parameter, std=0.5, generator=generator)
    return sam


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [64, 96, 48])
def test_encode_equals_the_library(size):
    fast, naive = tiny(input_size=size), tiny(input_size=size, attention="naive")
    images = random(2, 3, size, size)
    with torch.no_grad():
        want = naive.model.vision_encoder(images).last_hidden_state
        assert want.std() > 0.1
        torch.testing.assert_close(naive.encode(images).features, want)
        torch.testing.assert_close(fast.encode(images).features, want, rtol=0, atol=1e-5)
    assert want.shape == (2, fast.channels, fast.grid, fast.grid)
    assert fast.grid * fast.patch == fast.input_size == size


def test_encode_keeps_block_outputs_where_asked():
    sam = tiny()
    images = random(2, 3, 64, 64)
    with torch.no_grad():
        plain, kept = sam.encode(images), sam.encode(images, blocks=True)
        assert plain.blocks == ()
        assert [block.shape for block in kept.blocks] == [(2, 4, 4, 32)] * 2
        assert torch.equal(sam.model.vision_encoder.neck(kept.blocks[-1]), plain.features)


def test_encode_refuses_another_size():
    with pytest.raises(InputError, match=r"\(1, 3, 32, 32\).*\(B, 3, 64, 64\)"):
        tiny().encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="multiple of the patch side"):
        tiny(input_size=70)


@pytest.mark.parametrize("attention", ["fast", "naive"])
def test_checkpointing_changes_no_gradient(attention):
    gradients = []
    for checkpointing in (False, True):
        sam = tiny(checkpointing=checkpointing, attention=attention, train="all").train()
        sam.encode(random(2, 3, 64, 64)).features.square().mean().backward()
        gradients.append({name: p.grad for name, p in sam.model.vision_encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_bfloat16_autocast_keeps_the_dtype_of_the_images():
    sam = tiny()
    images = random(2, 3, 64, 64)
    with torch.no_grad():
        exact = sam.encode(images).features
        with torch.autocast("cpu", torch.bfloat16):
            rough = sam.encode(images).features
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("shared_dense", [True, False])
@pytest.mark.parametrize("multimask", [False, True])
def test_prompts_in_one_batch_equal_a_loop(shared_dense, multimask):
    sam = tiny()
    index = torch.tensor([2, 0, 2, 1, 0, 2])
    features = random(3, 32, 4, 4)
    sparse, dense = random(6, 5, 32, seed=2), random(1 if shared_dense else 6, 32, 4, 4, seed=3)
    with torch.no_grad():
        masks = sam.decode(Embedding(features), Prompt(sparse, dense, index), multimask)
        assert masks.logits.shape == (6, 3 if multimask else 1, 16, 16)
        for p, image in enumerate(index):
            own = dense if shared_dense else dense[p : p + 1]
            alone = sam.model.mask_decoder(
                image_embeddings=features[image : image + 1],
                image_positional_embeddings=sam.model.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=sparse[None, p : p + 1],
                dense_prompt_embeddings=own,
                multimask_output=multimask,
            )
            torch.testing.assert_close(masks.logits[p], alone[0][0, 0])
            torch.testing.assert_close(masks.iou[p], alone[1][0, 0])


def test_many_prompts_about_one_image():
    sam = tiny()
    features, sparse = random(1, 32, 4, 4), random(4, 3, 32, seed=2)
    with torch.no_grad():
        once = sam.decode(Embedding(features), Prompt(sparse, sam.dense_default(), torch.zeros(4, dtype=torch.int64)))
        copies = Embedding(features.repeat(4, 1, 1, 1))
        torch.testing.assert_close(
            once.logits, sam.decode(copies, Prompt(sparse, sam.dense_default(), torch.arange(4))).logits
        )


def test_decoder_ignores_the_order_of_prompt_tokens():
    sam = tiny()
    embedding, sparse = Embedding(random(1, 32, 4, 4)), random(1, 7, 32, seed=2)
    index = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        one = sam.decode(embedding, Prompt(sparse, sam.dense_default(), index)).logits
        other = sam.decode(embedding, Prompt(sparse.flip(1), sam.dense_default(), index)).logits
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_decode_has_gradients_and_says_what_is_wrong():
    sam = tiny()
    features, sparse = random(2, 32, 4, 4).requires_grad_(), random(3, 4, 32).requires_grad_()
    index = torch.tensor([0, 1, 1])
    sam.decode(Embedding(features), Prompt(sparse, sam.dense_default(), index)).logits.sum().backward()
    assert features.grad is not None
    assert (features.grad.flatten(1).abs().sum(1) > 0).all()
    assert sparse.grad is not None
    assert (sparse.grad.flatten(1).abs().sum(1) > 0).all()
    with pytest.raises(InputError, match=r"\(P, tokens, 32\)"):
        sam.decode(Embedding(features), Prompt(sparse[..., :16], sam.dense_default(), index))


@pytest.mark.parametrize("kind", ["points", "boxes", "points and boxes", "masks", "nothing"])
def test_embed_prompts_equals_the_library(kind):
    sam = tiny()
    images = random(2, 3, 64, 64)
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(2, 3, 2, generator=generator) * 64 if "points" in kind else None
    labels = torch.tensor([[1, 0, 1], [0, 1, -1]]) if "points" in kind else None
    boxes = torch.tensor([[3.0, 5.0, 40.0, 50.0], [0.0, 0.0, 63.0, 63.0]]) if "boxes" in kind else None
    masks = random(2, 1, 16, 16) if kind == "masks" else None
    with torch.no_grad():
        want = sam.model(
            images,
            input_points=None if points is None else points[:, None],
            input_labels=None if labels is None else labels[:, None],
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=masks,
        )
        prompt = sam.embed_prompts(torch.arange(2), points=points, point_labels=labels, boxes=boxes, masks=masks)
        got = sam.decode(sam.encode(images), prompt, multimask=True)
    tokens = {"points": 4, "boxes": 2, "points and boxes": 5, "masks": 0, "nothing": 0}[kind]
    assert prompt.sparse.shape == (2, tokens, 32)
    torch.testing.assert_close(got.logits, want.pred_masks[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.iou, want.iou_scores[:, 0], rtol=0, atol=1e-5)


def test_embed_prompts_is_exact_under_autocast_and_differentiable():
    sam = tiny(train="all")
    boxes = torch.tensor([[3.0, 5.0, 40.0, 50.0]])
    index = torch.zeros(1, dtype=torch.int64)
    exact = sam.embed_prompts(index, boxes=boxes).sparse
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sam.embed_prompts(index, boxes=boxes).sparse, exact)
    exact.sum().backward()
    assert sam.model.prompt_encoder.point_embed[2].weight.grad is not None
    with pytest.raises(InputError, match="without labels"):
        sam.embed_prompts(index, points=torch.zeros(1, 1, 2))
    with pytest.raises(InputError, match="1 boxes for 2 prompts"):
        sam.embed_prompts(torch.zeros(2, dtype=torch.int64), boxes=boxes)


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = load_backbone(BackboneConfig(name="tiny"), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (load_backbone(BackboneConfig(name="tiny"), seed=seed) for seed in (3, 4))
    assert one.base_hash == same.base_hash != other.base_hash
    assert one.from_scratch
    assert len(one.base_hash) == 64


def test_random_weights_are_of_a_trainable_size():
    sam = load_backbone(BackboneConfig(name="scratch", input_size=64))
    for name, parameter in sam.model.named_parameters():
        if name.endswith("bias") or "rel_pos" in name:
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std() > 0.015, name
    with torch.no_grad():
        embedding = sam.encode(random(2, 3, 64, 64))
        masks = sam.decode(embedding, sam.embed_prompts(torch.arange(2), boxes=torch.tensor([[8.0, 8, 40, 40]] * 2)))
    assert 0.5 < embedding.features.std() < 2
    assert 0.01 < masks.logits.std() < 10
    assert masks.logits.shape == (2, 1, 32, 32)


def test_hash_is_of_the_initial_weights():
    sam = load_backbone(BackboneConfig(name="tiny", train="all"))
    frozen = load_backbone(BackboneConfig(name="tiny"))
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(1)
    assert sam.base_hash == frozen.base_hash
    add_lora(frozen, LoraConfig())
    frozen._base_hash = None
    assert frozen.base_hash == sam.base_hash


def test_only_what_is_asked_for_is_trained():
    frozen = load_backbone(BackboneConfig(name="tiny", train="none"))
    assert not any(p.requires_grad for p in frozen.parameters())
    whole = load_backbone(BackboneConfig(name="tiny", train="all"))
    fixed = [name for name, p in whole.model.named_parameters() if not p.requires_grad]
    assert fixed == ["shared_image_embedding.positional_embedding"]


def test_frozen_base_stays_in_evaluation_mode():
    frozen = load_backbone(BackboneConfig(name="tiny")).train()
    assert frozen.training
    assert not any(module.training for module in frozen.model.modules())
    assert load_backbone(BackboneConfig(name="tiny", train="all")).train().model.vision_encoder.training


def test_decoder_normalises_with_sams_own_epsilon():
    sam = tiny()
    norms = [m for m in sam.model.mask_decoder.transformer.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 9
    assert {m.eps for m in norms} == {1e-5}
    assert sam.model.mask_decoder.upscale_layer_norm.eps == 1e-6


@pytest.mark.parametrize(
    "entry", [e for e in zoo.list_backbones() if e.family == "sam" and e.hub_id], ids=lambda entry: entry.name
)
def test_sizes_are_as_the_zoo_states_them(entry):
    model = build_network(entry.architecture, entry.input_size)
    count = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("positional_embedding"))
    assert count == entry.parameters
    assert round(count * 4 / 1e6) == entry.megabytes


def test_initialise_covers_every_tensor():
    model = build_network(architectures.TINY, 64)
    torch.manual_seed(0)
    initialise(model, 0)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", ["tiny", "scratch", "sam-vit-b"])
def test_parameter_counts_of_the_zoo(name):
    entry = zoo.BACKBONES[name]
    model = build_network(entry.architecture_for(None), entry.input_size)
    tied = model.prompt_encoder.shared_embedding.positional_embedding.numel()
    assert entry.parameters in (count := sum(p.numel() for p in model.parameters()), count - tied)


def test_small_images_get_smaller_patches():
    scratch = zoo.BACKBONES["scratch"]
    assert [scratch.architecture_for(side).patch for side in (None, 512, 256, 128, 64)] == [16, 16, 16, 8, 8]
    assert zoo.BACKBONES["sam-vit-b"].architecture_for(256).patch == 16


def test_positions_follow_loaded_weights():
    one, other = (load_backbone(BackboneConfig(name="tiny"), seed=seed) for seed in (0, 1))
    assert not torch.equal(one.image_pe, other.image_pe)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.image_pe, one.image_pe, rtol=0, atol=0)
