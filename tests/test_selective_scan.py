"""The selective scan: every backend against the literal float64 loop, and the properties of the recurrence."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samsans.errors import InputError
from samsans.ops import scan_cpu, selective_scan

needs_compiler = pytest.mark.skipif(not scan_cpu.available(), reason="no C++ compiler here")
FAST = ["chunked", pytest.param("cpp", marks=needs_compiler)]
SHAPES = [(1, 16, 1), (63, 32, 2), (64, 32, 2), (65, 32, 1), (515, 32, 2)]


def make(length: int, channels: int, batch: int, states: int = 16, large: bool = False, seed: int = 0) -> list[Tensor]:
    """Inputs in float64; dt as at initialisation (0.001 to 0.1), or up to 5."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    dt = normal(batch, length, channels)
    dt = 5 * torch.sigmoid(dt) if large else F.softplus(dt - 4)
    A = -torch.arange(1.0, states + 1, dtype=torch.float64) * (1 + 0.1 * normal(channels, states)).abs()
    B, C = normal(batch, length, states), normal(batch, length, states)
    return [normal(batch, length, channels), dt, A, B, C, normal(channels)]


def run(inputs: list[Tensor], backend: str, reverse: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Output and the six gradients of a fixed random projection of it."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    y = selective_scan(*leaves, reverse=reverse, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weights)]


def assert_close(got: list[Tensor], want: list[Tensor], forward: float, backward: float, *, few: bool = False) -> None:
    """Largest error relative to the largest value, output first, then the gradients.

    few: tensors may have so few elements that a sum cancels in all of them; errors are then relative to the largest
    value of any gradient (and of the output, at least 1, the size of the inputs).
    """
    scale = max(1.0, *(float(b.abs().max()) for b in want[1:])) if few else 1e-30
    for name, a, b in zip(("y", "x", "dt", "A", "B", "C", "D"), got, want, strict=True):
        least = 1.0 if few and name == "y" else scale
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=least)
        assert error <= (forward if name == "y" else backward), f"{name}: {error:.1e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_agree_with_the_loop(shape: tuple[int, int, int], large: bool, reverse: bool) -> None:
    inputs = make(*shape, large=large)
    want = run(inputs, "sequential", reverse)
    assert_close(run(inputs, "chunked", reverse), want, 1e-12, 1e-12)
    chunked = run(inputs, "chunked", reverse, torch.float32)
    assert_close(chunked, want, 1e-6, 5e-6)
    if scan_cpu.available():
        compiled = run(inputs, "cpp", reverse, torch.float32)
        assert_close(compiled, want, 1e-6, 5e-6)
        assert_close(compiled, chunked, 1e-6, 5e-6)


@pytest.mark.parametrize("backend", FAST)
def test_full_size(backend: str) -> None:
    """4097 tokens, 384 channels; gradients against the float64 two-level form, itself checked above."""
    inputs = make(4097, 384, 1)
    want = run(inputs, "chunked")
    assert_close(run(inputs, backend, dtype=torch.float32), want, 1e-6, 5e-6)


def test_full_size_output_against_the_loop() -> None:
    inputs = make(4097, 384, 1, large=True)
    want = selective_scan(*inputs, backend="sequential")
    torch.testing.assert_close(selective_scan(*inputs, backend="chunked"), want, rtol=0, atol=1e-12 * want.abs().max())


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 140),
    channels=st.integers(1, 40),
    batch=st.integers(1, 3),
    states=st.integers(1, 17),
    reverse=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_shape_and_thread_count(
    length: int, channels: int, batch: int, states: int, reverse: bool, threads: int
) -> None:
    inputs = make(length, channels, batch, states, large=True)
    want = run(inputs, "chunked", reverse)
    assert_close(run(inputs, "sequential", reverse), want, 1e-12, 1e-12, few=True)
    before = torch.get_num_threads()
    scan_cpu_limit, scan_cpu._UPDATES_PER_THREAD = scan_cpu._UPDATES_PER_THREAD, 1
    torch.set_num_threads(threads)
    try:
        got = run(inputs, "cpp", reverse, torch.float32)
    finally:
        torch.set_num_threads(before)
        scan_cpu._UPDATES_PER_THREAD = scan_cpu_limit
    assert_close(got, want, 1e-6, 5e-6, few=True)


def test_gradients_of_the_chunked_form_by_finite_differences() -> None:
    inputs = [t.requires_grad_() for t in make(140, 2, 1, states=2)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, backend="chunked"), inputs)


@pytest.mark.parametrize("backend", ["sequential", *FAST])
class TestRecurrence:
    def test_a_hand_computed_case(self, backend: str) -> None:
        """h = 2*1*3 = 6, then exp(-1)*6 + 1*1*4; y = h*C + D*x."""
        x, dt = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[2.0], [1.0]]])
        ones = torch.ones(1, 2, 1)
        y = selective_scan(x, dt, -torch.ones(1, 1), ones, 2 * ones, torch.tensor([10.0]), backend=backend)
        expected = torch.tensor([[[12.0 + 30.0], [2 * (6 * 0.36787944 + 4) + 40.0]]])
        torch.testing.assert_close(y, expected)

    def test_no_step_gives_only_the_skip(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(200, 5, 2))
        assert torch.equal(selective_scan(x, 0 * dt, A, B, C, D, backend=backend), x * D)

    def test_infinite_decay_has_no_memory(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(200, 5, 2, large=True))
        y = selective_scan(x, dt, A * 1e6, B, C, D, backend=backend)
        torch.testing.assert_close(y, (B * C).sum(-1, keepdim=True) * dt * x + D * x, rtol=1e-5, atol=1e-5)

    def test_reverse_is_the_scan_of_flipped_tensors(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(200, 5, 2))
        flipped = selective_scan(x.flip(1), dt.flip(1), A, B.flip(1), C.flip(1), D, backend=backend).flip(1)
        assert torch.equal(selective_scan(x, dt, A, B, C, D, reverse=True, backend=backend), flipped)

    def test_a_concatenation_continues_from_the_carried_state(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(300, 5, 2))
        cut, parts = 177, (x, dt, B, C)
        x1, dt1, b1, _ = (t[:, :cut] for t in parts)
        x2, dt2, b2, c2 = (t[:, cut:] for t in parts)
        left = torch.exp(A * (dt1.sum(1, keepdim=True) - dt1.cumsum(1))[..., None])  # decay until the cut
        carried = (left * (dt1 * x1)[..., None] * b1[:, :, None]).sum(1)
        decay = torch.exp(A * dt2.cumsum(1)[..., None])
        tail = selective_scan(x2, dt2, A, b2, c2, D, backend=backend)
        tail = tail + (decay * carried[:, None] * c2[:, :, None]).sum(-1)
        whole = selective_scan(x, dt, A, B, C, D, backend=backend)
        torch.testing.assert_close(whole[:, cut:], tail, rtol=1e-4, atol=1e-5)

    def test_not_a_number_is_not_hidden(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(10, 5, 1))
        dt[0, 4, 2] = float("nan")
        y = selective_scan(x, dt, A, B, C, D, backend=backend)
        assert y[0, 4:, 2].isnan().all()
        assert not y[0, :4].isnan().any()
        assert not y[0, :, [0, 1, 3, 4]].isnan().any()

    def test_half_precision_inputs_keep_a_float32_state(self, backend: str) -> None:
        inputs = [t.bfloat16().requires_grad_() for t in make(80, 5, 2)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = selective_scan(*inputs, backend=backend)
            y.sum().backward()
        assert y.dtype == torch.float32
        assert torch.equal(y, selective_scan(*(t.detach().float() for t in inputs), backend=backend))
        assert all(t.grad is not None and t.grad.dtype == torch.bfloat16 for t in inputs)

    def test_strided_inputs(self, backend: str) -> None:
        x, dt, A, B, C, D = (t.float() for t in make(70, 5, 2))
        packed = torch.cat([x, B, C, dt], -1)
        a, b, c, d = packed.split([5, 16, 16, 5], -1)
        assert torch.equal(
            selective_scan(a, d, A, b, c, D, backend=backend), selective_scan(x, dt, A, B, C, D, backend=backend)
        )


@pytest.mark.parametrize("backend", FAST)
def test_nothing_of_size_length_channels_states_is_kept(backend: str) -> None:
    inputs = [t.float().requires_grad_() for t in make(2048, 32, 1)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan(*inputs, backend=backend)
    inputs_size = sum(t.numel() for t in inputs)
    assert sum(t.numel() for t in saved) < inputs_size + 2048 * 32 * 16 / 16


def test_auto_uses_the_torch_form_for_float64() -> None:
    inputs = make(70, 4, 1)
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="chunked"))


@needs_compiler
def test_auto_uses_the_kernel_for_float32() -> None:
    inputs = [t.float() for t in make(70, 4, 1)]
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="cpp"))


@pytest.mark.parametrize("position", [1, 2, 3, 4, 5])
def test_wrong_shapes_are_refused(position: int) -> None:
    inputs = make(7, 4, 2)
    inputs[position] = inputs[position][..., :-1]
    with pytest.raises(InputError, match=r"Expected"):
        selective_scan(*inputs)


def test_wrong_backends_are_refused() -> None:
    inputs = make(7, 4, 2)
    with pytest.raises(InputError, match="'mamba'"):
        selective_scan(*inputs, backend="mamba")
    with pytest.raises(InputError, match="float64"):
        selective_scan(*inputs, backend="cpp")
    with pytest.raises(InputError, match="empty"):
        selective_scan(*(t[:, :0] if t.ndim == 3 else t for t in inputs))


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch):
    """Forget the loaded kernel before and after a test."""
    scan_cpu.library.cache_clear()
    scan_cpu.available.cache_clear()
    yield
    monkeypatch.undo()
    scan_cpu.library.cache_clear()
    scan_cpu.available.cache_clear()


@pytest.mark.usefixtures("fresh_library")
class TestCompilation:
    def test_without_a_compiler_auto_says_so_and_cpp_refuses(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(scan_cpu, "COMPILERS", ())
        inputs = [t.float() for t in make(70, 4, 1)]
        with caplog.at_level(logging.WARNING):
            y = selective_scan(*inputs)
        assert "plain torch form" in caplog.text
        assert torch.equal(y, selective_scan(*inputs, backend="chunked"))
        with pytest.raises(InputError, match=r"no C\+\+ compiler"):
            selective_scan(*inputs, backend="cpp")

    @needs_compiler
    def test_a_compiler_that_fails_is_reported(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        broken = tmp_path / "broken.cpp"
        broken.write_text("this is no C++")
        monkeypatch.setattr(scan_cpu, "SOURCE", broken)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        with pytest.raises(InputError, match="compiler that fails"):
            selective_scan(*(t.float() for t in make(7, 4, 1)), backend="cpp")
        assert list((tmp_path / ".cache" / "samsans").iterdir()) == []

    @needs_compiler
    def test_compiled_once_and_kept(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        scan_cpu.library()
        (kept,) = (tmp_path / ".cache" / "samsans").iterdir()
        scan_cpu.library.cache_clear()
        monkeypatch.setattr(scan_cpu, "_compile", lambda *_: pytest.fail("compiled a second time"))
        scan_cpu.library()
        assert kept.exists()

    @needs_compiler
    @pytest.mark.parametrize("flags", [(), ("-mavx2", "-mfma")], ids=["4 lanes", "8 lanes"])
    def test_narrower_vectors(self, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        if "-mavx2" in flags and " avx2 " not in scan_cpu._processor():
            pytest.skip("no AVX2 here")
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        monkeypatch.setattr(scan_cpu, "_MACHINE_FLAGS", (flags,))
        inputs = make(70, 22, 2, large=True)
        assert_close(run(inputs, "cpp", dtype=torch.float32), run(inputs, "sequential"), 1e-6, 5e-6)

    @needs_compiler
    def test_a_home_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        home = tmp_path / "home"
        home.write_text("a file, not a folder")
        monkeypatch.setattr(Path, "home", lambda: home)
        inputs = [t.float() for t in make(70, 4, 1)]
        with caplog.at_level(logging.WARNING):
            y = selective_scan(*inputs, backend="cpp")
        assert "cannot be cached" in caplog.text
        torch.testing.assert_close(y, selective_scan(*inputs, backend="chunked"))


def test_triton_without_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="triton"):
        selective_scan(*(t.float() for t in make(7, 4, 1)), backend="triton")


def test_triton_in_its_interpreter() -> None:
    """In a process of its own, since the interpreter must be chosen before triton is imported."""
    pytest.importorskip("triton")
    program = (
        "import torch, test_selective_scan as t\n"
        "for length, channels, reverse in [(1, 3, False), (66, 17, False), (129, 2, True)]:\n"
        "    inputs = t.make(length, channels, 1, states=3, large=reverse)\n"
        "    got = t.run(inputs, 'triton', reverse, torch.float32)\n"
        "    t.assert_close(got, t.run(inputs, 'sequential', reverse), 1e-6, 5e-6)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_triton_on_a_gpu() -> None:
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for length, channels, reverse in [(65, 32, False), (4097, 384, True)]:
        inputs = [t.cuda() for t in make(length, channels, 2, large=reverse)]
        leaves = [t.float().requires_grad_() for t in inputs]
        y = selective_scan(*leaves, reverse=reverse)
        got = [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]
        exact = [t.requires_grad_() for t in inputs]
        y = selective_scan(*exact, reverse=reverse)
        assert_close(got, [y.detach(), *torch.autograd.grad(y, exact, torch.ones_like(y))], 1e-6, 5e-6)
