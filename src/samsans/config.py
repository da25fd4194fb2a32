"""Everything a run can be told, as typed dataclasses: one definition gives YAML, ``--a.b`` flags, help and strict keys.

Order of precedence: dataclass defaults < preset < YAML file < flags.  The resolved configuration is written beside
every result.  Importing this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from samsans import zoo
from samsans.errors import InputError
from samsans.recipes import RecipeConfig, locate
from samsans.settings import (
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    EpisodeConfig,
    LoraConfig,
    PatchConfig,
    PromptConfig,
    SliceAxis,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BackboneConfig",
    "DataConfig",
    "EpisodeConfig",
    "LoraConfig",
    "PatchConfig",
    "PromptConfig",
    "RunConfig",
    "SliceAxis",
    "SplitConfig",
    "TrainConfig",
]


@dataclass
class RunConfig:
    """A whole training run; ``model`` is the method's own dataclass (see ``run_config_class``)."""

    method: str = "proxy_prompt"
    preset: str = "paper"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    patches: PatchConfig = field(default_factory=PatchConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    model: Any = None


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def run_config_class(method: str) -> type[RunConfig]:
    """``RunConfig`` whose ``model`` field is typed as the method's own configuration."""
    model = _import(zoo.method_entry(method).config)
    return dataclasses.make_dataclass(
        "RunConfig",
        [("method", str, field(default=method)), ("model", model, field(default_factory=model))],
        bases=(RunConfig,),
        namespace={"__doc__": RunConfig.__doc__, "__module__": __name__},
    )


def presets(method: str) -> dict[str, dict[str, Any]]:
    """The method's presets by name: nested overrides of the defaults."""
    entry = zoo.method_entry(method)
    module = importlib.import_module(entry.config.partition(":")[0])
    return dict(module.PRESETS)


def choose_preset(method: str, preset: str | None, backbone: str | None) -> str:
    """The preset asked for; else ``scratch`` for a backbone made to be trained whole, else the method's first."""
    known = presets(method)
    if preset is None:
        scratch = backbone in zoo.BACKBONES and zoo.BACKBONES[backbone].trained_whole and "scratch" in known
        return "scratch" if scratch else next(iter(known))
    if preset not in known:
        raise InputError(f"{method} has no preset {preset!r}", f"one of {', '.join(known)}")
    return preset


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; dictionaries of class names and lists stay whole."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in ("data.classes", "data.annotators"):
            out |= flatten(value, f"{name}.")
        else:
            out[name] = value
    return out


def parser(method: str, preset: str | None = None) -> Any:
    """A ``jsonargparse`` parser of the method's run configuration, with the preset as its defaults."""
    import jsonargparse

    made = jsonargparse.ArgumentParser(exit_on_error=False, prog=f"samsans train {method}")
    made.add_class_arguments(run_config_class(method), as_group=False)
    made.set_defaults(flatten(presets(method)[choose_preset(method, preset, None)]))
    return made


def from_dict(values: Mapping[str, Any], *, method: str | None = None, preset: str | None = None) -> RunConfig:
    """Strictly typed configuration from nested or dotted keys.

    Raises:
        InputError: an unknown key or a value of the wrong type; the message names it.
    """
    import jsonargparse

    flat = flatten(values)
    method = method or flat.get("method", "proxy_prompt")
    preset = choose_preset(method, preset or flat.get("preset"), flat.get("backbone.name"))
    for group in dataclasses.fields(RunConfig):
        if dataclasses.is_dataclass(group.default_factory) and group.name in flat:
            raise InputError(f"{group.name} is {flat[group.name]!r}", f"a group of keys such as {group.name}.KEY")
    made = parser(method, preset)
    try:
        parsed = made.parse_object(_nest(flat | {"method": method, "preset": preset}))
        return run_config_class(method)(**made.instantiate(parsed).as_dict())
    except (jsonargparse.ArgumentError, TypeError, KeyError) as error:
        raise InputError(
            f"configuration of {method} not understood: {reason(error)}",
            todo=f"See `samsans train {method} --help` for every key",
        ) from error


def reason(error: Exception) -> str:
    """What a parser complains about, in one line."""
    return re.sub(r"a <class '(\w+)'>", r"\1", " ".join(str(error).split()))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, leaf = dotted.split(".")
        here = out
        for parent in parents:
            here = here.setdefault(parent, {})
        here[leaf] = value
    return out


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, ready for YAML."""
    return dataclasses.asdict(config)


def dump(config: RunConfig) -> str:
    """The configuration as YAML text."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def load(path: str | Path) -> RunConfig:
    """Read the ``config.yaml`` of a run or a user's own YAML file."""
    return from_dict(read_yaml(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; a recipe may be given by its name alone."""
    path = locate(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}", "keys such as train.lr")
    return values


def peek(argv: Sequence[str], *flags: str) -> str | None:
    """The value of a flag that decides how the others are read."""
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in flags:
            return value if equals else argv[index + 1] if index + 1 < len(argv) else None
    return None
