"""Files of weights: found on this machine first, else fetched; read without pickle; checked tensor by tensor."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samsans import zoo
from samsans.errors import InputError

log = logging.getLogger(__name__)


def find_weights(name: str) -> Path:
    """The file of weights of a zoo name, hub id, folder or file: on this machine, else from the Hugging Face hub."""
    found = zoo.where(name)
    if found is not None and found.is_dir():
        files = [found / file for file in ("model.safetensors", "pytorch_model.bin") if (found / file).is_file()]
        if not files:
            raise InputError(f"No weights in {found}", "model.safetensors or pytorch_model.bin in it")
        return files[0]
    if found is not None:
        return found
    if name in zoo.BACKBONES and zoo.BACKBONES[name].embedded:
        raise InputError(
            f"{zoo.BACKBONES[name].embedded_file} is missing, a part of this package", todo="Install samsans again"
        )
    hub_id = zoo.BACKBONES[name].hub_id if name in zoo.BACKBONES else name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or hub_id.startswith("."):
        if "/" in name or name.endswith((".pth", ".pt", ".bin", ".safetensors")):
            raise InputError(f"{name} does not exist", "a file or folder of weights", "Check the path")
        raise zoo.unknown("backbone", name, zoo.BACKBONES)
    return fetch(name, hub_id)


def fetch(name: str, hub_id: str) -> Path:
    """Download the weights of a hub repository into the Hugging Face cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    log.info("fetching %s from https://huggingface.co/%s", name, hub_id)
    try:
        hf_hub_download(hub_id, "config.json")
        try:
            return Path(hf_hub_download(hub_id, "model.safetensors"))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            return Path(hf_hub_download(hub_id, "pytorch_model.bin"))
    except OSError as error:
        entry = zoo.BACKBONES.get(name)
        if entry is not None and entry.file_name:
            manual = f"download {entry.url} into this folder ({Path.cwd()})"
        else:
            manual = f"download the files of https://huggingface.co/{hub_id} into a folder and name it as backbone"
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"The weights of {name} are not on this machine and could not be fetched: {reason}",
            todo=f"Without a connection {manual}. For a first try take backbone samsans-small, a part of samsans",
        ) from error


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pth`` file under their own names, in float32; no code in it is executed.

    ``what``: what the file is meant to hold, for the error.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path} cannot be read as weights: {reason}",
            "a .safetensors file, or a .pth file of tensors only",
            "Download it again, or save its state_dict alone",
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} does not hold a dictionary of tensors", what)
    return {key.removeprefix("module."): value.float() for key, value in content.items()}


def check_digest(path: Path) -> None:
    """Refuse an official SAM file whose MD5 does not begin as its own name says it must."""
    entry = next((entry for entry in zoo.list_backbones() if entry.file_name == path.name), None)
    if entry is None or not entry.md5_prefix:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if not digest.startswith(entry.md5_prefix):
        raise InputError(
            f"{path} has MD5 {digest}",
            f"one beginning with {entry.md5_prefix}, as its name says",
            f"Download {entry.url} again",
        )


def check_state(model: Any, state: dict[str, Tensor], path: Path, twin: str) -> None:
    """Raise ``InputError`` that lists, by part of the network, tensors that are missing, unexpected or misshapen."""
    own = {key: tuple(value.shape) for key, value in model.state_dict().items() if key != twin}
    misshapen = [
        f"{key} is {tuple(state[key].shape)} in the file and {own[key]} in the model"
        for key in own.keys() & state.keys()
        if tuple(state[key].shape) != own[key]
    ]
    problems = {
        "missing": by_part(own.keys() - state.keys()),
        "unexpected": by_part(state.keys() - own.keys()),
        "of another shape": by_part(misshapen),
    }
    if any(problems.values()):
        lines = [f"\n  {kind}: {line}" for kind, found in problems.items() for line in found]
        raise InputError(f"The weights in {path} do not fit:{''.join(lines)}", "every tensor of a SAM and no other")


def by_part(keys: Any, limit: int = 4) -> list[str]:
    """``part: n (names...)`` for every top-level module among ``keys``."""
    parts: dict[str, list[str]] = {}
    for key in sorted(keys):
        parts.setdefault(key.partition(".")[0], []).append(key)
    return [
        f"{part}: {len(names)} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"
        for part, names in parts.items()
    ]
