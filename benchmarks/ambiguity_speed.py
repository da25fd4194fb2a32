"""All metrics of ambiguity of one image relative to a plain double loop over its masks.

    python benchmarks/ambiguity_speed.py --samples 100 --annotators 4 --size 128

Process CPU time, medians over rounds, the two taking turns.  Both give the same numbers; the ratio is the result.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from samsans.metrics.ambiguity import compare

GOAL, LIMIT_MS = 20.0, 50.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks, 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def plain(samples: np.ndarray, annotations: np.ndarray) -> tuple[float, float]:
    """GED and HM-IoU, pair by pair."""
    k, m = len(samples), len(annotations)
    cross = np.array([[overlap(s, y) for y in annotations] for s in samples])
    within = np.array([[overlap(s, t) for t in samples] for s in samples])
    between = np.array([[overlap(x, y) for y in annotations] for x in annotations])
    ged = 2 * (1 - cross).mean() - (1 - within).mean() - (1 - between).mean()
    both = math.lcm(k, m)
    repeated = np.repeat(np.repeat(cross, both // k, axis=0), both // m, axis=1)
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    return float(ged), float(repeated[rows, columns].mean())


def blobs(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Discs around the middle of the image, ``(count, size, size)`` bool."""
    grid = np.mgrid[:size, :size] - size / 2
    shift, radius = rng.normal(0, size / 20, (count, 2, 1, 1)), rng.uniform(size / 10, size / 4, (count, 1, 1))
    return np.hypot(*np.moveaxis(grid[None] - shift, 1, 0)) < radius


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--annotators", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    samples, annotations = blobs(args.samples, args.size, rng), blobs(args.annotators, args.size, rng)
    found = compare(samples, annotations)
    assert np.allclose((found.ged, found.hm_iou), plain(samples, annotations), atol=1e-9)
    slow, fast = [], []
    for _ in range(args.rounds):
        slow.append(seconds(lambda: plain(samples, annotations)))
        fast.append(seconds(lambda: [compare(samples, annotations) for _ in range(10)]) / 10)
    ours, theirs = statistics.median(fast) * 1000, statistics.median(slow) * 1000
    ratio = theirs / ours
    print(f"{args.samples} samples, {args.annotators} annotators, {args.size} x {args.size}: loop {theirs:.0f} ms")
    print(f"samsans {ours:.1f} ms (at most {LIMIT_MS:.0f}), {ratio:.0f} times as fast (goal {GOAL:.0f})")
    if ratio < GOAL or ours > LIMIT_MS:
        raise SystemExit("the goal is missed")


if __name__ == "__main__":
    main()
