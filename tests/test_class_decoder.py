"""The class decoder against transformers' mask decoder and against the specified order of attentions, written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from samsans import architectures
from samsans.backbones.sam import build_network
from samsans.backbones.start import initialise
from samsans.methods.class_decoder import ClassDecoder

SHALLOW = replace(architectures.VIT_B, hidden=32, depth=1, heads=2, mlp=64, global_blocks=(0,))


def network(side: int = 128, seed: int = 0) -> nn.Module:
    """SAM with its own decoder widths on a shallow encoder; norms and biases are drawn so that each has a say."""
    net = initialise(build_network(SHALLOW, side), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in net.mask_decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return net.eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("side", "batch"), [(1024, 1), (224, 3)])
@torch.no_grad()
def test_four_tokens_equal_the_library_channel_by_channel(side: int, batch: int) -> None:  # check 10
    decoder, grid = network(side).mask_decoder, side // 16
    features, positions, dense = (random(n, 256, grid, grid, seed=s) for s, n in enumerate((batch, 1, 1)))
    expected = [
        decoder(
            image_embeddings=features,
            image_positional_embeddings=positions.expand(batch, -1, -1, -1),
            sparse_prompt_embeddings=None,
            dense_prompt_embeddings=dense.expand(batch, -1, -1, -1),
            multimask_output=several,
        )[0][:, 0]
        for several in (False, True)
    ]
    own = ClassDecoder(decoder, 4)
    own.class_tokens.weight.copy_(decoder.mask_tokens.weight)
    maps = own(features + dense, positions)
    assert maps.logits.std() > 0.1
    torch.testing.assert_close(maps.logits, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)
    assert maps.tokens.shape == (batch, 4, 256)
    assert maps.image.shape == (batch, grid * grid, 256)
    assert maps.upscaled.shape == (batch, 32, 4 * grid, 4 * grid)


@torch.no_grad()
def test_cross_first_equals_the_order_written_out() -> None:  # section 6 of the specification
    decoder = network().mask_decoder
    features, positions = random(2, 256, 8, 8), random(1, 256, 8, 8, seed=1)
    own = ClassDecoder(decoder, 3, "cross_first")
    pe = torch.cat([own.iou_token.weight, own.class_tokens.weight]).expand(2, -1, -1)
    tokens, image, image_pe = pe, features.flatten(2).mT, positions.flatten(2).mT
    for i, block in enumerate(own.transformer.layers):
        tokens = block.layer_norm2(
            tokens + attend(block.cross_attn_token_to_image, tokens + pe, image + image_pe, image)
        )
        if i == 0:  # neither positions nor residual
            tokens = block.layer_norm1(attend(block.self_attn, tokens, tokens, tokens))
        else:
            tokens = block.layer_norm1(tokens + attend(block.self_attn, tokens + pe, tokens + pe, tokens))
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        image = block.layer_norm4(
            image + attend(block.cross_attn_image_to_token, image + image_pe, tokens + pe, tokens)
        )
    final = own.transformer.final_attn_token_to_image
    tokens = own.transformer.layer_norm_final_attn(tokens + attend(final, tokens + pe, image + image_pe, image))
    maps = own(features, positions)
    torch.testing.assert_close(maps.tokens, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps.image, image, rtol=1e-4, atol=1e-4)
    heads = [mlp(tokens[:, k + 1]) for k, mlp in enumerate(own.hypernetworks)]
    logits = torch.einsum("kbc,bchw->bkhw", torch.stack(heads), maps.upscaled)
    torch.testing.assert_close(maps.logits, logits, rtol=1e-4, atol=1e-3)
    own.order = "sam"
    assert not torch.allclose(own(features, positions).logits, maps.logits, atol=1e-2)


def attend(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Eight heads one by one."""
    q, k, v = attention.q_proj(query), attention.k_proj(key), attention.v_proj(value)
    size = q.shape[-1] // 8
    read = []
    for start in range(0, q.shape[-1], size):
        a, b, c = (x[..., start : start + size] for x in (q, k, v))
        read.append((a @ b.mT / size**0.5).softmax(-1) @ c)
    return attention.out_proj(torch.cat(read, -1))


@pytest.mark.parametrize(("classes", "count"), [(9, 4_626_048), (2, 3_645_600)])
def test_start_and_counts(classes: int, count: int) -> None:  # check 16
    decoder = network().mask_decoder
    before = [{k: v.clone() for k, v in mlp.state_dict().items()} for mlp in decoder.output_hypernetworks_mlps]
    torch.manual_seed(5)
    own = ClassDecoder(decoder, classes)
    assert sum(p.numel() for p in own.parameters()) == count
    assert all(p.requires_grad for p in own.parameters())
    for mlp, start in zip(own.hypernetworks[:4], before, strict=False):  # SAM's, in order
        assert all(torch.equal(value, start[name]) for name, value in mlp.state_dict().items())
    if classes > 4:
        assert not torch.equal(own.hypernetworks[4].proj_in.weight, own.hypernetworks[5].proj_in.weight)
        assert own.class_tokens.weight.std().item() == pytest.approx(1, abs=0.1)


def test_every_weight_has_a_gradient() -> None:
    own = ClassDecoder(network().mask_decoder, 6)
    own(random(2, 256, 8, 8), random(1, 256, 8, 8, seed=1)).logits.square().mean().backward()
    assert [name for name, p in own.named_parameters() if p.grad is None] == []
