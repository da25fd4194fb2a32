"""MaskSAM's prompts, decoder and scores against SAM's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masksam_tools import count, seeded, tiny
from samsans.methods.masksam.decoder import Decoder, Enlarge, OutputNetwork
from samsans.methods.masksam.matching import targets
from samsans.methods.masksam.outputs import Outputs, class_scores
from samsans.methods.masksam.prompt_generator import (
    Auxiliary,
    PromptGenerator,
    Prompts,
    decode_boxes,
    generated_prompts,
    token_grid,
    true_prompts,
)

# -- prompt generator -------------------------------------------------------------------------------------------------


def test_a_token_is_read_from_a_map_of_its_size() -> None:
    assert [token_grid(channels) for channels in (256, 128, 32, 48)] == [(16, 16), (8, 16), (4, 8), (6, 8)]


def test_boxes_from_cells() -> None:
    box = decode_boxes(torch.tensor([[0.2, 0.3], [0.5, 0.5]]))
    torch.testing.assert_close(box, torch.tensor([0.2, 0.3, 0.6, 0.65]))
    x0, y0, x1, y1 = decode_boxes(torch.rand(100, 2, 2)).unbind(-1)
    for low, high in ((x0, x1), (y0, y1)):
        assert (low >= 0).all()
        assert (low <= high).all()
        assert (high <= 1).all()


def generator(norm: bool = True, queries: int = 3) -> PromptGenerator:
    torch.manual_seed(0)
    return PromptGenerator(32, 24, [16, 8], 2, queries, norm)


def features(depth: int = 3, batch: int = 1) -> tuple[Tensor, list[Tensor]]:
    return seeded(batch, 32, depth, 4, 4), [seeded(batch, 24, depth, 4, 4, seed=i) for i in range(1, 5)]


def test_generator() -> None:
    made = generator()(*features(batch=2))
    assert made.masks.shape == (2, 3, 3, 16, 16)
    assert made.boxes.shape == (2, 3, 3, 4)
    assert made.tokens.shape == (2, 3, 3, 32)


def test_the_mean_of_a_querys_box_cells_is_the_norms_bias() -> None:
    made, seen = generator(), []
    made.box_norm.register_forward_hook(lambda *given: seen.append(given[2]))
    nn.init.normal_(made.box_norm.bias)
    made(*features())
    torch.testing.assert_close(seen[0].mean((2, 3, 4))[0], made.box_norm.bias, atol=1e-6, rtol=0)
    assert not list(generator(norm=False).box_norm.parameters())


def test_a_box_is_the_mean_of_the_networks_and_the_masks() -> None:
    made = generator()
    embedding, maps = features()
    boxes = made.network_boxes(made.levels(embedding, maps))
    with torch.no_grad():
        for bias, box in ((-1e3, (0, 0, 0, 0)), (1e3, (0, 0, 15 / 16, 15 / 16))):
            made.masks.bias.fill_(bias)
            torch.testing.assert_close(made(embedding, maps).boxes, (boxes + torch.tensor(box)) / 2)


def test_fusions_share_the_skip_of_their_size() -> None:
    """Deep maps first: B reads the last map, C and the fusions the others through one module."""
    made, calls = generator(), []
    for skip in made.skips:
        skip.register_forward_pre_hook(lambda module, given: calls.append((module, given[0])))
    embedding, maps = features()
    made(embedding, maps)
    assert [module for module, _ in calls] == [made.skips[0], *[made.skips[1]] * 3]
    assert all(torch.equal(given, m) for (_, given), m in zip(calls, reversed(maps), strict=True))


def test_prompts_of_the_generator() -> None:
    """Whole pixels at the scale SAM sees; masks of 0 and 1 by nearest neighbours, or the logits; only tokens learn."""
    masks = seeded(1, 2, 3, 16, 16).requires_grad_()
    boxes = torch.tensor([0.1, 0.5, 0.99, 1.0]).expand(1, 2, 3, 4).clone().requires_grad_()
    tokens = seeded(1, 2, 3, 32).requires_grad_()
    made = generated_prompts(Auxiliary(masks, boxes, tokens), grid=2, scale=4, binary=True)
    assert made.boxes[0, 0, 0].tolist() == [4, 32, 60, 64]
    assert torch.equal(made.masks, (masks[..., ::2, ::2] > 0).float())
    assert (made.masks.requires_grad, made.boxes.requires_grad, made.tokens.requires_grad) == (False, False, True)
    soft = generated_prompts(Auxiliary(masks, boxes, tokens), grid=4, scale=4, binary=False)
    assert torch.equal(soft.masks, masks)
    assert soft.masks.requires_grad


def truth() -> Tensor:
    """``(1, 2, 2, 8, 8)``: slice 0 shows object 2, slice 1 nothing."""
    masks = torch.zeros(1, 2, 2, 8, 8, dtype=torch.bool)
    masks[0, 1, 0, 2:5, 1:7] = True
    return masks


def test_prompts_from_the_truth() -> None:
    made = true_prompts(targets(truth()), 2, 4, grid=2, scale=2, with_masks=True)
    assert made.boxes[0, :, 0].tolist() == [[0, 0, 14, 14], [2, 4, 12, 8], [0] * 4, [0] * 4]
    assert made.boxes[0, :, 1].tolist() == [[0, 0, 14, 14], [0] * 4, [0] * 4, [0] * 4]
    assert made.shown[0].T.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert torch.equal(made.masks[0, 1, 0], truth()[0, 1, 0].float())
    assert not made.masks[0, 2:].any()
    assert made.tokens is None
    assert true_prompts(targets(truth()), 2, 4, grid=2, scale=2, with_masks=False).masks is None


# -- decoder ----------------------------------------------------------------------------------------------------------


def asked(batch: int = 2, queries: int = 4, depth: int = 3) -> Prompts:
    corners = torch.rand(batch, queries, depth, 4, generator=torch.Generator().manual_seed(3)) * 64
    masks = (seeded(batch, queries, depth, 16, 16, seed=4) > 0).float()
    return Prompts(corners, masks, None, seeded(batch, queries, depth, 32, seed=5))


def test_without_adapters_the_decoder_is_sam_with_one_token_more() -> None:
    backbone = tiny()
    decoder, prompts, embedding = Decoder(backbone, 3, 4, zero_init=True), asked(), seeded(2, 32, 3, 4, 4)
    with torch.no_grad():
        masks, classes = decoder(backbone, embedding, prompts)
        assert masks.shape == (2, 4, 3, 16, 16)
        assert classes.shape == (2, 4, 3, 5)
        for b, q, t in ((0, 0, 0), (1, 2, 1), (0, 3, 2)):
            given = backbone.embed_prompts(
                torch.zeros(1, dtype=torch.int64),
                boxes=prompts.boxes[b, q, t][None],
                masks=prompts.masks[b, q, t][None, None],
            )
            token = (decoder.class_token + prompts.tokens[b, q, t])[None, None]
            wanted, _ = backbone.model.mask_decoder(
                image_embeddings=embedding[b, :, t][None],
                image_positional_embeddings=backbone.image_pe,
                sparse_prompt_embeddings=torch.cat([given.sparse, token], 1)[:, None],
                dense_prompt_embeddings=given.dense,
                multimask_output=False,
            )
            torch.testing.assert_close(masks[b, q, t], wanted[0, 0, 0], atol=1e-5, rtol=1e-4)


def test_queries_do_not_see_each_other() -> None:
    backbone = tiny()
    decoder, prompts, embedding = Decoder(backbone, 3, 4, zero_init=False), asked(), seeded(2, 32, 3, 4, 4)
    boxes = prompts.boxes.clone()
    boxes[0, 1, 2] += 9.0
    other = Prompts(boxes, prompts.masks, None, prompts.tokens)
    with torch.no_grad():
        one, two = (decoder(backbone, embedding, given) for given in (prompts, other))
        parts = [decoder(backbone, embedding, prompts.queries(start, start + 3)) for start in (0, 3)]
    for before, after in zip(one, two, strict=True):
        assert (before != after).flatten(3).any(3).nonzero().tolist() == [[0, 1, t] for t in range(3)]
    for whole, part in zip(one, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(part, 1), atol=1e-5, rtol=1e-4)


def test_slots_without_a_mask_are_given_none() -> None:
    backbone, prompts = tiny(), asked()
    decoder = Decoder(backbone, 3, 4, zero_init=True)
    shown = torch.zeros(2, 4, 3, dtype=torch.bool)
    shown[0, 1] = True
    sparse, dense = decoder.embed(backbone, Prompts(prompts.boxes, prompts.masks, shown))
    assert sparse.shape == (8, 3, 2, 32)
    none = backbone.dense_default()[0]
    assert [not torch.equal(dense[n, t], none) for n in range(8) for t in range(3)] == shown.flatten().tolist()
    assert torch.equal(decoder.embed(backbone, Prompts(prompts.boxes))[1][7, 2], none)


@pytest.mark.parametrize(("small", "seen", "share"), [(16, 64, 1 / 16), (8, 16, 1 / 8)])
def test_enlarging_and_shrinking_is_a_blur(small: int, seen: int, share: float) -> None:
    masks = seeded(1, 2, 3, small, small)
    flat = F.interpolate(masks[0], (seen, seen), mode="bilinear", align_corners=False)
    wanted = F.interpolate(flat, (small, small), mode="bilinear", align_corners=False)[None]
    torch.testing.assert_close(Enlarge(seen, small)(masks), wanted, atol=1e-5, rtol=0)
    kernel = torch.tensor([share, 1 - 2 * share, share])
    padded = F.pad(masks.flatten(1, 2), (1, 1, 1, 1), mode="replicate")
    by_hand = F.conv2d(padded[0][:, None], (kernel[:, None] * kernel)[None, None])
    torch.testing.assert_close(wanted.flatten(0, 2), by_hand[:, 0], atol=1e-5, rtol=0)


def test_masks_at_the_size_of_the_patch() -> None:
    masks = seeded(1, 2, 3, 16, 16)
    assert Enlarge(64, 64)(masks).shape == (1, 2, 3, 64, 64)
    flat = F.interpolate(masks[0], (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Enlarge(64, 64)(masks)[0], flat)
    torch.testing.assert_close(Enlarge(64, 32)(masks)[0], F.interpolate(flat, (32, 32), mode="bilinear"))
    assert OutputNetwork(2, 1)(masks).shape == (1, 2, 3, 32, 32)
    assert count(OutputNetwork(24, 2)) == 116_056


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "classes", "score"), [(8, 4, 0.8), (24, 9, 1.2), (24, 16, 0.70588)])
def test_scores_of_a_network_that_knows_nothing(queries: int, classes: int, score: float) -> None:
    output = Outputs(torch.zeros(2, queries, classes + 1), torch.zeros(2, queries, 3, 3), None, None, 2)
    torch.testing.assert_close(class_scores(output), torch.full((1, classes, 2, 3, 3), score), atol=1e-5, rtol=0)


def test_scores_are_bounded_and_add_up() -> None:
    output = Outputs(3 * seeded(6, 5, 4), 3 * seeded(6, 5, 7, 8, seed=1), None, None, 3)
    scores = class_scores(output)
    assert scores.shape == (2, 3, 3, 7, 8)
    assert scores.min() >= 0
    assert scores.max() <= 5
    sure = 1 - output.class_logits.softmax(-1)[..., -1]
    total = (sure[..., None, None] * output.mask_logits.sigmoid()).sum(1)
    torch.testing.assert_close(scores.sum(1).flatten(0, 1), total)
    k, t = 2, 4  # slice 1 of patch 1
    by_hand = sum(output.class_logits[t, q].softmax(-1)[k] * output.mask_logits[t, q].sigmoid() for q in range(5))
    torch.testing.assert_close(scores[1, k, 1], by_hand)
