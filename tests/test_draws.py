"""What several answers are drawn with: Gaussians, noise of a seed, the annotation of a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samsans.methods.draws import Gaussian, choose, seeded_noise


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_reparameterisation() -> None:
    mean, log_sigma = random(1, 8).requires_grad_(), (0.5 * random(1, 8, seed=1)).requires_grad_()
    draws = Gaussian(mean, log_sigma).draw(random(1, 10_000, 8, seed=2))[0]
    sigma = log_sigma.detach().exp()[0]
    assert ((draws.mean(0) - mean[0]).abs() < 3 * sigma / 100).all()
    assert ((draws.std(0) - sigma).abs() < 3 * sigma / math.sqrt(2 * 10_000)).all()
    draws.mean(0).sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones(1, 8))
    assert log_sigma.grad is not None
    assert log_sigma.grad.any()


def test_divergence_against_torch() -> None:
    p, q = (Gaussian(random(3, 8, seed=i), 0.5 * random(3, 8, seed=i + 2)) for i in (0, 1))
    normal = [torch.distributions.Normal(x.mean, x.log_sigma.exp()) for x in (p, q)]
    torch.testing.assert_close(p.divergence(q), torch.distributions.kl_divergence(*normal).sum(1))
    assert p.divergence(p).abs().max() < 1e-6


def test_noise_depends_on_the_seed_alone() -> None:
    sixteen = seeded_noise([5, 6], 16, 256)
    assert sixteen.shape == (2, 16, 256)
    assert torch.equal(seeded_noise([5], 4, 256)[0], sixteen[0, :4])
    assert torch.equal(seeded_noise([6], 16, 7)[0, :3], seeded_noise([6], 3, 7)[0])
    assert not torch.equal(sixteen[0], sixteen[1])
    assert len(sixteen.flatten(0, 1).unique(dim=0)) == 32
    seeded_noise([2**63 - 1], 1, 2)


# -- the annotation of a step ------------------------------------------------------------------------------------------


def annotated(*shown: int, side: int = 4) -> Tensor:
    """One image whose annotators of those numbers drew one pixel each, at the place of their number."""
    out = torch.zeros(1, 4, side, side, dtype=torch.bool)
    for number in shown:
        out[0, number, 0, number] = True
    return out


def picked(annotations: Tensor, **options: object) -> Tensor:
    """Which annotators were chosen in 3000 draws: ``(5,)`` counts, the last of empty answers."""
    torch.manual_seed(0)
    many = annotations.expand(3000, -1, -1, -1)
    drawn = options.pop("drawn", None)
    chosen = choose(many, None if drawn is None else drawn.expand(3000, -1), **options)  # type: ignore
    counts = chosen[:, 0].sum(0)[:4]
    return torch.cat([counts, torch.tensor([3000 - int(counts.sum())])])


def test_annotations_are_chosen_uniformly_among_those_that_show_something() -> None:
    counts = picked(annotated(0, 2, 3))
    assert counts[1] == counts[4] == 0
    statistic = ((counts[[0, 2, 3]] - 1000.0) ** 2 / 1000).sum()
    assert statistic < 13.8  # 0.1 % of chi-squared with two degrees of freedom
    assert picked(annotated(2)).tolist() == [0, 0, 3000, 0, 0]
    counts = picked(annotated(0, 2, 3), empty=True)
    assert 650 < counts[4] < 850
    assert counts[1] == 0


def test_annotators_that_were_not_there_are_never_chosen() -> None:
    there = torch.tensor([[True, False, True, False]])
    counts = picked(annotated(0, 1, 2), drawn=there)
    assert counts[[1, 3, 4]].sum() == 0
    assert picked(annotated(1), drawn=there).tolist() == [0, 0, 0, 0, 3000]  # all of them empty: no endless loop
    assert picked(annotated()).tolist() == [0, 0, 0, 0, 3000]
