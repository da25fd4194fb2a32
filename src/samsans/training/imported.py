"""A run folder from weights that the authors of a method released, so that ``predict`` takes them as any other run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from samsans import config as configuration
from samsans import methods
from samsans.data.classes import named_classes, write_classes
from samsans.errors import InputError
from samsans.io.atomic import atomic_path, write_text
from samsans.io.files import file_hash
from samsans.methods.weights import save_weights
from samsans.training.run import check_folder
from samsans.zoo import RELEASED

SYNAPSE = ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")
WINDOW = (-125.0, 275.0)  # HU, of Synapse
PATCH = 16  # of every SAM


def import_released(
    checkpoint: str | Path,
    out: str | Path,
    *,
    backbone: str,
    method: str = "hsam",
    input_size: int | None = None,
    classes: Sequence[str] = (),
    window: Sequence[float] | None = None,
    names: Mapping[str, str | None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the run folder of a released checkpoint: ``config.yaml``, ``classes.json``, ``model/last.safetensors``.

    Args:
        checkpoint: The file as released.
        out: The run folder: new or empty.  It is written only once everything has been loaded, ``config.yaml`` last.
        backbone: The SAM it was trained on: a name of ``samsans models``, or a file or folder of weights.
        method: Which method: hsam.
        input_size: Side in pixels; by default the one that the file tells.
        classes: Names of the objects in the order of the classes; by default those of Synapse where there are eight.
        window: Intensities [low, high] shown as black and white; by default Synapse's -125 to 275 HU where its objects
            are, else each volume's own percentiles.
        names: Rows of the table of names tried first, see ``samsans.methods.hsam.released``.
        say: Told each thing that is assumed, since the file does not tell it.

    Returns:
        The run folder.

    Raises:
        InputError: there is no such method, the folder is not empty, or the checkpoint does not fit.
    """
    if method not in RELEASED:
        raise InputError(f"released weights of {method!r}", f"one of {', '.join(RELEASED)}")
    if window is not None and len(window) != 2:
        raise InputError(f"a window of {len(window)} numbers", "two: low and high")
    loader: Any = importlib.import_module(RELEASED[method])
    found = loader.read_released(checkpoint, names)
    objects = found.classes - 1
    synapse = not classes and objects == len(SYNAPSE)
    if not synapse and len(classes) != objects:
        raise InputError(
            f"{len(classes)} names for the classes of {checkpoint}",
            f"{objects}, in the order of its classes, without background",
            "Name them: --classes NAME ...",
        )
    infos = named_classes({name: [value] for value, name in enumerate(SYNAPSE if synapse else classes, 1)})
    if synapse and say is not None:
        say(f"assumed: the eight objects are Synapse's, {', '.join(SYNAPSE)}; if not, name yours: --classes NAME ...")
        if not window:
            say("assumed: intensities in HU, shown from {:g} to {:g}; if not, give --window LOW HIGH".format(*WINDOW))
    if input_size is None and found.positions is None:
        raise InputError(
            f"{checkpoint} does not tell its input side", "weights of CMAttn, or the side", "Give it: --input-size 512"
        )
    side = input_size or isqrt(found.positions or 0) * PATCH
    config = configuration.from_dict(
        {
            "backbone": {"name": backbone, "input_size": side},
            "lora": {"rank": found.rank, "alpha": float(found.rank)},
            "data": {"window": list(window) if window else list(WINDOW) if synapse else None},
        },
        method=method,
        preset="released",
    )
    run = Path(out)
    check_folder(config, run, resume=False)
    built = methods.build(config, [info.name for info in infos])
    loader.load_released(built, checkpoint, names)
    with atomic_path(run / "model" / "last.safetensors") as temporary:
        save_weights(built, temporary, notes={"imported": Path(checkpoint).name, "sha256": file_hash(checkpoint)})
    write_classes(run / "classes.json", infos)
    write_text(run / "config.yaml", configuration.dump(config))
    return run
