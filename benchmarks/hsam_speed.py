"""A training step of H-SAM relative to plain ``transformers``: its encoder with LoRA.

    python benchmarks/hsam_speed.py --size 224 --batch 4 --rounds 3

ViT-B geometry, eight objects, rank 4.  A step of H-SAM and of SAMed is forward, loss and backward of everything, from
slice to label; the yardstick is the eager encoder alone on the same images.  All are timed without and with a step of
AdamW on what each trains: the encoder its adapters alone, H-SAM and SAMed their decoders too.  Ratios are medians over
rounds of process CPU time, the variants taking turns.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from sam_speed import backbone, ratios

from samsans.backbones.adapters import add_lora
from samsans.backbones.sam import Sam
from samsans.config import LoraConfig
from samsans.methods.adapted.samed import Samed
from samsans.methods.adapted.samed_config import SamedConfig
from samsans.methods.hsam.config import HsamConfig
from samsans.methods.hsam.model import HSam
from samsans.types import Batch

GOALS = {"H-SAM": 1.35}
OBJECTS = tuple(f"organ {n}" for n in range(1, 9))


def labelled(batch: int, size: int) -> Batch:
    """Noise with blocks of eight organs on it, which cover half of the slice."""
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 2 * len(OBJECTS), (batch, 8, 8), generator=draw)
    labels = blocks.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    masks = labels[:, None] == torch.arange(1, len(OBJECTS) + 1)[:, None, None]
    images = torch.rand(batch, 3, size, size, generator=draw)
    return Batch(images, masks, tuple(map(str, range(batch))), OBJECTS)


def encoder(attention: str, size: int, blocks: int) -> Sam:
    """ViT-B with adapters on q and v of the encoder, in training mode."""
    return add_lora(backbone(attention, size, blocks), LoraConfig(decoder=[])).train()


def step(method: Any, batch: Batch) -> None:
    """Forward, loss and backward."""
    method.loss(method(batch), batch)["loss"].backward()


def compare(size: int, batch: int, rounds: int, blocks: int) -> None:
    slices = labelled(batch, size)
    eager = encoder("naive", size, blocks)
    models: dict[str, Any] = {
        "plain": eager,
        "H-SAM": HSam(encoder("fast", size, blocks), HsamConfig(), len(OBJECTS)).train(),
        "SAMed": Samed(encoder("fast", size, blocks), len(OBJECTS), SamedConfig()).train(),
    }
    passes: dict[str, Callable[[], None]] = {
        name: functools.partial(step, model, slices) for name, model in models.items()
    }
    passes["plain"] = lambda: eager.encode(slices.images).features.square().mean().backward()
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
        for name, model in models.items()
    }

    def without(name: str) -> None:
        passes[name]()
        models[name].zero_grad()

    def with_optimizer(name: str) -> None:
        passes[name]()
        optimizers[name].step()
        models[name].zero_grad()

    for what, run in (("forward, loss, backward", without), ("the same and AdamW", with_optimizer)):
        found = ratios({name: functools.partial(run, name) for name in models}, rounds)
        for name, ratio in found.items():
            goal = GOALS.get(name)
            verdict = "" if goal is None else f"   goal <= {goal}: {'reached' if ratio <= goal else 'MISSED'}"
            print(f"{size:5d} px   {name:6} {what:24} {ratio:5.2f} of the eager encoder{verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="input side in pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=4, help="slices a step")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--blocks", type=int, default=12, help="ViT blocks, a multiple of 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compare(args.size, args.batch, args.rounds, args.blocks)


if __name__ == "__main__":
    main()
