"""What keeps a table from being the published experiment that the recipe of its run describes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samsans import recipes
from samsans.config import RunConfig
from samsans.data import protocols


def obstacles(run: Path, config: RunConfig, manifest: Mapping[str, Any], scored: Collection[str]) -> list[str]:
    """Sentences: other settings, a training cut short, predictions made otherwise, other test cases.

    Args:
        run: Folder of the run.
        config: Its configuration.
        manifest: Of the predictions.
        scored: Ids of the cases in the table.

    Returns:
        Nothing where all is as published, or the run names no published experiment.
    """
    if not config.recipe.published:
        return []
    found = []
    departures = recipes.departures(config)
    if departures:
        found.append(f"The run departs from its recipe {config.recipe.name}: {'; '.join(departures)}.")
    return [*found, *_unfinished(run, manifest), *_predicted_otherwise(config, manifest), *_other_cases(config, scored)]


def _unfinished(run: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Whether the training ended before its end; a run without weights of its own has nothing to end."""
    if manifest.get("weights", {}).get("sha256") is None:
        return []
    file = run / "train.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if told.get("finished"):
        return []
    where = f"after step {told['steps']}" if "steps" in told else "before its end"
    return [f"The training stopped {where}: it is not finished."]


def _predicted_otherwise(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    options = manifest.get("options", {})
    own = getattr(config.model, "ensemble", None)
    told = {"view": options.get("view") or own, "largest_component": bool(options.get("largest_component"))}
    meant: dict[str, Any] = {"view": own, "largest_component": False}
    if options.get("objects") is not None and config.data.classes is not None:
        told["objects"], meant["objects"] = sorted(options["objects"]), sorted(config.data.classes)
    if "mirror" in options:  # methods that see volumes
        told["mirror"], meant["mirror"] = options["mirror"], config.patches.mirror
    via = config.backbone.via if config.backbone.via_predict is None else config.backbone.via_predict
    heads = {"slice_axis": config.data.slice_axis, "precision": "fp32"}
    told |= {key: manifest.get(key, value) for key, value in heads.items()}
    told["via"] = manifest.get("backbone", {}).get("via", via)
    meant |= heads | {"via": via}
    changed = [f"{key}: {meant[key]} -> {told[key]}" for key in told if told[key] != meant[key]]
    return [f"Predicted otherwise than the recipe: {'; '.join(changed)}."] if changed else []


def _other_cases(config: RunConfig, scored: Collection[str]) -> list[str]:
    if config.split.protocol is None:
        return []
    protocol = protocols.load(config.split.protocol)
    keys = [protocol.key_of(id) for id in scored]
    left = set(protocol.test) - set(keys)
    others = sum(key not in protocol.test for key in keys)
    parts = len(keys) - others - (len(protocol.test) - len(left))
    found = []
    if left:
        found.append(f"{len(left)} of the {len(protocol.test)} test cases of {protocol.name} are not scored.")
    if others:
        found.append(f"{others} scored cases are not test cases of {protocol.name}.")
    if parts:
        found.append(f"Test cases of {protocol.name} are scored in parts: {len(keys) - others} files.")
    return found
