"""Backbones: ``encode`` images, ``decode`` prompts; adapters; weights."""

from samsans.backbones.adapters import (
    adapter_state,
    add_lora,
    drop_lora,
    load_adapter_state,
    merge_adapters,
    merge_lora,
)
from samsans.backbones.base import Backbone, LoadReport
from samsans.backbones.checkpoints import load_backbone
from samsans.backbones.sam import Sam
from samsans.backbones.sam2 import Sam2

__all__ = [
    "Backbone",
    "LoadReport",
    "Sam",
    "Sam2",
    "adapter_state",
    "add_lora",
    "drop_lora",
    "load_adapter_state",
    "load_backbone",
    "merge_adapters",
    "merge_lora",
]
