"""Baselines: SAM and MedSAM prompted from the target's own true mask, or with the points they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samsans.config import RunConfig
    from samsans.methods.prompted.given import GivenPrompts
    from samsans.methods.prompted.model import Prompted


def build(config: RunConfig, objects: tuple[str, ...]) -> Prompted | GivenPrompts:
    """The baseline of a run; its objects are those of the truth it is shown, or the one its points are of."""
    from samsans.methods.prompted import model

    return model.build(config, objects)
