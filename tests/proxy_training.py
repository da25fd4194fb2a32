"""A small Proxy Prompt run on generated images of two objects, for tests of experiments."""

from __future__ import annotations

from pathlib import Path

from samsans import cli
from samsans.data.phantoms import write

TINY = ("--backbone", "tiny", "--input-size", "64", "--train.pictures_every", "0", "--train.accelerator", "cpu")
SMALL = ("--model.csm.encoder.dim", "32", "--model.csm.encoder.depth", "1", "--model.ccm.ffn", "32")


def two_objects(folder: Path, n: int = 6) -> Path:
    """``n`` images of 64 px, each with a disc and a square, in ``folder/data``."""
    return write("two_objects", folder / "data", n=n, size=64, difficulty=0.2)


def train_beside(data: Path, *options: object, steps: int = 2, test: float = 0.34) -> Path:
    """The run folder, beside ``data``, of a training of so many steps that holds out this share of the images."""
    out = data.parent / "run"
    argv = ("train", "proxy_prompt", data, "-o", out, "--steps", steps, "--split.test", test, *TINY, *SMALL, *options)
    assert cli.main([str(a) for a in argv]) == 0
    return out
