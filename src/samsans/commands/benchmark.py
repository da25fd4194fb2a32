"""``samsans benchmark``: train and compare methods on one data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from samsans.benchmark.contestants import CONTESTANTS, choose, levels_of
from samsans.cli import _data_config, _parse, _parser
from samsans.config import DataConfig, PromptConfig, SplitConfig


def _add_arguments(parser: Any) -> None:
    parser.add_argument("folder", type=str, metavar="DATA", help="folder or CSV of images with masks")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="OUT", help="folder for runs, masks and report")
    parser.add_argument(
        "--methods", type=str, default="all", metavar="NAMES", help=f"all, or some of {','.join(CONTESTANTS)}"
    )
    parser.add_argument("--prompt-noise", type=str, metavar="LEVELS", help="L0..L5: curves over the noise of prompts")
    parser.add_argument("--draws", type=int, default=2, help="of the noise at each level")
    parser.add_argument("--backbone", type=str, metavar="NAME|DIR|FILE", help="of all (sam-vit-b, else scratch)")
    parser.add_argument("--input-size", type=int, help="side of the square that all see, in pixels (at most 512)")
    parser.add_argument("--minutes", type=float, help="training time of each")
    parser.add_argument("--steps", type=int, help="optimiser steps of each")
    parser.add_argument("--epochs", type=int, help="passes over the training images of each")
    parser.add_argument("--config", type=str, metavar="RECIPE|FILE", help="further settings of all runs")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--device", default="auto", help="to segment on: auto, cpu, cuda, mps")
    parser.add_argument("--convention", default="default", help="of the ranking; with prompt noise it is spd")
    parser.add_class_arguments(SplitConfig, "split")
    parser.set_defaults({"split.val": 0.1, "split.test": 0.2})
    parser.add_class_arguments(PromptConfig, "prompts")
    parser.add_class_arguments(DataConfig, "data", skip={"path"})


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    from samsans import benchmark

    parser = _parser("benchmark")
    _add_arguments(parser)
    args = _parse(parser, argv)
    lengths = {"train.steps": args.steps, "train.epochs": args.epochs, "train.minutes": args.minutes}
    plan = benchmark.Plan(
        data=_data_config(args.folder, args.data),
        out=Path(args.out),
        names=choose(args.methods.split(",")),
        levels=levels_of(args.prompt_noise) if args.prompt_noise else (),
        draws=args.draws,
        backbone=args.backbone,
        input_size=args.input_size,
        split=SplitConfig(**vars(args.split)),
        prompts=PromptConfig(**vars(args.prompts)),
        length={key: value for key, value in lengths.items() if value is not None},
        config=args.config,
        seed=args.seed,
        device=args.device,
        convention=args.convention,
    )
    summary = benchmark.benchmark(
        plan, unsuited=args.methods == "all", say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(f"{benchmark.text(summary)}\nreport: {plan.out / 'report.html'}")
    return 0
