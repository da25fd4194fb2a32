"""Experiments: protocols and controls that end in one table and one figure.  Adding one is a file and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from samsans.config import DataConfig
from samsans.types import Progress

EXPERIMENTS = {
    "controls": "samsans.experiments.controls:controls",
}


def run(
    name: str,
    data: DataConfig,
    run_folder: Path,
    out: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> str:
    """Run the experiment ``name`` of a trained run on a data set; writes into ``out`` and returns its table as text.

    Args:
        name: A key of ``EXPERIMENTS``.
        data: The data set, as for training.
        run_folder: Folder that ``train`` wrote.
        out: Folder for tables, figures and label maps.
        seed: Of the draws.
        limit: Evaluate at most this many images.
        on_progress: Called with a ``Progress``.
    """
    module, _, function = EXPERIMENTS[name].partition(":")
    experiment = getattr(importlib.import_module(module), function)
    return experiment(data, run_folder, out, seed=seed, limit=limit, on_progress=on_progress)
