"""Benchmarks: methods on one split, budget, backbone and seed.

A benchmark is a plan, its runs, their scores, a summary and a report.  It has one of three forms: every method is
ranked, or has a curve over ever worse prompts, or a curve over the number of training images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samsans import io
from samsans.benchmark import noise, ranking, report, runs, shots
from samsans.benchmark.contestants import CONTESTANTS
from samsans.benchmark.plan import Plan

__all__ = ["CONTESTANTS", "FORMS", "Plan", "benchmark", "text"]

FORMS: dict[str, Any] = {"ranking": ranking, "prompt_noise": noise, "shots": shots}
"""What each form of benchmark does: ``run(plan, course)``, and of its summary ``text`` and ``rows``."""


def benchmark(
    plan: Plan,
    *,
    unsuited: bool = False,
    say: Callable[[str], None] = lambda line: None,
    on_progress: runs.OnProgress | None = None,
) -> dict[str, Any]:
    """Train, predict and score all contestants; asked again, it goes on where it stopped.

    Writes ``summary.json``, ``table.csv``, ``report.html``, and ``panels.png`` of the ranking or else ``curves.png``.
    ``runs/NAME`` are the trainings, ``masks/NAME/LEVEL-DRAW`` the label maps, and ``scores`` and ``reports`` what they
    are worth; learning curves have these in a folder of every backbone and number of images.

    Args:
        plan: What to compare.
        unsuited: Methods that cannot learn from these data, or whose loss is no longer a number, are left out, with a
            note, instead of refused.
        say: Told of every part that begins.
        on_progress: Called with a ``Progress`` instead of a bar in the terminal.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: the data or a setting cannot be used.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    form = FORMS[plan.form]
    found, pictures = form.run(plan, runs.Course(unsuited, say, on_progress))
    shared = {"data": str(plan.data.path), "seed": plan.seed, "length": dict(plan.length)}
    summary = {**shared, **found}
    for name, png in pictures.items():
        with io.atomic_path(plan.out / name) as temporary:
            temporary.write_bytes(png)
    io.write_text(plan.out / "table.csv", report.table(form.rows(summary)))
    io.write_text(plan.out / "report.html", report.render(summary, form.text(summary), pictures))
    io.write_json(plan.out / "summary.json", summary)
    return summary


def text(summary: dict[str, Any]) -> str:
    """The table of a summary for a terminal."""
    return str(FORMS[summary["kind"]].text(summary))
