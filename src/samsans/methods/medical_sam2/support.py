"""``TemplateBank``: what SAM 2 remembers of annotated images; no target has any part in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from samsans.methods.support import Bank


@dataclass(frozen=True, kw_only=True)
class TemplateBank(Bank):
    """K template frames of N objects.

    spatial: ``(K, N, T, 64)`` float32, the memory encoder's output.  pointers: ``(K, N, C)`` float32, object pointers.
    keys: ``(K, T, C)`` float32 image features, to choose templates that look like a target by.  visible: ``(K, T)``
    bool, tokens that are image and not padding.
    """

    format: ClassVar[str] = "samsans-templates-1"

    spatial: Tensor
    pointers: Tensor
    keys: Tensor
    visible: Tensor
