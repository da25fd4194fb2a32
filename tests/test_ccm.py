"""The colorization module against its plain form: the library's attention, every stream of every prompt by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.methods.proxy_prompt.ccm import Attend, Ccm, TokenLinear

GRID, CHANNELS = 8, 32


def plain(ccm: Ccm, target: Tensor, context: Tensor) -> Tensor:
    """``Ccm.forward`` of one prompt, written out."""

    def halve(layer: torch.nn.Module, x: Tensor) -> Tensor:
        if isinstance(layer, TokenLinear):
            return layer.linear(x.transpose(1, 2)).transpose(1, 2)
        return layer(x)

    def attend(layer: Attend, x: Tensor, other: Tensor) -> Tensor:
        read, _ = layer.attention(x, other, other, need_weights=False)
        x = layer.norm1(x + read)
        return layer.norm2(x + layer.ffn2(F.relu(layer.ffn1(x))))

    for block in ccm.blocks:
        context = halve(block.project_context, context)
        target = attend(block.color, halve(block.project_target, target), context)
        context = attend(block.reverse, context, target)
    return context


@pytest.mark.parametrize("projection", ["token_linear", "pair_merge"])
@pytest.mark.parametrize("learning", [False, True])
def test_targets_and_objects_in_one_pass(projection: str, learning: bool) -> None:
    torch.manual_seed(0)
    ccm = Ccm(GRID, CHANNELS, projection=projection, proj_init="default", heads=4, ffn=64)
    with torch.no_grad():
        for parameter in ccm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    targets, contexts = torch.randn(2, GRID**2, CHANNELS), torch.randn(6, GRID**2, CHANNELS)  # three objects each
    weights = torch.randn(6, GRID**2 // 16, CHANNELS)
    gradients = []
    for whole in (True, False):
        with torch.set_grad_enabled(learning):
            if whole:
                found = ccm(targets, contexts)
            else:
                single = [plain(ccm, targets[p // 3 : p // 3 + 1], contexts[p : p + 1]) for p in range(6)]
                want = torch.cat(single)
        if learning:
            ccm.zero_grad()
            ((found if whole else want) * weights).sum().backward()
            gradients.append({name: p.grad.clone() for name, p in ccm.named_parameters() if p.grad is not None})
    assert found.std() > 0.1
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    if learning:
        assert gradients[0].keys() == dict(ccm.named_parameters()).keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)
