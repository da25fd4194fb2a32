"""Named weights and methods: where they are, what they weigh, whose they are.  Plain data; imports no torch.

Weights are looked for on this machine first (the current folder, then the Hugging Face cache) and fetched from the hub
only where they are absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from samsans.errors import InputError
from samsans.zoo.backbones import BACKBONES, BackboneEntry
from samsans.zoo.methods import METHODS, RELEASED, MethodEntry

__all__ = ["BACKBONES", "METHODS", "RELEASED", "BackboneEntry", "MethodEntry"]


def list_backbones() -> tuple[BackboneEntry, ...]:
    """Every named backbone."""
    return tuple(BACKBONES.values())


def list_methods() -> tuple[MethodEntry, ...]:
    """Every named method."""
    return tuple(METHODS.values())


def backbone_entry(name: str) -> BackboneEntry:
    """The backbone of that name; ``InputError`` with near names if there is none."""
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return BACKBONES[name]


def method_entry(name: str) -> MethodEntry:
    """The method of that name; ``InputError`` with near names if there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return InputError(f"No {kind} is called {name!r}", "one of " + ", ".join(names), f"Try {near[0]!r}" if near else "")


def show(name: str) -> str:
    """What is known about a backbone or method, as lines of text."""
    if name in METHODS:
        method = METHODS[name]
        rows = {
            "method": method.name,
            "paper": f"{method.title} ({f'arXiv {method.arxiv}' if method.arxiv else f'doi {method.doi}'})",
            "summary": method.summary,
            "presets": ", ".join(method.presets),
        }
    elif name in BACKBONES:
        entry = BACKBONES[name]
        arch = entry.architecture
        rows = {
            "backbone": entry.name,
            "summary": entry.summary,
            "weights": source(entry),
            "here": "not needed" if entry.from_scratch else str(where(name) or "not on this machine"),
            "original": entry.url or "none",
            "licence": entry.licence,
            "input": f"{entry.input_size} px, patch {arch.patch}",
            "encoder": f"{arch.depth} blocks of width {arch.hidden}, {arch.heads} heads, {arch.channels} channels out",
        }
    else:
        raise unknown("backbone or method", name, [*BACKBONES, *METHODS])
    return "\n".join(f"{key:9} {value}" for key, value in rows.items())


def source(entry: BackboneEntry) -> str:
    """Where the weights of a backbone come from, in words."""
    if entry.from_scratch:
        return "random, seeded"
    return f"{'part of samsans' if entry.embedded else entry.hub_id} ({entry.megabytes} MB)"


def table() -> str:
    """Every backbone and method in two short tables."""
    lines = [f"{'backbone':24}{'parameters':>12}{'size':>10}  {'licence':14}{'here':6}"]
    for entry in list_backbones():
        here = "-" if entry.from_scratch else "yes" if where(entry.name) else "no"
        size = "-" if entry.from_scratch else f"{entry.megabytes} MB"
        lines.append(f"{entry.name:24}{entry.parameters:>12,}{size:>10}  {entry.licence:14}{here:6}{entry.summary}")
    lines += ["", f"{'method':14}{'arXiv':12}"]
    lines += [f"{entry.name:14}{entry.arxiv or '-':12}{entry.summary}" for entry in list_methods()]
    return "\n".join(lines)


def where(name: str) -> Path | None:
    """The weights of a named backbone, a hub id or a path on this machine; ``None`` where they are not here.

    An embedded file lies in this package.  Else looks at ``name`` as a path, then for the original file in the current
    folder, then in the Hugging Face cache (``~/.cache/huggingface``, or where ``huggingface_hub`` is told to keep it).
    Never goes online.
    """
    entry = BACKBONES.get(name)
    if entry is not None and entry.embedded_file is not None:
        return entry.embedded_file if entry.embedded_file.is_file() else None
    if entry is None and Path(name).exists():
        return Path(name)
    if entry is not None and entry.file_name and Path(entry.file_name).is_file():
        return Path(entry.file_name)
    hub_id = entry.hub_id if entry else name
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub_id, file)
        if isinstance(found, str):
            return Path(found)
    return None
