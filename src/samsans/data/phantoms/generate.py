"""One generator of cases for all families."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from importlib import import_module

import numpy as np

from samsans.data.phantoms.base import Phantom, Recipe
from samsans.errors import InputError

FAMILIES: dict[str, str] = {
    "fundus": "samsans.data.phantoms.fundus:draw",
    "ultrasound": "samsans.data.phantoms.ultrasound:draw",
    "torso": "samsans.data.phantoms.torso:draw",
    "lesions": "samsans.data.phantoms.lesions:draw",
    "tubes": "samsans.data.phantoms.tubes:draw",
    "distractors": "samsans.data.phantoms.distractors:draw",
    "video": "samsans.data.phantoms.ultrasound:draw_video",
    "two_objects": "samsans.data.phantoms.two_objects:draw",
}
CASES_OF_A_PATIENT = {"fundus": "rl"}  # right and left eye, one letter a case; one case everywhere else
SMALLEST = 32


def cases_per_patient(family: str) -> int:
    """How many cases in a row belong to one patient; InputError for an unknown family."""
    if family not in FAMILIES:
        raise InputError(f"Unknown phantom family {family!r}", f"one of {', '.join(FAMILIES)}")
    return len(CASES_OF_A_PATIENT.get(family, " "))


def make(
    family: str, n: int, *, size: int = 128, difficulty: float = 0.5, seed: int = 0, start: int = 0
) -> Iterator[Phantom]:
    """Cases ``start .. start + n - 1`` of ``family``, generated one by one.

    Ids are ``FAMILY-0000``; where patients have several cases a letter follows (``fundus-0000r``, ``fundus-0000l``) and
    the part before it is the patient.

    A case depends on ``(family, index, seed, size, difficulty)`` alone, not on ``n``.  Its anatomy is drawn from a
    stream of its own, so that the same index at another size or difficulty shows the same patient.

    size: side of an image or slice in pixels, at least 32; volumes get their number of slices from it.
    difficulty: 0 (high contrast, little noise, no distractors) to 1.

    Raises InputError for an unknown family, a negative ``n``, ``start`` or ``seed``, a size below 32, or a
    difficulty outside [0, 1]: at once, not at the first case.
    """
    cases_per_patient(family)
    if n < 0 or start < 0 or seed < 0:
        raise InputError(f"{n} cases from number {start} with seed {seed}", "numbers that are not negative")
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
        patient, which = divmod(index, cases_per_patient(family))
        name = f"{family}-{patient:04d}"
        # the last number names the stream: 0 patient, 1 shape, 2 noise
        shared, shape, noise = (
            np.random.default_rng(np.random.SeedSequence([seed, key, number, stream]))
            for stream, number in enumerate((patient, index, index))
        )
        yield draw(
            Recipe(
                id=(name + CASES_OF_A_PATIENT.get(family, " ")[which]).strip(),
                patient=name,
                size=size,
                difficulty=difficulty,
                index=index,
                shared=shared,
                shape=shape,
                noise=noise,
            )
        )
