"""Weights of a run on disk: only what was trained, on a named base, in safetensors; all, where the base was random or
is the embedded one, trained whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from samsans import zoo
from samsans.errors import InputError


def trained_names(method: nn.Module) -> tuple[str, ...]:
    """Every ``state_dict`` entry except the parameters that are frozen now; none where all parameters are.

    Ask a freshly built method: training stages freeze more for a while.
    """
    parameters = dict(method.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    if len(frozen) == len(parameters):
        return ()  # buffers alone, of a base as it was
    return tuple(name for name in method.state_dict() if name not in frozen)


def stored_names(method: nn.Module) -> tuple[str, ...]:
    """Names of what a weights file holds: ``trained_names``; all entries where the base comes from the package.

    A run from random weights then does not depend on how another version of samsans draws them, and one of an embedded
    backbone trained whole not on the weights that another version brings.
    """
    trained = trained_names(method)
    return tuple(method.state_dict()) if trained and _holds_all(method) else trained


def trained_state(method: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Those entries of the ``state_dict`` as contiguous copies in main memory, none sharing storage."""
    wanted = set(names)
    state = method.state_dict()
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items() if name in wanted}


def save_weights(
    method: nn.Module,
    path: str | Path,
    *,
    names: Collection[str] | None = None,
    notes: Mapping[str, object] | None = None,
) -> Path:
    """Write the trained part of a method as safetensors.

    Args:
        method: What to save.
        path: The file; written in place, so callers that must not leave half a file pass a temporary one.
        names: What to save; default ``stored_names(method)``.
        notes: Further metadata, e.g. method name, step, config hash.
    """
    metadata = {key: str(value) for key, value in (notes or {}).items()} | _base(method)
    state = trained_state(method, stored_names(method) if names is None else names)
    Path(path).write_bytes(save(state, metadata=metadata))
    return Path(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The notes inside a weights file; no tensor is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise InputError(f"no weights at {path}", "a .safetensors file of a run") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}", todo="Save or copy it again") from error


def load_weights(method: nn.Module, path: str | Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Read what ``save_weights`` wrote into a method, strictly, and return the file's notes.

    names: what the file must hold; default ``stored_names(method)``, of a freshly built method.

    Raises:
        InputError: another base model; missing or unexpected entries or other shapes, counted by group.
    """
    notes, base = read_metadata(path), _base(method)
    if notes.get("backbone", "") != base["backbone"]:
        raise InputError(
            f"{path} was trained on {notes.get('backbone') or 'no backbone'}, not on {base['backbone'] or 'none'}",
            todo=f"Build the method with backbone.name={notes.get('backbone')}",
        )
    if notes.get("base_hash", "") != base["base_hash"] and not _holds_all(method):
        raise InputError(
            f"{path} was trained on other weights of {base['backbone']} than the ones on this machine",
            f"base weights with hash {notes.get('base_hash')}, not {base['base_hash']}",
            "Use the base file that the run was trained with",
        )
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    load_state(method, state, stored_names(method) if names is None else names, str(path))
    return notes


def load_state(method: nn.Module, state: Mapping[str, Tensor], names: Iterable[str], source: str) -> None:
    """Copy ``state`` into the method; its entries must be exactly ``names``, shapes included."""
    own, wanted = method.state_dict(), set(names)
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} here"
        for name in sorted(wanted & state.keys())
        if state[name].shape != own[name].shape
    ]
    faults = [
        f"{kind}: {_groups(some)}"
        for kind, some in (("missing", wanted - state.keys()), ("unexpected", state.keys() - wanted))
        if some
    ]
    if shapes:
        faults.append("other shapes: " + "; ".join(shapes[:3]) + (f" and {len(shapes) - 3} more" * (len(shapes) > 3)))
    if faults:
        raise InputError(
            f"{source} does not fit this method; " + "; ".join(faults),
            "the tensors of the same configuration",
            "Build the method from the config.yaml of the run that wrote the file",
        )
    method.load_state_dict(dict(state), strict=False)


def best_or_last(run: str | Path) -> Path:
    """The weights of a run: best on its validation slices where there were any, else the last.

    Raises:
        InputError: the folder holds neither.
    """
    for name in ("best", "last"):
        path = Path(run) / "model" / f"{name}.safetensors"
        if path.is_file():
            return path
    raise InputError(f"no trained weights in {run}", "model/best.safetensors or model/last.safetensors")


def _base(method: nn.Module) -> dict[str, str]:
    backbone = getattr(method, "backbone", None)
    return {"backbone": getattr(backbone, "name", ""), "base_hash": getattr(backbone, "base_hash", "")}


def _holds_all(method: nn.Module) -> bool:
    """Whether the file of a run needs no base beside it."""
    backbone = getattr(method, "backbone", None)
    entry = zoo.BACKBONES.get(getattr(backbone, "name", ""))
    embedded = entry is not None and bool(entry.embedded) and not getattr(backbone, "frozen", True)
    return embedded or bool(getattr(backbone, "from_scratch", False))


def _groups(names: Iterable[str]) -> str:
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{group} ({count})" for group, count in sorted(counts.items()))
