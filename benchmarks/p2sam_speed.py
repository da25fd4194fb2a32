"""Sixteen samples of P2SAM relative to one, and a step of stage 2 relative to one of stage 1.

    python benchmarks/p2sam_speed.py --samples 16 --rounds 5

ViT-B geometry at 128 pixels, eight masks; all is counted, from image to logits of full size.  Stage 2 works from
embeddings that are already known.  Ratios are medians over rounds of process CPU time, the variants taking turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools

import torch
from sam_speed import ratios

from samsans.architectures import VIT_B
from samsans.backbones.adapters import add_lora
from samsans.backbones.sam import LoadReport, Sam, build_network
from samsans.backbones.start import initialise
from samsans.config import LoraConfig
from samsans.methods.p2sam.config import P2SamConfig
from samsans.methods.p2sam.model import PROMPTS, SAM, P2Sam
from samsans.types import Batch, Stage

SIDE, GOAL = 128, 1.3


def method(injection: str, blocks: int, stage: str) -> P2Sam:
    """ViT-B with adapters and random weights, in a stage whose images do not change."""
    arch = dataclasses.replace(VIT_B, depth=blocks, global_blocks=tuple(range(2, blocks, 3)), multimask=8)
    network = initialise(build_network(arch, SIDE), seed=0)
    sam = Sam(network, name="vit-b", from_scratch=True, report=LoadReport("random numbers", 0))
    made = P2Sam(add_lora(sam, LoraConfig(decoder=[])), P2SamConfig(injection=injection))  # type: ignore[arg-type]
    made.begin(Stage(stage, ()), augmented=False)
    if stage == PROMPTS:
        made.backbone.requires_grad_(False)
        made.weights.requires_grad_(False)
    return made


def images(count: int) -> Batch:
    """Noise, of which four annotators marked the middle."""
    annotations = torch.zeros(count, 4, 1, SIDE, SIDE, dtype=torch.bool)
    annotations[..., 32:96, 32:96] = True
    pixels = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, annotations[:, 0], tuple(map(str, range(count))), ("lesion",), annotations=annotations)


def samples(count: int, rounds: int, blocks: int) -> None:
    for injection in ("token", "dense"):
        made, image = method(injection, blocks, PROMPTS).eval(), images(1)
        made.finish()
        calls = {str(n): functools.partial(made.sample, image, [0], n) for n in (1, count)}
        found = ratios(calls, rounds)[str(count)]  # type: ignore[arg-type]
        verdict = f"goal <= {GOAL}: {'reached' if found <= GOAL else 'MISSED'}" if count == 16 else ""
        print(f"{injection:5}  {count:3d} samples  {found:5.2f} of one   {verdict}", flush=True)


def steps(rounds: int, blocks: int, batch: int = 10) -> None:
    made, shown = {stage: method("token", blocks, stage).train() for stage in (SAM, PROMPTS)}, images(batch)

    def step(stage: str) -> None:
        made[stage].loss(made[stage](shown), shown)["loss"].backward()
        made[stage].zero_grad()

    found = ratios({stage: functools.partial(step, stage) for stage in made}, rounds)[PROMPTS]
    print(f"a step of stage 2, {batch} images  {found:5.2f} of one of stage 1", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16, help="samples of an image")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--blocks", type=int, default=12, help="ViT blocks, a multiple of 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples(args.samples, args.rounds, args.blocks)
    steps(args.rounds, args.blocks)


if __name__ == "__main__":
    main()
