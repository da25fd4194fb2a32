"""``samsans experiment``: protocols of the papers and controls."""

from __future__ import annotations

from pathlib import Path

from samsans import experiments
from samsans.cli import _data_config, _data_options, _parse, _parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = _parser("experiment")
    experiments.add_arguments(parser)
    _data_options(parser)
    args = _parse(parser, argv)
    from samsans.display import Display

    with Display(args.name) as display:
        table = experiments.run(
            args.name,
            _data_config(args.folder, args.data),
            Path(args.run),
            Path(args.out),
            seed=args.seed,
            limit=args.limit,
            part=args.split,
            convention=args.convention,
            on_progress=display.step,
            **{option: args[option] for options in experiments.OWN_OPTIONS.values() for option in options},
        )
    print(table)
    return 0
