"""The selective scan of Mamba, channels last: one entry, four backends that give the same numbers.

Per channel ``e`` and state ``s`` (Proxy Prompt, Eq. 1-2, with Vim's discretisation)::

    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]        y[t] = <C[t], h[t]> + D x[t]

``sequential`` is the literal loop, the oracle of the tests.  ``chunked`` is the fastest form in plain torch.  ``cpp``
(CPU) and ``triton`` (CUDA) are fused kernels; decision D-34 sets their order.  Only ``exp`` of ``dt A`` is ever formed,
never its inverse, so nothing overflows where ``A < 0``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from samsans.errors import InputError
from samsans.ops import scan_cpu

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "cpp", "triton", "chunked", "sequential")
_ONE_CHUNK, _MAX_CHUNK = 128, 32  # up to so many tokens stay one chunk; longer sequences are cut into such chunks
_BLOCK_ELEMENTS = 1 << 20  # largest temporary of the chunked form, in numbers: small enough to stay in the cache


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run the recurrence along the second axis of ``x``; differentiable once in all six tensors.

    x: ``(B, L, E)`` float.  dt: ``(B, L, E)`` step sizes, >= 0 (after softplus).  A: ``(E, N)``, < 0.
    B, C: ``(B, L, N)``.  D: ``(E,)``.
    reverse: run from the last token to the first; the same as flipping the inputs and the output, without copies.
    backend: ``auto`` is ``triton`` on CUDA, ``cpp`` for float32 on a CPU where a C++ compiler is found, else
        ``chunked``.
    Returns ``(B, L, E)``: float64 if an input is float64, else float32 (also under autocast, decision of 12.2: the
    state is never kept in half precision).
    Raises InputError if shapes disagree or the backend asked for by name cannot run here.
    """
    tensors = (x, dt, A, B, C, D)
    _check(*tensors, backend)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x, dt, A, B, C, D = (t.to(dtype) for t in tensors)
        return _choose(backend, x)(x, dt, A, B, C, D, reverse)


def _choose(backend: str, x: Tensor) -> Any:
    """The function ``(x, dt, A, B, C, D, reverse) -> y`` that runs ``backend`` on tensors like ``x``."""
    if backend == "auto":
        backend = "chunked"
        if x.dtype == torch.float32 and x.device.type == "cuda" and _has_triton():
            backend = "triton"
        elif x.dtype == torch.float32 and x.device.type == "cpu" and scan_cpu.available():
            backend = "cpp"
    if backend == "cpp":
        return scan_cpu.scan
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise InputError("no triton", "the package triton", "Install it, or use backend='auto'")
        return importlib.import_module("samsans.ops.scan_triton").scan
    return sequential_scan if backend == "sequential" else _Chunked.apply


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        logger.warning("The selective scan runs in its plain torch form, much slower, because triton is not installed.")
    return found


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"scan backend {backend!r}", f"one of {', '.join(BACKENDS)}")
    if x.ndim != 3 or A.ndim != 2:
        raise InputError(f"x of shape {tuple(x.shape)} and A of shape {tuple(A.shape)}", "x (B, L, E) and A (E, N)")
    batch, length, channels = x.shape
    states = A.shape[1]
    expected = {
        "dt": (dt, (batch, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} of shape {tuple(tensor.shape)}", f"{shape} to go with x of {tuple(x.shape)}")
    if 0 in (batch, length, channels, states):
        raise InputError(f"an empty scan: x {tuple(x.shape)}, A {tuple(A.shape)}", "at least one of each")


def sequential_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False) -> Tensor:
    """The definition, one token after the other; differentiated by autograd.  Shapes as in ``selective_scan``."""
    h = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs = []
    tokens = list(zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    for x_t, dt_t, b_t, c_t in reversed(tokens) if reverse else tokens:
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * b_t[:, None, :]
        outputs.append((h * c_t[:, None, :]).sum(-1))
    return torch.stack(outputs[::-1] if reverse else outputs, 1) + D * x


class _Chunked(torch.autograd.Function):
    """Two-level scan: all chunks step together, then a short loop over chunks carries the state across.

    Kept for the backward pass: the inputs and one state per chunk, ``(G, B, E, N)``.  Everything of size ``L E N`` is
    made for one block of channels at a time and dropped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
        length = x.shape[1]
        step = length if length <= _ONE_CHUNK else min(_MAX_CHUNK, math.isqrt(length // 2) + 1)
        xs, dts, bs, cs = (_to_chunks(t, step, reverse) for t in (x, dt, B, C))
        y = torch.empty_like(xs)
        entering = xs.new_empty(*xs.shape[1:], A.shape[1])
        for block in _channel_blocks(xs, A):
            decay = torch.exp(dts[..., block, None] * A[block])
            h = (dts[..., block] * xs[..., block])[..., None] * bs[..., None, :]
            entering[..., block, :] = _carry(h, decay, dts[..., block].sum(0)[..., None] * A[block])
            _scan_(h, decay, entering[..., block, :])
            y[..., block] = h.mul_(cs[..., None, :]).sum(-1)
        ctx.save_for_backward(x, dt, A, B, C, D, entering)
        ctx.step, ctx.reverse = step, reverse
        return _from_chunks(y, x.shape[1], reverse).addcmul_(x, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, entering = ctx.saved_tensors
        step = ctx.step
        xs, dts, bs, cs, gys = (_to_chunks(t, step, ctx.reverse) for t in (x, dt, B, C, gy))
        gu, gdt = torch.empty_like(xs), torch.empty_like(xs)
        gb, gc, ga = torch.zeros_like(bs), torch.zeros_like(cs), torch.empty_like(A)
        for block in _channel_blocks(xs, A):
            delta, gyb, state = dts[..., block], gys[..., block], entering[..., block, :]
            u = delta * xs[..., block]
            decay = torch.exp(delta[..., None] * A[block])
            h = u[..., None] * bs[..., None, :]
            _scan_(h, decay, state)
            g = gyb[..., None] * cs[..., None, :]  # becomes the adjoint of h, from the last token to the first
            g[step - 1] += _carry_back(g, decay, delta.sum(0)[..., None] * A[block])
            for t in range(step - 2, -1, -1):
                g[t].addcmul_(decay[t + 1], g[t + 1])
            gc += torch.matmul(gyb[..., None, :], h)[..., 0, :]
            gb += torch.matmul(u[..., None, :], g)[..., 0, :]
            gu[..., block] = torch.matmul(g, bs[..., None])[..., 0]
            g.mul_(decay)
            g[0].mul_(state)
            g[1:].mul_(h[:-1])
            gdt[..., block] = (g * A[block]).sum(-1)
            ga[block] = g.mul_(delta[..., None]).sum((0, 1, 2))
        length = x.shape[1]
        gu, gdt, gb, gc = (_from_chunks(t, length, ctx.reverse) for t in (gu, gdt, gb, gc))
        return D * gy + dt * gu, gdt.addcmul_(x, gu), ga, gb, gc, (gy * x).sum((0, 1)), None


def _to_chunks(t: Tensor, step: int, reverse: bool) -> Tensor:
    """``(B, L, c)`` to ``(step, G, B, c)``, padded with zeros at the end of the scan (``dt = 0`` changes no state)."""
    t = t.flip(1) if reverse else t
    t = F.pad(t, (0, 0, 0, -t.shape[1] % step))
    return t.unflatten(1, (-1, step)).permute(2, 1, 0, 3).contiguous()


def _from_chunks(t: Tensor, length: int, reverse: bool) -> Tensor:
    """The inverse of ``_to_chunks``; always a fresh tensor."""
    t = t.permute(2, 1, 0, 3).flatten(1, 2)[:, :length]
    return t.flip(1) if reverse else t.contiguous()


def _channel_blocks(xs: Tensor, A: Tensor) -> list[slice]:
    channels, states = A.shape
    width = max(1, _BLOCK_ELEMENTS * channels // (xs.numel() * states))
    return [slice(i, i + width) for i in range(0, channels, width)]


def _carry(h: Tensor, decay: Tensor, log_decay: Tensor) -> Tensor:
    """States entering each chunk ``(G, ...)``, from increments and decays ``(step, G, ...)`` and the chunks' decay."""
    out = torch.zeros_like(h[0])
    if len(out) > 1:
        local, whole = h[0], log_decay.exp_()
        for t in range(1, len(h)):
            local = torch.addcmul(h[t], decay[t], local)
        for g in range(len(out) - 1):
            torch.addcmul(local[g], whole[g], out[g], out=out[g + 1])
    return out


def _carry_back(grad: Tensor, decay: Tensor, log_decay: Tensor) -> Tensor:
    """What the chunks behind add to the adjoint of each chunk's last state ``(G, ...)``."""
    out = torch.zeros_like(grad[0])
    if len(out) > 1:
        local, whole = grad[-1], log_decay.exp_()
        for t in range(len(grad) - 2, -1, -1):
            local = torch.addcmul(grad[t], decay[t + 1], local)
        local = local * decay[0]
        for g in range(len(out) - 1, 0, -1):
            torch.addcmul(local[g], whole[g], out[g], out=out[g - 1])
    return out


def _scan_(h: Tensor, decay: Tensor, entering: Tensor) -> None:
    """Turn increments into states in place: ``h[t] += decay[t] h[t-1]``, starting from ``entering``."""
    h[0].addcmul_(decay[0], entering)
    for t in range(1, len(h)):
        h[t].addcmul_(decay[t], h[t - 1])
