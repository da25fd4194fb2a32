"""``SupportBank``: support pairs encoded once; merge banks, switch the task by switching banks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samsans.errors import InputError

_FORMAT = "samsans-support-2"


@dataclass(frozen=True)
class SupportBank:
    """K encoded support pairs for N objects (specified in section 5.1: preloading).

    keys: ``(K, T, C)`` float32 support features.  values: ``(K, T, N, V)`` aggregated mask context.
    visible: ``(K, T)`` bool, tokens that are image and not padding.
    objects: names of the N objects.  ids: names of the K pairs.
    weights: fingerprint of the trained weights that made it; other weights refuse it.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    objects: tuple[str, ...]
    ids: tuple[str, ...]
    weights: str

    @property
    def K(self) -> int:
        """Number of support pairs."""
        return len(self.ids)

    def select(self, pairs: Sequence[int]) -> SupportBank:
        """The bank of some of the pairs."""
        index = torch.as_tensor(list(pairs), device=self.keys.device)
        ids = tuple(self.ids[i] for i in pairs)
        return dataclasses.replace(
            self, keys=self.keys[index], values=self.values[index], visible=self.visible[index], ids=ids
        )

    def to(self, device: str | torch.device) -> SupportBank:
        """The same bank on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("keys", "values", "visible")}
        return dataclasses.replace(self, **moved)

    @staticmethod
    def concat(banks: Sequence[SupportBank]) -> SupportBank:
        """One bank of all pairs; the banks must ask for the same objects and come from the same weights."""
        first = banks[0]
        for bank in banks[1:]:
            if (bank.objects, bank.weights) != (first.objects, first.weights):
                raise InputError(
                    f"support banks of {first.objects} ({first.weights[:8]}) and {bank.objects} ({bank.weights[:8]})",
                    "banks of the same objects made by the same weights",
                )
        return dataclasses.replace(
            first,
            keys=torch.cat([bank.keys for bank in banks]),
            values=torch.cat([bank.values for bank in banks]),
            visible=torch.cat([bank.visible for bank in banks]),
            ids=tuple(name for bank in banks for name in bank.ids),
        )

    def save(self, path: str | Path) -> Path:
        """Write the bank as a task file (safetensors, no pickle); an existing file is replaced atomically."""
        from safetensors.torch import save

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"objects": list(self.objects), "ids": list(self.ids), "weights": self.weights}
        tensors = {name: getattr(self, name).contiguous().cpu() for name in ("keys", "values", "visible")}
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(save(tensors, {"format": _FORMAT, "bank": json.dumps(about)}))
        return temporary.replace(path)

    @staticmethod
    def load(path: str | Path) -> SupportBank:
        """Read a task file.

        Raises:
            InputError: the file is missing or was not written by ``save``.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(f"{path} has format {metadata.get('format')!r}", f"a task file ({_FORMAT})")
                about = json.loads(metadata["bank"])
                keys, values, visible = (file.get_tensor(name) for name in ("keys", "values", "visible"))
        except (FileNotFoundError, SafetensorError) as error:
            raise InputError(f"no readable task file at {path}: {error}", "a file written by predict --task") from error
        return SupportBank(keys, values, visible, tuple(about["objects"]), tuple(about["ids"]), about["weights"])
