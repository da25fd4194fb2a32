"""A frame of Proxy Prompt on SAM 2 relative to plain SAM 2, and whether memory grows with the length of a video.

    python benchmarks/video_speed.py --backbones sam2.1-hiera-tiny sam2-scratch --sizes 256 512 --rounds 5
    python benchmarks/video_speed.py --backbones sam2.1-hiera-tiny sam2.1-hiera-large --sizes 256 1024 --count
    python benchmarks/video_speed.py --memory --frames 50 500

Supports are encoded before, the prompt is the only memory (``memory_mode: proxy_only``).  The yardsticks, on the same
random weights: plain SAM 2 on still images (encode, a box an object, decode), and plain SAM 2 that follows the object
with a full memory bank, which it updates.  Ratios are medians over rounds of process CPU time of one thread, the
variants taking turns; the parts are shares of a still image's time.  ``paper`` is the published prompt generator,
``scratch`` the preset for small networks.  ``--count`` counts multiplications instead, of any size in a second: what a
ratio cannot fall below while the result stays the same.

Memory is that of a process after so many frames of 480 x 640 px through ``VideoSegmenter.step`` (Proxy Prompt), and
through ``Tracker`` (plain SAM 2 with its bank), two objects, sam2-scratch at 128 px (Linux only).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sam_speed import ratios
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samsans import config as configuration
from samsans import zoo
from samsans.backbones.base import LoadReport
from samsans.backbones.sam2 import Sam2
from samsans.backbones.sam2_network import MEMORIES, MEMORY, POINTERS, build_sam2
from samsans.backbones.sam2_start import initialise_sam2
from samsans.backbones.sam2_video import ObjectPrompt, Tracker
from samsans.config import RunConfig
from samsans.inference import Segmenter
from samsans.inference.video import VideoSegmenter
from samsans.methods.proxy_prompt.model import ProxyPrompt
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.types import Batch, ClassInfo, Embedding, Prompt

GOALS = {"still": 1.15}
GROWTH = 8  # MiB from the shortest to the longest video; a frame is 0.9 MiB
MEMORY_SIDE = 128
OBJECTS = ("head", "symphysis")


def settings(name: str, preset: str, size: int) -> RunConfig:
    """A run of Proxy Prompt; the context encoder is not measured and small."""
    values = {"backbone.name": name, "backbone.input_size": size, "model.csm.encoder.depth": 1}
    return configuration.from_dict(values, method="proxy_prompt", preset=preset)


def backbone(name: str, size: int) -> Sam2:
    """The architecture of ``name`` with random weights whose objects are there."""
    model = initialise_sam2(build_sam2(zoo.backbone_entry(name).architecture_for(size), size), seed=0)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 80.0)
    report = LoadReport("random numbers", 0)
    return Sam2(model, name=name, from_scratch=True, report=report).eval()


def random_bank(method: ProxyPrompt, pairs: int, objects: int) -> SupportBank:
    """What ``encode_support`` would give, of random numbers."""
    draw = torch.Generator().manual_seed(0)
    tokens, channels = method.backbone.grid**2, method.backbone.channels
    return SupportBank(
        keys=torch.randn(pairs, tokens, channels, generator=draw),
        values=torch.rand(pairs, tokens, objects, channels + 16 * (method.direct is not None), generator=draw),
        visible=torch.ones(pairs, tokens, dtype=torch.bool),
        objects=OBJECTS[:objects],
        ids=tuple(map(str, range(pairs))),
        weights="",
    )


def full_tracker(sam2: Sam2, image: torch.Tensor, boxes: torch.Tensor) -> Tracker:
    """A tracker of every box whose bank holds as much as it ever will beside one prompted frame."""
    tracker = Tracker(sam2, len(boxes))
    tracker.step(image, {n: ObjectPrompt(box=box) for n, box in enumerate(boxes)})
    for _ in range(POINTERS):
        tracker.step(image)
    assert sum(kept.spatial is not None for kept in tracker.recent[0]) == MEMORIES - 1
    return tracker


@torch.inference_mode()
def speed(name: str, preset: str, size: int, objects: int, pairs: list[int], rounds: int) -> None:
    """Print the ratios of a frame, and the shares of its parts."""
    sam2 = backbone(name, size)
    method = ProxyPrompt(sam2, settings(name, preset, size).model).eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.3, 0.5, 0.6, 0.9]])[:objects] * size
    index = torch.zeros(objects, dtype=torch.int64)
    frame, tracker = Batch(image, None, ("x",), OBJECTS[:objects]), full_tracker(sam2, image[0], boxes)

    def still() -> None:
        embedding = sam2.unconditioned(sam2.encode(image))
        sam2.decode(embedding, sam2.embed_prompts(index, boxes=boxes))

    variants: dict[str, Callable[[], object]] = {"still": still, "followed": lambda: tracker.step(image[0])}
    for k in pairs:
        variants[f"K={k}"] = functools.partial(method.predict, frame, random_bank(method, k, objects))
    found = ratios(variants, rounds)  # type: ignore[arg-type]
    where = f"{name} ({preset}) {size} px, {objects} object{'s' if objects > 1 else ''}"
    print(f"{where}   plain SAM 2 that follows: {found['followed']:.2f} of still images", flush=True)
    for k in pairs:
        ratio = found[f"K={k}"]
        verdict = f"goal <= {GOALS['still']}: {'reached' if ratio <= GOALS['still'] else 'MISSED'}"
        follows = ratio / found["followed"]
        print(f"{where}   K={k}  {ratio:.2f} of still images   {verdict}   {follows:.2f} of following", flush=True)
    print(f"{where}   " + parts(method, image, random_bank(method, 1, objects), still, rounds), flush=True)


def parts(method: ProxyPrompt, image: torch.Tensor, bank: SupportBank, still: Callable[[], None], rounds: int) -> str:
    """What each part of a frame takes, as shares of a still image, and frames a second of both."""
    sam2, objects = method.backbone, len(bank.objects)
    embedding = sam2.encode(image)
    tokens, context = method.prompt(embedding.features, bank.keys, bank.values)
    assert method.memory is not None
    memory = method.memory.tokens(tokens)
    read = context.transpose(0, 1).flatten(1)[None]
    calls: dict[str, Callable[[], object]] = {
        "still": still,
        "encode": lambda: sam2.encode(image),
        "prompt": lambda: method.prompt(embedding.features, bank.keys, bank.values, visible=bank.visible),
        "of it colorization": lambda: method.color(embedding.features, read, objects),
        "memory attention": lambda: sam2.attend(embedding.features, memory, method.memory.positions, len(memory)),
        "it and decoder": lambda: method.decode(embedding, tokens, context),
    }
    shares = ratios(calls, rounds)  # type: ignore[arg-type]
    start = time.process_time()
    for _ in range(rounds):
        still()
    rate = rounds / (time.process_time() - start)
    told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"K=1: {told}; still images: {rate:.2f} a second"


@torch.no_grad()
def work(name: str, preset: str, size: int, pairs: list[int]) -> None:
    """Print the ratios by multiplications of matrix products and convolutions, one object, on tensors without data."""
    with torch.device("meta"):
        model = build_sam2(zoo.backbone_entry(name).architecture_for(size), size)
        sam2 = Sam2(model, name=name, from_scratch=True, report=LoadReport("nothing", 0)).eval()
        method = ProxyPrompt(sam2, settings(name, preset, size).model).eval()
        grid, channels, tokens = sam2.grid, sam2.channels, sam2.grid**2
        features, image = torch.zeros(1, channels, grid, grid), torch.zeros(1, 3, size, size)
        fine, middle = (torch.zeros(1, channels // n, n // 2 * grid, n // 2 * grid) for n in (8, 4))
        box = Prompt(torch.zeros(1, 3, channels), features, torch.zeros(1, dtype=torch.int64))
        read = torch.zeros(1, tokens, channels + 16 * (method.direct is not None))
        prompt = torch.zeros(tokens // 16 * channels // MEMORY, 1, MEMORY)
        bank = torch.zeros(MEMORIES * tokens + POINTERS * channels // MEMORY, 1, MEMORY)
        mask, there = torch.zeros(1, 1, 16 * grid, 16 * grid), torch.ones(1, dtype=torch.bool)
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: sam2.encode(image),
            "decode": lambda: sam2.decode(Embedding(features, (fine, middle)), box),
            "colorization": lambda: method.color(features, read, 1),
            "memory attention": lambda: sam2.attend(features, prompt, pointers=len(prompt)),
            "full bank": lambda: sam2.attend(features, bank, pointers=len(bank) - MEMORIES * tokens),
            "memory encoder": lambda: sam2.remember(features, mask, there),
        }
        counted = {part: multiplications(call) for part, call in calls.items()}
    counted["selective map, K=1"] = tokens**2 * (channels + read.shape[-1])
    still = counted["encode"] + counted["decode"]
    followed = still + counted["full bank"] + counted["memory encoder"]
    where = f"{name} ({preset}) {size} px"
    for k in pairs:
        frame = still + counted["colorization"] + counted["memory attention"] + k * counted["selective map, K=1"]
        print(f"{where}   K={k}  {frame / still:.2f} of still images, {frame / followed:.2f} of following", flush=True)
    shares = ", ".join(f"{part} {count / still:.3f}" for part, count in counted.items())
    print(f"{where}   still {still / 1e9:.2f} billion, following {followed / still:.2f}; {shares}", flush=True)


def multiplications(call: Callable[[], object]) -> int:
    """How many a call takes in matrix products and convolutions."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


# -- memory -----------------------------------------------------------------------------------------------------------


def frames() -> Iterator[np.ndarray]:
    """Moving noise, ``(480, 640, 3)`` uint8, endless."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    for shift in itertools.count():
        yield np.roll(picture, 7 * shift, axis=1)


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """Largest resident memory so far, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def run_frames(what: str, lengths: list[int]) -> None:
    """Follow a video; prints resident memory and its peak after each of the ``lengths``."""
    sam2 = backbone("sam2-scratch", MEMORY_SIDE)
    if what == "Tracker":
        tracker = Tracker(sam2, len(OBJECTS))
        boxes = {n: ObjectPrompt(box=torch.tensor([10.0 + n, 12, 80, 90])) for n in range(len(OBJECTS))}

        def step(frame: np.ndarray) -> None:
            picture = torch.from_numpy(frame[:MEMORY_SIDE, :MEMORY_SIDE].copy()).permute(2, 0, 1) / 128 - 1
            tracker.step(picture, boxes if tracker.index == 0 else None)
    else:
        config = settings("sam2-scratch", "scratch", MEMORY_SIDE)
        classes = tuple(ClassInfo(name, n, (n,)) for n, name in enumerate(OBJECTS, start=1))
        segmenter = Segmenter(ProxyPrompt(sam2, config.model), config, classes, device="cpu")
        mask = np.zeros((480, 640), np.uint8)
        mask[100:200, 100:300], mask[300:400, 200:500] = 1, 2
        video = VideoSegmenter(segmenter, support=segmenter.encode_support([(next(frames()), mask)]))

        def step(frame: np.ndarray) -> None:
            video.step(frame)

    for done, frame in enumerate(itertools.islice(frames(), max(lengths)), start=1):
        step(frame)
        if done in lengths:
            print(done, resident(), peak(), flush=True)


def memory(lengths: list[int]) -> None:
    """Print resident memory after each length of one video, a fresh process for each way to follow it."""
    for what in ("VideoSegmenter", "Tracker"):
        command = [sys.executable, __file__, "--run", what, "--frames", *map(str, lengths)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [[float(value) for value in line.split()] for line in told.splitlines()]
        for length, now, most in rows:
            print(f"{what:15}{length:6.0f} frames   {now:6.1f} MiB resident, {most:6.1f} at its peak", flush=True)
        growth = rows[-1][2] - rows[0][2]
        verdict = f"goal <= {GROWTH} MiB: {'reached' if growth <= GROWTH else 'MISSED'}"
        print(f"{what:15}the peak grew by {growth:.1f} MiB   {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["sam2.1-hiera-tiny", "sam2-scratch"], help="of SAM 2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="input sides in pixels")
    parser.add_argument("--presets", nargs="+", default=["paper"], help="of Proxy Prompt: paper, scratch")
    parser.add_argument("--objects", type=int, nargs="+", default=[1], choices=[1, 2])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 4], help="support pairs K")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--count", action="store_true", help="count multiplications instead of time")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 500], help="lengths of videos, for --memory")
    parser.add_argument("--run", choices=["VideoSegmenter", "Tracker"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.run:
        run_frames(args.run, args.frames)
    elif args.memory:
        memory(args.frames)
    elif args.count:
        for name, preset, size in itertools.product(args.backbones, args.presets, args.sizes):
            work(name, preset, size, args.pairs)
    else:
        for name, preset, size, objects in itertools.product(args.backbones, args.presets, args.sizes, args.objects):
            speed(name, preset, size, objects, args.pairs, args.rounds)


if __name__ == "__main__":
    main()
