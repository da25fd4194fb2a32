"""From the folder of a trained run to a ``Segmenter``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from samsans import config as configuration
from samsans import methods
from samsans.config import SliceAxis
from samsans.data.classes import read_classes
from samsans.errors import InputError
from samsans.inference.segmenter import Segmenter
from samsans.methods import weights


def load(
    run: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoint: Literal["best", "last"] = "best",
    slice_axis: SliceAxis | None = None,
    via: int | None = None,
) -> Segmenter:
    """Open the folder of a trained run.

    Args:
        run: Folder that ``samsans train`` wrote.
        device: ``auto`` (CUDA, MPS, CPU in this order), ``cpu``, ``cuda``, ...
        precision: ``fp32``, or ``bf16`` autocast.
        checkpoint: ``best`` on the validation images (``last`` where there were none), or ``last``.
        slice_axis: How volumes are cut into slices, see ``DataConfig``; by default as the run has it.
        via: Side in pixels that slices are brought to before the model's own, see ``BackboneConfig.via_predict``; by
            default as the run has it.

    Raises:
        InputError: the folder is no run, or its weights do not fit.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} holds no config.yaml", "the folder of a run that `samsans train` wrote")
    if checkpoint not in ("best", "last"):
        raise InputError(f"checkpoint {checkpoint!r}", "best or last")
    if slice_axis is not None and slice_axis not in get_args(SliceAxis):
        raise InputError(f"slice_axis is {slice_axis!r}", ", ".join(get_args(SliceAxis)))
    config = configuration.load(run / "config.yaml")
    if slice_axis is not None:
        config = replace(config, data=replace(config.data, slice_axis=slice_axis))
    if via is not None:
        config = replace(config, backbone=replace(config.backbone, via_predict=via))
    classes = read_classes(run / "classes.json")
    method = methods.build(config, [c.name for c in classes])
    file = None
    if weights.trained_names(method):
        file = weights.best_or_last(run) if checkpoint == "best" else run / "model" / "last.safetensors"
        weights.load_weights(method, file)
    if hasattr(method, "finish"):
        method.finish()
    return Segmenter(method, config, classes, run=run, weights_file=file, device=device, precision=precision)
