"""What a benchmark is asked: the data, who takes part, and what is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from samsans import api, zoo
from samsans import config as configuration
from samsans.benchmark.contestants import CONTESTANTS, EXTERNAL, Contestant
from samsans.config import DataConfig, PromptConfig, RunConfig, SplitConfig, choose_preset
from samsans.errors import InputError

LARGEST_INPUT = 512  # pixels a side, where nothing else is asked for: what most of the papers train SAM at
USUAL, NO_DOWNLOAD = ("sam-vit-b", "samsans-small"), "scratch"
USUAL_SAM2 = tuple(f"sam2.1-hiera-{size}" for size in ("small", "tiny", "base-plus", "large"))
NO_DOWNLOAD_SAM2 = "sam2-scratch"

Form = Literal["ranking", "prompt_noise", "shots"]


@dataclass(frozen=True)
class Plan:
    """A benchmark.

    Args:
        data: The data set, as for training.
        out: Folder: ``runs``, ``masks``, ``scores``, and what comes of them.
        names: Of the contestants, in the order of the table.
        levels: Of prompt noise; none: every method is only trained, predicted once and ranked.
        draws: Of the noise at each level.
        shots: Numbers of training images: every method learns from each of them, on each of ``backbones``.
        backbones: Of learning curves, the first being compared with each other.
        backbone: A name, hub id, folder or file for all; ``None``: see ``default_backbone``.
        sam2: The same, for methods on SAM 2; ``None``: see ``default_sam2``.
        input_size: Side of what the models see; ``None``: the backbone's own, at most 512 px.
        split: Of the patients, the same for all.
        prompts: Noise that prompted methods are trained with, and its mode also in testing.
        length: One of ``train.steps``, ``train.epochs``, ``train.minutes`` for all; empty: each preset's own.
        config: YAML file or recipe with further settings of every run.
        seed: Of all draws.
        device: To predict on.
        convention: Of the scores without prompt noise.
        panels: Cases to show with every method's masks.
        nnunet: The Python of the environment that nnU-Net is installed in.
    """

    data: DataConfig
    out: Path
    names: tuple[str, ...]
    levels: tuple[str, ...] = ()
    draws: int = 2
    shots: tuple[int, ...] = ()
    backbones: tuple[str, ...] = ()
    backbone: str | None = None
    sam2: str | None = None
    input_size: int | None = None
    split: SplitConfig = field(default_factory=lambda: SplitConfig(val=0.1, test=0.2))
    prompts: PromptConfig = field(default_factory=PromptConfig)
    length: Mapping[str, float] = field(default_factory=dict)
    config: str | None = None
    seed: int = 0
    device: str = "auto"
    convention: str = "default"
    panels: int = 3
    nnunet: str | None = None
    _settings: dict[str, RunConfig] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"{self.draws} draws of the noise", "at least 1")
        if len(self.length) > 1:
            raise InputError(f"{' and '.join(self.length)}", "one length of the trainings")
        if self.shots and self.levels:
            raise InputError("numbers of training images and levels of prompt noise", "one of the two")
        if self.shots and (min(self.shots) < 1 or not self.backbones or self.backbone is not None):
            raise InputError(
                f"{', '.join(map(str, self.shots))} training images on {', '.join(self.backbones) or 'no backbone'}",
                "numbers of at least 1, and --backbones instead of --backbone",
            )
        if self.backbones and not self.shots:
            raise InputError("several backbones", "one, or numbers of training images", "Give --backbone, or --shots")

    @property
    def form(self) -> Form:
        """What is compared: a score each, curves over prompt noise, or curves over the number of training images."""
        return "prompt_noise" if self.levels else "shots" if self.shots else "ranking"

    @property
    def contestants(self) -> dict[str, Contestant]:
        """Those who take part, by name."""
        return {name: CONTESTANTS[name] for name in self.names}

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the runs that are needed, each once; nnU-Net has none."""
        return tuple(dict.fromkeys(CONTESTANTS[name].of or name for name in self.names if name != EXTERNAL))

    @property
    def sam(self) -> str:
        """The backbone of methods on SAM."""
        return self.backbone or default_backbone()

    def backbone_of(self, name: str) -> str:
        """The backbone of a contestant; ``none`` for those that have no SAM inside."""
        family = CONTESTANTS[name].family
        return "none" if family == "none" else self.sam if family == "sam" else self.sam2 or default_sam2(self.sam)

    def run(self, name: str) -> Path:
        """Folder of the run that a contestant answers with."""
        return self.out / "runs" / (CONTESTANTS[name].of or name)

    def masks(self, name: str) -> Path:
        """Folder of the label maps of a contestant that predicts once."""
        return self.out / (f"{EXTERNAL}/masks" if name == EXTERNAL else f"masks/{name}/once-0")

    def without(self, *names: str) -> Plan:
        """The plan without these contestants, and those who use their runs."""
        return replace(self, names=tuple(n for n in self.names if not {n, CONTESTANTS[n].of} & set(names)))

    def settings(self, name: str) -> RunConfig:
        """The configuration of a contestant's run."""
        if name not in self._settings:
            self._settings[name] = self._resolved(name)
        return self._settings[name]

    def _resolved(self, name: str) -> RunConfig:
        contestant, backbone = CONTESTANTS[name], self.backbone_of(name)
        prompts = asdict(self.prompts) | ({"source": "noise"} if self.levels else {})
        options: dict[str, Any] = {"seed": self.seed, "backbone.name": backbone, **self.length}
        options["backbone.input_size"] = self.input_size or _input_size(self.sam if backbone == "none" else backbone)
        options |= {f"prompts.{key}": value for key, value in prompts.items()}
        options |= {f"split.{key}": value for key, value in asdict(self.split).items()}
        unsaid = asdict(DataConfig())
        options |= {f"data.{key}": value for key, value in asdict(self.data).items() if value != unsaid[key]}
        dropped = ("train.",) if contestant.frozen else ("data.window", "data.levels") if contestant.volumes else ()
        options = {key: value for key, value in options.items() if not key.startswith(dropped)}
        if contestant.frozen and contestant.prompted:  # sees slices as spd does: simulated points are then the same
            options.setdefault("data.levels", self.settings("spd").data.levels)
        resolved = api.resolve(
            contestant.method,
            self.data.path,
            preset=self._preset(contestant, backbone),
            config=self.config,
            options=options | dict(contestant.options),
        )
        own = configuration.flatten(configuration.read_yaml(self.config)) if self.config else {}
        fixed = {"patches.size", "model.widths", "model.fusions"} & own.keys()
        return _filling(resolved) if contestant.volumes and not fixed else resolved

    def _preset(self, contestant: Contestant, backbone: str) -> str | None:
        """``None``: by the backbone.  What has no SAM inside learns as the others do."""
        suiting = choose_preset(contestant.method, None, self.sam if backbone == "none" else backbone)
        return suiting if suiting == "scratch" else contestant.preset

    def networks(self) -> dict[str, Any]:
        """The backbones of those who take part, for the summary."""
        found = {"backbone": self.sam, "input_size": self.input_size or _input_size(self.sam)}
        used = any(contestant.family == "sam2" for contestant in self.contestants.values())
        return found | ({"sam2": self.sam2 or default_sam2(self.sam)} if used else {})

    def unsuited(self, name: str) -> str:
        """Why a contestant says nothing here, as far as that is known without the data; empty where it does."""
        contestant, backbone = CONTESTANTS[name], self.backbone_of(name)
        if name == EXTERNAL and self.nnunet is None:
            return "no environment with nnU-Net is named (--nnunet PYTHON)"
        if contestant.frozen and _random(backbone):
            return f"it trains nothing, and the weights of {backbone} are random"
        return ""

    def notes(self) -> list[str]:
        """What a reader must know of how this was asked."""
        frozen = [name for name, c in self.contestants.items() if c.frozen and _random(self.backbone_of(name))]
        notes = []
        if frozen:
            random = ", ".join(sorted({self.backbone_of(name) for name in frozen}))
            notes.append(
                f"The weights of {random} are random, and nothing of {', '.join(frozen)} is trained: "
                "their rows only show that the machinery works."
            )
        families = {c.family for c in self.contestants.values()}
        if families >= {"sam", "sam2"} and not self.shots:
            sam2 = self.sam2 or default_sam2(self.sam)
            pretrained = ["with random weights" if _random(b) else "pretrained" for b in (self.sam, sam2)]
            notes.append(f"Methods on SAM use {self.sam} ({pretrained[0]}), those on SAM 2 {sam2} ({pretrained[1]}).")
        if not self.length:
            notes.append("Every method was trained as long as its own preset says; the budgets differ.")
        if any(c.prompted for c in self.contestants.values()):
            trained_with = f"{self.prompts.level} ({self.prompts.mode})"
            notes.append(
                f"Prompted methods were trained with simulated prompts of {trained_with}, drawn anew every epoch."
                if self.levels or self.prompts.source == "noise"
                else f"Prompted methods use the points of the data set, or else simulated ones of {trained_with}."
            )
        return notes


def default_backbone() -> str:
    """SAM ViT-B where its weights are on this machine, else the small SAM of this package."""
    return next((name for name in USUAL if zoo.where(name)), NO_DOWNLOAD)


def default_sam2(sam: str) -> str:
    """The first SAM 2.1 on this machine; beside a SAM of random weights, or without one, SAM 2 from nothing."""
    here = () if _random(sam) else (name for name in USUAL_SAM2 if zoo.where(name))
    return next(iter(here), NO_DOWNLOAD_SAM2)


def _filling(config: RunConfig) -> RunConfig:
    """A configuration of MaskSAM with patches as large as the input, and a level of its prompt generator for every
    doubling from the backbone's grid to that: the presets are made for one size."""
    entry = zoo.BACKBONES.get(config.backbone.name)
    patch = 16 if entry is None else entry.architecture_for(config.backbone.input_size).patch
    doublings, model = patch.bit_length() - 1, config.model
    widths = [*model.widths, *[model.widths[-1]] * doublings][:doublings]
    model = replace(model, widths=widths, fusions=max(0, model.fusions - max(0, doublings - len(model.widths))))
    return replace(config, patches=replace(config.patches, size=None), model=model)


def _random(backbone: str) -> bool:
    return backbone in zoo.BACKBONES and zoo.BACKBONES[backbone].from_scratch


def _input_size(backbone: str) -> int:
    own = zoo.BACKBONES[backbone].input_size if backbone in zoo.BACKBONES else LARGEST_INPUT
    return min(own, LARGEST_INPUT)
