"""Copies of a network at chosen moments of its training, in buffers, so that weights files hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

END = 100  # percent: the network as it is at the end, of which no copy is needed


class Snapshots(nn.Module):
    """Copies of a network's parameters at ``percents`` of its training; the released code pools four.

    Args:
        network: Whose parameters are copied; it is no part of this module.
        percents: 1 to 100.
    """

    copies: Tensor  # (n, parameters) float32
    taken: Tensor  # (n,) bool

    def __init__(self, network: nn.Module, percents: Sequence[int]) -> None:
        super().__init__()
        self.percents, self.end = sorted(set(percents) - {END}), END in percents
        size = sum(p.numel() for p in network.parameters())
        self.register_buffer("copies", torch.zeros(len(self.percents), size))
        self.register_buffer("taken", torch.zeros(len(self.percents), dtype=torch.bool))

    @torch.no_grad()
    def update(self, network: nn.Module, used: float) -> None:
        """Copy the network where a moment has come; ``used``: share of its training, in [0, 1]."""
        for i, percent in enumerate(self.percents):
            if 100 * used >= percent and not self.taken[i]:
                self.copies[i] = parameters_to_vector(network.parameters())
                self.taken[i] = True

    def pool(self, network: nn.Module) -> list[Callable[..., Tensor]]:
        """The copies taken so far, and the network itself where 100 is asked for or there is none else."""
        states = [self._state(network, i) for i in range(len(self.percents)) if self.taken[i]]
        pool: list[Callable[..., Tensor]] = [partial(_call, network, state) for state in states]
        return [*pool, network] if self.end or not pool else pool

    def _state(self, network: nn.Module, index: int) -> dict[str, Tensor]:
        named = dict(network.named_parameters())
        parts = self.copies[index].split([p.numel() for p in named.values()])
        return {name: part.view_as(p) for part, (name, p) in zip(parts, named.items(), strict=True)}


def _call(network: nn.Module, state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    """The network's output with other parameters."""
    output: Tensor = functional_call(network, state, inputs)
    return output
