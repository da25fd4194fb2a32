"""Our numbers beside the published ones of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samsans.recipes import Published, RecipeConfig


@dataclass(frozen=True)
class Row:
    """One published row and how far ours is from it.

    table, method, convention, dice, hd95, classes, note, comparable: as in the recipe; Dice is 0 to 1.
    difference: our mean Dice minus theirs, only where theirs is comparable.
    hd95_difference: the same of HD95, only where the conventions are one too.
    class_differences: our Dice of each class minus theirs.
    """

    table: str
    method: str
    convention: str
    dice: float
    hd95: float | None
    classes: Mapping[str, float]
    note: str
    comparable: bool
    difference: float | None
    hd95_difference: float | None
    class_differences: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A table of ours beside the published one that its run was meant to repeat.

    recipe: its name.  tolerance: largest difference of the mean Dice that counts as repeated.
    rows: the first is the one to repeat, the others are for orientation.
    repeated: whether our mean Dice is within the tolerance; None where the two cannot be held against each other.
    verdict: that, and why, in a sentence or two.
    """

    recipe: str
    tolerance: float
    rows: Sequence[Row]
    repeated: bool | None
    verdict: str

    def text(self, mean: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]], unit: str) -> str:
        """The table for a terminal; ``mean``, ``classes`` and ``unit`` are those of the summary.

        A published HD95 is shown only where its convention, and so its unit, is that of the summary.
        """
        first = self.rows[0]
        lines = [
            f"beside {first.method}, {first.table} (recipe {self.recipe})",
            f"{'class':17}{'ours':>10}{'published':>11}{'difference':>12}",
        ]
        for name, scores in classes.items():
            theirs = first.classes.get(name)
            lines.append(_line(name, scores["dice"], theirs, first.class_differences.get(name), 3))
        lines.append(_line("mean Dice", mean["dice"], first.dice, first.difference, 3))
        theirs = None if first.hd95_difference is None else first.hd95
        lines.append(_line(f"mean HD95 [{unit}]", mean["hd95_mm"], theirs, first.hd95_difference, 2))
        lines += [f"also published: {row.method} {row.dice:.3f} ({row.table})" for row in self.rows[1:]]
        return "\n".join([*lines, self.verdict])


def compare(
    recipe: RecipeConfig,
    convention: str,
    mean: Mapping[str, Any],
    classes: Mapping[str, Mapping[str, Any]],
    obstacles: Sequence[str] = (),
) -> Comparison | None:
    """Hold a table against the published rows of a recipe; ``None`` where the recipe has none.

    Args:
        recipe: Section ``recipe`` of the run's configuration.
        convention: Name of the convention of our table.
        mean: Our means over the classes, by metric.
        classes: Our scores of each class by name, by metric.
        obstacles: Why our table is not of the published experiment, in sentences; then there is no verdict.
    """
    if not recipe.published:
        return None
    rows = [_row(published, convention, mean, classes) for published in recipe.published]
    repeated, verdict = _verdict(rows[0], recipe.tolerance, convention, classes)
    if obstacles and repeated is not None:
        repeated, verdict = None, f"Not the published experiment, so that no verdict is given. {' '.join(obstacles)}"
    return Comparison(recipe.name, recipe.tolerance, rows, repeated, verdict)


def _row(
    published: Published, convention: str, mean: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]
) -> Row:
    ours = {name: scores["dice"] for name, scores in classes.items() if scores["dice"] is not None}
    same = convention == published.convention
    return Row(
        **vars(published),
        difference=_minus(mean["dice"], published.dice) if published.comparable else None,
        hd95_difference=_minus(mean["hd95_mm"], published.hd95) if same and published.comparable else None,
        class_differences={name: ours[name] - dice for name, dice in published.classes.items() if name in ours},
    )


def _verdict(
    first: Row, tolerance: float, convention: str, classes: Mapping[str, Mapping[str, Any]]
) -> tuple[bool | None, str]:
    if not first.comparable:
        return None, f"The published mean cannot be compared with. {first.note}"
    if first.difference is None:
        return None, "No Dice is defined here: there is nothing to compare."
    if convention != first.convention:
        return None, (
            f"The published rows follow the convention {first.convention}, this table follows {convention}: the "
            f"differences mix model and rules. Re-run with --convention {first.convention} to compare."
        )
    if first.classes and set(first.classes) != set(classes):
        missing, other = set(first.classes) - set(classes), set(classes) - set(first.classes)
        what = [f"without {', '.join(sorted(missing))}"] * bool(missing)
        what += [f"with {', '.join(sorted(other))}"] * bool(other)
        return None, f"Scored {' and '.join(what)}: not the classes of the published mean."
    away = f"{abs(first.difference):.4f} {'below' if first.difference < 0 else 'above'} the published {first.dice:.4f}"
    repeated = abs(first.difference) <= tolerance
    return repeated, f"Mean Dice {away}: {'within' if repeated else 'outside'} the tolerance of {tolerance:g}."


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _line(name: str, ours: float | None, theirs: float | None, difference: float | None, digits: int) -> str:
    cells = [f"{value:{sign}.{digits}f}" if value is not None else "-" for value, sign in
             ((ours, ""), (theirs, ""), (difference, "+"))]  # fmt: skip
    return f"{name:17}{cells[0]:>10}{cells[1]:>11}{cells[2]:>12}"
