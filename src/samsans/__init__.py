"""SAM, sans prompts: automatic segmentation of medical images, volumes and videos with the Segment Anything Models.

>>> import samsans
>>> run = samsans.train("proxy_prompt", "my_data", out="run", shots=16)
>>> samsans.load(run).predict("new.png", support=[("example.png", "example_mask.png")]).save("new_mask.png")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "check": "samsans.api:check",
    "train": "samsans.api:train",
    "load": "samsans.api:load",
    "evaluate": "samsans.api:evaluate",
    "Batch": "samsans.types:Batch",
    "Case": "samsans.types:Case",
    "ClassInfo": "samsans.types:ClassInfo",
    "InputError": "samsans.errors:InputError",
    "Prediction": "samsans.types:Prediction",
    "Progress": "samsans.types:Progress",
    "SamsansError": "samsans.errors:SamsansError",
    "Volume": "samsans.types:Volume",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'samsans' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
