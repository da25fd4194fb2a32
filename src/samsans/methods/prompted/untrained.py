"""What baselines without training share: SAM as it was published, and nothing to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from samsans.errors import InputError
from samsans.ops.timing import Timer
from samsans.types import Batch, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig

ABSENT = -100.0  # logit everywhere of an object without prompt: nothing is asked for


class Untrained(nn.Module):
    """A SAM or SAM 2 that is prompted, and never trained."""

    def __init__(self, backbone: Any, config: Any) -> None:
        super().__init__()
        self.backbone, self.config, self.timer = backbone, config, Timer()

    def stages(self, config: RunConfig) -> Sequence[Stage]:
        """No stages: there is nothing to train."""
        return ()

    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """``(B, N, S, S)`` logits: the same as ``predict``."""
        return self.predict(batch)

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Raises InputError: there is nothing to train."""
        raise InputError(
            f"{type(self).__name__} has nothing to train", "train.steps 0", "Run `samsans predict` with it"
        )
