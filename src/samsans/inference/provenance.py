"""What is told about a prediction: by which weights, with which supports, on which machine."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

import samsans
from samsans import zoo
from samsans.data.cases import Dataset
from samsans.inference.manifest import hash_values

if TYPE_CHECKING:
    from samsans.inference.banks import Supports
    from samsans.inference.segmenter import Segmenter


def key(segmenter: Segmenter, found: Supports, options: dict[str, Any]) -> str:
    """Hash of everything beside the inputs that decides the label maps."""
    backbone = segmenter.method.backbone
    return hash_values(
        segmenter.weights_hash,
        backbone.base_hash,
        found.sha256,
        (segmenter.k, segmenter.precision, segmenter.config.data.slice_axis, repr(segmenter.preprocess)),
        (segmenter.config.method, asdict(segmenter.config.model)),
        *_patches(segmenter),
        [(c.name, c.label, c.values) for c in segmenter.classes],
        options,
    )


def about(segmenter: Segmenter, found: Supports, options: dict[str, Any]) -> dict[str, Any]:
    """Model, weights, licence, supports, options, machine and versions, for the head of ``manifest.json``."""
    config, backbone = segmenter.config, segmenter.method.backbone
    device = segmenter.device
    return {
        "method": config.method,
        "preset": config.preset,
        "run": None if segmenter.run is None else str(segmenter.run),
        "weights": {
            "file": None if segmenter.weights_file is None else str(segmenter.weights_file),
            "sha256": segmenter.weights_hash or None,
        },
        "backbone": {
            "name": config.backbone.name,
            "base_hash": backbone.base_hash,
            "licence": _licence(config.backbone.name),
            "input_size": segmenter.preprocess.input_size,
            "via": segmenter.preprocess.via,
        },
        **({"patches": patches[0]} if (patches := _patches(segmenter)) else {}),
        "support": None
        if found.bank is None
        else {
            "source": found.source,
            "sha256": found.sha256,
            "ids": list(found.bank.ids),
            "drawn_per_image": min(segmenter.k, found.bank.K),
        },
        "options": options,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "precision": segmenter.precision,
        "slice_axis": config.data.slice_axis,
        "versions": {
            "samsans": samsans.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _licence(backbone: str) -> str:
    """Of the weights that training began from."""
    if backbone == "none":
        return "none: no weights of others"
    return zoo.BACKBONES[backbone].licence if backbone in zoo.BACKBONES else "unknown"


def _patches(segmenter: Segmenter) -> list[dict[str, Any]]:
    """Grid and windows of a method that sees volumes; whether they are mirrored is an option of the prediction."""
    told = asdict(segmenter.config.patches)
    del told["mirror"]
    return [told] if segmenter.method.needs.volumes else []


def shown(inputs: Any) -> Any:
    """What was to be segmented, as plain text."""
    if isinstance(inputs, Dataset):
        return str(inputs.root)
    return str(inputs) if isinstance(inputs, (str, Path)) else [str(p) for p in inputs]


def resolved(call: dict[str, Any], segmenter: Segmenter) -> str:
    """The call with every default filled in, as YAML."""
    values = {
        "run": None if segmenter.run is None else str(segmenter.run),
        "weights": None if segmenter.weights_file is None else str(segmenter.weights_file),
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "supports_per_image": segmenter.k,
        **call,
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
