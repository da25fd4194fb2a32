"""H-SAM at full widths: every shape on the way; the released forward pass against one in plain torch functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samsans import architectures
from samsans.backbones import Sam
from samsans.backbones.sam import LoadReport, build_network
from samsans.backbones.start import initialise
from samsans.methods.hsam.config import CmattnConfig, HsamConfig
from samsans.methods.hsam.model import HSam
from samsans.methods.weights import trained_names
from samsans.types import Batch
from test_hsam_released import FOURIER, released_name

SIZES = [(224, 9), (224, 2), (512, 9), (512, 2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full_width(side: int, classes: int, config: HsamConfig) -> HSam:
    """The decoders of SAM; its encoder, which only has to be there, is shallow and narrow."""
    arch = replace(architectures.VIT_B, hidden=32, depth=1, heads=2, mlp=64, global_blocks=(0,))
    sam = Sam(initialise(build_network(arch, side), 0), name="shallow", from_scratch=True, report=LoadReport("", 0))
    torch.manual_seed(0)
    return HSam(sam, config, classes - 1)


@pytest.mark.parametrize(("side", "classes"), SIZES)
@torch.no_grad()
def test_every_shape_on_the_way(side: int, classes: int) -> None:  # section 3 of the specification, checks 1 and 16
    method, b, k, grid = full_width(side, classes, HsamConfig()).train(), 2, classes, side // 16
    masks = torch.zeros(b, k - 1, side, side, dtype=torch.bool)
    masks[:, 0, : side // 2] = True
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str, value: Tensor) -> None:
        seen[name] = tuple(value.shape)

    first, second = method.stage1, method.stage2
    assert second is not None
    assert method.cmattn is not None
    first.transformer.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: note("stage-1 tokens", kwargs["query"][:, 0]), with_kwargs=True
    )

    def maps_of_stage1(module: object, args: object, maps: object) -> None:
        for name in ("tokens", "image", "upscaled"):
            note(f"stage-1 {name} out", getattr(maps, name))

    first.register_forward_hook(maps_of_stage1)
    method.cmattn.register_forward_pre_hook(lambda module, args: note("P", args[0]))
    second.register_forward_pre_hook(lambda module, args: note("E'", args[0]))
    second.layers[0].register_forward_pre_hook(lambda module, args: note("stage-2 tokens", args[0]))
    second.layers[-1].register_forward_hook(lambda module, args, out: note("F2", out[1]))
    second.final_norm.register_forward_hook(lambda module, args, out: note("T2", out))
    second.upscale.register_forward_hook(lambda module, args, out: note("U2", out))
    second.pixel_decoder.register_forward_pre_hook(lambda module, args: note("U2 and U1", args[0]))
    second.pixel_decoder.register_forward_hook(lambda module, args, out: note("U3", out))
    output = method.decode(random(b, 256, grid, grid), masks)
    note("PE", method.backbone.image_pe)
    note("dense", method.dense)
    assert output.prior is not None
    assert output.gate is not None
    assert output.logits_full is not None
    for name, value in {"Z1": output.logits_low, "M": output.prior, "g": output.gate, "Z2": output.logits_full}.items():
        note(name, value)
    for view in method.views:
        note(view, method.answer(output, view))
    assert seen == {
        "dense": (256,),  # row 6
        "PE": (1, 256, grid, grid),
        "stage-1 tokens": (b, k + 1, 256),  # row 9: with the IoU token
        "stage-1 tokens out": (b, k, 256),
        "stage-1 image out": (b, grid**2, 256),
        "P": (b, k, grid**2),  # row 11
        "stage-1 upscaled out": (b, 32, 4 * grid, 4 * grid),
        "Z1": (b, k, 4 * grid, 4 * grid),
        "M": (b, k, grid**2),  # row 14
        "g": (b, 1, grid, grid),
        "E'": (b, 256, grid, grid),
        "stage-2 tokens": (b, k, 256),  # row 17: without
        "T2": (b, k, 256),
        "F2": (b, grid**2, 256),
        "U2": (b, 32, 4 * grid, 4 * grid),
        "U2 and U1": (b, 64, 4 * grid, 4 * grid),  # row 20
        "U3": (b, 16, side, side),
        "Z2": (b, k, side, side),  # row 22
        **dict.fromkeys(("stage1", "stage2", "logit_mean", "prob_mean"), (b, k, side, side)),
    }
    given = Batch(random(b, 3, side, side), masks, ("x", "y"), tuple("abcdefgh"[: k - 1]))
    assert method.loss(output, given)["loss"].isfinite()
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()}
    assert parts["stage1"] == {9: 4_626_048, 2: 3_645_600}[k]
    assert parts["stage2"] == {9: 6_309_248, 2: 4_436_496}[k]
    assert parts["cmattn"] == {224: 1_114_741, 512: 12_598_273}[side] + k


# -- the released forward pass, from its text (check 11) ---------------------------------------------------------------


def released_forward(p: dict[str, Tensor], embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Z1 and Z2 of weights under their released names: sections 6, 7, 9 and 10 of the specification, evaluation mode.

    Both stages read the image before they look at each other, the first self-attention has neither residual nor
    positions, and the gate of CMAttn is 1.  Nothing of ``samsans`` is called.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def attend(name: str, query: Tensor, key: Tensor, value: Tensor, prior: Tensor | float = 1.0) -> Tensor:
        q, k, v = (linear(f"{name}.{n}_proj", x) for n, x in (("q", query), ("k", key), ("v", value)))
        width, read = q.shape[-1] // 8, []
        for head in range(8):
            own = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bic,bjc->bij", q[..., own], k[..., own]) / math.sqrt(width)
            read.append((scores.softmax(-1) * prior) @ v[..., own])
        return linear(f"{name}.out_proj", torch.cat(read, -1))

    def two_way(name: str, tokens: Tensor, image: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        x = tokens
        down, up = (1.0, 1.0) if prior is None else (prior, prior.mT)
        for block in (0, 1):
            part = f"{name}.transformer.layers.{block}"
            read = attend(f"{part}.cross_attn_token_to_image", x + tokens, image + pe, image, down)
            x = norm(f"{part}.norm2", x + read)
            if block == 0:
                x = norm(f"{part}.norm1", attend(f"{part}.self_attn", x, x, x))
            else:
                x = norm(f"{part}.norm1", x + attend(f"{part}.self_attn", x + tokens, x + tokens, x))
            x = norm(f"{part}.norm3", x + linear(f"{part}.mlp.lin2", linear(f"{part}.mlp.lin1", x).relu()))
            read = attend(f"{part}.cross_attn_image_to_token", image + pe, x + tokens, x, up)
            image = norm(f"{part}.norm4", image + read)
        read = attend(f"{name}.transformer.final_attn_token_to_image", x + tokens, image + pe, image)
        return norm(f"{name}.transformer.norm_final_attn", x + read), image

    def double(name: str, x: Tensor, normalised: str = "") -> Tensor:
        x = F.conv_transpose2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=2)
        if normalised:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            x = x * p[f"{normalised}.weight"][:, None, None] + p[f"{normalised}.bias"][:, None, None]
        return F.gelu(x)

    def upscale(name: str, image: Tensor) -> Tensor:
        maps = image.mT.reshape(len(image), -1, side, side)
        return double(f"{name}.3", double(f"{name}.0", maps, f"{name}.1"))

    def read_out(name: str, tokens: Tensor, maps: Tensor, layers: int) -> Tensor:
        weights = []
        for item in range(tokens.shape[1]):
            x = tokens[:, item]
            for layer in range(layers):
                x = linear(f"{name}.output_hypernetworks_mlps.{item}.layers.{layer}", x)
                x = x if layer == layers - 1 else x.relu()
            weights.append(x)
        return torch.einsum("bkc,bchw->bkhw", torch.stack(weights, 1), maps)

    count, _, side, _ = embedding.shape
    at = 2 * math.pi * (2 * (torch.arange(side, dtype=embedding.dtype) + 0.5) / side - 1)
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    angles = torch.stack([columns.flatten(), rows.flatten()], 1) @ p[FOURIER]
    pe = torch.cat([angles.sin(), angles.cos()], 1)
    x = (embedding + p["prompt_encoder.no_mask_embed.weight"].view(-1, 1, 1)).flatten(2).mT

    tokens = torch.cat([p["mask_decoder.iou_token.weight"], p["mask_decoder.mask_tokens.weight"]])
    tokens, image = two_way("mask_decoder", tokens.expand(count, -1, -1), x, None)
    u1 = upscale("mask_decoder.output_upscaling", image)
    z1 = read_out("mask_decoder", tokens[:, 1:], u1, 3)

    small = sum(z1[..., i::4, j::4] for i in (1, 2) for j in (1, 2)) / 4  # bilinear to a quarter: the middle of 4 x 4
    prior = small.softmax(1).flatten(2)

    tokens = p["mask_decoder2.mask_tokens.weight"].expand(count, -1, -1)
    tokens, image = two_way("mask_decoder2", tokens, 2 * x, prior)
    maps = torch.cat([upscale("mask_decoder2.output_upscaling", image), u1], 1)
    skip = "mask_decoder2.skip_upscaling"
    maps = double(f"{skip}.3", double(f"{skip}.0", maps, f"{skip}.1"), f"{skip}.4")
    return z1, read_out("mask_decoder2", tokens, maps, 5)


def apart(found: Tensor | None, wanted: Tensor) -> float:
    assert found is not None
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("side", "classes"), [(224, 9), (512, 9), (512, 2)])
@torch.no_grad()
def test_released_forward_pass(side: int, classes: int) -> None:
    method = full_width(side, classes, HsamConfig(cmattn=CmattnConfig(mode="released"), order="cross_first")).eval()
    for name, parameter in method.named_parameters():  # no bias is 0, no norm is 1
        if parameter.ndim == 1:
            parameter.add_(random(*parameter.shape, seed=len(name)), alpha=0.1)
    state = method.state_dict()
    theirs = {released_name(n): state[n].double() for n in trained_names(method) if not n.startswith("backbone.")}
    theirs[FOURIER] = state["backbone.model.shared_image_embedding.positional_embedding"].double()
    features = random(1, 256, side // 16, side // 16)
    z1, z2 = released_forward(theirs, features.double())
    output = method.decode(features)
    assert z1.std() > 0.01
    assert z2.std() > 0.01
    assert apart(output.logits_low, z1) < 1e-5
    assert apart(output.logits_full, z2) < 1e-5
    if side == 224:  # the comparison sees each of the three
        method.stage1.order = "sam"
        assert apart(method.decode(features).logits_low, z1) > 1e-2
        method.stage1.order, method.config.cmattn.mode = "cross_first", "off"
        assert apart(method.decode(features).logits_full, z2) > 1e-2
        method.config.cmattn.mode, method.stage2.layers[0].first = "released", False
        assert apart(method.decode(features).logits_full, z2) > 1e-2
