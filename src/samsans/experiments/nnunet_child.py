"""An nnU-Net that is installed in an environment of its own, driven through that environment's Python."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samsans import io
from samsans.errors import InputError

HOW = (
    "nnU-Net needs an environment of its own, because it brings packages that samsans does without, torchvision among "
    "them: `python -m venv nnunet`, `nnunet/bin/pip install nnunetv2`, then --python nnunet/bin/python"
)
PROBE = """\
import json, platform
from importlib.metadata import version
import nnunetv2.run.run_training
import torch
from nnunetv2 import paths
cuda = torch.cuda.is_available()
print("@" + json.dumps({
    "versions": {"nnunetv2": version("nnunetv2"), "torch": torch.__version__, "python": platform.python_version()},
    "cuda": cuda,
    "device": torch.cuda.get_device_name(0) if cuda else "cpu (" + platform.machine() + ")",
    "external": hasattr(paths, "nnUNet_extTrainer"),
}))
"""
# What the command nnUNetv2_... does, with its folders set in this process alone.
START = """\
import importlib, json, sys
from os import environ
environ.update(json.loads(sys.argv.pop(1)))
module, _, function = sys.argv.pop(1).partition(":")
getattr(importlib.import_module(module), function)()
"""
ISOLATED = "-I"  # the environment alone: neither our PYTHONPATH nor packages of the user
SHOWN = 15  # last lines of the log in an error


@dataclass(frozen=True)
class NnUNet:
    """An nnU-Net that answers.

    python: of its environment.  versions: of nnunetv2, torch and that Python.  device: ``cuda`` or ``cpu``, as nnU-Net
    takes it.  device_name: for people.
    """

    python: str
    versions: Mapping[str, str]
    device: str
    device_name: str

    @classmethod
    def find(cls, python: str | Path | None) -> NnUNet:
        """Ask an environment for its nnU-Net; InputError where there is none, or one that finds no trainer of ours."""
        if python is None:
            raise InputError("no nnU-Net was named", "--python with the Python of an environment that holds it", HOW)
        try:
            done = subprocess.run(
                [str(python), ISOLATED, "-c", PROBE],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            raise InputError(
                f"{python} cannot be run: {error.strerror}", "the Python of an environment", HOW
            ) from error
        if done.returncode or "@" not in done.stdout:
            why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise InputError(f"{python} has no nnU-Net that starts ({why})", "an environment that holds nnunetv2", HOW)
        found: dict[str, Any] = json.loads(done.stdout.rpartition("@")[2])
        if not found["external"]:
            raise InputError(
                f"nnU-Net {found['versions']['nnunetv2']} in {python} finds no trainer outside of itself",
                "one that reads nnUNet_extTrainer, e.g. 2.8.1",
                "Update it: pip install -U nnunetv2, in that environment",
            )
        return cls(str(python), found["versions"], "cuda" if found["cuda"] else "cpu", found["device"])


@dataclass(frozen=True)
class Workspace:
    """The folders of one experiment with nnU-Net.

    folder: holds ``raw``, ``preprocessed``, ``results``, ``trainer`` and ``nnunet.log``.  It is absolute.
    """

    nnunet: NnUNet
    folder: Path

    @property
    def log(self) -> Path:
        """What nnU-Net printed."""
        return self.folder / "nnunet.log"

    def variables(self) -> dict[str, str]:
        """The environment variables by which nnU-Net knows its folders."""
        folders = {name: str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        return {f"nnUNet_{n}": f for n, f in folders.items()} | {"nnUNet_extTrainer": str(self.folder / "trainer")}

    def step(
        self, name: str, entry: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> float:
        """Run ``module:function`` of nnU-Net unless ``NAME.json`` tells that it was done; the seconds it took.

        variables: more of its environment.

        Raises InputError with the last lines of its output where it fails.
        """
        done = self.folder / f"{name}.json"
        if done.is_file():
            return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
        command = [
            self.nnunet.python,
            ISOLATED,
            "-u",
            "-c",
            START,
            json.dumps(self.variables() | dict(variables or {})),
            entry,
            *arguments,
        ]
        begin = time.monotonic()
        with open(self.log, "ab") as log:
            log.write(f"\n== {name}: {entry} {' '.join(arguments)}\n".encode())
            log.flush()
            start = log.tell()
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, check=False
            )
        if ended.returncode:
            with open(self.log, "rb") as log:
                log.seek(start)
                lines = log.read().decode("utf-8", "replace").strip().splitlines()[-SHOWN:]
            raise InputError(
                f"nnU-Net failed to {name} (exit status {ended.returncode}); its last lines:\n"
                + "\n".join(lines)
                + "\n",
                "",
                f"All of them are in {self.log}. The steps before this one are done and will not be repeated",
            )
        seconds = time.monotonic() - begin
        io.write_json(done, {"seconds": round(seconds, 3)})
        return seconds


def processes() -> int:
    """How many processes nnU-Net may start to prepare data: one a core, at most its own default of 8."""
    return max(1, min(8, os.cpu_count() or 1))
