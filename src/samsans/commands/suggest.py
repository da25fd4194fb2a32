"""``samsans suggest``: which unlabelled image to annotate next."""

from __future__ import annotations

import json
from dataclasses import asdict

from samsans.cli import _data_config, _data_options, _parse, _parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = _parser("suggest")
    parser.add_argument("run", type=str, metavar="RUN", help="folder that train wrote")
    parser.add_argument("-i", "--input", type=str, required=True, help="folder or CSV of unlabelled images")
    parser.add_argument("-n", "--number", type=int, default=5, help="how many to suggest")
    parser.add_argument("--by", choices=["coverage", "farthest"], default="coverage", help="what is best, see the docs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--batch-size", type=int, help="slices a batch")
    _data_options(parser)
    args = _parse(parser, argv)
    from samsans import api
    from samsans.data.cases import Dataset
    from samsans.display import Display
    from samsans.inference.suggest import suggest

    segmenter = api.load(args.run, device=args.device, checkpoint=args.checkpoint)
    images = api.inputs(segmenter, [args.input], _data_config(args.input, args.data))
    with Display("looking") as display:
        found = suggest(
            segmenter,
            images if isinstance(images, Dataset) else args.input,
            args.number,
            by=args.by,
            batch_size=args.batch_size,
            on_progress=display.step,
        )
    if args.json:
        print(json.dumps([asdict(one) | {"file": str(one.file)} for one in found], indent=1))
        return 0
    width = max(len(one.id) for one in found) + 2
    print(f"   {'image':{width}}{'distance':>9}  nearest annotated or above")
    for place, one in enumerate(found, start=1):
        print(f"{place:2} {one.id:{width}}{one.distance:9.3f}  {one.nearest}")
    return 0
