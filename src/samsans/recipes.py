"""Recipes: a published experiment as one YAML file of settings, with its data, its numbers and a tolerance.

A recipe is a configuration like any other; its section ``recipe`` says what to compare with.  The files lie in the
folder ``recipes`` of the source, and inside the package once it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samsans.errors import InputError


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
    """

    table: str
    method: str
    convention: str
    dice: float
    hd95: float | None = None
    classes: dict[str, float] = field(default_factory=dict)
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
        tolerance: Largest difference of the mean Dice that counts as repeated, 0 to 1.
    """

    name: str = ""
    dataset: str = ""
    source: str = ""
    terms: str = ""
    layout: str = ""
    published: list[Published] = field(default_factory=list)
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
    """The file that is meant: a path of the user's own, or a recipe by its name or file name.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = folder() / f"{path.name.removesuffix('.yaml')}.yaml"
    if known.is_file():
        return known
    raise InputError(f"no configuration at {name}", f"a YAML file, or a recipe: {', '.join(names())}")
