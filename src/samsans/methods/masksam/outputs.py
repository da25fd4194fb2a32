"""What the network says of every slice and query, and what that makes of every voxel.

``B`` patches of ``T`` slices of ``H x W`` pixels, ``Q`` queries; ``K = N + 1`` classes, background first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Answers of all queries about ``B * T`` slices, those of one patch after another.

    class_logits: ``(B T, Q, K + 1)``, the last: no object.  mask_logits: ``(B T, Q, H, W)``.
    auxiliary_logits: ``(B T, Q, H, W)`` masks of the prompt generator, and boxes: ``(B T, Q, 4)`` normalised x0, y0,
        x1, y1, its boxes; both ``None`` where prompts come from the true masks.
    depth: T.
    identity: Query j of a slice stands for its j-th present class, in ascending order, and nothing is to be matched.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary_logits: Tensor | None
    boxes: Tensor | None
    depth: int
    identity: bool = False


def class_scores(outputs: Outputs) -> Tensor:
    """``(B, K, T, H, W)`` float32: sum over queries of class probability times mask probability (section 9).

    Between 0 and Q; the highest of a voxel is its class, background included.
    """
    with torch.autocast(outputs.class_logits.device.type, enabled=False):
        classes = outputs.class_logits.float().softmax(-1)[..., :-1]
        scores = torch.einsum("nqk,nqhw->nkhw", classes, outputs.mask_logits.float().sigmoid())
    return scores.unflatten(0, (-1, outputs.depth)).transpose(1, 2)
