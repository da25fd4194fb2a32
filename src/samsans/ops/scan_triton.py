"""The selective scan on CUDA, in Triton.

The sequence is cut into chunks of 64 tokens, and one program works on one chunk of a few channels, all its tokens at
once, one state after the other.  Forward: (1) what each chunk adds to the state, (2) a short loop that carries the
state from chunk to chunk, (3) the outputs.  Backward: the same with the adjoint from the end, states being recomputed.
Steps 1 need no scan: they sum ``exp(A * sum of dt)`` over the chunk, each exponent a sum of terms of one sign.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from samsans.errors import InputError

_CHUNK, _WIDTH = 64, 16  # tokens and channels of one program; powers of two


@triton.jit
def _after(decay_1, value_1, decay_2, value_2):
    """Two steps of ``h = decay h + value``, the first one first, as one."""
    return decay_1 * decay_2, value_1 * decay_2 + value_2


@triton.jit
def _rows(i, L, reverse: tl.constexpr):
    """Memory row of the ``i``-th token in scan order."""
    return L - 1 - i if reverse else i


@triton.jit
def _chunk_sums(value, dt, A, V, local, total, L, E, N, G,
                forward: tl.constexpr, reverse: tl.constexpr, T: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """What a chunk adds to the state after it (``forward``, value x) or to the adjoint before it (value gy)."""
    e, g, b = tl.program_id(0) * W + tl.arange(0, W), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = g * T + tl.arange(0, T)
    row = b * L + _rows(i, L, reverse)
    mask = (i < L)[:, None] & (e < E)[None, :]
    at = row[:, None] * E + e[None, :]
    delta = tl.load(dt + at, mask, 0.0)
    v = tl.load(value + at, mask, 0.0)
    if forward:
        v *= delta
        behind = (i + 1 < L) & (tl.arange(0, T) + 1 < T)  # dt of the next token, to sum over those that follow
        at_next = (b * L + _rows(i + 1, L, reverse))[:, None] * E + e[None, :]
        elapsed = tl.cumsum(tl.load(dt + at_next, behind[:, None] & (e < E)[None, :], 0.0), 0, reverse=True)
        tl.store(total + (b * G + g) * E + e, tl.sum(delta, 0), e < E)
    else:
        elapsed = tl.cumsum(delta, 0)
    for n in range(N):
        a = tl.load(A + e * N + n, e < E, 0.0)
        w = tl.load(V + row * N + n, i < L, 0.0)
        s = tl.sum(tl.exp(elapsed * a[None, :]) * v * w[:, None], 0)
        tl.store(local + ((b * G + g) * E + e) * N + n, s, e < E)


@triton.jit
def _carry(local, total, A, E, N, G, forward: tl.constexpr, W: tl.constexpr, P: tl.constexpr):
    """Replace each chunk's sum by what enters it: the state before it, or the adjoint behind it."""
    e, b, n = tl.program_id(0) * W + tl.arange(0, W), tl.program_id(1).to(tl.int64), tl.arange(0, P)
    mask = (e < E)[:, None] & (n < N)[None, :]
    cell = e[:, None] * N + n[None, :]
    a = tl.load(A + cell, mask, 0.0)
    state = tl.zeros((W, P), tl.float32)
    for step in range(G):
        g = step if forward else G - 1 - step
        at = local + (b * G + g) * E * N + cell
        added = tl.load(at, mask, 0.0)
        decay = tl.exp(a * tl.load(total + (b * G + g) * E + e, e < E, 0.0)[:, None])
        tl.store(at, state, mask)
        state = decay * state + added


@triton.jit
def _outputs(x, dt, A, B, C, D, entering, y, L, E, N, G,
             reverse: tl.constexpr, T: tl.constexpr, W: tl.constexpr):  # fmt: skip
    e, g, b = tl.program_id(0) * W + tl.arange(0, W), tl.program_id(1), tl.program_id(2).to(tl.int64)
    t = tl.arange(0, T)
    i = g * T + t
    row = b * L + _rows(i, L, reverse)
    mask = (i < L)[:, None] & (e < E)[None, :]
    at = row[:, None] * E + e[None, :]
    delta = tl.load(dt + at, mask, 0.0)
    value = tl.load(x + at, mask, 0.0)
    u = delta * value
    out = value * tl.load(D + e, e < E, 0.0)[None, :]
    for n in range(N):
        decay = tl.exp(delta * tl.load(A + e * N + n, e < E, 0.0)[None, :])
        h = tl.load(entering + ((b * G + g) * E + e) * N + n, e < E, 0.0)
        added = u * tl.load(B + row * N + n, i < L, 0.0)[:, None]
        added += tl.where(t[:, None] == 0, decay * h[None, :], 0.0)
        _, h_t = tl.associative_scan((decay, added), 0, _after)
        out += h_t * tl.load(C + row * N + n, i < L, 0.0)[:, None]
    tl.store(y + at, out, mask)


@triton.jit
def _gradients(x, dt, A, B, C, D, entering, adjoint, gy, gx, gdt, ga, gb, gc, L, E, N, G, rows,
               reverse: tl.constexpr, T: tl.constexpr, W: tl.constexpr):  # fmt: skip
    block, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    e = block * W + tl.arange(0, W)
    t = tl.arange(0, T)
    i = g * T + t
    row = b * L + _rows(i, L, reverse)
    before, behind = b * L + _rows(i - 1, L, reverse), b * L + _rows(i + 1, L, reverse)
    channel = (e < E)[None, :]
    mask = (i < L)[:, None] & channel
    mask_before = ((t > 0) & (i - 1 < L))[:, None] & channel
    at, at_before = row[:, None] * E + e[None, :], before[:, None] * E + e[None, :]
    delta, value, out = tl.load(dt + at, mask, 0.0), tl.load(x + at, mask, 0.0), tl.load(gy + at, mask, 0.0)
    delta_before = tl.load(dt + at_before, mask_before, 0.0)
    u, u_before = delta * value, delta_before * tl.load(x + at_before, mask_before, 0.0)
    mask_behind = ((t + 1 < T) & (i + 1 < L))[:, None] & channel
    delta_behind = tl.load(dt + behind[:, None] * E + e[None, :], mask_behind, 0.0)
    gu, gdelta = tl.zeros((T, W), tl.float32), tl.zeros((T, W), tl.float32)
    for n in range(N):
        a = tl.load(A + e * N + n, e < E, 0.0)
        cell = ((b * G + g) * E + e) * N + n
        bt, ct = tl.load(B + row * N + n, i < L, 0.0), tl.load(C + row * N + n, i < L, 0.0)
        # State before each token: the recurrence one token late, starting with the state that enters the chunk.
        h = tl.load(entering + cell, e < E, 0.0)
        added = u_before * tl.load(B + before * N + n, (t > 0) & (i - 1 < L), 0.0)[:, None]
        added += tl.where(t[:, None] == 0, h[None, :], 0.0)
        _, h_before = tl.associative_scan((tl.exp(delta_before * a[None, :]), added), 0, _after)
        # Adjoint of each state, from the end; what lies behind the chunk enters at its last token.
        q = tl.load(adjoint + cell, e < E, 0.0)
        added = out * ct[:, None] + tl.where(t[:, None] == T - 1, q[None, :], 0.0)
        _, gh = tl.associative_scan((tl.exp(delta_behind * a[None, :]), added), 0, _after, reverse=True)
        decayed = tl.exp(delta * a[None, :]) * h_before
        tl.store(gc + (block * rows + row) * N + n, tl.sum(out * (decayed + u * bt[:, None]), 1), i < L)
        tl.store(gb + (block * rows + row) * N + n, tl.sum(gh * u, 1), i < L)
        gu += gh * bt[:, None]
        r = gh * decayed
        gdelta += r * a[None, :]
        tl.store(ga + cell, tl.sum(r * delta, 0), e < E)
    d = tl.load(D + e, e < E, 0.0)
    tl.store(gx + at, out * d[None, :] + delta * gu, mask)
    tl.store(gdt + at, gdelta + value * gu, mask)


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False) -> Tensor:
    """``selective_scan`` on float32 CUDA tensors; any device in Triton's interpreter.  Raises InputError for others."""
    tensors = (x, dt, A, B, C, D)
    interpreted = not isinstance(_outputs, triton.JITFunction)
    if any(t.dtype != torch.float32 or (t.device.type != "cuda" and not interpreted) for t in tensors):
        raise InputError(
            f"{x.dtype} tensors on {x.device} for the triton scan", "float32 on CUDA", "Use backend='auto'"
        )
    return _TritonScan.apply(*tensors, reverse)


def _device(x: Tensor) -> Any:
    return torch.cuda.device(x.device if x.is_cuda else -1)


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
        x, dt, A, B, C, D = (t.contiguous() for t in (x, dt, A, B, C, D))
        batch, length, channels = x.shape
        states, chunks = A.shape[1], triton.cdiv(length, _CHUNK)
        blocks = triton.cdiv(channels, _WIDTH)
        y, total = torch.empty_like(x), x.new_empty(batch, chunks, channels)
        entering = x.new_empty(batch, chunks, channels, states)
        sizes, grid = (length, channels, states, chunks), (blocks, chunks, batch)
        with _device(x):
            _chunk_sums[grid](x, dt, A, B, entering, total, *sizes, True, reverse, _CHUNK, _WIDTH)
            _carry[(blocks, batch)](entering, total, A, *sizes[1:], True, _WIDTH, triton.next_power_of_2(states))
            _outputs[grid](x, dt, A, B, C, D, entering, y, *sizes, reverse, _CHUNK, _WIDTH)
        ctx.save_for_backward(x, dt, A, B, C, D, entering, total)
        ctx.reverse = reverse
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, entering, total = ctx.saved_tensors
        gy = gy.contiguous()
        batch, length, channels = x.shape
        states, chunks = A.shape[1], entering.shape[1]
        blocks = triton.cdiv(channels, _WIDTH)
        gx, gdt = torch.empty_like(x), torch.empty_like(x)
        adjoint, ga = torch.empty_like(entering), torch.empty_like(entering)
        gb, gc = x.new_empty(2, blocks, *B.shape)
        sizes, grid = (length, channels, states, chunks), (blocks, chunks, batch)
        with _device(x):
            _chunk_sums[grid](gy, dt, A, C, adjoint, total, *sizes, False, ctx.reverse, _CHUNK, _WIDTH)
            _carry[(blocks, batch)](adjoint, total, A, *sizes[1:], False, _WIDTH, triton.next_power_of_2(states))
            _gradients[grid](
                x, dt, A, B, C, D, entering, adjoint, gy, gx, gdt, ga, gb, gc,
                *sizes, batch * length, ctx.reverse, _CHUNK, _WIDTH,
            )  # fmt: skip
        return gx, gdt, ga.sum((0, 1)), gb.sum(0), gc.sum(0), (gy * x).sum((0, 1)), None
