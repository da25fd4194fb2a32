"""``samsans benchmark``: train and compare methods on one data set, or on the data sets of a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samsans import config as configuration
from samsans.benchmark.contestants import CONTESTANTS, choose, levels_of
from samsans.cli import _data_config, _parse, _parser
from samsans.config import DataConfig, PromptConfig, SplitConfig
from samsans.errors import InputError

HELD_OUT = {"split.val": 0.1, "split.test": 0.2}
HELD_OUT_FEW = {"split.val": 0.0, "split.test": 0.2}  # images that choose weights would be training images as well
ALTERNATIVES = ({"steps", "epochs", "minutes"}, {"backbone", "backbones"})  # one of them replaces the others
GROUPS = ("data", "split", "prompts")


def _benchmark_parser(few: bool) -> Any:
    parser = _parser("benchmark")
    parser.add_argument(
        "folder", type=str, metavar="DATA", help="folder or CSV of images with masks, or a YAML of sets"
    )
    parser.add_argument("-o", "--out", type=str, required=True, metavar="OUT", help="folder for runs, masks and report")
    parser.add_argument(
        "--methods", type=str, default="all", metavar="NAMES", help=f"all, or some of {','.join(CONTESTANTS)}"
    )
    parser.add_argument("--root", type=str, metavar="DIR", help="where the sets of a YAML file lie (here)")
    parser.add_argument("--prompt-noise", type=str, metavar="LEVELS", help="L0..L5: curves over the noise of prompts")
    parser.add_argument("--draws", type=int, default=2, help="of the noise at each level")
    parser.add_argument("--shots", type=str, metavar="NUMBERS", help="1,2,4: curves over the number of training images")
    parser.add_argument("--backbones", type=str, metavar="NAMES", help="with --shots: two or more to compare")
    parser.add_argument("--backbone", type=str, metavar="NAME|DIR|FILE", help="of all (sam-vit-b, else samsans-small)")
    parser.add_argument("--sam2", type=str, metavar="NAME|DIR|FILE", help="of methods on SAM 2 (sam2.1-hiera-*)")
    parser.add_argument("--input-size", type=int, help="side of the square that all see, in pixels (at most 512)")
    parser.add_argument("--minutes", type=float, help="training time of each")
    parser.add_argument("--steps", type=int, help="optimiser steps of each")
    parser.add_argument("--epochs", type=int, help="passes over the training images of each")
    parser.add_argument("--config", type=str, metavar="RECIPE|FILE", help="further settings of all runs")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--device", default="auto", help="to segment on: auto, cpu, cuda, mps")
    parser.add_argument("--convention", default="default", help="of the scores; with prompt noise it is spd")
    parser.add_argument("--panels", type=int, default=3, metavar="N", help="cases to show with every method's masks")
    parser.add_argument("--nnunet", type=str, metavar="PYTHON", help="of the environment that holds nnU-Net")
    parser.add_class_arguments(SplitConfig, "split")
    parser.set_defaults(HELD_OUT_FEW if few else HELD_OUT)
    parser.add_class_arguments(PromptConfig, "prompts")
    parser.add_class_arguments(DataConfig, "data", skip={"path"})
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    from samsans import benchmark
    from samsans.benchmark import sets

    parser = _benchmark_parser(configuration.peek(argv, "--shots") is not None)
    args = _parse(parser, argv)
    manner: dict[str, Any] = {"say": lambda line: print(line, file=sys.stderr, flush=True)}
    if Path(args.folder).suffix in (".yaml", ".yml"):
        told = _parse(parser, argv, defaults=False).as_dict()
        asked = {name: _arguments(name, own, told) for name, own in _read(args.folder).items()}
        plans = {name: _plan(one) for name, one in asked.items()}
        unsuited = [name for name, one in asked.items() if one.methods == "all"]
        print(sets.text(sets.benchmark_sets(plans, Path(args.out), unsuited=unsuited, **manner)))
    else:
        if args.root is not None:
            raise InputError("--root for one data set", "it with a YAML file of data sets")
        print(benchmark.text(benchmark.benchmark(_plan(args), unsuited=args.methods == "all", **manner)))
    print(f"report: {Path(args.out) / 'report.html'}")
    return 0


def _plan(args: Any) -> Any:
    from samsans import benchmark

    lengths = {"train.steps": args.steps, "train.epochs": args.epochs, "train.minutes": args.minutes}
    levels = levels_of(args.prompt_noise) if args.prompt_noise else ()
    split = SplitConfig(**vars(args.split))
    if split.protocol is not None and split.test == HELD_OUT["split.test"]:
        split = replace(split, test=0.0)  # the default: the published split says who is held out
    return benchmark.Plan(
        data=_data_config(args.folder, args.data),
        out=Path(args.out),
        names=choose(args.methods.split(","), noise=bool(levels)),
        levels=levels,
        draws=args.draws,
        shots=_numbers(args.shots) if args.shots else (),
        backbones=tuple(args.backbones.split(",")) if args.backbones else (),
        backbone=args.backbone,
        sam2=args.sam2,
        input_size=args.input_size,
        split=split,
        prompts=PromptConfig(**vars(args.prompts)),
        length={key: value for key, value in lengths.items() if value is not None},
        config=args.config,
        seed=args.seed,
        device=args.device,
        convention=args.convention,
        panels=args.panels,
        nnunet=args.nnunet,
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--shots {text}", "numbers of images such as 1,2,4,8,16") from error


# -- a file of data sets ----------------------------------------------------------------------------------------------


def _read(file: str) -> dict[str, dict[str, Any]]:
    """The settings of each data set of a file: what it says of ``all`` of them, then of each of ``sets``."""
    if not Path(file).is_file():
        raise InputError(f"there is no file {file}", "a YAML file of data sets, or a data set")
    said = configuration.read_yaml(file)
    sets = said.get("sets")
    strange = said.keys() - {"all", "sets"}
    if strange or not isinstance(sets, dict) or not all(isinstance(own, dict) and own for own in sets.values()):
        raise InputError(
            f"{file} holds {', '.join(map(str, said))}", "sets: NAME: {path: FOLDER, ...}, and all: for what they share"
        )
    return {str(name): _beside(file, _over(said.get("all") or {}, own)) for name, own in sets.items()}


def _beside(file: str, own: dict[str, Any]) -> dict[str, Any]:
    """The settings of a data set with their ``config``, where it lies beside the file, found from anywhere."""
    config = Path(file).parent / str(own.get("config"))
    return own | {"config": str(config)} if config.is_file() else own


def _arguments(name: str, own: Mapping[str, Any], told: Mapping[str, Any]) -> Any:
    """The arguments of one data set of a file: its settings, and over them what the command says."""
    root = Path(told.get("root") or ".")
    values = _over(own, {key: value for key, value in told.items() if key not in ("folder", "out", "root")})
    path = values.pop("path", name)
    values |= {"folder": str(root / path), "out": str(Path(told["out"]) / name)}
    try:
        return _benchmark_parser("shots" in values).parse_object(values)
    except (argparse.ArgumentError, KeyError, TypeError) as error:
        raise InputError(
            f"data set {name} not understood: {configuration.reason(error)}",  # type: ignore[arg-type]
            todo="Its keys are the flags of `samsans benchmark --help`, and path",
        ) from error


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of settings over another; groups are joined key by key."""
    replaced = {key for group in ALTERNATIVES if group & above.keys() for key in group}
    merged = {key: value for key, value in below.items() if key not in replaced}
    for key, value in above.items():
        both = key in GROUPS and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return merged
