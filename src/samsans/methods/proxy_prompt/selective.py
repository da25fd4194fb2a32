"""Selective map (CSM step 3): every target token reads the support tokens that look like it.

``Sel[a, b] = (2 k_a . q_b - |k_a|^2) / sqrt(C)``, softmax over all support tokens ``a`` of all pairs, then
``context[:, b] = sum_a value[:, a] W[a, b]``.  Up to a constant per target token this is ``-|k_a - q_b|^2 / sqrt(C)``.
The map is never held whole: pairs are read one after the other and merged by log-sum-exp, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOWEST = -1e30  # a finite start of the running maximum: an excluded pair must not make it infinite


@dataclass(frozen=True)
class Partial:
    """An unfinished read-out of some support pairs; partials of disjoint pairs merge exactly.

    maximum: ``(B, T)`` largest logit of each target token.  total: ``(B, T)`` sum of ``exp(logit - maximum)``.
    readout: ``(B, T, V)`` sum of values with these weights.
    """

    maximum: Tensor
    total: Tensor
    readout: Tensor

    def merge(self, other: Partial) -> Partial:
        """The read-out of both sets of pairs."""
        maximum = torch.maximum(self.maximum, other.maximum)
        mine, theirs = torch.exp(self.maximum - maximum), torch.exp(other.maximum - maximum)
        return Partial(
            maximum,
            self.total * mine + other.total * theirs,
            self.readout * mine.unsqueeze(-1) + other.readout * theirs.unsqueeze(-1),
        )

    def finish(self) -> Tensor:
        """``(B, T, V)`` weighted mean of the values."""
        return self.readout / self.total.unsqueeze(-1)


def selective_logits(query: Tensor, keys: Tensor) -> Tensor:
    """``Sel`` transposed: ``(B, T, A)`` for target tokens ``(B, T, C)`` and support tokens ``(A, C)``, both centred."""
    scale = keys.shape[-1] ** -0.5
    return torch.addmm(-(keys.square().sum(-1) * scale), query.flatten(0, 1), keys.T, alpha=2 * scale).unflatten(
        0, query.shape[:2]
    )


def partial_readout(
    query: Tensor, keys: Tensor, values: Tensor, excluded: Tensor | None = None, visible: Tensor | None = None
) -> Partial:
    """Read one support pair.

    Args:
        query: ``(B, T, C)`` float32 centred target tokens.
        keys: ``(A, C)`` float32 centred tokens of the pair.
        values: ``(A, V)`` values of the pair.
        excluded: ``(B,)`` bool, targets that must not see this pair.
        visible: ``(A,)`` bool, tokens that are image and not padding (decision D-02).
    """
    logits = selective_logits(query, keys)
    if excluded is not None:
        logits = logits.masked_fill(excluded[:, None, None], -torch.inf)
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    maximum = logits.detach().amax(-1).clamp_min(_LOWEST)
    weights = torch.exp(logits - maximum.unsqueeze(-1))
    return Partial(maximum, weights.sum(-1), weights @ values.to(weights.dtype))


def merge_partials(partials: Sequence[Partial]) -> Partial:
    """The exact read-out of all pairs from the partials of each."""
    merged = partials[0]
    for other in partials[1:]:
        merged = merged.merge(other)
    return merged


def selective_readout(
    query: Tensor, keys: Tensor, values: Tensor, exclude: Tensor | None = None, visible: Tensor | None = None
) -> Tensor:
    """Context of every target token, streamed pair by pair; recomputed in the backward pass.

    Args:
        query: ``(B, T, C)`` target tokens.
        keys: ``(K, A, C)`` support tokens of K pairs.
        values: ``(K, A, V)`` their values.
        exclude: ``(B,)`` int64, the pair each target must not read (its own, in leave-one-out episodes).
        visible: ``(K, A)`` bool, tokens that are image and not padding; ``None``: all.

    Returns:
        ``(B, T, V)`` in the precision of the softmax (at least float32).
    """
    with torch.autocast(query.device.type, enabled=False):
        precise = torch.promote_types(query.dtype, torch.float32)
        query, keys = query.to(precise), keys.to(precise)
        centre = keys.detach().mean((0, 1))  # changes nothing but the rounding error
        query, keys = query - centre, keys - centre
        grad = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad)
        partials = []
        for index in range(len(keys)):
            excluded = None if exclude is None else exclude == index
            shown = None if visible is None else visible[index]
            arguments = (query, keys[index], values[index], excluded, shown)
            partials.append(
                checkpoint(partial_readout, *arguments, use_reentrant=False) if grad else partial_readout(*arguments)
            )
        return merge_partials(partials).finish()


def mean_readout(values: Tensor, targets: int, exclude: Tensor | None = None) -> Tensor:
    """The ablation without selection (decision D-31): the mean over pairs at the same place, ``(B, T, V)``."""
    if exclude is None:
        return values.mean(0, keepdim=True).expand(targets, -1, -1)
    return (values.sum(0) - values[exclude]) / (len(values) - 1)
