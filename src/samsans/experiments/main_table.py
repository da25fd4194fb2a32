"""The main table: every held-out case with its own draw of support pairs, five times over (Table 1, decision D-29)."""

from __future__ import annotations

import numpy as np

from samsans import io
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request
from samsans.experiments.draws import plain
from samsans.experiments.held_out import score, segment
from samsans.experiments.published_proxy_prompt import published_lines, told

DRAWS = 5


def main_table(asked: Request) -> str:
    """Segment a run's held-out cases with five seeds of the draw of ``model.k_test`` support pairs, one draw a case;
    writes ``main.json``, the label maps ``masks/SEED`` and a report of each, ``reports/SEED``.

    A method without supports answers once.

    Args:
        asked: Its seed is the first of the five.

    Returns:
        The table as text: Dice of each object and their average, mean and standard deviation over the seeds (of the
        sample, ddof 1), beside Table 1 of arXiv 2502.03501.

    Raises:
        InputError: the run holds nobody out, or a held-out case cannot be segmented.
    """
    from samsans.inference import load

    segmenter = load(asked.run_folder)
    dataset = asked.find(segmenter.classes)
    cases = asked.held_out(dataset)
    supports = segmenter.method.needs.supports
    found: dict[str, list[float]] = {}
    seeds = [asked.seed + i for i in range(DRAWS if supports else 1)]
    for done, seed in enumerate(seeds, start=1):
        folder = asked.out / "masks" / str(seed)
        segment(segmenter, dataset, cases, folder, seed=seed)
        report = asked.out / "reports" / str(seed)
        summary = score(asked, segmenter, cases, folder, report, dataset.classes)
        for name, row in (*summary.classes.items(), ("average", summary.mean)):
            found.setdefault(name, []).append(np.nan if row["dice"] is None else row["dice"])
        asked.tell(done, len(seeds), f"seed {seed}")
    if not np.isfinite(found["average"]).all():
        raise InputError("held-out cases without any object", "masks that show one")
    spread = {name: _spread(values) for name, values in found.items()}
    about = {"run": str(asked.run_folder), "seeds": seeds, "k": segmenter.k if supports else None, "ddof": 1}
    rows = {name: {"dice": plain(np.array(values)), **spread[name]} for name, values in found.items()}
    io.write_json(asked.out / "main.json", {**about, "rows": rows})
    drawn = f"{len(seeds)} draws of {segmenter.k} support pairs a case" if supports else "no supports"
    lines = [f"{len(cases)} held-out cases, {drawn}; Dice in %"]
    for name, row in spread.items():
        std = "" if row["std"] is None else f", std {100 * row['std']:.2f} over the seeds (ddof 1)"
        lines.append(f"{name:20}" + ("-" if row["mean"] is None else f"{100 * row['mean']:.1f}{std}"))
    train = len(Split.load(asked.run_folder / "split.json").train)
    return "\n".join([*lines, "", *told("main", segmenter.config, train), *published_lines("main")])


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean, and standard deviation of the sample where there are several; nothing where an object was never scored."""
    if not np.isfinite(values).all():
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
