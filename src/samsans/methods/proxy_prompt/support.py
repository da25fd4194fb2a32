"""``SupportBank``: support pairs encoded once; merge banks, switch the task by switching banks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from samsans.methods.support import Bank


@dataclass(frozen=True, kw_only=True)
class SupportBank(Bank):
    """K encoded support pairs for N objects (specified in section 5.1: preloading).

    keys: ``(K, T, C)`` float32 support features.  values: ``(K, T, N, V)`` aggregated mask context.
    visible: ``(K, T)`` bool, tokens that are image and not padding.
    """

    format: ClassVar[str] = "samsans-support-2"

    keys: Tensor
    values: Tensor
    visible: Tensor
