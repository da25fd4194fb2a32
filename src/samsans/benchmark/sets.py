"""Several data sets with one command: a benchmark of each, and one page over all."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import samsans.benchmark as one
from samsans import io
from samsans.benchmark import ranking, report, runs
from samsans.benchmark.plan import Plan
from samsans.errors import InputError
from samsans.metrics.conventions import mean


def benchmark_sets(
    plans: Mapping[str, Plan],
    out: Path,
    *,
    unsuited: Container[str] = (),
    say: Callable[[str], None] = lambda line: None,
    on_progress: runs.OnProgress | None = None,
) -> dict[str, Any]:
    """The benchmark of every data set in ``out/SET``; then over all ``summary.json``, ``table.csv``, ``report.html``.

    Args:
        plans: By the name of the set; all of one form, and their folders ``out/SET``.
        out: Folder to write.
        unsuited: Names of the sets where methods that do not suit are left out, as in ``benchmark``.
        say: As in ``benchmark``.
        on_progress: As in ``benchmark``.

    Raises:
        InputError: a data set is not there, or one of its settings cannot be used; see ``benchmark``.
    """
    forms = {plan.form for plan in plans.values()}
    if len(forms) != 1:
        raise InputError(f"benchmarks of {' and '.join(sorted(forms)) or 'no data set'}", "data sets, all of one form")
    for plan in plans.values():
        if not Path(plan.data.path).exists():
            raise InputError(f"there is nothing at {plan.data.path}", "the data set", "Say where it is with --root")
    found = {}
    for place, (name, plan) in enumerate(plans.items(), start=1):
        say(f"data set {place}/{len(plans)}: {name}")
        found[name] = one.benchmark(plan, unsuited=name in unsuited, say=say, on_progress=on_progress)
    pictures = {name: sorted(path.name for path in (out / name).glob("*.png")) for name in found}
    summary = summarise(found, pictures)
    io.write_text(out / "table.csv", report.table(rows(summary)))
    io.write_text(out / "report.html", report.render(summary, text(summary), {}))
    io.write_json(out / "summary.json", summary)
    return summary


def summarise(found: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, list[str]]) -> dict[str, Any]:
    """Each method's headline number on each set; by mean rank where methods are ranked, else by the mean."""
    form = one.FORMS[next(iter(found.values()))["kind"]]
    methods: dict[str, dict[str, Any]] = {}
    for name, summary in found.items():
        for method, (value, interval) in form.headlines(summary).items():
            row = summary["methods"].get(method, {})
            entry = methods.setdefault(method, {"about": row.get("about", ""), "truth": False, "sets": {}})
            entry["truth"] |= row.get("truth", False)
            entry["sets"][name] = {"value": value, "ci": interval, "rank": row.get("rank")}
    for row in methods.values():
        cells = list(row["sets"].values())
        everywhere = len(cells) == len(found)
        row["mean"] = mean([cell["value"] for cell in cells]) if everywhere else None
        row["mean_rank"] = mean([cell["rank"] for cell in cells]) if everywhere else None
    return {
        "kind": "sets",
        "form": next(iter(found.values()))["kind"],
        "headline": form.HEADLINE,
        "sets": {
            name: {"data": summary["data"], "cases": len(summary["cases"]), "pictures": pictures[name]}
            for name, summary in found.items()
        },
        "methods": dict(sorted(methods.items(), key=lambda item: _place(item[1]))),
        "notes": [f"{name}: {note}" for name, summary in found.items() for note in summary["notes"]],
    }


def _place(row: Mapping[str, Any]) -> tuple[bool, bool, float, float]:
    """Automatic ones first, then those that took part everywhere, then by rank, then by the mean."""
    rank, value = row["mean_rank"], row["mean"]
    return row["truth"], value is None, 0.0 if rank is None else rank, 0.0 if value is None else -value


def text(summary: Mapping[str, Any]) -> str:
    """The table for a terminal: methods by data sets."""
    lines = [f"{summary['headline']} on {len(summary['sets'])} data sets", ""]
    lines.append(f"{'':21}" + "".join(f"{name[:22]:>24}" for name in summary["sets"]) + f"{'mean':>8}")
    for name, row in summary["methods"].items():
        cells = [_cell(row["sets"].get(set)) for set in summary["sets"]]
        mean_ = "-" if row["mean"] is None else f"{row['mean']:.3f}"
        lines.append(f"{name + '*' * row['truth']:21}" + "".join(f"{cell:>24}" for cell in cells) + f"{mean_:>8}")
    return "\n".join([*lines, *ranking.footnotes(summary)])


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "-"
    interval = cell["ci"]
    return f"{cell['value']:.3f}" + ("" if interval is None else f" ({interval[0]:.3f}, {interval[1]:.3f})")


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as rows: a method and data set each."""
    table = []
    for name, row in summary["methods"].items():
        for set, cell in row["sets"].items():
            low, high = cell["ci"] or (None, None)
            cells = {"method": name, "prompted_from_truth": row["truth"], "set": set, "rank": cell["rank"]}
            table.append(cells | {"value": cell["value"], "low": low, "high": high})
    return table
