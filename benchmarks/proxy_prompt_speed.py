"""What Proxy Prompt with a preloaded bank costs a target, relative to plain SAM (encode, one box, decode).

    python benchmarks/proxy_prompt_speed.py --sizes 256 1024 --pairs 1 8 --rounds 3

ViT-B geometry, one object, CPU time; ratios are medians over rounds in which the variants take turns.
"""

from __future__ import annotations

import argparse

import torch
from sam_speed import backbone, ratios

from samsans.methods.proxy_prompt.config import ProxyPromptConfig
from samsans.methods.proxy_prompt.model import ProxyPrompt
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Batch

GOAL = 1.25


def compare(size: int, pairs: list[int], rounds: int) -> None:
    sam = backbone("fast", size, 12)
    method = ProxyPrompt(sam, ProxyPromptConfig()).eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, size, size, generator=draw)
    box = torch.tensor([[0.2, 0.2, 0.8, 0.8]]) * size
    tokens = sam.grid**2

    def plain() -> None:
        with torch.no_grad():
            sam.decode(sam.encode(images), sam.embed_prompts(torch.zeros(1, dtype=torch.long), boxes=box))

    def bank(k: int) -> SupportBank:
        return SupportBank(
            keys=torch.randn(k, tokens, sam.channels, generator=draw),
            values=torch.randn(k, tokens, 1, sam.channels, generator=draw),
            visible=torch.ones(k, tokens, dtype=torch.bool),
            objects=("object",),
            ids=tuple(map(str, range(k))),
            weights="",
        )

    banks = {f"K={k}": bank(k) for k in pairs}
    variants = {"plain": plain}
    for name, prepared in banks.items():
        variants[name] = lambda prepared=prepared: method.predict(Batch(images, None, ("x",), ("object",)), prepared)
    for name, ratio in ratios(variants, rounds).items():
        verdict = "reached" if ratio <= GOAL else "MISSED"
        print(f"{size:5d} px   {name:5} {ratio:5.2f} of plain SAM   goal <= {GOAL}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for size in args.sizes:
        compare(size, args.pairs, args.rounds)


if __name__ == "__main__":
    main()
