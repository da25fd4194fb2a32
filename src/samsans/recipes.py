"""Recipes: a published experiment as one YAML file of settings, with its data, its numbers and a tolerance.

A recipe is a configuration like any other; its section ``recipe`` says what to compare with.  The files lie in the
folder ``recipes`` of the source, and inside the package once it is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from samsans import zoo
from samsans.errors import InputError

if TYPE_CHECKING:
    from samsans.config import RunConfig

OWN_BUSINESS = re.compile(
    r"seed|recipe\.(name|dataset|source|terms|layout)|data\.(path|cache_gb)|backbone\.(attention|checkpointing)|"
    r"train\.(workers|accelerator|strategy|save_|pictures_|validate_)"
)
"""Keys of a run that may differ from its recipe: they change where and how fast it runs, or the luck of the draw."""


@dataclass
class Published:
    """One published row.

    Args:
        table: Where it stands, e.g. "Table 1 of arXiv 2403.18271, 10 % of Synapse".
        method: As the table calls it.
        convention: Rules of the table; a name of ``samsans.metrics.conventions``.
        dice: Mean over the classes, 0 to 1.
        hd95: Mean 95 % Hausdorff distance in the unit of the convention.
        classes: Dice of each class by name, 0 to 1.
        note: What a reader must know of this row.
        comparable: Whether a mean of ours can be held against this one; where not, ``note`` says why.
    """

    table: str
    method: str
    convention: str
    dice: float
    hd95: float | None = None
    classes: dict[str, float] = field(default_factory=dict)
    note: str = ""
    comparable: bool = True


@dataclass
class PublishedSets:
    """One published row of several answers an image, compared with those of several annotators.

    Args:
        table: Where it stands.
        method: As the table calls it.
        scores: By the names of the table, e.g. GED_16, HM-IoU, Dmax.
        note: What a reader must know of this row.
    """

    table: str
    method: str
    scores: dict[str, float]
    note: str = ""


@dataclass
class RecipeConfig:
    """What a run is meant to repeat; empty for a run of one's own.

    Args:
        name: Name of the recipe.
        dataset: Name of the data set.
        source: Where to fetch it.
        terms: Under which terms.
        layout: How the files must lie.
        published: What was published; the first row is the one to repeat, others are for orientation.
        sets: The same of several answers an image, for orientation.
        tolerance: Largest difference of the mean Dice that counts as repeated, 0 to 1.
    """

    name: str = ""
    dataset: str = ""
    source: str = ""
    terms: str = ""
    layout: str = ""
    published: list[Published] = field(default_factory=list)
    sets: list[PublishedSets] = field(default_factory=list)
    tolerance: float = 0.02


def folder() -> Path:
    """Where the recipes are."""
    here = Path(__file__).resolve().parent
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parents[1] / "recipes"


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def locate(name: str | Path) -> Path:
    """The file that is meant: a path of the user's own, or a recipe: its name, its file name or ``recipes/NAME.yaml``.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    parent, slash, bare = str(name).rpartition("/")
    known = folder() / f"{bare.removesuffix('.yaml')}.yaml"
    if (not slash or (parent == "recipes" and bare.endswith(".yaml"))) and known.is_file():
        return known
    raise InputError(f"no configuration at {name}", f"a YAML file, or a recipe: {', '.join(names())}")


def table() -> str:
    """Every recipe with its method, data set and the published Dice, as a short table."""
    lines = [f"{'recipe':23}{'method':10}{'data':12}published Dice, or of several answers"]
    for name in names():
        values = _read(name)
        about = values["recipe"]
        data = re.split(r" \(|,", about["dataset"])[0]
        published, *_ = [f"{row['dice']:.4f}" for row in about.get("published", ())] + _sets(about)
        lines.append(f"{name:23}{values['method']:10}{data:12}{published}")
    return "\n".join(lines)


def show(name: str) -> str:
    """What a recipe repeats, of which data, from where and under which terms, as lines of text."""
    values = _read(name)
    about = values["recipe"]
    rows = {
        "recipe": name,
        "method": f"{values['method']}, preset {values['preset']}",
        "split": values["split"].get("protocol") or ", ".join(f"{k} {v}" for k, v in values["split"].items()),
        **{key: about[key] for key in ("dataset", "source", "terms", "layout", "tolerance") if key in about},
    }
    lines = [f"{key:10} {value}" for key, value in rows.items()]
    for row, scores in zip(about.get("sets", ()), _sets(about), strict=True):
        lines += ["", f"published  {row['method']}: {scores} ({row['table']})"]
        if row.get("note"):
            lines.append(f"           {row['note']}")
    for row in about.get("published", ()):
        distance = f", HD95 {row['hd95']}" if row.get("hd95") is not None else ""
        lines += ["", f"published  {row['method']}: Dice {row['dice']:.4f}{distance} ({row['table']})"]
        if row.get("classes"):
            lines.append("           " + ", ".join(f"{k} {v:.4f}" for k, v in row["classes"].items()))
        if row.get("note"):
            lines.append(f"           {row['note']}")
    return "\n".join(lines)


def catalogue(action: str, name: str | None = None) -> str:
    """What ``samsans models list | show | where`` prints: all entries, one of them, or where the weights lie."""
    if action == "list":
        return f"{zoo.table()}\n\n{table()}"
    if action == "show":
        if name is None:
            raise InputError("`samsans models show` without a name", "one that `samsans models list` prints")
        return show(name) if name in names() else zoo.show(name)
    found = [zoo.backbone_entry(name)] if name else zoo.list_backbones()
    places = ("needs no weights" if e.from_scratch else zoo.where(e.name) or "not on this machine" for e in found)
    return "\n".join(f"{entry.name:14}{place}" for entry, place in zip(found, places, strict=True))


def departures(config: RunConfig) -> tuple[str, ...]:
    """Where a run's settings differ from those of the recipe it names: ``key: the recipe's value -> the run's``.

    Where it ran, how often it saved and its seed are left out, and so is what a recipe leaves to be planned from the
    training set; a batch counts over all devices.  Empty for a run of no known recipe.
    """
    from samsans import config as configuration

    if config.recipe.name not in names():
        return ()

    def settings(run: RunConfig) -> dict[str, Any]:
        flat = configuration.flatten(configuration.to_dict(run))
        flat["train.batch_size x devices"] = flat.pop("train.batch_size") * flat.pop("train.devices")
        flat["recipe.published"] = tuple(f"{row['method']} {row['dice']}" for row in flat["recipe.published"])
        flat["recipe.sets"] = tuple(f"{row['method']} {row['scores']}" for row in flat["recipe.sets"])
        return flat

    meant, made = settings(configuration.load(folder() / f"{config.recipe.name}.yaml")), settings(config)
    planned = {key for key, value in meant.items() if key.startswith("patches.") and value in (None, "auto")}
    keys = (key for key in {**meant, **made} if not (key in planned or OWN_BUSINESS.match(key)))
    differing = (key for key in keys if meant.get(key) != made.get(key))
    return tuple(f"{key}: {meant.get(key)} -> {made.get(key)}" for key in differing)


def _sets(about: dict[str, Any]) -> list[str]:
    """The scores of each published row of several answers an image."""
    return [", ".join(f"{k} {v:.3f}" for k, v in row["scores"].items()) for row in about.get("sets", ())]


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(locate(name).read_text(encoding="utf-8"))
    return values
