"""Support pairs chosen for each slice by how much they look like it, instead of drawn (``--choose similar``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from samsans.errors import InputError
from samsans.inference.jobs import Job
from samsans.methods.proxy_prompt.pairs import choose_pairs, closeness

Choose = Literal["random", "similar"]


def require_choice(choose: str, bank: Any, method: str) -> None:
    """InputError for another word than ``random`` or ``similar``, and where there is no bank to choose from."""
    if choose not in get_args(Choose):
        raise InputError(f"choose is {choose!r}", " or ".join(get_args(Choose)))
    if choose == "similar" and bank is None:
        raise InputError(f"{method} was told to choose similar supports", "a method with supports, e.g. proxy_prompt")


def chooser(bank: Any, count: int, jobs: Sequence[Job]) -> Callable[[Tensor], list[Any]]:
    """What gives a bank for each slice once its features ``(B, C, g, g)`` are known; no slice is encoded twice.

    Args:
        bank: All pairs, on the device.
        count: How many to choose for a slice.
        jobs: Of each slice; it may be shown the pairs of ``draw``, and keeps in ``chosen`` those it was shown.
    """

    def choose(features: Tensor) -> list[Any]:
        banks = []
        for job, close in zip(jobs, closeness(features, bank), strict=True):
            chosen = choose_pairs(close, count, job.draw)
            job.chosen.update(chosen)
            banks.append(bank.select(chosen))
        return banks

    return choose
