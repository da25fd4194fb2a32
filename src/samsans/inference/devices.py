"""Where to compute."""

from __future__ import annotations

import torch

from samsans.errors import InputError


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant: ``auto`` is CUDA where there is one, then Apple's MPS, then the CPU."""
    if str(device) == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r}", "auto, cpu, cuda, cuda:1 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda', but this torch sees no GPU", "auto or cpu")
    return chosen
