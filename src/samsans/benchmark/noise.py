"""The prompt-noise benchmark: what each contestant's curve over the levels says, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from samsans.benchmark.contestants import BASELINE, CONTESTANTS
from samsans.benchmark.plan import Plan
from samsans.benchmark.runs import Course, cost, held_out, suited, train_all
from samsans.benchmark.scores import Answer, Contest, ask
from samsans.data.cases import find_cases
from samsans.data.prompt_statistics import PromptStatistics
from samsans.errors import InputError
from samsans.metrics import robustness
from samsans.metrics.slicewise import over_slices, over_volumes

SCORE = "volumetric_dice"  # of the summaries, curves and tests; it cannot be earned by silence on empty slices
HEADLINE = "nAURC: mean Dice of whole volumes over the levels of noise"
TESTED = ("L0", "L2", "L3", "L5")
NUMBERS = {  # names here: those of metrics.slicewise
    "dice": "dice",
    "dice_positive": "dice_present",
    "false_positive_rate": "false_positives",
    "hd95": "hd95",
    "asd": "asd",
    "coverage": "coverage",
    "hd95_penalised": "hd95_penalised",
}
SHARES = ("on_target_share", "reached_share", "misled_share", "points_per_slice")


def run(plan: Plan, course: Course) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train and predict at every level: the content of ``summary.json``, and pictures by file name.

    Raises InputError where there are several objects.
    """
    found = find_cases(plan.data).classes
    if len(found) > 1:
        raise InputError(
            f"{len(found)} objects ({', '.join(c.name for c in found)}) with prompt noise",
            "one: points are of one object",
            "Choose one with --data.classes",
        )
    plan = train_all(suited(plan, course), course)
    dataset, notes = held_out(plan)
    contests = {}
    for name in plan.names:
        course.say(f"segmenting with {name}")
        contests[name] = ask(plan, name, dataset, course.on_progress)
    cases = [case.id for case in dataset.cases]
    summary = summarise(plan, contests, cases, [*plan.notes(), *notes, *course.notes])
    return summary, {"curves.png": picture(plan, contests, cases, summary)}


def numbers(answers: Sequence[Answer]) -> dict[str, Any]:
    """The scores of one level: slices of all draws and volumes together, but ``volumetric_dice`` over volumes."""
    volumes = [volume for answer in answers for volume in answer.volumes.values()]
    slices = over_slices(volumes)
    found: dict[str, Any] = {name: slices[theirs] for name, theirs in NUMBERS.items()}
    return found | {SCORE: over_volumes(volumes)[SCORE], "n": len(answers[0].volumes), "draws": len(answers)}


def prompts(answers: Sequence[Answer]) -> dict[str, Any] | None:
    """Statistics of the points of one level before (``given``) and after (``shown``) the method's own filtering."""
    out = {}
    for name in ("given", "shown"):
        parts = [part for answer in answers if (part := getattr(answer, name)) is not None]
        if not parts:
            return None
        total = sum(parts[1:], parts[0])
        out[name] = {share: _defined(getattr(total, share)) for share in SHARES} | asdict(total)
    return out


def summarise(
    plan: Plan, contests: Mapping[str, Contest], cases: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The content of ``summary.json``; see ``docs/reference/files.md``."""
    levels = np.array([float(level[1:]) for level in plan.levels])
    tables = {name: contest.scores(plan.levels, plan.draws, cases) for name, contest in contests.items()}
    means = {name: table.mean((1, 2)) for name, table in tables.items()}
    free = [name for name in contests if not CONTESTANTS[name].prompted]
    best = max(free, key=lambda name: float(means[name].mean()), default=None)
    line = None if best is None else float(means[best].mean())
    clean = float(means[BASELINE][0]) if BASELINE in means and plan.levels[0] == "L0" else None
    methods: dict[str, Any] = {}
    for name, contest in contests.items():
        prompted = CONTESTANTS[name].prompted
        band = robustness.band(tables[name], seed=plan.seed)
        row: dict[str, Any] = {"about": CONTESTANTS[name].about, "prompt_free": not prompted}
        for place, level in enumerate(plan.levels):
            answers = contest.at(level)
            ci = _interval(band.low[place], band.high[place])
            row[level] = numbers(answers) | {"ci": ci, "prompts": prompts(answers)}
        several = len(levels) > 1
        area = robustness.naurc_band(levels, tables[name], seed=plan.seed) if several else (math.nan, math.nan)
        taken = cost(plan.run(name))
        methods[name] = row | {
            "naurc": robustness.naurc(levels, means[name]) if several else None,
            "naurc_ci": _interval(*area),
            "half_drop": robustness.half_drop(levels, means[name]) if several and prompted else None,
            "crossover": robustness.crossover(levels, means[name], line)
            if several and prompted and line is not None
            else None,
            "clean_cost": float(means[name][0]) - clean if clean is not None and prompted else None,
            "trained_parameters": 0 if CONTESTANTS[name].of else taken.trained_parameters,
            "train_seconds": taken.train_seconds,
            "ms_per_slice": next(iter(contest.answers.values())).ms_per_slice,
        }
    return {
        "kind": "prompt_noise",
        **plan.networks(),
        "score": SCORE,
        "levels": list(plan.levels),
        "draws": plan.draws,
        "mode": plan.prompts.mode,
        "trained_with": plan.prompts.level,
        "cases": list(cases),
        "prompts": _given(plan, contests),
        "methods": methods,
        "best_prompt_free": best,
        "tests": _tests(plan.levels, tables),
        "robust": _robust(methods, plan.levels, best),
        "notes": [*notes, *_disagreement(plan, contests)],
    }


def _given(plan: Plan, contests: Mapping[str, Contest]) -> dict[str, Any]:
    """Of each level the statistics of the points as they were simulated, by the first contestant that saw them."""
    prompted = next((c for name, c in contests.items() if CONTESTANTS[name].prompted), None)
    found = {level: None if prompted is None else prompts(prompted.at(level)) for level in plan.levels}
    return {level: None if value is None else value["given"] for level, value in found.items()}


def _disagreement(plan: Plan, contests: Mapping[str, Contest]) -> list[str]:
    """A note where contestants were not shown the same simulated points: they see slices of other sizes or levels."""
    seen: dict[tuple[PromptStatistics, ...], list[str]] = {}
    for name, contest in contests.items():
        if CONTESTANTS[name].prompted:
            given = [a.given for level in plan.levels for a in contest.at(level) if a.given is not None]
            seen.setdefault(tuple(given), []).append(name)
    if len(seen) < 2:
        return []
    groups = "; ".join(", ".join(names) for names in seen.values())
    return [f"Not all were shown the same simulated points ({groups}): they see the slices differently."]


def _tests(levels: Sequence[str], tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Wilcoxon's signed-rank test of the first contestant against each other, by volumes, corrected by Holm."""
    first, *others = tables
    out = {}
    for place, level in enumerate(levels):
        if level in TESTED and others:
            volumes = {name: table[place].mean(0) for name, table in tables.items()}
            p = robustness.compare(volumes[first], {name: volumes[name] for name in others})
            out[level] = {"method": first, "p": p}
    return out


def _robust(methods: Mapping[str, Any], levels: Sequence[str], best: str | None) -> dict[str, bool | None]:
    """Whether a prompted method may be called robust: its area's interval lies above those of tuning and of the best
    prompt-free method, and it makes up no more on empty slices than they do; ``None`` where one of them is missing."""
    out: dict[str, bool | None] = {}
    rivals = [name for name in (BASELINE, best) if name is not None and name in methods]
    for name, row in methods.items():
        if row["prompt_free"] or name in rivals:
            continue
        intervals = [methods[rival]["naurc_ci"] for rival in rivals]
        if len(rivals) < 2 or row["naurc_ci"] is None or None in intervals:
            out[name] = None
            continue
        false = {n: [methods[n][level]["false_positive_rate"] for level in levels] for n in (name, *rivals)}
        quiet = all(
            ours is None or theirs is None or ours <= theirs
            for rival in rivals
            for ours, theirs in zip(false[name], false[rival], strict=True)
        )
        out[name] = quiet and all(row["naurc_ci"][0] > interval[1] for interval in intervals)
    return out


def picture(plan: Plan, contests: Mapping[str, Contest], cases: Sequence[str], summary: Mapping[str, Any]) -> bytes:
    """The curves as PNG: over the nominal level, and over the share of points that lie on the target."""
    tables = {name: contest.scores(plan.levels, plan.draws, cases) for name, contest in contests.items()}
    given = [summary["prompts"][level] for level in plan.levels]
    measured = [math.nan if share is None else share["on_target_share"] for share in given if share is not None]
    return robustness.curves(
        "Dice of whole volumes as the prompts get worse",
        [float(level[1:]) for level in plan.levels],
        tables,
        prompt_free=[name for name in contests if not CONTESTANTS[name].prompted],
        measured=measured if len(measured) == len(given) else None,
        ticks=list(plan.levels),
        score="Dice of whole volumes",
    )


def headlines(summary: Mapping[str, Any]) -> dict[str, tuple[float | None, list[float] | None]]:
    """The one number of every method, with its interval."""
    return {name: (row["naurc"], row["naurc_ci"]) for name, row in summary["methods"].items()}


def text(summary: Mapping[str, Any]) -> str:
    """The table for a terminal: the score of every level, and the summaries."""
    levels, methods = summary["levels"], summary["methods"]
    heads = [*levels, "nAURC", "half-drop", "crossover", "clean cost", "ms/slice"]
    lines = [f"{len(summary['cases'])} volumes, {summary['draws']} draws; Dice of whole volumes", ""]
    lines.append(f"{'':16}" + "".join(f"{head:>11}" for head in heads))
    shares = [(summary["prompts"][level] or {}).get("on_target_share") for level in levels]
    for name, row in methods.items():
        cells = [row[level][SCORE] for level in levels]
        cells += [row[key] for key in ("naurc", "half_drop", "crossover", "clean_cost")]
        mark = "*" if row["prompt_free"] else ""
        line = "".join(f"{'-' if v is None else f'{v:.3f}':>11}" for v in cells)
        lines.append(f"{name + mark:16}{line}{row['ms_per_slice']:>11.1f}")
    if any(share is not None for share in shares):
        lines.append(f"{'points on target':16}" + "".join(f"{'-' if s is None else f'{s:.2f}':>11}" for s in shares))
    lines += ["", "* prompt-free"] if any(row["prompt_free"] for row in methods.values()) else []
    return "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])])


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table as rows: a method and level each; what belongs to the whole method is repeated."""
    whole = ("naurc", "half_drop", "crossover", "clean_cost", "trained_parameters", "train_seconds", "ms_per_slice")
    table = []
    for name, row in summary["methods"].items():
        for level in summary["levels"]:
            at = row[level]
            cells = {"method": name, "level": level, "prompt_free": row["prompt_free"]}
            cells |= {key: at[key] for key in (SCORE, *NUMBERS, "n")}
            for when in ("given", "shown"):
                told = (at["prompts"] or {}).get(when, {})
                cells |= {f"{when}_{share}": told.get(share) for share in SHARES}
            table.append(cells | {key: row[key] for key in whole})
    return table


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _interval(low: float, high: float) -> list[float] | None:
    return [float(low), float(high)] if math.isfinite(low) and math.isfinite(high) else None
