"""Selective map (CSM step 3): every target token reads the support tokens that look like it.

``Sel[a, b] = (2 k_a . q_b - |k_a|^2) / sqrt(C)``, softmax over all support tokens ``a`` of all pairs, then
``context[:, b] = sum_a value[:, a] W[a, b]``.  Up to a constant per target token this is ``-|k_a - q_b|^2 / sqrt(C)``.
The map is never held whole where it is large: pairs are read chunk by chunk and merged by log-sum-exp, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24  # logits held at once: as many support pairs are read together (64 MiB in float32)
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


def partial_readout(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Partial:
    """Read some support tokens.

    Args:
        query: ``(B, T, C)`` float32 centred target tokens.
        keys: ``(A, C)`` float32 centred support tokens, of one pair or several.
        values: ``(A, V)`` their values.
        hidden: ``(B, A)`` or ``(1, A)`` bool, tokens that a target must not see.
    """
    logits = selective_logits(query, keys)
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None], -torch.inf)
    maximum = logits.detach().amax(-1).clamp_min(_LOWEST)
    if logits.requires_grad:
        weights = torch.exp(logits - maximum.unsqueeze(-1))
    else:
        weights = logits.sub_(maximum.unsqueeze(-1)).exp_()
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
    """Context of every target token; more than one chunk is streamed, and recomputed in the backward pass.

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
        hidden = _hidden(keys, exclude, visible)
        step = max(1, CHUNK // (query.shape[0] * query.shape[1] * keys.shape[1]))
        chunks = [slice(start, start + step) for start in range(0, len(keys), step)]
        recompute = len(chunks) > 1 and torch.is_grad_enabled()
        partials = []
        for chunk in chunks:
            part = None if hidden is None else hidden[:, chunk].flatten(1)
            arguments = (query, keys[chunk].flatten(0, 1), values[chunk].flatten(0, 1), part)
            partials.append(
                checkpoint(partial_readout, *arguments, use_reentrant=False)
                if recompute
                else partial_readout(*arguments)
            )
        return merge_partials(partials).finish()


def _hidden(keys: Tensor, exclude: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """``(B or 1, K, A)`` bool, what must not be seen: each target's excluded pair, and padding."""
    hidden = None if visible is None or bool(visible.all()) else ~visible[None]
    if exclude is not None:
        own = exclude[:, None] == torch.arange(len(keys), device=keys.device)
        own = own[:, :, None].expand(-1, -1, keys.shape[1])
        hidden = own if hidden is None else hidden | own
    return hidden


def mean_readout(values: Tensor, targets: int, exclude: Tensor | None = None) -> Tensor:
    """The ablation without selection (decision D-31): the mean over pairs at the same place, ``(B, T, V)``."""
    if exclude is None:
        return values.mean(0, keepdim=True).expand(targets, -1, -1)
    return (values.sum(0) - values[exclude]) / (len(values) - 1)
