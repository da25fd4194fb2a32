"""Benchmarks: methods on one split, budget, backbone and seed, compared by curves over prompt noise or ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from samsans import io
from samsans.benchmark import noise, ranking, report, runs, scores
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.data.cases import Dataset, find_cases
from samsans.data.classes import read_classes
from samsans.errors import InputError

__all__ = ["CONTESTANTS", "Plan", "benchmark"]

Say = Callable[[str], None]


def benchmark(
    plan: Plan, *, unsuited: bool = False, say: Say = lambda line: None, on_progress: runs.OnProgress | None = None
) -> dict[str, Any]:
    """Train, predict and score all contestants; asked again, it goes on where it stopped.

    Writes ``summary.json``, ``table.csv``, ``report.html`` and, with levels of noise, ``curves.png``.  ``runs/NAME``
    are the trainings, ``masks/NAME/LEVEL-DRAW`` the label maps, and ``scores`` (or ``reports``) what they are worth.

    Args:
        plan: What to compare.
        unsuited: Methods that cannot learn from these data are left out, with a note, instead of refused.
        say: Told of every part that begins.
        on_progress: Called with a ``Progress`` instead of a bar in the terminal.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: the data or a setting cannot be used.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    notes = plan.notes()
    _require_one_object(plan)
    for place, name in enumerate(plan.trained, start=1):
        say(f"{place}/{len(plan.trained)} training {name}")
        try:
            runs.train(plan, name, on_progress)
        except InputError as error:
            if not unsuited:
                raise
            left = tuple(n for n in plan.names if (CONTESTANTS[n].of or n) != name)
            if not left:
                raise
            plan, notes = replace(plan, names=left), [*notes, f"{name} does not suit these data: {error}"]
            say(notes[-1])
    dataset = held_out(plan)
    form = noise if plan.levels else ranking
    if plan.levels:
        contests = {}
        for name in plan.names:
            say(f"segmenting with {name}")
            contests[name] = scores.ask(plan, name, dataset, on_progress)
        cases = [case.id for case in dataset.cases]
        summary = noise.summarise(plan, contests, cases, notes)
        png = noise.picture(plan, contests, cases, summary)
        with io.atomic_path(plan.out / "curves.png") as temporary:
            temporary.write_bytes(png)
    else:
        found = {}
        for name in plan.names:
            say(f"segmenting with {name}")
            found[name] = ranking.ask(plan, name, dataset, on_progress)
        summary, png = ranking.summarise(plan, found, notes), None
    summary = {"data": str(plan.data.path), **_shared(plan), **summary}
    io.write_text(plan.out / "table.csv", report.table(form.rows(summary)))
    io.write_text(plan.out / "report.html", report.render(summary, form.text(summary), png))
    io.write_json(plan.out / "summary.json", summary)
    return summary


def text(summary: dict[str, Any]) -> str:
    """The table of a summary for a terminal."""
    return (noise if summary["kind"] == "prompt_noise" else ranking).text(summary)


def held_out(plan: Plan) -> Dataset:
    """The labelled cases that all runs held out; InputError where the runs are not of one split."""
    split = runs.same_split(plan)
    classes = read_classes(plan.run(plan.names[0]) / "classes.json")
    dataset = find_cases(replace(plan.data, classes=plan.data.classes or {c.name: list(c.values) for c in classes}))
    ids = set(split.test or split.val)
    cases = tuple(case for case in dataset.labelled if case.id in ids)
    if not cases:
        raise InputError(f"no held-out case of {plan.data.path} has a mask", "a labelled case")
    return replace(dataset, cases=cases)


def _require_one_object(plan: Plan) -> None:
    found = find_cases(plan.data).classes if plan.levels else ()
    if len(found) > 1:
        raise InputError(
            f"{len(found)} objects ({', '.join(c.name for c in found)}) with prompt noise",
            "one: points are of one object",
            "Choose one with --data.classes",
        )


def _shared(plan: Plan) -> dict[str, Any]:
    """What was the same for all."""
    first = plan.settings(plan.names[0])
    shared = {"backbone": first.backbone.name, "input_size": first.backbone.input_size, "seed": plan.seed}
    return shared | {"length": dict(plan.length)}
