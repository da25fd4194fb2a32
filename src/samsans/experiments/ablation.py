"""Tables of the Proxy Prompt paper that need several trainings: modules, context encoders, pretrained backbones, ...

Every arm is the run's own configuration with a few keys changed, trained on the run's own split for as long as the run
was, then scored on the same held-out cases.  What is finished is not trained again; what was interrupted goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from samsans import config as configuration
from samsans import io
from samsans.api import LENGTHS
from samsans.config import DataConfig, RunConfig
from samsans.data.cases import case_of_slice
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request, held_out
from samsans.experiments.draws import plain
from samsans.experiments.published_proxy_prompt import published_lines, told
from samsans.metrics.evaluate import Summary

BOX = {"method": "prompted", "preset": "box"}
LORA = {"backbone.train": "lora"}

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "modules": {
        "CSM and CCM": {},
        "without CCM": {"model.ccm.enabled": False},
        "without CSM": {"model.csm.bridge": False, "model.csm.selective": False},
        "without both": {"model.ccm.enabled": False, "model.csm.bridge": False, "model.csm.selective": False},
    },
    "context": {name: {"model.csm.encoder.name": name} for name in ("vim", "vit_b", "resnet50")},
    "pretrained": {
        "medsam-vit-b, box": BOX | {"backbone.name": "medsam-vit-b"},
        "medsam-vit-b, PP": LORA | {"backbone.name": "medsam-vit-b"},
        "sam-vit-b, box": BOX | {"backbone.name": "sam-vit-b"},
        "sam-vit-b, PP": LORA | {"backbone.name": "sam-vit-b"},
        "sam-vit-h, box": BOX | {"backbone.name": "sam-vit-h"},
        "sam-vit-h, PP": LORA | {"backbone.name": "sam-vit-h"},
    },
}
OTHERS = ("qualities", "strategies")  # tables of other files
TABLES = (*ARMS, *OTHERS)


def ablation(
    asked: Request,
    table: str = "modules",
    steps: int | None = None,
    minutes: float | None = None,
    also: Sequence[str] = (),
) -> str:
    """Train and score the arms of a table; writes ``TABLE.json``, ``TABLE.png``, runs, label maps and reports.

    An arm that cannot be trained here (no weights, say) is a row without numbers, with the reason.

    Args:
        asked: Its run is what the arms depart from, and the arm that changes nothing.
        table: A name of ``TABLES``.
        steps: Length of the trainings instead of the run's; then the run itself is no arm.
        minutes: Length of the trainings instead of the run's.
        also: ``strategies`` alone: further data sets, as ``MODALITY=FOLDER``.

    Returns:
        Our table beside the published one.

    Raises:
        InputError: the run is not of Proxy Prompt, or holds nobody out.
    """
    if table not in TABLES:
        raise InputError(f"table {table!r}", f"one of {', '.join(TABLES)}")
    if also and table != "strategies":
        raise InputError(f"--also for the table {table}", "it with --table strategies alone")
    if table == "qualities":
        from samsans.experiments.qualities import qualities

        if steps is not None or minutes is not None:
            raise InputError("a length of training for the table qualities", "none: it trains nothing")
        return qualities(asked)
    config = configuration.load(asked.run_folder / "config.yaml")
    require_proxy_prompt(config)
    if table == "strategies":
        from samsans.experiments.strategies import strategies

        return strategies(asked, also, steps, minutes)
    arms = ARMS[table]
    found: dict[str, Scores] = {}
    missing: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for done, (name, changes) in enumerate(arms.items(), start=1):
        try:
            run = trained(asked, folder_name(name), changes, steps, minutes)
            summary = score(asked, run, folder_name(name))
            found[name] = Scores(summary.classes, summary.n)
        except InputError as error:
            missing[name] = str(error)
        else:
            sizes[name] = trained_parameters(run)
        asked.tell(done, len(arms), name)
    if not found:
        raise InputError(f"no arm of {table} could be trained: {next(iter(missing.values()))}")
    images = len(Split.load(asked.run_folder / "split.json").train)
    return report(asked, table, found, missing, sizes, told(table, config, images))


@dataclass(frozen=True)
class Scores:
    """What an arm reaches: scores by object, as in ``Summary.classes``, and how many cases there were."""

    classes: Mapping[str, Mapping[str, Any]]
    n: int


def require_proxy_prompt(config: RunConfig) -> None:
    """InputError where a run is of another method."""
    if config.method != "proxy_prompt":
        raise InputError(f"a run of {config.method}", "one of proxy_prompt")


def folder_name(arm: str) -> str:
    """An arm's name as the name of a folder."""
    return arm.replace(", ", "_").replace(" ", "_")


def trained(
    asked: Request,
    name: str,
    changes: Mapping[str, Any],
    steps: int | None = None,
    minutes: float | None = None,
    *,
    slices: Sequence[str] | None = None,
    split: Split | None = None,
) -> Path:
    """The folder of a run that departs from the asked one by ``changes``, trained now unless it is finished.

    Where nothing is changed it is the asked run itself.

    Args:
        asked: Whose run, data and split it has.
        name: Of the folder in ``runs``.
        changes: Dotted keys; ``method`` and ``preset`` make it another method with the same data, backbone and split.
        steps: Length instead of the run's.
        minutes: Length instead of the run's.
        slices: Names of the only training slices to learn from.
        split: Instead of the run's.
    """
    from samsans.training.run import train

    config = configuration.load(asked.run_folder / "config.yaml")
    own = split is None and slices is None
    split = split or Split.load(asked.run_folder / "split.json")
    if slices is not None:
        ids = list(dict.fromkeys(case_of_slice(s, set(split.train)) for s in slices))
        only = () if set(slices) == set(ids) else tuple(slices)
        split = replace(split, train=tuple(id for id in split.train if id in ids), slices=only)
    file = split.save(asked.out / "splits" / f"{name}.json")
    wanted = departing(config, asked, file, changes, steps, minutes)
    if own and _same(wanted, config):
        return asked.run_folder
    folder = asked.out / "runs" / name
    if _finished(folder, wanted):
        return folder
    return train(wanted, folder, resume=folder.exists(), on_progress=asked.on_progress)


def departing(
    config: RunConfig,
    asked: Request,
    split: Path,
    changes: Mapping[str, Any],
    steps: int | None,
    minutes: float | None,
) -> RunConfig:
    """The configuration of an arm: the run's own, its split as a file, then ``changes`` and a length where given."""
    values = configuration.flatten(configuration.to_dict(config))
    method = changes.get("method", config.method)
    if method != config.method:
        kept = ("seed", "data.", "backbone.name", "backbone.input_size", "backbone.resize")
        values = {key: value for key, value in values.items() if key.startswith(kept)}
    values |= {key: value for key, value in _told_of(asked.data).items() if value is not None}
    values["data.path"] = str(Path(asked.data.path).resolve())
    values |= {"split.file": str(split.resolve()), "split.val": 0.0, "split.test": 0.0, "split.test_patients": []}
    values |= dict.fromkeys(("split.protocol", "split.shots", "split.slice_share")) | {"split.fold": 0}
    if (steps is not None or minutes is not None) and method == config.method:
        values |= dict.fromkeys((*LENGTHS[1:], "train.stop_epoch"))
        values |= {"train.minutes": minutes} | ({} if steps is None else {"train.steps": steps})
    values |= {key: value for key, value in changes.items() if key not in ("method", "preset")}
    values = {key: value for key, value in values.items() if key not in ("method", "preset")}
    return configuration.from_dict(values, method=method, preset=changes.get("preset", config.preset))


def _told_of(data: DataConfig) -> dict[str, Any]:
    """What a data set is told to be read by, beside its path."""
    plain_ = DataConfig()
    names = [f.name for f in fields(DataConfig) if f.name != "path"]
    return {f"data.{n}": getattr(data, n) for n in names if getattr(data, n) != getattr(plain_, n)}


def _same(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations differ at most in where data and split are said to be."""
    a, b = (configuration.flatten(asdict(config)) for config in (one, other))
    return all(a[key] == b.get(key) for key in a if not key.startswith(("split.", "data.path", "data.classes")))


def _finished(folder: Path, wanted: RunConfig) -> bool:
    """Whether a folder holds the finished training of just this configuration."""
    file, written = folder / "train.json", folder / "config.yaml"
    if not file.is_file() or not json.loads(file.read_text(encoding="utf-8"))["finished"]:
        return False
    return configuration.to_dict(configuration.load(written)) == configuration.to_dict(wanted)


def score(asked: Request, run: Path, name: str) -> Summary:
    """Segment the held-out cases of the asked run with another run and score them."""
    from samsans.inference import load

    segmenter = load(run)
    dataset = asked.find(segmenter.classes)
    cases = asked.held_out(dataset)
    folder = asked.out / "masks" / name
    held_out.segment(segmenter, dataset, cases, folder, seed=asked.seed)
    return held_out.score(asked, segmenter, cases, folder, asked.out / "reports" / name, dataset.classes)


def trained_parameters(run: Path) -> int:
    """How many parameters a run trained; 0 where it trained none."""
    file = run / "train.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["parameters"]["trained"]) if file.is_file() else 0


def report(
    asked: Request,
    table: str,
    found: Mapping[str, Scores],
    missing: Mapping[str, str],
    sizes: Mapping[str, int],
    about: Sequence[str],
) -> str:
    """Write ``TABLE.json`` and ``TABLE.png``; our rows, then the published ones, as text."""
    names = list(next(iter(found.values())).classes)
    heads = "".join(f"{name[:11]:>12}" for name in names)
    lines = [f"{'Dice in %':24}{'mean':>7}{'std':>6}{heads}{'IoU':>7}{'trained':>13}"]
    rows: list[dict[str, Any]] = []
    for name in (*found, *missing):
        if name in missing:
            lines.append(f"{name:24}{'-':>7}  not run: {missing[name]}")
            rows.append({"arm": name, "missing": missing[name]})
            continue
        scores = found[name].classes
        dice, overlap = (
            np.array([np.nan if (v := scores[c][metric]) is None else v for c in names], float)
            for metric in ("dice", "iou")
        )
        mean, std, iou = (plain(float(v)) for v in (np.nanmean(dice), np.nanstd(dice), np.nanmean(overlap)))
        size = sizes.get(name)
        cells = "".join(f"{100 * value:12.1f}" for value in dice)
        head = "".join("-".rjust(w) if v is None else f"{100 * v:{w}.1f}" for v, w in ((mean, 7), (std, 6)))
        tail = ("-" if iou is None else f"{100 * iou:.1f}", "-" if size is None else f"{size:,}")
        lines.append(f"{name:24}{head}{cells}{tail[0]:>7}{tail[1]:>13}")
        rows.append({"arm": name, "dice": mean, "std": std, "ddof": 0, "iou": iou, "trained": size})
        rows[-1]["classes"] = dict(zip(names, plain(dice), strict=True))
    n = next(iter(found.values())).n
    lines.append(f"n = {n}; std: over the objects, of the population (ddof 0), as in the paper")
    io.write_json(asked.out / f"{table}.json", {"run": str(asked.run_folder), "rows": rows, "about": list(about)})
    draw(table, {name: scores.classes for name, scores in found.items()}, asked.out / f"{table}.png")
    return "\n".join([*lines, "", *about, *published_lines(table)])


def draw(table: str, found: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Bars of Dice by arm, one colour an object, intervals of 95 % where there are any."""
    import matplotlib.pyplot as plt

    from samsans.palette import color

    names = list(next(iter(found.values())))
    figure, axis = plt.subplots(figsize=(1.5 + 1.3 * len(found), 3.4), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        at = np.arange(len(found)) - 0.4 + width * (place + 0.5)
        heights = np.array([np.nan if (v := c[name]["dice"]) is None else v for c in found.values()], float)
        ends = [c[name]["ci"]["dice"] or (h, h) for c, h in zip(found.values(), heights, strict=True)]
        errors = np.abs(np.array(ends, float).T - heights)
        shade = "#{:02x}{:02x}{:02x}".format(*color(place + 1))
        axis.bar(at, heights, width, color=shade, label=name, yerr=errors, error_kw={"lw": 0.8})
    axis.set_xticks(range(len(found)), list(found), rotation=20, ha="right")
    axis.set(ylim=(0, 1), ylabel="Dice", title=table)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.25))
    with io.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
