"""Speed, error and memory of the selective scan's backends: ``python benchmarks/selective_scan.py``.

Prints, per shape and backend, milliseconds of one call (best of several, one thread unless ``--threads``), how many
times faster than the sequential torch loop, the largest error relative to the largest value of the float64 result
(output, worst gradient), and by how much the process grew at its peak during forward and backward, each in a process
of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.ops import scan_cpu, selective_scan

SHAPES = [(1, 4096, 384, 16), (8, 257, 256, 16), (32, 65, 128, 16)]  # batch, tokens, channels, states
RESET = Path("/proc/self/clear_refs")  # writing 5 there forgets the peak


def inputs(batch: int, length: int, channels: int, states: int, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, A, B, C, D as a freshly initialised Vision Mamba has them; the same numbers in every dtype."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    x, dt = normal(batch, length, channels), F.softplus(normal(batch, length, channels) - 4)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    tensors = [x, dt, A, normal(batch, length, states), normal(batch, length, states), torch.ones(channels)]
    return [t.to(dtype).requires_grad_() for t in tensors]


def gradients(tensors: list[Tensor], backend: str) -> list[Tensor]:
    """The output and the gradients of its sum."""
    y = selective_scan(*tensors, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, tensors, torch.ones_like(y))]


def milliseconds(call: Callable[[], object], budget: float = 2.0) -> float:
    """Best time of one call, within about ``budget`` seconds, after one call to warm up."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 30):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def peak_growth(shape: tuple[int, ...], backend: str, threads: int) -> float:
    """MiB by which forward and backward raise the peak memory of a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", backend, *map(str, shape)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(backend: str, shape: list[int]) -> None:
    gradients(inputs(1, 64, 16, shape[3], torch.float32), backend)  # load code before the baseline is taken
    tensors = inputs(shape[0], shape[1], shape[2], shape[3], torch.float32)
    if RESET.exists():
        RESET.write_text("5")
    before = peak()
    gradients(tensors, backend)
    print(peak() - before)


def peak() -> float:
    """Largest resident memory so far, MiB; on Linux since the last reset."""
    if RESET.exists():
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        measure_memory(options.memory[0], [int(size) for size in options.memory[1:]])
        return
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{'B x L x E x N':>16} {'backend':>10} {'forward':>9} {'ratio':>6} {'fwd+bwd':>9} {'ratio':>6}", end=" ")
    print(f"{'err y':>8} {'err grad':>8} {'peak MiB':>8}")
    backends = ["sequential", "chunked", *(["cpp"] if scan_cpu.available() else [])]
    for shape in SHAPES:
        exact = gradients(inputs(*shape, torch.float64), "chunked")
        exact[0] = selective_scan(*(t.detach() for t in inputs(*shape, torch.float64)), backend="sequential")
        reference = (0.0, 0.0)
        for backend in backends:
            tensors = inputs(*shape, torch.float32)
            detached = [t.detach() for t in tensors]
            forward = milliseconds(lambda d=detached, b=backend: selective_scan(*d, backend=b))  # type: ignore[misc]
            both = milliseconds(lambda t=tensors, b=backend: gradients(t, b))  # type: ignore[misc]
            reference = reference if reference[0] else (forward, both)
            result = gradients(tensors, backend)
            worst = max(error(got, want) for got, want in zip(result[1:], exact[1:], strict=True))
            row = f"{'x'.join(map(str, shape)):>16} {backend:>10} {forward:7.1f}ms {reference[0] / forward:6.1f} "
            row += f"{both:7.1f}ms {reference[1] / both:6.1f} {error(result[0], exact[0]):8.1e} {worst:8.1e}"
            print(row, f"{peak_growth(shape, backend, options.threads):8.0f}", flush=True)


if __name__ == "__main__":
    main()
