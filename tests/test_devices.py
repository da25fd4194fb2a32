"""H-SAM, SAMed and AutoSAM where they are to run: a training step, bfloat16, an answer.  CUDA where there is a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slice_methods import make, optimizer_of, step, toy, unlabelled

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"))
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("hsam", {}),
    ("hsam", {"preset": "released"}),
    ("samed", {}),
    ("autosam", {"model__width": 8}),
    ("autosam", {"preset": "class_tokens"}),
]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_trains_and_answers(device: str, name: str, options: dict[str, Any]) -> None:
    made = make(name, **options).to(device)
    if hasattr(made, "observe"):
        made.observe(torch.tensor([1000, 10, 20, 30]))  # as training does: on the CPU
    batch = toy().to(device)
    optimizer = optimizer_of(made.train(), 3e-3)
    torch.manual_seed(0)
    losses = [step(made, batch, optimizer)]
    with torch.autocast(device, torch.bfloat16):
        losses += [step(made, batch, optimizer) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(p.device.type == device and p.isfinite().all() for p in made.parameters())
    exact = made.eval().predict(unlabelled(batch))
    with torch.autocast(device, torch.bfloat16):
        rough = made.predict(unlabelled(batch))
    assert exact.device.type == device
    assert rough.dtype == exact.dtype == torch.float32
    assert exact.shape == (2, 3, 64, 64)
    assert 0 < float((rough - exact).abs().mean()) < 0.05 * float(exact.abs().mean()) + 0.02


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_answers_as_the_processor_does(device: str) -> None:
    made, batch = make("hsam").eval(), unlabelled(toy())
    wanted = made.predict(batch)
    torch.testing.assert_close(made.to(device).predict(batch.to(device)).cpu(), wanted, rtol=1e-3, atol=1e-3)
