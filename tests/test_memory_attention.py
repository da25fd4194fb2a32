"""SAM 2's memory attention against the library's own: values, gradients, dropout, adapters, precision."""

from __future__ import annotations

import pytest
import torch

from samsans.backbones import Sam2, add_lora, load_backbone
from samsans.backbones.memory_attention import rotary_table
from samsans.config import BackboneConfig, LoraConfig

SIDE, GRID = 64, 4


def tiny(attention: str, side: int = SIDE) -> Sam2:
    """The same weights either way, none of them zero."""
    sam2 = load_backbone(BackboneConfig(name="sam2-tiny-test", input_size=side, attention=attention), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sam2.model.memory_attention.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return sam2


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(("grids", "pointers"), [(0, 8), (2, 0), (7, 12)])
def test_the_same_as_the_library(images: int, grids: int, pointers: int) -> None:
    tokens = grids * GRID**2 + pointers
    features, memory = rand(images, 128, GRID, GRID), rand(tokens, 3, 64, seed=1)
    for positions in (None, rand(tokens, 1, 64, seed=2), rand(tokens, 3, 64, seed=3)):
        with torch.no_grad():
            fast, naive = (
                tiny(attention).attend(features, memory, positions, pointers) for attention in ("fast", "naive")
            )
        assert fast.shape == (3, 128, GRID, GRID)
        assert (fast[0] - fast[1]).abs().max() > 0.1
        torch.testing.assert_close(fast, naive, rtol=0, atol=1e-5)


def test_rotary_table_by_hand() -> None:
    table = rotary_table(tiny("fast", 128).model.memory_attention)
    assert table.shape == (64, 64, 2)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        for pair in range(64):
            place = column if pair < 32 else row  # the first half of the channels tells columns
            angle = torch.tensor(place * 10000.0 ** (-4 * (pair % 32) / 128))
            want = torch.stack([angle.cos(), angle.sin()])
            torch.testing.assert_close(table[8 * row + column, pair], want, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_library() -> None:
    found = []
    for attention in ("fast", "naive"):
        sam2 = add_lora(tiny(attention), LoraConfig(memory=["q", "k", "v"]))
        with torch.no_grad():
            for name, parameter in sam2.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(rand(*parameter.shape, seed=4) * 0.1)
        features, memory = rand(1, 128, GRID, GRID).requires_grad_(), rand(24, 2, 64, seed=1).requires_grad_()
        read = sam2.attend(features, memory, rand(24, 1, 64, seed=2), 8)
        (read * rand(*read.shape, seed=5)).sum().backward()
        adapters = {name: p.grad for name, p in sam2.named_parameters() if "memory" in name and p.requires_grad}
        assert len(adapters) == 24
        found.append({"features": features.grad, "memory": memory.grad, **adapters})
    for name, gradient in found[0].items():
        assert gradient is not None
        assert gradient.abs().max() > 1e-3, name
        assert (gradient - found[1][name]).abs().max() < 1e-5 * gradient.abs().max(), name


def test_dropout_where_the_memory_attention_is_trained() -> None:
    sam2 = tiny("fast")
    sam2.train_whole(memory=True)
    features, memory = rand(1, 128, GRID, GRID), rand(8, 1, 64, seed=1).expand(-1, 2, -1)
    still = sam2.eval().attend(features, memory, pointers=8)
    assert torch.equal(still[0], still[1])
    dropped = sam2.train().attend(features, memory, pointers=8)
    assert (dropped[0] - dropped[1]).abs().max() > 0.01  # each object draws its own


def test_half_precision_is_as_close_as_the_librarys() -> None:
    features, memory, exact = rand(1, 128, GRID, GRID), rand(24, 2, 64, seed=1), tiny("fast")
    with torch.no_grad():
        want = exact.attend(features, memory, None, 8)
        errors = []
        for attention in ("fast", "naive"):
            with torch.autocast("cpu", torch.bfloat16):
                found = tiny(attention).attend(features, memory, None, 8)
            assert found.dtype == torch.float32
            errors.append((found - want).abs().mean())
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1
