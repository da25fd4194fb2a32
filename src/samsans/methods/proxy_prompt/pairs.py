"""Every support pair read once by a target: any draw of pairs is then a merge, exactly.

The read-outs of single pairs merge by log-sum-exp, so that a hundred draws of K pairs out of sixteen cost sixteen
read-outs; what follows a draw (colorization and decoder) sees it as further objects of the same image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.methods.proxy_prompt.selective import Partial, merge_partials, partial_readout, selective_logits
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Embedding

if TYPE_CHECKING:
    from samsans.methods.proxy_prompt.model import ProxyPrompt

TOGETHER = 8  # draws decoded together


def read_pairs(method: ProxyPrompt, features: Tensor, bank: SupportBank) -> list[Partial]:
    """The unfinished read-out ``(B, T, N * V)`` of every pair of a bank, for targets ``(B, C, g, g)``.

    Without the selective map (the ablation) a pair is its values, all of one weight, so that the merge is their mean.
    """
    values = bank.values.flatten(2)
    if not method.config.csm.selective:
        one = torch.ones(len(features), values.shape[1], dtype=values.dtype, device=values.device)
        return [Partial(torch.zeros_like(one), one, value.expand(len(features), -1, -1)) for value in values]
    with torch.autocast(features.device.type, enabled=False):
        query, keys = _centred(features, bank)
        hidden = None if bool(bank.visible.all()) else ~bank.visible
        return [
            partial_readout(query, keys[k], values[k], None if hidden is None else hidden[k][None])
            for k in range(bank.K)
        ]


def segment_draws(
    method: ProxyPrompt, embedding: Embedding, partials: Sequence[Partial], draws: Sequence[Sequence[int]], n: int
) -> Tensor:
    """Logits ``(draws, N, S, S)`` float32 of one image, each draw being the pairs of those numbers.

    Args:
        method: In evaluation mode.
        embedding: Of the one image.
        partials: What ``read_pairs`` gave for it.
        draws: Numbers of pairs.
        n: Objects N of the bank.
    """
    found = []
    for start in range(0, len(draws), TOGETHER):
        chosen = draws[start : start + TOGETHER]
        context = torch.cat([merge_partials([partials[i] for i in draw]).finish() for draw in chosen], dim=-1)
        tokens, context = method.color(embedding.features, context, n * len(chosen))
        logits = method.decode(embedding, tokens, context, gate=method.config.gate_by_object_score)
        found.append(logits[0].unflatten(0, (len(chosen), n)))
    logits = torch.cat(found).float()
    side = method.backbone.input_size
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def attention(features: Tensor, bank: SupportBank) -> Tensor:
    """``(B, T, K * T)`` float32: the selective map itself, what share each target token reads of each support token."""
    with torch.autocast(features.device.type, enabled=False):
        query, keys = _centred(features, bank)
        logits = selective_logits(query, keys.flatten(0, 1))
        return logits.masked_fill(~bank.visible.flatten(), -torch.inf).softmax(-1)


def closeness(features: Tensor, bank: SupportBank) -> Tensor:
    """``(B, K, T)`` float32: the logit of the selective map that each target token gives the best token of each pair.

    Up to a constant of the target token it is minus the squared distance to the nearest token of the pair.
    """
    with torch.autocast(features.device.type, enabled=False):
        query, keys = _centred(features, bank)
        best = []
        for key, visible in zip(keys, bank.visible, strict=True):
            logits = selective_logits(query, key[visible])
            best.append(logits.amax(-1) - query.square().sum(-1) * key.shape[-1] ** -0.5)
        return torch.stack(best, dim=1)


def choose_pairs(close: Tensor, k: int, among: Collection[int]) -> tuple[int, ...]:
    """The ``k`` pairs that together look most like a target: one after the other, each adding most coverage.

    Coverage is the mean over the target's tokens of how close the nearest token of any chosen pair is: the first pair
    is the most similar one, the next is whatever shows best what that one lacks (greedy facility location, which comes
    within 1 - 1/e of the best choice: Nemhauser, Wolsey and Fisher 1978; our decision).

    Args:
        close: ``(K, T)`` of one target, from ``closeness``.
        k: How many; all of ``among`` where there are no more.
        among: Pairs that may be chosen.

    Returns:
        Their numbers, in order.
    """
    left = sorted(among)
    chosen: list[int] = []
    covered = torch.full_like(close[0], -torch.inf)
    while left and len(chosen) < k:
        gains = torch.maximum(close[left], covered).mean(-1)
        best = left.pop(int(gains.argmax()))
        covered = torch.maximum(covered, close[best])
        chosen.append(best)
    return tuple(sorted(chosen))


def _centred(features: Tensor, bank: SupportBank) -> tuple[Tensor, Tensor]:
    """Target tokens ``(B, T, C)`` and keys ``(K, T, C)`` about the mean of all keys, in float32 at least."""
    query = features.flatten(2).transpose(1, 2)
    precise = torch.promote_types(query.dtype, torch.float32)
    query, keys = query.to(precise), bank.keys.to(precise)
    centre = keys.mean((0, 1))
    return query - centre, keys - centre
