"""Segmenting a volume with MaskSAM relative to a loop of SAM's own decoder over every slice and query.

    python benchmarks/masksam_speed.py --sizes 32 64 --slices 4 --rounds 3

ViT-B blocks, eight objects, sliding windows that overlap by half, from array to label map.  The yardstick has the same
windows, stem, prompt generator and encoder, the encoder's attention in the library's eager form, and then asks SAM's
decoder about one query of one slice at a time; it has none of the adapters between slices, and so less to do.  Ratios
are medians over rounds of process CPU time, the variants taking turns; in brackets, which share of the time is spent
on what.  One thread of a CPU gains little from batches: the loop costs calls, not arithmetic.  ``bf16`` is what
``predict --precision bf16`` does; the loop is in fp32 always.  Printed beside it: how far its class probabilities of
voxels are from those in fp32, on average.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Literal

import numpy as np
import torch
from sam_speed import backbone, ratios
from torch import Tensor

from samsans.config import BackboneConfig, PatchConfig, RunConfig
from samsans.inference import Segmenter
from samsans.methods.masksam.config import MaskSamConfig
from samsans.methods.masksam.model import MaskSam
from samsans.methods.masksam.prompt_generator import Prompts
from samsans.types import ClassInfo, Embedding, Prompt

GOAL = 0.50
OBJECTS = tuple(ClassInfo(f"organ {n}", n, (n,)) for n in range(1, 9))


class Loop(MaskSam):
    """MaskSAM whose decoder is asked about one query of one slice at a time, without adapters."""

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits ``(B, Q, T, H, W)`` and class logits ``(B, Q, T, K + 1)``."""
        sparse, dense = self.decoder.embed(self.backbone, prompts)  # (B Q, T, ., C), (B Q, T, C, g, g)
        batch, queries, depth = prompts.boxes.shape[:3]
        index = torch.zeros(1, dtype=torch.int64)
        masks, classes = [], []
        for item in range(batch * queries * depth):
            query, place = divmod(item, depth)
            features = embedding[query // queries, :, place][None]
            added = self.decoder.class_token
            if prompts.tokens is not None:
                added = added + prompts.tokens.flatten(0, 1)[query, place]
            tokens = torch.cat([sparse[query, place], added.view(1, -1)])[None]
            asked = Prompt(tokens, dense[query, place][None], index)
            masks.append(self.backbone.decode(Embedding(features), asked).logits[0, 0])
            classes.append(self.decoder.classes(tokens[0, -1]))
        shape = batch, queries, depth
        return self.enlarge(torch.stack(masks).unflatten(0, shape)), torch.stack(classes).unflatten(0, shape)


def segmenter(
    kind: type[MaskSam],
    attention: str,
    size: int,
    args: argparse.Namespace,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Segmenter:
    """A network of random weights in the layout of ACDC, for patches of half of the volume's slices."""
    own = MaskSamConfig(queries=args.queries, upsample=2, output_cnn=False, stem=16, widths=[128, 128], fusions=2)
    depth, seen = max(1, args.slices // 2), size * 2**own.upsample
    method = kind(backbone(attention, seen, args.blocks), own, len(OBJECTS), depth)
    patches = PatchConfig(spacing=[1.0, 1.0, 1.0], size=[depth, size, size], intensity="zscore")
    config = RunConfig(method="masksam", backbone=BackboneConfig(input_size=seen), patches=patches, model=own)
    return Segmenter(method, config, OBJECTS, device="cpu", precision=precision)


def compare(size: int, args: argparse.Namespace) -> None:
    """Print the ratios of a volume, and where its time goes."""
    draw = torch.Generator().manual_seed(0)
    volume = torch.rand(args.slices, size, size, 1, generator=draw).numpy()
    loop = segmenter(Loop, "naive", size, args)
    here = {precision: segmenter(MaskSam, "fast", size, args, precision) for precision in ("fp32", "bf16")}
    measured = ratios(
        {"loop": lambda: loop.predict(volume), **{name: partial(one.predict, volume) for name, one in here.items()}},
        args.rounds,
    )
    exact = here["fp32"].predict(volume, probabilities=True).probabilities
    for name, one in here.items():
        made = one.predict(volume, probabilities=True)
        shares = ", ".join(f"{p} {made.seconds[p] / made.seconds['model']:.2f}" for p in ("encode", "prompt", "decode"))
        off = "" if name == "fp32" else f"; {np.abs(np.float32(made.probabilities) - np.float32(exact)).mean():.4f} off"
        verdict = f"goal <= {GOAL:.2f}: {'reached' if measured[name] <= GOAL else 'MISSED'}"
        where = f"{size:5d} px, {args.slices} slices, {name}"
        print(f"{where}   {measured[name]:5.2f} of the loop   {verdict}   ({shares}{off})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 64], help="sides in pixels; SAM sees four times it"
    )
    parser.add_argument("--slices", type=int, default=4, help="of the volume; windows have half of them")
    parser.add_argument("--queries", type=int, default=24, help="masks a slice")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--blocks", type=int, default=12, help="ViT blocks, a multiple of 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for size in args.sizes:
        compare(size, args)


if __name__ == "__main__":
    main()
