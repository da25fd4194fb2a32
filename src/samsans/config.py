"""Everything a run can be told, as typed dataclasses: one definition gives YAML, ``--a.b`` flags, help and strict keys.

Order of precedence: dataclass defaults < preset < YAML file < flags.  The resolved configuration is written beside
every result.  Importing this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from samsans import zoo
from samsans.errors import InputError
from samsans.recipes import RecipeConfig, locate

SliceAxis = Literal["auto", "axial", "coronal", "sagittal", "0", "1", "2"]


@dataclass
class DataConfig:
    """Where the images are and how to read them.

    Args:
        path: Folder, CSV file or nnU-Net / Medical Segmentation Decathlon data set.
        images: Glob of image files relative to ``path``; null recognises the layout.
        labels: Template of each image's mask relative to ``path``, e.g. ``masks/{stem}.png`` or
            ``{parent}/{stem}_1stHO.png``.
        patient: Regular expression searched in the case id; its first group (else the match) names the patient.
        volume: Regular expression whose first group names a volume and second the slice number: files that share the
            first group become one stack.
        classes: Object names with the mask values that belong to each, e.g. ``{disc: [1, 2], cup: [2]}``; null infers.
        spacing: Voxel size (z, y, x) in mm of files that state none.
        window: Intensities [low, high] shown to the model; null: 8-bit images as they are, others by percentiles 1-99.
        levels: What a null window goes by: volume (as above), or slice (each slice from its smallest to its largest
            value).
        channels: Which channels the model sees: auto (grey repeated, RGB kept) or three channel numbers.
        slice_axis: Axis along which volumes are cut into slices: auto (from spacing and orientation), a plane of the
            patient (axial, coronal, sagittal) or an array axis (0, 1, 2).
        cache_gb: Memory for decoded training slices, in GiB.
    """

    path: str = ""
    images: str | None = None
    labels: str | None = None
    patient: str | None = None
    volume: str | None = None
    classes: dict[str, list[int]] | None = None
    spacing: list[float] | None = None
    window: list[float] | None = None
    levels: Literal["volume", "slice"] = "volume"
    channels: list[int] | Literal["auto"] = "auto"
    slice_axis: SliceAxis = "auto"
    cache_gb: float = 2.0


@dataclass
class SplitConfig:
    """Who is trained on; patients never straddle a split.

    Args:
        val: Share of patients held out to choose the best checkpoint and to stop early.
        test: Share of patients held out entirely.
        test_patients: Patients held out entirely, by name (instead of ``test``).
        file: ``splits_final.json`` of nnU-Net or a ``split.json`` of an earlier run.
        fold: Which fold of ``file``.
        shots: Few-shot: how many training images to keep, at most one a patient.
        protocol: Published split by name, e.g. synapse or synapse_fewshot; it decides training and test cases.
        slices: Which slices of the training cases are learned from: all, or those with foreground.
        slice_share: Few-shot by slices: this share of the training slices, drawn at random over all training patients.
    """

    val: float = 0.0
    test: float = 0.0
    test_patients: list[str] = field(default_factory=list)
    file: str | None = None
    fold: int = 0
    shots: int | None = None
    protocol: str | None = None
    slices: Literal["all", "foreground"] = "all"
    slice_share: float | None = None


@dataclass
class BackboneConfig:
    """The Segment Anything Model underneath.

    Args:
        name: A name of ``samsans models``, a hub id, a local directory, or an original ``.pth`` file.
        input_size: Side S of the square the model sees, in pixels, a multiple of the patch; null: the backbone's own.
        resize: squash to S x S, or pad: longest side to S, bottom and right padded; padding is background to the losses
            and left out of class counts, scores and results.
        attention: fast (exact, fused) or naive (the library's own, the oracle).
        checkpointing: Recompute encoder blocks in the backward pass to save memory.
        train: lora (base frozen), all (from-scratch backbones), or none.
        statistics: What grey levels become: sam (SAM's mean and deviation) or unit (0 to 1, as in SAMed and H-SAM).
        resampling: linear (antialiased; logits brought back bilinearly) or spline (images by cubic splines, labels and
            results by nearest neighbours with aligned corners, as SAMed and H-SAM do).
        via: Side in pixels that slices are brought to before S, so that S shows no more detail than this (SAMed).
        via_predict: The same, when predicting only (H-SAM's test code); null: as ``via``.
    """

    name: str = "sam-vit-h"
    input_size: int | None = None
    resize: Literal["squash", "pad"] = "squash"
    attention: Literal["fast", "naive"] = "fast"
    checkpointing: bool = False
    train: Literal["lora", "all", "none"] = "lora"
    statistics: Literal["sam", "unit"] = "sam"
    resampling: Literal["linear", "spline"] = "linear"
    via: int | None = None
    via_predict: int | None = None


@dataclass
class LoraConfig:
    """Low-rank adapters on split projections.

    Args:
        rank: Rank r of each adapter.
        alpha: Scale is alpha / rank.
        dropout: Dropout before the adapter.
        encoder: Which of q, k, v of every encoder block are adapted.
        decoder: Which of q, k, v of every attention of the mask decoder are adapted.
    """

    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.0
    encoder: list[str] = field(default_factory=lambda: ["q", "v"])
    decoder: list[str] = field(default_factory=lambda: ["q", "v"])


@dataclass
class EpisodeConfig:
    """Episodes of methods that learn from support pairs.

    Args:
        images: Images in an episode; each target's supports are all the others (leave-one-out, M - 1 of them).
        targets: How many of them are segmented in a step.
        volume_supports: Slices of volumes: the number of supports is drawn from these for every episode (decision
            D-21); empty: as for images.
        object_subset: Probability of asking for a proper subset of the objects instead of all.
        synthetic: Probability of an episode whose masks are drawn from the images by a random rule, the same rule in
            supports and target (our addition, off in ``paper``): the answer is only to be had from the support masks.
    """

    images: int = 16
    targets: int = 4
    volume_supports: list[int] = field(default_factory=lambda: [1, 2, 4])
    object_subset: float = 0.5
    synthetic: float = 0.0


@dataclass
class AugmentConfig:
    """Random changes applied alike to an image and its masks.

    Args:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation, degrees.
        scale: Largest relative change of size.
        shift: Largest shift, share of the side.
        intensity: Largest relative change of brightness and contrast.
        policy: affine (the five above), or the published recipe of hsam, samed or autosam, which ignores them.
        elastic_labels: hsam: nearest, or truncated (bilinear, then cut to whole numbers, as the released code does).
    """

    flip: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    intensity: float = 0.0
    policy: Literal["affine", "hsam", "samed", "autosam"] = "affine"
    elastic_labels: Literal["nearest", "truncated"] = "nearest"


@dataclass
class TrainConfig:
    """The training loop.

    Args:
        steps: Optimiser steps; with ``epochs`` or ``minutes`` set, those decide.
        epochs: Passes over the training images.
        stop_epoch: Stop after this many of them, while the schedule follows ``epochs`` (SAMed: 160 of 200).
        minutes: Wall-clock budget; schedules follow the share of it that is used.
        batch_size: Images a step, for methods without episodes.
        foreground: Least share of such a batch that shows an object; other slices are replaced by ones that do.
        optimizer: sgd, adam or adamw.
        lr: Learning rate.
        momentum: Of sgd.
        betas: Of adam and adamw.
        weight_decay: Not applied to parameters marked as exempt.
        schedule: Learning rate after warm-up: constant, cosine (to zero), poly (power 0.9, to zero) or samed (power
            0.9, begun after warm-up but as long as the run, so that it ends above zero, as in SAMed and H-SAM).
        warmup: Steps of linear warm-up.
        clip: Largest gradient norm; 0 never clips.
        precision: fp32, or bf16 autocast.
        validate_every: Steps between validations; 0 validates at the end only.
        save_every: Steps between checkpoints.
        save_minutes: Also save when this many minutes have passed since the last checkpoint.
        patience: Stop after this many validations without improvement; 0 never.
        pictures_every: Steps between sample pictures; 0 none.
        workers: Processes that prepare batches.
        accelerator: auto, cpu, gpu or mps.
        devices: Number of devices (processes on a CPU).
        strategy: Lightning strategy, e.g. auto, ddp.
    """

    steps: int = 4000
    epochs: int | None = None
    stop_epoch: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    foreground: float = 1 / 3
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "poly", "samed"] = "constant"
    warmup: int = 100
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every: int = 0
    save_every: int = 200
    save_minutes: float = 2.0
    patience: int = 0
    pictures_every: int = 200
    workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"


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
    """The preset asked for; else ``scratch`` for a backbone that trains from nothing, else ``paper``."""
    known = presets(method)
    if preset is None:
        scratch = backbone in zoo.BACKBONES and zoo.BACKBONES[backbone].from_scratch and "scratch" in known
        return "scratch" if scratch else "paper"
    if preset not in known:
        raise InputError(f"{method} has no preset {preset!r}", f"one of {', '.join(known)}")
    return preset


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; dictionaries of class names and lists stay whole."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "data.classes":
            out |= flatten(value, f"{name}.")
        else:
            out[name] = value
    return out


def parser(method: str, preset: str | None = None) -> Any:
    """A ``jsonargparse`` parser of the method's run configuration, with the preset as its defaults."""
    import jsonargparse

    made = jsonargparse.ArgumentParser(exit_on_error=False, prog=f"samsans train {method}")
    made.add_class_arguments(run_config_class(method), as_group=False)
    made.set_defaults(flatten(presets(method)[preset or "paper"]))
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
