"""``VrpBank``: what the queries of VRP-SAM have read of annotated images; no target has any part in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from samsans.methods.support import Bank


@dataclass(frozen=True, kw_only=True)
class VrpBank(Bank):
    """K support pairs for N objects.

    queries: ``(K, N, Q, C)`` after they have read the pair.  prototypes: ``(K, N, C)`` mean feature of each object.
    keys: ``(K, A, D)`` deep features; covers: ``(K, A, N)`` in [0, 1], the share of each token that is the object.
    visible: ``(K, A)`` bool, tokens that are image and not padding.
    """

    format: ClassVar[str] = "samsans-vrp-1"

    queries: Tensor
    prototypes: Tensor
    keys: Tensor
    covers: Tensor
    visible: Tensor

    def float(self) -> Self:
        """The same bank in float32."""
        single = {name: one.float() for name, one in self.tensors.items() if one.is_floating_point()}
        return dataclasses.replace(self, **single)  # type: ignore[arg-type]
