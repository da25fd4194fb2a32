"""Generated phantoms: small data sets with exact truth, so that tests and demos need no download.

    from samsans.data.phantoms import make, write

    case = next(make("fundus", 1))              # case.image (1, 128, 128, 3) uint8, case.labels[0] (1, 128, 128)
    write("torso", "demo", n=4, layout="nnunet", test=2)

They resemble the modalities they are named after in what makes segmentation hard (texture, speckle, shadows, partial
contrast, distractors); they are not simulations of physics and say nothing about patients.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from importlib import import_module

import numpy as np

from samsans.data.phantoms.base import Phantom, Recipe
from samsans.errors import InputError

__all__ = ["FAMILIES", "Phantom", "make"]

FAMILIES: dict[str, str] = {
    "fundus": "samsans.data.phantoms.fundus:draw",
    "ultrasound": "samsans.data.phantoms.ultrasound:draw",
    "lesions": "samsans.data.phantoms.lesions:draw",
    "video": "samsans.data.phantoms.ultrasound:draw_video",
    "two_objects": "samsans.data.phantoms.two_objects:draw",
}
CASES_PER_PATIENT = {"fundus": 2}  # right and left eye; one everywhere else
SMALLEST = 32


def make(
    family: str, n: int, *, size: int = 128, difficulty: float = 0.5, seed: int = 0, start: int = 0
) -> Iterator[Phantom]:
    """Cases ``start .. start + n - 1`` of ``family``, generated one by one.

    A case depends on ``(family, index, seed, size, difficulty)`` alone, not on ``n``.  Its anatomy is drawn from a
    stream of its own, so that the same index at another size or difficulty shows the same patient.

    size: side of an image or slice in pixels, at least 32; volumes get their number of slices from it.
    difficulty: 0 (high contrast, little noise, no distractors) to 1.

    Raises InputError for an unknown family, a negative ``n`` or ``start``, a size below 32, or a difficulty outside
    [0, 1]: at once, not at the first case.
    """
    if family not in FAMILIES:
        raise InputError(f"Unknown phantom family {family!r}", f"one of {', '.join(FAMILIES)}")
    if n < 0 or start < 0:
        raise InputError(f"{n} cases from number {start}", "numbers that are not negative")
    if size < SMALLEST:
        raise InputError(f"Phantom size {size} px", f"at least {SMALLEST} px")
    if not 0 <= difficulty <= 1:
        raise InputError(f"Phantom difficulty {difficulty}", "a number from 0 (easy) to 1 (hard)")
    return _cases(family, n, size, float(difficulty), seed, start)


def _cases(family: str, n: int, size: int, difficulty: float, seed: int, start: int) -> Iterator[Phantom]:
    module, function = FAMILIES[family].split(":")
    draw = getattr(import_module(module), function)
    key = zlib.crc32(family.encode())
    for index in range(start, start + n):
        patient = index // CASES_PER_PATIENT.get(family, 1)
        # the last number names the stream: 0 patient, 1 shape, 2 noise
        shared, shape, noise = (
            np.random.default_rng(np.random.SeedSequence([seed, key, number, stream]))
            for stream, number in enumerate((patient, index, index))
        )
        yield draw(
            Recipe(
                id=f"{family}_{index:04d}", patient=f"{family}_p{patient:04d}", size=size, difficulty=difficulty,
                index=index, shared=shared, shape=shape, noise=noise,
            )
        )  # fmt: skip
