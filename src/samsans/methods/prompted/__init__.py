"""Baselines that are prompted from the target's own true mask: SAM and MedSAM with a box, a point or everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samsans.config import RunConfig
    from samsans.methods.prompted.model import Prompted


def build(config: RunConfig, objects: tuple[str, ...]) -> Prompted:
    """The baseline of a run; its objects are those of the truth it is shown."""
    from samsans.methods.prompted import model

    return model.build(config)
