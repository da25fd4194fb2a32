"""The selective scan on CPUs: ``scan_cpu.cpp``, compiled on first use and called through ctypes.

A plain shared object needs a C++ compiler and nothing else (no Python headers, no ninja), takes two seconds to
build and is kept in ``~/.cache/samsans``, one per processor, compiler and source (decision D-34).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samsans.errors import InputError

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("scan_cpu.cpp")
COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-w")  # never -ffast-math
_MACHINE_FLAGS = (
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native", "-fopenmp"),
    ("-mcpu=native",),
    (),
)
_UPDATES_PER_THREAD = 1 << 17  # state updates worth waking a thread for, about 30 microseconds


@functools.cache
def available() -> bool:
    """Whether the kernel can be used here; compiles it if need be, and logs the reason if not."""
    try:
        library()
    except InputError as error:
        logger.warning("The selective scan runs in its plain torch form, about ten times slower. %s", error)
        return False
    return True


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel.  Raises InputError where there is no working C++ compiler."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise InputError("no C++ compiler", f"one of {', '.join(COMPILERS)}", "Install one for faster selective scans")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join((SOURCE.read_text(), version, _processor())).encode()).hexdigest()[:20]
    try:
        folder = Path.home() / ".cache" / "samsans"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"selective_scan_{key}.so"
        if not path.exists():
            logger.info("Compiling the selective scan for this processor, once: %s", path)
            _compile(compiler, path)
        return _declare(ctypes.CDLL(str(path)))
    except (OSError, RuntimeError) as error:  # no home, or one that cannot be written or run from
        logger.warning("The compiled selective scan cannot be cached (%s): compiling it for this run only.", error)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "selective_scan.so"
            _compile(compiler, path)
            try:
                return _declare(ctypes.CDLL(str(path)))
            except OSError as failure:
                raise InputError(f"a compiled selective scan that does not load: {failure}") from failure


def _processor() -> str:
    """What ``-march=native`` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {features}"


def _compile(compiler: str, path: Path) -> None:
    """Build at ``path``, atomically, with the best flags the compiler takes."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        for flags in _MACHINE_FLAGS:
            command = [compiler, *_FLAGS, *flags, str(SOURCE), "-o", name]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                os.replace(name, path)
                return
        raise InputError(f"a C++ compiler that fails: {' '.join(command)}: {result.stderr.strip()[-500:]}")
    finally:
        Path(name).unlink(missing_ok=True)


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    lib.scan_kept.argtypes, lib.scan_kept.restype = [size] * 4, size
    lib.scan_forward.argtypes, lib.scan_forward.restype = [pointer] * 8 + [size] * 4 + [number] * 2, None
    lib.scan_backward.argtypes, lib.scan_backward.restype = [pointer] * 14 + [size] * 5 + [number] * 2, None
    return lib


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False) -> Tensor:
    """``selective_scan`` on CPU float32 tensors.  Raises InputError for any other, or without a compiler."""
    tensors = (x, dt, A, B, C, D)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        raise InputError(
            f"{x.dtype} tensors on {x.device} for the cpp scan", "float32 on the CPU", "Use backend='auto'"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _CpuScan.apply(*tensors, reverse)
    return _forward(tensors, reverse, None)


def _threads(x: Tensor, A: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() * A.shape[1] // _UPDATES_PER_THREAD))


def _pointers(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _forward(tensors: tuple[Tensor, ...], reverse: bool, kept: Tensor | None) -> Tensor:
    tensors = tuple(t.contiguous() for t in tensors)
    x, A = tensors[0], tensors[2]
    y = torch.empty_like(x)
    states = 0 if kept is None else kept.data_ptr()
    library().scan_forward(*_pointers(*tensors, y), states, *x.shape, A.shape[1], reverse, _threads(x, A))
    return y


class _CpuScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
        kept = x.new_empty(library().scan_kept(*x.shape, A.shape[1]))
        y = _forward((x, dt, A, B, C, D), reverse, kept)
        ctx.save_for_backward(x, dt, A, B, C, D, kept)
        ctx.reverse = reverse
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [t.contiguous() for t in (*ctx.saved_tensors, gy)]
        x, _, A, B = inputs[:4]
        threads = _threads(x, A)
        groups = min(x.shape[2], -(-threads // len(x)))
        gx, gdt = torch.empty_like(x), torch.empty_like(x)
        ga, gd = x.new_empty(len(x), *A.shape), x.new_empty(len(x), x.shape[2])
        gb, gc = x.new_empty(2, groups, *B.shape)
        outputs = (gx, gdt, ga, gb, gc, gd)
        library().scan_backward(*_pointers(*inputs, *outputs), groups, *x.shape, A.shape[1], ctx.reverse, threads)
        return gx, gdt, ga.sum(0), gb.sum(0), gc.sum(0), gd.sum(0), None
