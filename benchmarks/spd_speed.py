"""A slice of SPD, with its prompts kept on disk and without, relative to plain SAM with the same points.

    python benchmarks/spd_speed.py --sizes 256 512 --slices 8 --rounds 3

ViT-B geometry, adapters merged, one slice a batch, whole volumes from array to label map; reading what was kept and the
hash of the volume are counted.  Every slice is shown the same three points, which pass, so that both decode alike.
Ratios are medians over rounds of process CPU time, the variants taking turns.  Published (one RTX 4090, cold): 1.10.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from sam_speed import backbone, ratios

from samsans.backbones.sam import Sam
from samsans.config import BackboneConfig, DataConfig, RunConfig
from samsans.inference import Segmenter
from samsans.methods.spd.config import SpdConfig
from samsans.methods.spd.model import Spd
from samsans.types import ClassInfo

GOAL = 1.05
PLACES = ((0.4, 0.4), (0.5, 0.6), (0.6, 0.5))  # y and x of the points, in sides
OBJECT = (ClassInfo("object", 1, (1,)),)


def segmenter(sam: Sam, distill: str, run: Path | None) -> Segmenter:
    """SPD on ``sam`` whose prior lets every point pass, or with ``distill`` none plain SAM."""
    model = SpdConfig(distill=distill)  # type: ignore[arg-type]
    config = RunConfig(method="spd", backbone=BackboneConfig(), data=DataConfig(window=[0, 255]), model=model)
    method = Spd(sam, model)
    method.prompted.fill_(True)
    if method.head is not None:
        assert method.head.last.bias is not None
        torch.nn.init.constant_(method.head.last.bias, 80.0)
    return Segmenter(method, config, OBJECT, run=run, device="cpu")


def latency(size: int, slices: int, rounds: int, blocks: int) -> None:
    sam = backbone("fast", size, blocks)
    volume = np.random.default_rng(0).integers(0, 256, (slices, size, size)).astype(np.uint8)
    points = np.array([(z, round(y * size), round(x * size)) for z in range(slices) for y, x in PLACES])
    with tempfile.TemporaryDirectory() as folder:
        plain, spd = segmenter(sam, "none", None), segmenter(sam, "context", Path(folder))
        calls = {
            "plain": functools.partial(plain.predict, volume, points=points, batch_size=1),
            "kept": functools.partial(spd.predict, volume, points=points, batch_size=1),
            "cold": functools.partial(spd.predict, volume, points=points, batch_size=1, cache=False),
        }
        answers = [call().labels for call in (calls["plain"], calls["cold"], calls["kept"], calls["kept"])]
        assert all((answer == answers[0]).all() for answer in answers), "the variants answer differently"
        found = ratios(calls, rounds)  # type: ignore[arg-type]
    verdict = f"goal <= {GOAL}: {'reached' if found['kept'] <= GOAL else 'MISSED'}"
    print(f"{size:5d} px   prompts kept  {found['kept']:5.3f} of plain SAM   {verdict}", flush=True)
    print(f"{size:5d} px   cold          {found['cold']:5.3f} of plain SAM   (published 1.10)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="input sides, pixels")
    parser.add_argument("--slices", type=int, default=8, help="of the volume")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--blocks", type=int, default=12, help="ViT blocks, a multiple of 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for size in args.sizes:
        latency(size, args.slices, args.rounds, args.blocks)


if __name__ == "__main__":
    main()
