"""Backbones: ``encode`` images, ``decode`` prompts; adapters; weights."""

from samsans.backbones.adapters import (
    adapter_state,
    add_lora,
    drop_lora,
    load_adapter_state,
    merge_adapters,
    merge_lora,
)
from samsans.backbones.checkpoints import load_backbone
from samsans.backbones.sam import LoadReport, Sam

__all__ = [
    "LoadReport",
    "Sam",
    "adapter_state",
    "add_lora",
    "drop_lora",
    "load_adapter_state",
    "load_backbone",
    "merge_adapters",
    "merge_lora",
]
