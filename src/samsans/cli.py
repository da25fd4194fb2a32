"""The command line: ``samsans check``, ``train``, ``predict``, ``evaluate``, ...; see ``COMMANDS``.

A command parses its arguments and calls one function of ``samsans.api`` (or of ``experiments``), here or in a file of
``commands``.  Nothing here imports torch before a command needs it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samsans.errors import InputError, SamsansError

COMMANDS = {
    "check": "what was understood of a data set, what is wrong in it, and how to mend it",
    "convert": "make image files of a pickle of LIDC-IDRI crops, which is read without running it",
    "train": "train a method on a folder of annotated images",
    "import": "make a run of weights that the authors of a method released",
    "predict": "segment files, folders and volumes with a trained run",
    "evaluate": "compare label maps with a reference: tables and a report",
    "models": "backbones, methods and recipes: size, licence, where the weights are, what was published",
    "experiment": "protocols of the papers and controls, each with its table and figure",
    "suggest": "which unlabelled image to annotate next",
    "benchmark": "train and compare methods on one data set, ranked or over ever worse prompts",
    "demo": "train, predict and evaluate on generated images",
}

PREDICTION = (  # options of ``predict`` that go by the same name in ``Segmenter.predict_folder``
    *("objects", "labels", "probabilities", "seed", "batch_size", "view", "largest_component", "mirror", "points"),
    *("prompt_noise", "prompt_mode", "cache", "overwrite"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 some inputs failed, 2 input that cannot be used."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from samsans import __version__

        print(f"samsans {__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"samsans: no command {command!r}. Expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    warnings.showwarning = _show_warning
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other on a busy machine
    run: Callable[[list[str]], int] | None = globals().get(f"_{command}")
    if run is None:
        run = importlib.import_module(f"samsans.commands.{command}").main
    try:
        return run(rest)
    except SamsansError as error:
        print(f"samsans {command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, e.g. head, has gone
        sys.stdout = None  # nothing is left to flush
        return 1
    except OSError as error:
        print(f"samsans {command}: {error}. Check the path, its permissions and the free space.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"samsans {command}: stopped", file=sys.stderr)
        return 130


def _usage() -> str:
    rows = "\n".join(f"  {name:11}{about}" for name, about in COMMANDS.items())
    return f"samsans: SAM, sans prompts. Automatic segmentation of medical images.\n\n{rows}\n\nsamsans COMMAND --help"


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"samsans: note: {message}", file=sys.stderr)


def _parser(command: str) -> Any:
    import jsonargparse

    return jsonargparse.ArgumentParser(prog=f"samsans {command}", description=COMMANDS[command], exit_on_error=False)


def _parse(parser: Any, argv: Sequence[str], **options: Any) -> Any:
    """The parsed arguments; what is not understood is an InputError of one line, in the names that the help shows."""
    import argparse

    from samsans.config import reason

    try:
        return parser.parse_args(argv, **options)
    except argparse.ArgumentError as error:
        message = reason(error)
        head, colon, missing = message.partition("arguments are required: ")
        if colon:
            shown = {a.dest: a.option_strings[0] if a.option_strings else a.metavar for a in parser._actions}
            message = head + colon + ", ".join(str(shown.get(name) or name) for name in missing.split(", "))
        raise InputError(message, todo=f"See `{parser.prog} --help`") from error


def _data_options(parser: Any) -> None:
    """The ``--data.*`` flags of data sets whose layout is not recognised."""
    from samsans.config import DataConfig

    parser.add_class_arguments(DataConfig, "data", skip={"path"})


def _data_config(path: str, options: Any) -> Any:
    from samsans.config import DataConfig

    return DataConfig(path=path, **vars(options))


def _check(argv: list[str]) -> int:
    parser = _parser("check")
    parser.add_argument("folder", type=str, metavar="DATA", help="folder or CSV")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    _data_options(parser)
    args = _parse(parser, argv)
    from samsans import api
    from samsans.display import Display

    with Display("checking") as display:
        report = api.check(_data_config(args.folder, args.data), on_progress=display.step)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.text())
    return 0 if report.ok else 1


def _convert(argv: list[str]) -> int:
    parser = _parser("convert")
    parser.add_argument("file", type=str, metavar="FILE", help="the .pickle or .pkl file")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="DATA", help="folder to write")
    args = _parse(parser, argv)
    from samsans.data.convert import convert
    from samsans.display import Display

    with Display("converting") as display:
        folder, notes = convert(args.file, args.out, on_progress=display.step)
    print("\n".join([*notes, f"converted: {folder}", f"next: samsans check {folder}"]))
    return 0


def train_parser(method: str, preset: str) -> Any:
    """The parser of ``samsans train METHOD``: short flags, and every key of the run's configuration."""
    from samsans import config

    parser = config.parser(method, preset)
    parser.prog, parser.description = f"samsans train {method}", COMMANDS["train"]
    parser.add_argument("data_folder", type=str, metavar="DATA", help="folder or CSV of images with masks")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--config", type=str, metavar="RECIPE|FILE", help="a recipe by name, or a YAML file")
    parser.add_argument("--shots", type=int, help="few-shot: training images, at most one a patient")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    parser.add_argument("--minutes", type=float, help="wall-clock budget")
    parser.add_argument("--input-size", type=int, help="side of the square the model sees, in pixels")
    parser.add_argument("--backbone-name", type=str, metavar="NAME|DIR|FILE.pth", help="same as --backbone NAME")
    return parser


def _train(argv: list[str]) -> int:
    from samsans import api, config, zoo

    if not argv or argv[0] in ("-h", "--help"):
        methods = "\n".join(f"  {entry.name:14}{entry.summary}" for entry in zoo.list_methods())
        usage = "samsans train METHOD DATA -o RUN [options]\n       samsans train --config RECIPE DATA -o RUN [options]"
        print(f"usage: {usage}\n\n{methods}\n\nsamsans train METHOD --help\nsamsans models list shows the recipes")
        return 0
    file = config.peek(argv, "--config")
    in_file = config.flatten(config.read_yaml(file)) if file else {}
    told: str | None = argv[0]
    if "method" in in_file and argv[0] not in zoo.METHODS and (argv[0].startswith("-") or Path(argv[0]).exists()):
        told = None
    elif argv[0].startswith("-"):
        raise InputError(
            f"{argv[0]!r} before the method",
            "samsans train METHOD DATA -o RUN, options after the method, or --config with a file that names its method",
        )
    method = api.choose_method(told, in_file.get("method"), file)
    argv = _named_backbone(argv if told is None else argv[1:])
    zoo.method_entry(method)
    backbone = config.peek(argv, "--backbone-name", "--backbone.name") or in_file.get("backbone.name")
    preset = config.choose_preset(method, config.peek(argv, "--preset") or in_file.get("preset"), backbone)
    args = _parse(train_parser(method, preset), argv, defaults=False).as_flat()
    given = {key.replace("backbone_name", "backbone"): value for key, value in vars(args).items()}
    data, out = given.pop("data_folder"), given.pop("out")
    given.pop("config", None)
    resume = given.pop("resume", False)
    resolved = api.resolve(method, data, preset=preset, config=file, options=given)
    from samsans.training.run import first_process, train

    train(resolved, Path(out), resume=resume)
    if first_process():
        print(f"trained: {out}  (preset {preset})\nnext: samsans predict {out} -i IMAGES -o MASKS")
    return 0


def _import(argv: list[str]) -> int:
    from samsans import zoo

    parser = _parser("import")
    parser.add_argument("method", choices=list(zoo.RELEASED), help="whose weights they are")
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help=".pth, .pt or .safetensors as released")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument("--backbone", type=str, required=True, metavar="NAME|FILE", help="the SAM it was trained on")
    parser.add_argument("--input-size", type=int, help="side in pixels; by default what the file tells")
    parser.add_argument("--classes", type=str, nargs="+", help="objects in the order of the classes; else Synapse's 8")
    parser.add_argument("--window", type=float, nargs=2, help="intensities shown black and white; Synapse's: -125 275")
    parser.add_argument("--names", type=str, metavar="FILE", help="YAML: names in the file to ours, before our table")
    args = _parse(parser, argv)
    from samsans import config
    from samsans.training.imported import import_released

    if args.names and not Path(args.names).is_file():  # a bare name would be taken for a recipe
        raise InputError(f"no table of names at {args.names}", "a YAML file")
    import_released(
        args.checkpoint,
        args.out,
        backbone=args.backbone,
        method=args.method,
        input_size=args.input_size,
        classes=args.classes or (),
        window=args.window,
        names=config.read_yaml(args.names) if args.names else None,
        say=print,
    )
    print(f"imported: {args.out}\nnext: samsans predict {args.out} -i IMAGES -o MASKS")
    return 0


def _named_backbone(argv: list[str]) -> list[str]:
    """``--backbone NAME`` as a flag of its own: the group of that name takes a whole YAML mapping."""
    return [re.sub(r"^--backbone(?==|$)", "--backbone-name", argument) for argument in argv]


def _predict(argv: list[str]) -> int:
    from argparse import BooleanOptionalAction

    parser = _parser("predict")
    parser.add_argument("run", type=str, metavar="RUN", help="folder that train wrote")
    parser.add_argument("-i", "--input", type=str, nargs="+", required=True, help="files, a folder, or a data set")
    parser.add_argument("-o", "--out", type=str, required=True, help="folder for the label maps")
    parser.add_argument("--support", nargs="+", metavar="DIR|IMAGE:MASK", help="annotated images of other patients")
    parser.add_argument("--task", help="named supports: saved under this name with --support, used without it")
    parser.add_argument("--choose", choices=["random", "similar"], default="random", help="supports: drawn, or alike")
    parser.add_argument("--objects", nargs="+", help="segment these objects only")
    parser.add_argument("--split", choices=["train", "val", "test"], help="only this part of the run's own split")
    parser.add_argument("--labels", type=str, help="true masks, for the prompted baselines alone: files, or frames")
    parser.add_argument("--probabilities", action="store_true", help="also write each object's probability")
    parser.add_argument("--samples", type=int, metavar="K", help="also write K plausible answers, e.g. of P2SAM")
    parser.add_argument("--view", help="another answer, e.g. stage1 of H-SAM, proxy_plus_bank of Proxy Prompt")
    parser.add_argument("--largest-component", action="store_true", help="keep each object's largest piece alone")
    parser.add_argument(
        "--mirror",
        action=BooleanOptionalAction,
        help="mean over eight mirrorings, for methods that see volumes (the run's)",
    )
    parser.add_argument("--slice-axis", help="how volumes are cut: auto, axial, coronal, sagittal, 0, 1, 2 (the run's)")
    parser.add_argument("--via", type=int, metavar="PIXELS", help="bring slices to this side first (the run's)")
    parser.add_argument("--points", metavar="TEMPLATE", help="files of points, e.g. points/{stem}.mrk.json")
    parser.add_argument("--prompt-noise", metavar="LEVEL", help="points simulated from the masks, L0 (clean) to L5")
    parser.add_argument("--prompt-mode", help="where simulated points miss: hard, uniform (the run's)")
    parser.add_argument("--cache", action=BooleanOptionalAction, default=True, help="keep saliency and points in RUN")
    parser.add_argument("--video", action=BooleanOptionalAction, help="folders of numbered frames are videos; none is")
    parser.add_argument("--overlay", action="store_true", help="also write videos with their objects; implies --video")
    parser.add_argument("--overwrite", action="store_true", help="do again what is already there")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch-size", type=int, help="slices a batch")
    parser.add_argument("--seed", type=int, help="of the draws of supports, samples and simulated points")
    _data_options(parser)
    args = _parse(parser, argv)
    if args.samples is not None and args.samples < 1:
        raise InputError(f"--samples {args.samples}", "at least 1", "Leave it out for the method's own answer alone")
    from samsans import api
    from samsans.display import Display

    segmenter = api.load(
        args.run,
        device=args.device,
        precision=args.precision,
        checkpoint=args.checkpoint,
        slice_axis=args.slice_axis,
        via=args.via,
    )
    inputs = api.inputs(segmenter, args.input, _data_config(args.input[0], args.data), args.split)
    videos = api.videos(segmenter, inputs, vars(args))
    support, task = args.support, args.task
    if support and task:
        support, task = segmenter.encode_support(support, name=task), None
    with Display("segmenting") as display:
        shared = {"support": support, "task": task, "choose": args.choose, "on_progress": display.step}
        if videos:
            manifest = videos(args.out, **shared)
        else:
            told = {name: getattr(args, name) for name in PREDICTION}
            manifest = segmenter.predict_folder(inputs, args.out, **told, samples=args.samples or 0, **shared)
    print(manifest.text())
    return 1 if manifest.failures else 0


def _evaluate(argv: list[str]) -> int:
    parser = _parser("evaluate")
    parser.add_argument("predictions", type=str, metavar="OUT", help="folder of label maps that predict wrote")
    parser.add_argument("reference", type=str, metavar="REFERENCE", help="folder of masks, or a data set")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="REPORT", help="report folder")
    parser.add_argument("--convention", default="default", help="default, nnunet, transunet, per_slice or spd")
    parser.add_argument("--images", type=str, help="images for the pictures, beside a plain folder of masks")
    parser.add_argument("--tolerance", type=float, default=2.0, help="of the surface Dice, in mm")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--allow-missing", action="store_true", help="leave references without prediction out")
    parser.add_argument("--panels", type=int, nargs="?", const=3, default=0, metavar="N", help="draw N cases (3)")
    _data_options(parser)
    args = _parse(parser, argv)
    from samsans import api
    from samsans.display import Display

    with Display("scoring") as display:
        summary = api.evaluate(
            args.predictions,
            _data_config(args.reference, args.data),
            args.out,
            convention=args.convention,
            panels=args.panels,
            images=args.images,
            nsd_tolerance_mm=args.tolerance,
            bootstrap=args.bootstrap,
            seed=args.seed,
            allow_missing=args.allow_missing,
            on_progress=display.step,
        )
    print(summary.text())
    print(f"report: {Path(args.out) / 'report.html'}")
    return 0


def _models(argv: list[str]) -> int:
    from samsans import recipes

    parser = _parser("models")
    parser.add_argument("action", choices=["list", "show", "where"], nargs="?", default="list")
    parser.add_argument("name", nargs="?", help="a backbone, method or recipe")
    args = _parse(parser, argv)
    print(recipes.catalogue(args.action, args.name))
    return 0


def _demo(argv: list[str]) -> int:
    parser = _parser("demo")
    parser.add_argument("-o", "--out", type=str, default="demo", help="folder to write")
    parser.add_argument("--minutes", type=float, default=1.25, help="training time")
    args = _parse(parser, argv)
    from samsans.demo import demo

    demo(Path(args.out), minutes=args.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
