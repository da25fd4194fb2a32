"""Banks of support pairs, encoded once: join them, draw from them, save them as tasks.  One kind for each method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from samsans.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Bank:
    """K encoded support pairs for N objects; a subclass adds tensors, the pairs along their first axis.

    objects: names of the N objects.  ids: names of the K pairs.
    weights: fingerprint of the weights that made it; other weights refuse it.
    """

    format: ClassVar[str]
    """What its files say they are; another one for every kind of bank, and for every change of its tensors."""

    objects: tuple[str, ...]
    ids: tuple[str, ...]
    weights: str

    @property
    def K(self) -> int:
        """Number of support pairs."""
        return len(self.ids)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the pairs, by name."""
        shared = {field.name for field in dataclasses.fields(Bank)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in shared}

    def select(self, pairs: Sequence[int]) -> Self:
        """The bank of some of the pairs, one at least; InputError where there are none."""
        if len(pairs) == 0:
            raise InputError("no support pairs selected", f"numbers of some of {self.K} pairs, 0 to {self.K - 1}")
        numbers = torch.as_tensor(list(pairs), dtype=torch.int64)
        chosen: dict[str, Any] = {name: one[numbers.to(one.device)] for name, one in self.tensors.items()}
        return dataclasses.replace(self, ids=tuple(self.ids[i] for i in pairs), **chosen)

    def to(self, device: str | torch.device) -> Self:
        """The same bank on another device."""
        moved: dict[str, Any] = {name: one.to(device) for name, one in self.tensors.items()}
        return dataclasses.replace(self, **moved)

    @classmethod
    def concat(cls, banks: Sequence[Self]) -> Self:
        """One bank of all pairs; the banks must ask for the same objects and come from the same weights."""
        first = banks[0]
        for bank in banks[1:]:
            if (bank.objects, bank.weights) != (first.objects, first.weights):
                raise InputError(
                    f"support banks of {first.objects} ({first.weights[:8]}) and {bank.objects} ({bank.weights[:8]})",
                    "banks of the same objects made by the same weights",
                )
        joined: dict[str, Any] = {name: torch.cat([bank.tensors[name] for bank in banks]) for name in first.tensors}
        return dataclasses.replace(first, ids=tuple(name for bank in banks for name in bank.ids), **joined)

    def require(self, weights: str) -> Self:
        """The bank itself; InputError where other weights than these made it."""
        if self.weights != weights:
            raise InputError(
                f"support bank made by weights {self.weights[:12]}",
                f"one made by the loaded weights {weights[:12]}",
                "Encode the support pairs again with this model",
            )
        return self

    def save(self, path: str | Path) -> Path:
        """Write the bank as a task file (safetensors, no pickle); an existing file is replaced atomically."""
        from safetensors.torch import save

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"objects": list(self.objects), "ids": list(self.ids), "weights": self.weights}
        tensors = {name: one.contiguous().cpu() for name, one in self.tensors.items()}
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(save(tensors, {"format": self.format, "bank": json.dumps(about)}))
        return temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a task file.

        Raises:
            InputError: the file is missing or was not written by ``save`` of this kind of bank.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != cls.format:
                    raise InputError(f"{path} has format {metadata.get('format')!r}", f"a task file ({cls.format})")
                about = json.loads(metadata["bank"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError) as error:
            raise InputError(f"no readable task file at {path}: {error}", "a file written by predict --task") from error
        return cls(objects=tuple(about["objects"]), ids=tuple(about["ids"]), weights=about["weights"], **tensors)
