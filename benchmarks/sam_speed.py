"""Time and memory of SAM's encoder here, relative to plain ``transformers`` (eager), on the same random weights.

    python benchmarks/sam_speed.py --sizes 256 512 1024 --rounds 3

Ratios are medians over rounds of process CPU time, the variants taking turns in every round, so that a busy machine
disturbs them alike.  Memory is the growth of a fresh process's peak during one forward pass (Linux only).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from samsans.architectures import VIT_B
from samsans.backbones.adapters import add_lora
from samsans.backbones.sam import LoadReport, Sam, build_network
from samsans.backbones.start import initialise
from samsans.config import LoraConfig

GOALS = {
    "forward": {256: 0.80, 512: 0.85, 1024: 0.80},
    "forward bf16": {256: 0.55, 512: 0.55, 1024: 0.55},
    "peak memory": {1024: 0.50},
    "LoRA training step": {256: 0.85},
}


def backbone(attention: str, size: int, blocks: int) -> Sam:
    """ViT-B with random weights; fewer ``blocks`` keep its pattern of two windowed and one global."""
    arch = dataclasses.replace(VIT_B, depth=blocks, global_blocks=tuple(range(2, blocks, 3)))
    model = initialise(build_network(arch, size, attention), seed=0)
    report = LoadReport("random numbers", 0)
    return Sam(model, name="vit-b", from_scratch=True, report=report, attention=attention).eval()


def ratios(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median over rounds of each variant's CPU time over the first one's; one round more warms up."""
    first, *others = variants
    taken: dict[str, list[float]] = {name: [] for name in others}
    for turn in range(rounds + 1):
        seconds = {}
        for name, call in variants.items():
            start = time.process_time()
            call()
            seconds[name] = time.process_time() - start
        if turn:
            for name in others:
                taken[name].append(seconds[name] / seconds[first])
    return {name: statistics.median(values) for name, values in taken.items()}


def report(what: str, size: int, ratio: float) -> None:
    goal = GOALS.get(what, {}).get(size)
    verdict = "" if goal is None else f"   goal <= {goal:.2f}: {'reached' if ratio <= goal else 'MISSED'}"
    print(f"{size:5d} px   {what:20} {ratio:5.2f} of eager{verdict}", flush=True)


def forward(size: int, rounds: int, blocks: int) -> None:
    eager, fast = backbone("naive", size, blocks), backbone("fast", size, blocks)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def encode(sam: Sam, bf16: bool = False) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sam.encode(images)

    found = ratios(
        {
            "eager": lambda: encode(eager),
            "forward": lambda: encode(fast),
            "forward bf16": lambda: encode(fast, bf16=True),
        },
        rounds,
    )
    for what, ratio in found.items():
        report(what, size, ratio)


def training(size: int, rounds: int, blocks: int, batch: int = 2) -> None:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    index = torch.arange(batch)
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(batch, -1) * size

    def step(sam: Sam) -> None:
        masks = sam.decode(sam.encode(images), sam.embed_prompts(index, boxes=boxes))
        masks.logits.sigmoid().mean().backward()
        sam.zero_grad()

    models = {name: add_lora(backbone(name, size, blocks), LoraConfig()).train() for name in ("naive", "fast")}
    found = ratios({"eager": lambda: step(models["naive"]), "fast": lambda: step(models["fast"])}, rounds)
    report("LoRA training step", size, found["fast"])


def memory(attention: str, size: int, blocks: int) -> int:
    """Growth of this process's resident memory, in KiB, at the peak of one forward pass."""
    sam = backbone(attention, size, blocks)
    images = torch.zeros(1, 3, size, size)
    Path("/proc/self/clear_refs").write_text("5")  # lets the peak start again from what is resident now
    before = peak()
    with torch.no_grad():
        sam.encode(images)
    return peak() - before


def peak() -> int:
    """Largest resident memory so far, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def memory_ratio(size: int) -> float:
    """Peak of the fast form over that of the eager one, each in a process of its own (three blocks show it)."""

    def measure(attention: str) -> int:
        command = [sys.executable, __file__, "--memory-of", attention, "--sizes", str(size), "--blocks", "3"]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return measure("fast") / measure("naive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="input sides in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--blocks", type=int, default=12, help="ViT blocks, a multiple of 3")
    parser.add_argument("--memory-of", choices=["fast", "naive"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(memory(options.memory_of, options.sizes[0], options.blocks))
        return
    for size in options.sizes:
        forward(size, options.rounds, options.blocks)
        report("peak memory", size, memory_ratio(size))
    training(min(options.sizes), options.rounds, options.blocks)


if __name__ == "__main__":
    main()
