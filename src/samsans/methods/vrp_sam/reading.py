"""How queries read an annotated image and then the target: prototypes, pseudo masks, attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Reader(nn.Module):
    """Queries attend to the tokens of an image, then to each other; a feed-forward layer follows.

    Post-norm, its hidden layer twice as wide (our decisions).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.talk = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.think = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, queries: Tensor, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """``(P, Q, C)`` queries that have read ``(P, T, C)`` tokens, but those ``hidden`` ``(P, T)`` bool."""
        x = queries
        x = self.norms[0](x + self.look(x, tokens, tokens, key_padding_mask=hidden, need_weights=False)[0])
        x = self.norms[1](x + self.talk(x, x, x, need_weights=False)[0])
        return self.norms[2](x + self.think(x))


def prototypes(maps: Tensor, covers: Tensor) -> Tensor:
    """Mean feature under each mask, ``(K, N, C)``; zero under an empty mask.

    maps: ``(K, C, g, g)``.  covers: ``(K, N, g, g)``, the share of each token that is the object.
    """
    total = torch.einsum("kcyx,knyx->knc", maps, covers)
    return total / covers.sum((-2, -1)).clamp_min(1e-6).unsqueeze(-1)


def likeness(target: Tensor, keys: Tensor, covers: Tensor, visible: Tensor) -> Tensor:
    """Pseudo masks of a target: how much each token looks like the supports' foreground, in [0, 1].

    The largest cosine to any foreground token of a support, then stretched from 0 to 1 over the image, without anything
    learnt: the prior of PFENet (arXiv 2008.01449).  A token counts as foreground by the share of it that is the object
    (our decision).  Zero everywhere where a mask is empty.

    Args:
        target: ``(T, D)`` features of the target.
        keys: ``(K, A, D)`` features of the supports.
        covers: ``(K, A, N)`` in [0, 1], the share of each support token that is the object.
        visible: ``(T,)`` bool, tokens of the target that are image and not padding; the others get 0.

    Returns:
        ``(K, N, T)``, in float32 at least.
    """
    with torch.autocast(target.device.type, enabled=False):
        precise = torch.promote_types(target.dtype, torch.float32)
        query = F.normalize(target.to(precise), dim=-1)
        found = []
        for key, cover in zip(F.normalize(keys.to(precise), dim=-1), covers.to(precise), strict=True):
            cosine = key @ query.T
            found.append(torch.stack([(cosine * share[:, None]).amax(0) for share in cover.unbind(-1)]))
        like = torch.stack(found)
        low = like.masked_fill(~visible, torch.inf).amin(-1, keepdim=True)
        high = like.masked_fill(~visible, -torch.inf).amax(-1, keepdim=True)
        return ((like - low) / (high - low).clamp_min(1e-6)).masked_fill(~visible, 0.0)


def read_masks(target: Tensor, keys: Tensor, covers: Tensor, visible: Tensor) -> Tensor:
    """The support masks as the features of a target read them: what share of its look-alikes is the object.

    Softmax of cosine / 0.1 over all tokens of all supports (our option: the loss ``model.read`` holds it to the truth).

    Args:
        target: ``(T, D)`` features of the target.
        keys: ``(K, A, D)`` features of the supports.
        covers: ``(K, A, N)`` in [0, 1], the share of each support token that is the object.
        visible: ``(K, A)`` bool, support tokens that are image and not padding.

    Returns:
        ``(N, T)`` in [0, 1], in float32 at least.
    """
    with torch.autocast(target.device.type, enabled=False):
        precise = torch.promote_types(target.dtype, torch.float32)
        query, key = (F.normalize(one.to(precise), dim=-1) for one in (target, keys.flatten(0, 1)))
        weights = (query @ key.T / 0.1).masked_fill(~visible.flatten(), -torch.inf).softmax(-1)
        return (weights @ covers.flatten(0, 1).to(precise)).T
