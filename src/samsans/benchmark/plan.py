"""What a benchmark is asked: the data, who takes part, and what is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samsans import api, zoo
from samsans.benchmark.contestants import CONTESTANTS, Contestant
from samsans.config import DataConfig, PromptConfig, RunConfig, SplitConfig
from samsans.errors import InputError

LARGEST_INPUT = 512  # pixels a side, where nothing else is asked for: what most of the papers train SAM at
USUAL_BACKBONE, NO_DOWNLOAD = "sam-vit-b", "scratch"


@dataclass(frozen=True)
class Plan:
    """A benchmark.

    Args:
        data: The data set, as for training.
        out: Folder: ``runs``, ``masks``, ``scores``, and what comes of them.
        names: Of the contestants, in the order of the table.
        levels: Of prompt noise; none: every method is only trained, predicted once and ranked.
        draws: Of the noise at each level.
        backbone: A name, hub id, folder or file for all; ``None``: see ``default_backbone``.
        input_size: Side of what the models see; ``None``: the backbone's own, at most 512 px.
        split: Of the patients, the same for all.
        prompts: Noise that prompted methods are trained with, and its mode also in testing.
        length: One of ``train.steps``, ``train.epochs``, ``train.minutes`` for all; empty: each preset's own.
        config: YAML file or recipe with further settings of every run.
        seed: Of all draws.
        device: To predict on.
        convention: Of the scores without prompt noise.
    """

    data: DataConfig
    out: Path
    names: tuple[str, ...]
    levels: tuple[str, ...] = ()
    draws: int = 2
    backbone: str | None = None
    input_size: int | None = None
    split: SplitConfig = field(default_factory=lambda: SplitConfig(val=0.1, test=0.2))
    prompts: PromptConfig = field(default_factory=PromptConfig)
    length: Mapping[str, float] = field(default_factory=dict)
    config: str | None = None
    seed: int = 0
    device: str = "auto"
    convention: str = "default"
    _settings: dict[str, RunConfig] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"{self.draws} draws of the noise", "at least 1")
        if len(self.length) > 1:
            raise InputError(f"{' and '.join(self.length)}", "one length of the trainings")

    @property
    def contestants(self) -> dict[str, Contestant]:
        """Those who take part, by name."""
        return {name: CONTESTANTS[name] for name in self.names}

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the runs that are needed, each once."""
        return tuple(dict.fromkeys(CONTESTANTS[name].of or name for name in self.names))

    def run(self, name: str) -> Path:
        """Folder of the run that a contestant answers with."""
        return self.out / "runs" / (CONTESTANTS[name].of or name)

    def settings(self, name: str) -> RunConfig:
        """The configuration of a contestant's run."""
        if name not in self._settings:
            self._settings[name] = self._resolved(name)
        return self._settings[name]

    def _resolved(self, name: str) -> RunConfig:
        contestant = CONTESTANTS[name]
        backbone = self.backbone or default_backbone()
        prompts = asdict(self.prompts) | ({"source": "noise"} if self.levels else {})
        options: dict[str, Any] = {"seed": self.seed, "backbone.name": backbone, **self.length}
        options["backbone.input_size"] = self.input_size or _input_size(backbone)
        options |= {f"prompts.{key}": value for key, value in prompts.items()}
        options |= {f"split.{key}": value for key, value in asdict(self.split).items()}
        unsaid = asdict(DataConfig())
        options |= {f"data.{key}": value for key, value in asdict(self.data).items() if value != unsaid[key]}
        if contestant.frozen:  # as the others see the slices, so that simulated points are the same
            options = {key: value for key, value in options.items() if not key.startswith("train.")}
            options.setdefault("data.levels", self.settings("spd").data.levels)
        return api.resolve(
            contestant.method,
            self.data.path,
            preset=contestant.preset,
            config=self.config,
            options=options | dict(contestant.options),
        )

    def notes(self) -> list[str]:
        """What a reader must know of how this was asked."""
        backbone = self.backbone or default_backbone()
        scratch = backbone in zoo.BACKBONES and zoo.BACKBONES[backbone].from_scratch
        frozen = [name for name, contestant in self.contestants.items() if contestant.frozen]
        notes = []
        if scratch and frozen:
            notes.append(
                f"The backbone {backbone} has random weights and {', '.join(frozen)} trains nothing: "
                "their rows only show that the machinery works."
            )
        if not self.length:
            notes.append("Every method was trained as long as its own preset says; the budgets differ.")
        if CONTESTANTS.keys() & set(self.names) and any(c.prompted for c in self.contestants.values()):
            trained_with = f"{self.prompts.level} ({self.prompts.mode})"
            notes.append(
                f"Prompted methods were trained with simulated prompts of {trained_with}, drawn anew every epoch."
                if self.levels or self.prompts.source == "noise"
                else f"Prompted methods use the points of the data set, or else simulated ones of {trained_with}."
            )
        return notes


def default_backbone() -> str:
    """SAM ViT-B where its weights are on this machine, else the small SAM that trains from nothing."""
    return USUAL_BACKBONE if zoo.where(USUAL_BACKBONE) else NO_DOWNLOAD


def _input_size(backbone: str) -> int:
    own = zoo.BACKBONES[backbone].input_size if backbone in zoo.BACKBONES else LARGEST_INPUT
    return min(own, LARGEST_INPUT)
